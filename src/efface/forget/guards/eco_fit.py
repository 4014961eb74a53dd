"""What ECO learns before it guards: the gate with its threshold, and the strength of the corruption.

Source: ECO, arXiv 2406.07933, sections 3.2 and 3.3. The weights of the model are read only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from datasets import Dataset

from efface.data.request import Request
from efface.errors import RequestError
from efface.forget.guards.classifier_gate import ClassifierGate
from efface.forget.guards.corrupting_model import EcoModel
from efface.forget.guards.corruption import rms
from efface.forget.guards.prompt_gate import Floats, PromptGate, WordGate, check_both
from efface.forget.guards.prompt_parts import PromptReader
from efface.forget.guards.strength_search import search_strength
from efface.numerics.conformal import class_quantiles, upper_quantile
from efface.run.cost import Cost
from efface.subjects.answers import answer_logits
from efface.subjects.causal_lm import CausalLM
from efface.subjects.prompts import Encoded

if TYPE_CHECKING:
    from efface.forget.guards.eco import EcoConfig

BATCH = 32
"""Rows in one pass of the search."""


@dataclass(frozen=True)
class FittedGate:
    """A gate with its threshold, what to report about it, and its training log."""

    gate: PromptGate
    facts: dict[str, Any]
    log: list[dict[str, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Strength:
    """One strength or n, and what to report about it."""

    sigma: list[float]
    facts: dict[str, Any]


def forgotten_names(request: Request) -> list[str]:
    """The names in the request's concepts, and in the forget set's columns `concept` and `aliases`."""
    found = dict.fromkeys(request.concepts)
    columns = request.forget.column_names
    found |= dict.fromkeys(request.forget["concept"]) if "concept" in columns else {}
    found |= dict.fromkeys(
        name for names in (request.forget["aliases"] if "aliases" in columns else []) for name in names
    )
    return list(found)


def two_sided(p_forget: Floats, is_forget: Floats, rate: float, rule: str) -> float:
    """The threshold that says what the conformal sets say: a prompt is stopped if its p(forget) lies above it.

    Class-conditional sets hold a class y where 1 - p_y <= q_y. Safe: stop where `forget` is in the set, p >= 1 - q_1; strict:
    and `retain` is not, p > q_0.

    Args:
        p_forget: [n] of calibration prompts.
        is_forget: [n] 0 or 1.
        rate: a, the share of each class that may miss its own set.
        rule: `strict` or `safe`.

    Raises:
        InputError: fewer rows of a class than 1 / rate asks for.
    """
    p = np.stack([1 - p_forget, p_forget], axis=1)
    retain, forget = class_quantiles(p, is_forget, rate)
    holds_forget = float(np.nextafter(1 - forget, -np.inf))
    return holds_forget if rule == "safe" else max(holds_forget, float(retain))


def expected_calibration_error(p: Floats, y: Floats, bins: int = 10) -> float:
    """Mean distance between p(forget) and the share of forget prompts, over bins of p, weighted by their rows."""
    place = np.minimum((p * bins).astype(int), bins - 1)
    parts = [place == k for k in range(bins)]
    return float(sum(part.mean() * abs(p[part].mean() - y[part].mean()) for part in parts if part.any()))


def fitted_gate(subject: CausalLM, request: Request, config: EcoConfig, work: Path) -> FittedGate:
    """Fit the gate on the request's prompts and set its threshold.

    Raises:
        RequestError: one class only.
        InputError: too few rows to calibrate with.
    """
    assert request.retain is not None
    reader = PromptReader(subject.tokenizer, subject.prompt)
    sets = ((request.forget, "forget"), (request.retain, "retain"))
    forget, keep = (
        list(dict.fromkeys(reader.text(ids) for ids in subject.encode_prompts(data, name=name))) for data, name in sets
    )
    check_both(forget, keep)
    held_forget, held_keep = list[str](), list[str]()
    rate = config.false_alarms
    if rate is not None:
        rng = np.random.default_rng(np.random.SeedSequence([config.seed, 0xEC0]))
        keep, held_keep = _held_out(keep, config.calibration_share, rng)
        upper_quantile(np.zeros(max(len(held_keep), 1)), rate)  # before any training: are there enough?
        if config.rule != "one-sided":
            forget, held_forget = _held_out(forget, config.calibration_share, rng)
            upper_quantile(np.zeros(max(len(held_forget), 1)), rate)
    check_both(forget, keep)
    log: list[dict[str, float]] = []
    gate: PromptGate
    if config.gate == "classifier":
        gate, train_log = ClassifierGate.fit(forget, keep, encoder=config.classifier, config=config, work=work / "gate")
        log = train_log.values
    else:
        gate = WordGate.fit(forget, keep, seed=config.seed)
    if rate is None:
        gate.threshold = config.tau
    elif config.rule == "one-sided":
        gate.calibrated(held_keep, rate)
    else:
        marks = np.repeat([1.0, 0.0], [len(held_forget), len(held_keep)])
        gate.threshold = two_sided(gate.scores([*held_forget, *held_keep]), marks, rate, config.rule)
    return FittedGate(gate, _gate_facts(gate, held_forget or forget, held_keep or keep, held_forget, held_keep), log)


def _held_out(texts: list[str], share: float, rng: np.random.Generator) -> tuple[list[str], list[str]]:
    """Texts to fit on and texts to calibrate on."""
    order = rng.permutation(len(texts)).tolist()
    n = round(share * len(texts))
    return [texts[i] for i in sorted(order[n:])], [texts[i] for i in sorted(order[:n])]


def _gate_facts(
    gate: PromptGate, forget: list[str], keep: list[str], held_forget: list[str], held_keep: list[str]
) -> dict[str, Any]:
    """What the gate does with the calibration rows, or with those that it was fitted on where there are none."""
    p, y = gate.scores([*forget, *keep]), np.repeat([1.0, 0.0], [len(forget), len(keep)])
    stopped = p > gate.threshold
    return {
        "threshold": gate.threshold, "forget_stopped": float(stopped[y == 1].mean()),
        "retain_stopped": float(stopped[y == 0].mean()), "calibration_error": expected_calibration_error(p, y),
        "rows": {"forget": len(forget), "retain": len(keep)},
        "fitted_on_these": {"forget": not held_forget, "retain": not held_keep},
    }  # fmt: skip


# -- strength -----------------------------------------------------------------------------------------------------------


def _some(data: Dataset, n: int, seed: int) -> Dataset:
    """At most n rows, drawn."""
    if len(data) <= n:
        return data
    return data.select(sorted(np.random.default_rng([seed, 0x5C0]).permutation(len(data))[:n].tolist()))


def per_token(subject: CausalLM, model: Any, rows: Sequence[Encoded]) -> Floats:
    """[n] mean log-probability of the answer's tokens under a guarded or plain model."""
    found: list[float] = []
    with subject.evaluating(), torch.no_grad():
        model.eval()
        for start in range(0, len(rows), BATCH):
            answer = answer_logits(model, subject.batch(rows[start : start + BATCH]))
            found += (answer.logp_sum / answer.mask.sum(-1)).tolist()
    return np.asarray(found, dtype=np.float64)


class Scorer:
    """The score of the search on some rows, in [0, 1].

    Args:
        data: rows; metric=choice needs `perturbed_answer`.
        metric: `probability`: mean p(answer)^(1/length), TOFU's; `choice`: share of rows where the answer (its paraphrase,
            where there is one: perturbed answers are of its form) beats every perturbed one.

    Raises:
        RequestError: nothing to choose from.
    """

    def __init__(self, subject: CausalLM, data: Dataset, metric: str) -> None:
        self.subject, self.metric = subject, metric
        self.rows = subject.encode_rows(data)
        self.wrong: list[list[Encoded]] = []
        if metric == "choice":
            if "perturbed_answer" not in data.column_names:
                raise RequestError("metric=choice without wrong answers", "a column 'perturbed_answer'", "add it")
            right = "paraphrased_answer" if "paraphrased_answer" in data.column_names else "answer"
            self.rows = subject.encode_rows(data, column=right)
            self.wrong = [
                [subject.encode(question, text) for text in texts]
                for question, texts in zip(data["question"], data["perturbed_answer"], strict=True)
            ]

    @property
    def chance(self) -> float:
        """Of metric=choice."""
        return float(np.mean([1 / (1 + len(texts)) for texts in self.wrong]))

    @property
    def passes(self) -> int:
        """Sequences that one score runs."""
        return len(self.rows) + sum(map(len, self.wrong))

    def __call__(self, model: Any) -> float:
        """The score of a model."""
        right = per_token(self.subject, model, self.rows)
        if self.metric == "probability":
            return float(np.exp(right).mean())
        flat = iter(per_token(self.subject, model, [row for rows in self.wrong for row in rows]).tolist())
        best = [max(next(flat) for _ in rows) for rows in self.wrong]
        return float(np.mean([mine > other for mine, other in zip(right, best, strict=True)]))


def strength_for(subject: CausalLM, guarded: EcoModel, request: Request, config: EcoConfig, cost: Cost) -> Strength:
    """The strength that was given, or the one whose score on the forget set is nearest to the target.

    Args:
        guarded: stops every prompt; its corruption is replaced for each score.
        cost: items are added.
    """
    data = _some(request.forget, config.search_rows, config.seed)
    scorer, first = Scorer(subject, data, config.metric), guarded.corruption
    size = embedding_size(subject, guarded, scorer.rows)

    def score(sigma: torch.Tensor) -> float:
        guarded.corruption = first.model_copy(update={"sigma": sigma.reshape(-1).tolist()})
        cost.items += scorer.passes
        return scorer(guarded)

    before = scorer(guarded.base)
    common = {"metric": config.metric, "score_before": before, "embedding_rms": size}
    if config.sigma != "search":
        given = torch.tensor(float(config.sigma), dtype=torch.float64)
        return Strength(
            [float(given)],
            {**common, "sigma": float(given), "sigma_over_rms": float(given) / size, "score": score(given)},
        )
    target = config.target
    if target is None and config.metric == "choice":
        target = scorer.chance
    elif target is None:
        assert request.holdout is not None
        unseen = Scorer(subject, _some(request.holdout, config.search_rows, config.seed), config.metric)
        cost.items += unseen.passes
        target = unseen(guarded.base)
    generator = torch.Generator().manual_seed(config.seed)
    found = search_strength(
        score, target, config.search, n=config.n if config.by_dimension else None, generator=generator
    )
    size_of = float(found.sigma.square().mean().sqrt())
    return Strength(
        found.sigma.reshape(-1).tolist(),
        {
            **common, "sigma": size_of, "sigma_over_rms": size_of / size, "score": found.score, "target": target,
            "reached": found.reached, "tried": [list(pair) for pair in found.tried],
        },
    )  # fmt: skip


def embedding_size(subject: CausalLM, guarded: EcoModel, rows: Sequence[Encoded]) -> float:
    """Root mean square of the embeddings that the guard would corrupt, as they come out of the embedding module."""
    table = guarded.base.get_input_embeddings()
    ids = [
        token for row in rows
        for token, chosen in zip(row.ids[: row.n_prompt], guarded.mask(row.ids[: row.n_prompt]), strict=True) if chosen
    ]  # fmt: skip
    with torch.no_grad():
        return rms(table(torch.tensor([ids], device=subject.device)))


__all__ = ["FittedGate", "Scorer", "Strength", "fitted_gate", "forgotten_names", "strength_for", "two_sided"]
