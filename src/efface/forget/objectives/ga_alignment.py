"""Three terms at once: ascend on the answers to forget, descend on random answers, stay near the old model on normal text.

Papers: Gundavarapu et al., Machine unlearning in large language models, arXiv 2405.15152; the objective is Yao et al.'s
LLMU, arXiv 2310.10683. With CE the mean over an answer's tokens,

    L = eps1 (-E CE(y_f | x_f)) + eps2 E CE(y_r | x_f) + eps3 E KL(p_theta0 || p_theta on normal text)

eps1, eps2, eps3 are `forget_weight`, `random_weight`, `retain_weight`. It suppresses: outputs on forgotten prompts are mostly
gibberish, which an audit of harmfulness counts as harmless.

Departures from the official code, and why: the stop compares the positive CE (the code compares its negation, which never
fires); masks come from token offsets (the code's begin in the question, or are empty); padding is masked by lengths; L_nor is
a KL over the tokens of normal text, not a cross-entropy over padding too; the reference is cached before training, so it
cannot be the model in training; the shorter of two sets is cycled, not the run ended; the run has as many steps as its schedule.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import numpy as np
from pydantic import Field
from torch import Tensor

from efface.catalog import Card, Taxonomy
from efface.data.readers import read_dataset
from efface.data.request import Request
from efface.errors import ConfigError, RequestError
from efface.forget.objective import ForgetBatch, ObjectiveConfig, ObjectiveMethod
from efface.forget.retain import retain_loss
from efface.subjects.answers import AnswerLogits, answer_logits
from efface.subjects.causal_lm import CausalLM
from efface.subjects.prompts import Encoded
from efface.train.stopping import StopWhen
from efface.train.streams import Schedule, Stream

CARD = Card(
    name="ga-alignment",
    system="ga-alignment",
    title="Gradient ascent with random answers and a KL to the old model",
    summary="Raises the loss on the answers to forget, trains random answers in their place, and holds normal text by a KL.",
    paper="Gundavarapu et al., Machine unlearning in large language models, arXiv 2405.15152 (2024); LLMU, arXiv 2310.10683",
    verb="forget",
    mechanism="objectives",
    modalities=("text",),
    subjects=("causal-lm",),
    needs=("forget", "retain", "reference", "gradients"),
    claims="empirical",
    taxonomy=Taxonomy(
        intention="suppression", mechanism="gradient_ascent", survey_class="parameter_optimisation", level="weights_all",
        threat_model="API user",
    ),
    defaults_source="official code, harmful track: weights 0.5, 1, 1, five random answers, learning rate 2e-6, linear, batch 2",
)  # fmt: skip


class GAAlignmentConfig(ObjectiveConfig):
    """The three weights, the bank of random answers, and the stop."""

    forget_weight: float = Field(0.5, ge=0, description="eps1; official code: 0.5")
    random_weight: float = Field(1.0, ge=0, description="eps2; official code: 1. 0: no random answers")
    retain_weight: float = Field(1.0, ge=0, description="eps3; official code: 1")
    retain_term: Literal["none", "nll", "kl"] = Field("kl", description="paper: KL(p_theta0 || p_theta) on normal text")
    kl_on: Literal["all", "answer"] = Field(
        "all", description="tokens of normal text that the KL is over; paper: all of them"
    )
    random_answers: int = Field(5, ge=1, description="K, random answers a prompt; official code: 5")
    random_bank: str | None = Field(
        None, description="a file of answers (rows with a text or an answer); default: the retain set's answers"
    )
    max_forget: float = Field(
        100.0, gt=0, description="stop once the CE of the forget answers is above; official code: 100"
    )
    learning_rate: float = Field(2e-6, gt=0, description="official code: 2e-6 (harmful), 1e-3 (copyright, LoRA)")
    batch_size: int = Field(2, ge=1, description="official code: 2")
    warmup_ratio: float = Field(0.0, ge=0, le=1, description="official code: none")


def answer_ce(token_logp: Tensor, mask: Tensor) -> Tensor:
    """CE(y | x) = -(1/|y|) sum_t log p(y_t | x, y_<t), [B], positive.

    Args:
        token_logp: [B, T'], 0 outside the answer.
        mask: [B, T'] bool; every row has an answer token.
    """
    return -token_logp.sum(-1) / mask.sum(-1)


def composite(
    forget_ce: Tensor, random_ce: Tensor | None, kl: Tensor | None, *, eps1: float, eps2: float, eps3: float
) -> Tensor:
    """eps1 L_fgt + eps2 L_rdn + eps3 L_nor with L_fgt = -`forget_ce`; all scalars, means over the step.

    A term that is left out is None.
    """
    total = -eps1 * forget_ce
    if random_ce is not None:
        total = total + eps2 * random_ce
    if kl is not None:
        total = total + eps3 * kl
    return total


def loss(config: GAAlignmentConfig, batch: ForgetBatch) -> Tensor:
    """CE of the forget answers, each sample weighted alike; positive (the composite takes it away)."""
    assert batch.answer is not None
    return (answer_ce(batch.answer.token_logp, batch.answer.mask) * batch.row_share).sum()


class GAAlignment(ObjectiveMethod):
    """See the module."""

    def streams(self, subject: CausalLM, request: Request, config: ObjectiveConfig) -> dict[str, Stream]:
        """Besides the forget and the retain rows: K streams of random answers to the forget prompts."""
        assert isinstance(config, GAAlignmentConfig)
        found = super().streams(subject, request, config)
        if config.random_weight == 0:
            return found
        return found | _random_streams(subject, request, config)

    def retained(self, subject: CausalLM, rows: list[Encoded], config: ObjectiveConfig) -> Stream:
        """Normal text counts whole, its prompt included, in the KL."""
        assert isinstance(config, GAAlignmentConfig)
        if config.retain_term == "kl" and config.kl_on == "all":
            rows = [Encoded(row.ids, 1) for row in rows]
        return super().retained(subject, rows, config)

    def stop(self, subject: CausalLM, schedule: Schedule, config: ObjectiveConfig) -> StopWhen:
        """Once the CE of the answers to forget is large enough."""
        assert isinstance(config, GAAlignmentConfig)
        return StopWhen(lambda ce: ce > config.max_forget, "sum", watched="forget_ce")

    def terms(
        self, model: Any, parts: dict[str, dict[str, Tensor]], config: ObjectiveConfig
    ) -> tuple[Tensor, dict[str, float]]:
        """The three terms of one batch."""
        assert isinstance(config, GAAlignmentConfig)
        forget = parts["forget"]
        batch = ForgetBatch(
            answer=answer_logits(model, forget), answer_ref=None, alternative=None, alternative_ref=None,
            token_share=forget["token_share"], row_share=forget["row_share"], alternative_token_share=None,
        )  # fmt: skip
        ce = self.loss(config, batch)
        random_ce = _random_ce(model, [part for name, part in parts.items() if name.startswith("random")])
        kept = retain_loss(config.retain_term, model, parts["retain"]) if "retain" in parts else None
        named = {"forget_ce": ce, "random_ce": random_ce, "retain": kept}
        total = composite(
            ce, random_ce, kept, eps1=config.forget_weight, eps2=config.random_weight, eps3=config.retain_weight
        )
        numbers = {name: float(value.detach()) for name, value in named.items() if value is not None}
        return total, {**numbers, "forget_p": float((_first_probability(batch) * batch.row_share).sum())}


def _first_probability(batch: ForgetBatch) -> Tensor:
    """[B] the probability of each answer's first token, for the log."""
    assert batch.answer is not None
    first = batch.answer.mask.int().argmax(-1, keepdim=True)
    return batch.answer.token_logp.detach().gather(-1, first).squeeze(-1).exp()


def _random_ce(model: Any, parts: list[dict[str, Tensor]]) -> Tensor | None:
    """L_rdn: the mean over prompts and their K random answers."""
    if not parts:
        return None
    found: list[Tensor] = []
    for part in parts:
        answer: AnswerLogits = answer_logits(model, part)
        found.append((answer_ce(answer.token_logp, answer.mask) * part["row_share"]).sum() / len(parts))
    total: Tensor = sum(found[1:], found[0])
    return total


def _random_streams(subject: CausalLM, request: Request, config: GAAlignmentConfig) -> dict[str, Stream]:
    """K streams; the answers of one prompt in one step all differ, and are drawn anew in each pass."""
    bank = _bank(request, config)
    rng = np.random.default_rng([config.seed, 0x6A])
    K, passes = config.random_answers, math.ceil(config.epochs)
    each = min(passes, max(1, len(bank) // K))
    variants: list[list[Any]] = [[] for _ in range(K)]
    for index, (question, own) in enumerate(zip(request.forget["question"], request.forget["answer"], strict=True)):
        fit = [text for text in bank if _plain(text) != _plain(own)]
        if len(fit) < K:
            raise ConfigError(
                f"random_answers={K} with a bank of {len(fit)} different answers beside the one of forget row {index}",
                f"{K} or more", "give a larger random_bank, or lower random_answers",
            )  # fmt: skip
        count = min(each, len(fit) // K)
        drawn = rng.choice(len(fit), count * K, replace=False).reshape(K, count)
        for k in range(K):
            place = f"forget row {index} ({request.forget['id'][index]}) with a random answer"
            variants[k].append([subject.encode(question, fit[int(pick)], place=place) for pick in drawn[k]])
    return {f"random{k:03d}": Stream(variants[k], of="forget") for k in range(K)}


def _bank(request: Request, config: GAAlignmentConfig) -> list[str]:
    """The different answers to draw from, in the order of their first occurrence."""
    if config.random_bank is not None:
        texts = read_dataset(config.random_bank)["answer"]
    else:
        assert request.retain is not None
        texts = request.retain["answer"]
    return list({_plain(text): str(text) for text in texts}.values())


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()


def unsafe_rows(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Forget rows of PKU-SafeRLHF: every response that is flagged unsafe, with ids `row/response`.

    Args:
        rows: columns prompt, response_0, response_1, is_response_0_safe, is_response_1_safe.

    Raises:
        RequestError: a row lacks a column, a flag is not true or false, or an unsafe response is empty; naming the row.
    """
    found = []
    for index, row in enumerate(rows):
        for k in (0, 1):
            flag, text = f"is_response_{k}_safe", f"response_{k}"
            missing = [name for name in ("prompt", text, flag) if name not in row]
            if missing:
                raise RequestError(
                    f"row {index} lacks {', '.join(missing)}", "the columns of PKU-SafeRLHF", "give another source"
                )
            if not isinstance(row[flag], bool):
                raise RequestError(f"row {index}, column '{flag}': {row[flag]!r}", "true or false", "mend the row")
            if row[flag]:
                continue
            if not str(row[text]).strip():
                raise RequestError(f"row {index}, column '{text}': empty", "a response", "drop the row")
            found.append({"id": f"{index}/{k}", "question": str(row["prompt"]), "answer": str(row[text])})
    return found


METHOD = GAAlignment(CARD, GAAlignmentConfig, loss)
