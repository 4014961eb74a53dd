"""The MUSE suite: verbatim memory, knowledge memory, privacy leakage and utility, on a published corpus or on one's own rows.

Paper: Shi et al., MUSE: machine unlearning six-way evaluation for language models, arXiv 2407.06460 (ICLR 2025). VerbMem and
KnowMem are mean ROUGE-L F1, stemmer off, in percent. PrivLeak = 100 (A - A_retrain) / A_retrain, with A the chance that an
unseen text looks more like training data than a forgotten one by Min-40 %: near -100 the forget set is still a member, 0 is
the retrained model, above 0 it stands out the other way. The other two of the six, scalability and sustainability, are runs
over growing and successive requests (`efface.data.muse`, `efface.forget.sequence`).

Departures: AUC(f_retrain) is measured on the retrained model (--against), not taken from a table that holds for two corpora
and two base models (the official code looks it up under a key that it does not have, and stops); at least one token enters
Min-K; the difference of the AUCs stands beside the ratio, which explodes where the retrained model's is near 0; the gradient
norm is taken in evaluation mode. A new line at the very beginning of an answer does not end it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from efface.audit.benchmarks.muse_sets import SIDES, MuseConfig, observe_model, sets
from efface.audit.evidence import Evidence, compare
from efface.audit.finding import Estimate, Finding, Threshold
from efface.audit.metrics import membership
from efface.audit.metrics.intervals import bootstrap, bootstrap_mean
from efface.audit.metrics.roc import auc_interval, auc_of_levels, to_levels
from efface.audit.suite import Suite
from efface.audit.table import TokenScores
from efface.catalog import Card
from efface.errors import InputError, RunError

CARD = Card(
    name="muse",
    system="muse",
    title="MUSE",
    summary="Verbatim memory, knowledge memory, privacy leakage and utility of a model after forgetting.",
    paper="Shi et al., MUSE: machine unlearning six-way evaluation for language models, arXiv 2407.06460 (ICLR 2025)",
    verb="audit",
    mechanism="benchmarks",
    modalities=("text",),
    subjects=("causal-lm",),
    needs=("forget", "retain", "holdout", "retrained"),
    defaults_source="muse_bench: 128 new tokens (VerbMem), 32 (KnowMem), Min-40 %, ROUGE-L F1 without stemmer",
)

Floats = npt.NDArray[np.float64]
Sides = tuple[Floats, Floats]

GRID = (0.05, 0.1, 0.2, 0.3, 0.5, 0.6)
"""Further shares of Min-K that the official code logs; PrivLeak's own is `k`."""

NO_HOLDOUT = "no holdout texts (--holdout, or muse.data): without texts never seen there is nothing to compare with"
NO_RETRAINED = "needs a retrained model (--against), or muse.reference=RUN of this corpus and tokenizer"


def _scores(evidence: Evidence, role: str, kind: str = "privleak") -> tuple[TokenScores, TokenScores] | None:
    tables = [evidence.table(role, f"muse.{kind}_{side}") for side in SIDES]
    if tables[0] is None or tables[1] is None:
        return None
    return tables[0].select("answer"), tables[1].select("answer")


def _min_k(evidence: Evidence, role: str, k: float) -> Sides | None:
    """Member-like scores of both sides; the retrained model's may come from another run."""
    own = _scores(evidence, role)
    if own is not None:
        return membership.min_k(own[0], k, min_tokens=1), membership.min_k(own[1], k, min_tokens=1)
    if role != "retrained":
        return None
    stored = (evidence.attack("muse", "unlearned") or {}).get("reference")
    if stored is None:
        return None
    if stored["k"] != k:
        raise RunError(f"a reference of k = {stored['k']}", f"k = {k}", "audit again")
    return np.array(stored["forget"]), np.array(stored["holdout"])


def member_scores(evidence: Evidence, role: str, attack: str) -> Sides | None:
    """[F] and [H] scores of an attack, larger = more like training data; None where it cannot be run on that model."""
    own = _scores(evidence, role)
    if own is None:
        return None
    if attack == "loss":
        return membership.loss(own[0]), membership.loss(own[1])
    if attack == "zlib":
        return membership.zlib(own[0]), membership.zlib(own[1])
    if attack == "min_k_plus_plus":
        k = evidence.config.of_suite("muse").k
        plus = [membership.min_k_plus_plus(side, k, min_tokens=1).scores for side in own]
        return plus[0], plus[1]
    if attack.startswith("min_k_"):
        k = int(attack.removeprefix("min_k_")) / 100
        return membership.min_k(own[0], k, min_tokens=1), membership.min_k(own[1], k, min_tokens=1)
    if attack == "lower":
        lowered = _scores(evidence, role, "lower")
        if lowered is None:
            return None
        return membership.lowercase(own[0], lowered[0]), membership.lowercase(own[1], lowered[1])
    if attack == "reference":
        other = _scores(evidence, "retrained")
        if other is None or role == "retrained":
            return None
        return membership.reference_calibrated(own[0], other[0]), membership.reference_calibrated(own[1], other[1])
    norms = (evidence.attack("muse", role) or {}).get("gradnorm")
    return None if norms is None else (-np.array(norms["forget"]), -np.array(norms["holdout"]))


ATTACKS = {
    "loss": "PPL (mean loss)",
    "lower": "PPL of the text in lower case",
    "zlib": "PPL over compressed size",
    "min_k_plus_plus": "Min-K %++",
    "reference": "Reference-calibrated",
    "gradnorm": "Gradient norm",
    **{f"min_k_{round(100 * k):02d}": f"Min-{round(100 * k)} %" for k in GRID},
}


def auc_difference(own: Sides, retrained: Sides, *, seed: int = 0) -> Estimate:
    """A - A_retrain, with the bootstrap resampling a text for both models together; -0.5 where all are members.

    Args:
        own, retrained: [F] and [H] member-like scores of the two models over the same texts.

    Raises:
        InputError: sets of different sizes.
    """
    if any(len(a) != len(b) for a, b in zip(own, retrained, strict=True)):
        raise InputError("other numbers of texts for the retrained model", "the same texts for both models")
    inside, outside, levels = to_levels(*own)
    inside_r, outside_r, levels_r = to_levels(*retrained)

    def statistic(members: npt.NDArray[np.int64], others: npt.NDArray[np.int64]) -> Floats:
        ours = auc_of_levels(members[..., 0], others[..., 0], levels)
        result: Floats = auc_of_levels(members[..., 1], others[..., 1], levels_r) - ours
        return result

    return bootstrap(statistic, np.stack([inside, inside_r], 1), np.stack([outside, outside_r], 1), seed=seed)


def checkpoint(utility: Sequence[float], retrained: float) -> int:
    """Which epoch MUSE takes (rule 6): the first whose utility is below the retrained model's, else the last. From 0.

    Raises:
        InputError: no epoch.
    """
    if not utility:
        raise InputError("no epoch", "the utility of one or more")
    return next((index for index, value in enumerate(utility) if value < retrained), len(utility) - 1)


def _rouge(evidence: Evidence, part: str) -> Callable[[str], Estimate | None]:
    def value(role: str) -> Estimate | None:
        table = evidence.table(role, f"muse.{part}")
        if table is None or table.generations is None:
            return None
        return bootstrap_mean(100 * np.array(table.generated("rougeL_f1_unstemmed")), seed=evidence.config.seed)

    return value


def memory(evidence: Evidence) -> list[Finding]:
    """VerbMem, KnowMem on the forget set, and utility (KnowMem on the retain set)."""
    limits = evidence.config.thresholds
    near = Threshold(quantity="gap", relation="<=", bound=100 * limits.memorisation_gap)
    share = Threshold(quantity="ratio", relation=">=", bound=limits.utility_share)
    return [
        compare(evidence, "muse/verbmem", "Verbatim memory (VerbMem)",
                "ROUGE-L F1 in percent of the model's continuation of a forgotten text with the true one. The retrained "
                "model's value is the aim: some words follow from the others.",
                "forgetting", "retrained", _rouge(evidence, "verbmem"), threshold=near, unit="%"),
        compare(evidence, "muse/knowmem_f", "Knowledge memory on the forget set (KnowMem)",
                "ROUGE-L F1 in percent of the answers to questions about what was forgotten.",
                "forgetting", "retrained", _rouge(evidence, "knowmem_f"), threshold=near, unit="%",
                reason="the forget set has no questions"),
        compare(evidence, "muse/knowmem_r", "Utility (KnowMem on the retain set)",
                "ROUGE-L F1 in percent of the answers to questions about what was to be kept.",
                "utility", "higher", _rouge(evidence, "knowmem_r"), threshold=share, unit="%",
                reason="the retain set has no questions, or was not given"),
    ]  # fmt: skip


def privacy(evidence: Evidence) -> list[Finding]:
    """PrivLeak, the difference of the AUCs beside it, and the other attacks."""
    seed, k = evidence.config.seed, evidence.config.of_suite("muse").k
    theirs = _min_k(evidence, "retrained", k)
    gap = Threshold(quantity="gap", relation="<=", bound=evidence.config.thresholds.membership_gap)

    def leak(role: str) -> Estimate | None:
        own = _min_k(evidence, role, k)
        if own is None or theirs is None:
            return None
        try:
            return membership.priv_leak(*own, *theirs, seed=seed)
        except InputError:  # the retrained model's share is 0: the ratio is not defined
            return None

    def difference(role: str) -> Estimate | None:
        own = _min_k(evidence, role, k)
        return None if own is None or theirs is None else auc_difference(own, theirs, seed=seed)

    def plain(role: str) -> Estimate | None:
        own = _min_k(evidence, role, k)
        return None if own is None else auc_interval(*own, seed=seed)

    why = NO_HOLDOUT if _scores(evidence, "unlearned") is None else NO_RETRAINED
    undefined = "the retrained model never ranks an unseen text above a forgotten one: the ratio is not defined"
    found = [
        compare(evidence, "muse/privleak", "Privacy leakage (PrivLeak)",
                f"Relative change of the Min-{100 * k:g} % AUC against the retrained model. 0 is ideal; near -100 the "
                "forget set still looks like training data; above 0 it stands out the other way (over-unlearned).",
                "privacy", "none", leak, unit="%", reason=why if theirs is None else undefined),
        compare(evidence, "muse/auc_difference", "Difference of the AUCs behind PrivLeak",
                "Chance that an unseen text looks more like training data than a forgotten one, minus the same for the "
                "retrained model: 0 is ideal, negative is still a member. Steady where the ratio explodes.",
                "privacy", "none", difference, reason=why),
        compare(evidence, "muse/min_k/auc", f"Min-{100 * k:g} %: AUC",
                "Chance that a forgotten text looks more like training data than an unseen one: 0.5 is a coin, 1 is "
                "certainty; the retrained model's value is the aim.",
                "privacy", "retrained", plain, threshold=gap, reason=why),
    ]  # fmt: skip
    for attack, title in ATTACKS.items():

        def auc(role: str, attack: str = attack) -> Estimate | None:
            own = member_scores(evidence, role, attack)
            return None if own is None else auc_interval(*own, seed=seed)

        reasons = {"reference": "calibration needs a retrained model (--against)",
                   "gradnorm": "left out: one backward pass for each text (muse.gradnorm=true)"}  # fmt: skip
        found.append(compare(
            evidence, f"muse/{attack}/auc", f"{title}: AUC",
            "Another attack of MUSE's log on the same texts: 1 where forgotten texts are surely taken for training data."
            + (" A short text's compressed size is mostly its header." if attack == "zlib" else ""),
            "privacy", "retrained", auc,
            reason=why if _scores(evidence, "unlearned") is None else reasons.get(attack, ""),
        ))  # fmt: skip
    return found


def findings(evidence: Evidence) -> list[Finding]:
    """The whole suite."""
    return [*memory(evidence), *privacy(evidence)]


SUITE = Suite("muse", sets, findings, MuseConfig, attack=observe_model)
