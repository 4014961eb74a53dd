"""Proof: membership attacks that calibrate for hard examples beat the plain loss, and a fine-tuned model gives itself away.

Part 1, classifiers: 33 small ones on random halves of 400 noisily labelled digits; each in turn is attacked with the
other 32 as shadow models. Part 2, text: a small character model learns some sentences, then 150 more of the same
grammar; the attacks of the audit tell these from 150 that it never saw. Members and non-members are drawn alike.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from datasets import Dataset

from efface.audit.metrics import lira, membership
from efface.audit.metrics.roc import auc, tpr_at_fpr
from efface.audit.observe import observe
from efface.audit.table import TokenScores
from efface.data.columns import canonical
from efface.data.request import data_digest
from efface.lab.shadows import Shadows, shadows
from efface.learn.recipes.causal_lm import CausalLMConfig, learn
from efface.proofs.proof import Check, Proof
from efface.run.digests import digest_value
from efface.run.files import make_folder
from efface.subjects import CausalLM
from efface.train.reference import cache_folder

SEEDS = (0, 1, 2)
TEXTS = 150
BASE_TEXTS = 300
LIRA_GAIN = 0.05
LIRA_RATIO = 3.0
TEXT_AUC = 0.9
REFERENCE_GAP = 0.06

BASE = CausalLMConfig(
    tokenizer="bpe", vocabulary=257, width=96, depth=2, heads=4, context=160, learning_rate=2e-3, epochs=12, batch_size=16,
    warmup_ratio=0.1, schedule="cosine",
)  # fmt: skip
"""257 tokens are the 256 bytes and the end of text: a character model."""

TUNE = BASE.model_copy(update={"epochs": 20.0})

TEXT_ATTACKS: dict[str, Callable[[TokenScores, TokenScores], membership.Floats]] = {
    "LOSS": lambda scores, _: membership.loss(scores),
    "Zlib": lambda scores, _: membership.zlib(scores),
    "Ref": membership.reference_calibrated,
    "Min-K %": lambda scores, _: membership.min_k(scores),
    "Min-K %++": lambda scores, _: membership.min_k_plus_plus(scores).scores,
}

_GRAMMAR = (
    (
        "baker clerk diver farmer guard hunter joiner keeper lawyer miller nurse painter ranger sailor tailor weaver"
    ).split(),
    (
        "borrowed buried carried counted dropped hid lost mended moved painted sold stole traded washed weighed wrapped"
    ).split(),
    ("amber bronze copper dusty faded golden heavy ivory jagged narrow oval pale rusty silver tiny velvet").split(),
    (
        "anchor basket candle drum engine feather goblet hammer kettle ladder mirror needle pillow ribbon "
        "saddle trumpet"
    ).split(),
    (
        "bridge canal castle depot forest garage harbour island kiosk lagoon market orchard palace quarry "
        "station tunnel"
    ).split(),
    ("autumn dawn dusk january june lent march may midnight monday noon october spring sunday tuesday winter").split(),
)


def sentences(count: int, seed: int) -> list[str]:
    """Distinct sentences of one seeded grammar, six free words each: 24 bits of chance to remember."""
    rng = np.random.default_rng(seed)
    size = len(_GRAMMAR[0])
    picks = rng.choice(size ** len(_GRAMMAR), count, replace=False)
    found = []
    for pick in picks:
        who, did, how, what, where, when = (words[pick // size**i % size] for i, words in enumerate(_GRAMMAR))
        found.append(f"the {who} {did} a {how} {what} near the {where} in {when}")
    return found


def _digits(seed: int) -> tuple[float, float, float, float]:
    """AUC and TPR at 1 % FPR of LOSS, then of LiRA, each the mean over all models as the attacked one."""
    lab: Shadows = shadows(seed)
    phi = lira.logit_margin(lab.logits, lab.labels)  # [N, n]
    loss = -np.logaddexp(0.0, -phi)  # log p_y
    rows = []
    for target, member in enumerate(lab.keep):
        others = np.arange(len(phi)) != target
        ratio = lira.online(phi[target], phi[others], lab.keep[others])
        rows.append([*_auc_and_tpr(loss[target], member), *_auc_and_tpr(ratio, member)])
    return tuple(np.mean(rows, axis=0).tolist())


def _auc_and_tpr(scores: lira.Floats, member: lira.Flags) -> tuple[float, float]:
    rate = tpr_at_fpr(scores[member], scores[~member], 0.01).estimate
    assert rate is not None, "200 non-members resolve 1 %"
    return auc(scores[member], scores[~member]), rate.value


def _rows(texts: list[str], name: str) -> Dataset:
    return canonical([{"id": f"{name}-{i}", "text": text} for i, text in enumerate(texts)], name)


def _models() -> tuple[CausalLM, CausalLM, Dataset, Dataset]:
    """The reference model, the model tuned on the members, the members and the non-members."""
    texts = sentences(BASE_TEXTS + 2 * TEXTS, seed=0)
    base = _rows(texts[:BASE_TEXTS], "base")
    members = _rows(texts[BASE_TEXTS : BASE_TEXTS + TEXTS], "member")
    others = _rows(texts[BASE_TEXTS + TEXTS :], "other")
    key = digest_value({
        "lab": "sentences", "base": BASE.model_dump(), "tune": TUNE.model_dump(),
        "data": [data_digest(data) for data in (base, members)],
    })  # fmt: skip
    folder = make_folder(cache_folder() / "lab" / key.removeprefix("sha256:")[:24])
    reference = learn([base], folder / "reference", BASE, label="sentences: reference")
    start = learn([base], folder / "reference", BASE)  # tuning works in place: a second copy, from the folder
    return reference, learn([members], folder / "tuned", TUNE, model=start, label="sentences: tuned"), members, others


def _text() -> tuple[dict[str, float], float]:
    """AUC of every attack on the tuned model, and of LOSS on the reference model."""
    reference, tuned, members, others = _models()

    def scored(model: CausalLM) -> tuple[TokenScores, TokenScores]:
        inside, outside = (observe(model, data, generations=False).select("answer") for data in (members, others))
        return inside, outside

    ours, theirs = scored(tuned), scored(reference)
    found = {
        name: auc(*(attack(mine, base) for mine, base in zip(ours, theirs, strict=True)))
        for name, attack in TEXT_ATTACKS.items()
    }
    return found, auc(*(membership.loss(side) for side in theirs))


def checks() -> list[Check]:
    """LiRA against LOSS first."""
    runs = np.array([_digits(seed) for seed in SEEDS])  # [seeds, 4]
    loss_auc, loss_tpr, lira_auc, lira_tpr = runs.mean(axis=0).tolist()
    one_member = 1 / 200  # a rate of less than one member counts as one: the ratio stays finite
    found = [
        Check(
            name="digits: AUC of LiRA minus AUC of LOSS, mean over seeds and attacked models",
            figure=lira_auc - loss_auc, relation=">=", threshold=LIRA_GAIN, baseline=0.0, seeds=SEEDS,
        ),
        Check(
            name="digits: TPR at 1 % FPR of LiRA over that of LOSS, means over seeds and attacked models",
            figure=lira_tpr / max(loss_tpr, one_member), relation=">=", threshold=LIRA_RATIO, baseline=1.0, seeds=SEEDS,
        ),
    ]  # fmt: skip
    aucs, blind = _text()
    found += [
        Check(name=f"text: AUC of {name}", figure=value, relation=">", threshold=TEXT_AUC, baseline=blind)
        for name, value in aucs.items()
    ]
    found.append(Check(
        name="text: distance from 0.5 of the AUC of the reference model alone", figure=abs(blind - 0.5), relation="<=",
        threshold=REFERENCE_GAP,
    ))  # fmt: skip
    return found


PROOF = Proof(
    system="membership-inference",
    claim=(
        "Attacks that compare an example with models trained with and without it (LiRA) recognise members far better than "
        "the loss does, above all at a low false positive rate; on a fine-tuned language model every score-table attack works."
    ),
    checks=checks,
    note="Small classifiers and a character model of 0.2 M weights; the published ranking of the text attacks needs large ones.",
)
