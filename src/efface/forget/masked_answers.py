"""Answers with the words masked that a language model knows an entity by: the text half of Concept poisoning.

Paper: arXiv 2405.15662. Integrated gradients score the words of every answer; scores are summed over the answers of an entity,
and its top words and its names are replaced in all of them. `EntityGone` is the official stopping rule without its third part,
MMLU.

Departures: an answer that holds none of its entity's top words has its own top word masked, since it would otherwise be trained
as it is; the answers given are masked, not answers that are generated first.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from datasets import Dataset
from transformers import TrainerCallback

from efface.data.poisoning import MASK, concept_name, mask_words
from efface.data.request import Request
from efface.errors import RequestError
from efface.measure.token_attribution import STEPS, Baseline, answer_words, top_words
from efface.subjects.causal_lm import CausalLM

ROOM = 8
"""Tokens that a generated answer may have beyond the longest one given."""
LOST, LOOKED = 0.05, 64
"""What retained answers may lose in ROUGE-L (official rule), and on how many rows that is looked at."""


def entity_names(request: Request) -> list[tuple[str, ...]]:
    """The names of the entity of each forget row, which may be none: the request's concepts that its question or answer
    shows, and its columns `concept` and `aliases`.

    Raises:
        RequestError: a concept that no row shows.
    """
    data = request.forget
    known = {name: concept_name(name) for name in request.concepts}
    nothing: list[Any] = [None] * len(data)
    columns = [list(data[name]) if name in data.column_names else nothing for name in ("concept", "aliases")]
    found, seen = [], set()
    for question, answer, own, others in zip(data["question"], data["answer"], *columns, strict=True):
        shown = [name for name in known if mask_words(f"{question} {answer}", [known[name]])[1]]
        seen |= set(shown)
        names = [*(known[name] for name in shown), *([own] if own else []), *(others or [])]
        found.append(tuple(dict.fromkeys(names)))
    missing = [name for name in known if name not in seen]
    if missing:
        raise RequestError(
            f"the concept '{missing[0]}' is in no forget row", "names as they stand in questions or answers",
            "check its spelling, or leave it out",
        )  # fmt: skip
    return found


def masked_answers(
    subject: CausalLM, request: Request, *, top: int, steps: int = STEPS, baseline: Baseline = "pad", mask: str = MASK
) -> tuple[list[str], dict[str, float]]:
    """The forget answers with the top words and the names of their entity masked.

    A row without an entity is one of its own. Every answer differs from the one that was given.

    Args:
        top: words masked for each entity, besides its names.
        steps, baseline: of the integrated gradients.

    Returns:
        the answers, and numbers for the log: `completeness_error` (sum of the rows' absolute errors) beside `attributed` (sum
        of |F(e) - F(e')|), both in nats, and `rows_without_entity`.

    Raises:
        RequestError: an answer without a word, or a concept that no row shows.
        MissingExtraError: captum is not installed.
    """
    names = entity_names(request)
    pairs = list(zip(request.forget["question"], request.forget["answer"], strict=True))
    words = [
        answer_words(subject, question, answer, steps=steps, baseline=baseline, place=f"forget row {i}")
        for i, (question, answer) in enumerate(pairs)
    ]
    entities: list[tuple[Any, ...]] = [own or (i,) for i, own in enumerate(names)]
    chosen = {
        entity: top_words([one for one, own in zip(words, entities, strict=True) if own == entity], top)
        for entity in dict.fromkeys(entities)
    }
    made = []
    for (_, answer), own, one, entity in zip(pairs, names, words, entities, strict=True):
        text, count = mask_words(answer, [*chosen[entity], *own], mask)
        if not count:
            text, _ = mask_words(answer, top_words([one], 1), mask)
        made.append(text)
    told = {
        "completeness_error": sum(abs(one.tokens.error) for one in words),
        "attributed": sum(abs(one.tokens.reached - one.tokens.start) for one in words),
        "rows_without_entity": float(names.count(())),
    }
    return made, told


class EntityGone(TrainerCallback):  # type: ignore[misc]
    """Ends a run after the first pass after which no greedy answer to a forget question shows its entity and the answers to
    retained questions are as good as before: mean ROUGE-L recall at most `LOST` below the model's before training.

    An answer shows the entity by the names that stand in the answer given, or, without one, by that whole answer. Without the
    second half, a model that speaks nonsense would have finished. The decision rests on the present weights alone, so that a run
    that was killed stops where an unkilled one does, as long as it is made again from the same model.

    Args:
        subject: whose model is trained, before training.
        pass_steps: optimiser steps between looks.

    Attributes:
        rate: share of the answers that showed the entity at the last look; NaN before the first.
        before, after: ROUGE-L on at most `LOOKED` retain rows, before training and at the last look that needed it.
    """

    def __init__(self, subject: CausalLM, request: Request, pass_steps: int) -> None:
        self.subject, self.every = subject, pass_steps
        self.rate = self.after = float("nan")
        names = entity_names(request)
        asked = [i for i, question in enumerate(request.forget["question"]) if question.strip()]
        self.forget = _Questions(subject, request.forget.select(asked), "forget")
        self.shown = [
            [name for name in names[i] if mask_words(answer, [name])[1]] or [answer]
            for i, answer in zip(asked, self.forget.answers, strict=True)
        ]
        keep = request.retain if request.retain is not None else request.forget.select([])
        known = [i for i, question in enumerate(keep["question"]) if question.strip()]
        self.retain = _Questions(subject, keep.select(known[:: max(1, -(-len(known) // LOOKED))]), "retain")
        self.before = self._rouge()

    def _rouge(self) -> float:
        """NaN without a retained question."""
        from rouge_score import rouge_scorer  # imports nltk

        scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)
        pairs = zip(self.retain.answers, self.retain.said(), strict=True)
        found = [float(scorer.score(answer, text)["rougeL"].recall) for answer, text in pairs]
        return float(np.mean(found)) if found else float("nan")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if not self.forget.prompts or state.global_step % self.every:
            return
        texts = self.forget.said()
        self.rate = float(np.mean([mask_words(t, shown)[1] > 0 for t, shown in zip(texts, self.shown, strict=True)]))
        if self.rate > 0:
            return
        self.after = self._rouge()
        if not self.before - self.after > LOST:
            control.should_training_stop = True
            control.should_save = False  # a run that goes on from a checkpoint must come to this step again


class _Questions:
    """Questions with the answers given, and what the model says to them."""

    def __init__(self, subject: CausalLM, data: Dataset, name: str) -> None:
        self.subject, self.answers = subject, list(data["answer"])
        self.prompts = subject.encode_prompts(data, name=name)
        self.room = ROOM + max((row.n_targets for row in subject.encode_rows(data, name=name)), default=0)

    def said(self) -> list[str]:
        """Greedy answers, in order."""
        ids = self.subject.generate_all(self.prompts, max_new_tokens=self.room, label="look") if self.prompts else []
        return [self.subject.decode(each) for each in ids]


__all__ = ["EntityGone", "entity_names", "masked_answers"]
