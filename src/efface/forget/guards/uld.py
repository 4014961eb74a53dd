"""Unlearning from logit difference: train a small model that knows nothing but the forget set, and take its logits away.

Paper: Ji et al., Reversing the Forget-Retain Objectives, arXiv 2406.08607 (NeurIPS 2024), section 3. The assistant a is a copy
of the first K layers with LoRA, trained on

    L = NLL_a(D_f+) + w KL(uniform || softmax a) on D_r+

and the unlearned model is softmax(z - alpha a) on the tokens that a filter keeps (`logit_ensemble.kept_tokens`). Both goals are
bounded, and a flat row takes nothing away. D_f+ is the forget set with paraphrases; D_r+ the last rows of the retain set
with wrong answers to the forget questions, so that the assistant learns the facts and not the style of the question.
The big model is as it was: whoever holds it without its assistant holds the knowledge.

Departures from the official code, and why: raw logits in greedy search, sampling and scoring alike (the code takes a log-softmax
while sampling); two caches (it feeds one to both models); uniform KL on answer positions only, from log-softmax (it counts
prompt and padding; `uniform_on=all` adds the prompt); a wrong answer counts from where it has left the right one, because up
to there the prefix is the forget row's own and the two terms would contradict each other; one paraphrase a row where the
data has it. `mode=offset` is the code's baseline: the small copy is trained by an ordinary unlearning objective, and
z + alpha (a_after - a_before) is the model.
"""

from __future__ import annotations

import math
import shutil
import warnings
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from efface.catalog import Card, Taxonomy
from efface.data.request import Request
from efface.errors import ConfigError, RequestError
from efface.forget.edit import Edit
from efface.forget.guards.logit_ensemble import Ensemble, EnsembleEdit
from efface.forget.guards.truncated_copy import first_layers
from efface.forget.method import FitConfig, Fitted, Method, find_method, train_edit
from efface.forget.objective import ObjectiveMethod
from efface.forget.retain import nll
from efface.run.cost import measure_cost
from efface.subjects.answers import answer_logits
from efface.subjects.causal_lm import CausalLM
from efface.subjects.hooks import layers_of
from efface.subjects.prompts import Encoded
from efface.train.engine import world_size
from efface.train.streams import Schedule, Stream, whole_batch

CARD = Card(
    name="uld",
    system="uld",
    title="Unlearning from logit difference",
    summary="A small assistant remembers the forget set and is flat everywhere else; its logits are taken from the model's at "
    "every step. Model and assistant are a pair: the model alone still knows.",
    paper="Ji et al., Reversing the Forget-Retain Objectives, arXiv 2406.08607 (NeurIPS 2024)",
    verb="forget",
    mechanism="guards",
    modalities=("text",),
    subjects=("causal-lm",),
    needs=("forget", "retain", "gradients", "second-model-at-inference"),
    claims="suppressed",
    taxonomy=Taxonomy(
        intention="suppression", mechanism="decoding_contrast", survey_class="decoding", level="logits",
        threat_model="API user",
    ),
    defaults_source="official code, TOFU with Llama-2-7B: 8 of 32 layers, LoRA rank 16, alpha 32, dropout 0.05, learning rate "
    "1e-3, batch 32, 10 epochs, retain weight 5, alpha 0.8, filter 1e-2",
)  # fmt: skip

FLAT, KNOWN = 0.95, 0.1
"""What the assistant should reach: entropy on retained rows as a share of log V, and mean NLL on the forget rows in nats."""

MOST_RETAINED = 400
"""Retain rows at most, in the official code."""


class ULDConfig(FitConfig):
    """The assistant, its training and the filter."""

    mode: Literal["difference", "offset"] = Field("difference", description="ULD, or the code's offset baseline")
    alpha: float = Field(
        0.8, ge=0, description="weight of the assistant; official code: 0.8 on TOFU, 0.5 on Harry Potter"
    )
    rho: float | None = Field(1e-2, gt=0, le=1, description="filter; official scripts: 1e-2; none keeps every token")
    assistant_layers: int | None = Field(
        None, ge=1, description="K; default: a quarter of the layers (official: 8 of 32)"
    )
    retain_weight: float = Field(5.0, ge=0, description="w; official code: 5, tuned to a vocabulary of 32000")
    retain_rows: int | Literal["matched", "all"] = Field(
        "matched", description="how many of the last retain rows; official: as many as forget rows, at most 400"
    )
    forget_copies: int = Field(
        3, ge=1, description="times a forget row comes in a pass, paraphrases included (official: two of them)"
    )
    wrong_answers: int = Field(2, ge=0, description="wrong answers to each forget question in D_r+; official code: 2")
    uniform_on: Literal["answer", "all"] = Field("answer", description="positions of the uniform term")
    offset_objective: str = Field("gradient-difference", description="for mode=offset: what trains the assistant")
    scope: Literal["lora", "all", "layers"] = Field("lora", description="what moves in the assistant; official: LoRA")
    lora_rank: int = Field(16, ge=1, description="official code: 16")
    lora_alpha: float = Field(32, gt=0, description="official code: 32")
    lora_dropout: float = Field(0.05, ge=0, lt=1, description="official code: 0.05")
    learning_rate: float = Field(1e-3, gt=0, description="official code: 1e-3 on TOFU, 1e-5 on Harry Potter")
    batch_size: int = Field(32, ge=1, description="forget rows in a step, with as many of D_r+; official: 32 in all")


def uniform_kl(logits: Tensor) -> Tensor:
    """KL(uniform || softmax a) = -log V - mean_v log softmax(a)_v in nats, [...].

    Args:
        logits: [..., V].
    """
    return -logits.log_softmax(-1).mean(-1) - math.log(logits.shape[-1])


def flatness(logits: Tensor) -> Tensor:
    """Entropy of softmax(logits) over log V, [...]; 1 where it is uniform."""
    logp = logits.log_softmax(-1)
    return -(logp.exp() * logp).sum(-1) / math.log(logits.shape[-1])


def assistant_loss(model: Any, batch: dict[str, dict[str, Tensor]], weight: float) -> tuple[Tensor, dict[str, float]]:
    """NLL over the answer tokens to remember plus `weight` times the mean uniform KL over the positions to flatten."""
    forget, retain = answer_logits(model, batch["forget"]), answer_logits(model, batch["retain"])
    known = nll(forget, batch["forget"]["token_share"])
    share = batch["retain"]["token_share"]
    flat = (uniform_kl(retain.logits).masked_fill(~retain.mask, 0.0).sum(-1) * share).sum()
    even = (flatness(retain.logits.detach()).masked_fill(~retain.mask, 0.0).sum(-1) * share).sum()
    numbers = {"forget": float(known.detach()), "uniform": float(flat.detach()), "flatness": float(even)}
    return known + weight * flat, numbers


def remembered(subject: CausalLM, request: Request, copies: int) -> list[Encoded]:
    """D_f+: each row `copies` times, its paraphrase in turn where it has one."""
    found: list[Encoded] = []
    paraphrased = "paraphrased_answer" in request.forget.column_names
    if copies > 1 and not paraphrased:
        warnings.warn(
            "the forget rows have no paraphrased_answer: each is repeated as it stands, and the assistant knows the facts in "
            "that form only", stacklevel=4,
        )  # fmt: skip
    for index, row in enumerate(request.forget):
        texts = [row["answer"], *([row["paraphrased_answer"]] if paraphrased else [])]
        forms = [subject.encode(row["question"], text, place=f"forget row {index}") for text in texts]
        found += [forms[i % len(forms)] for i in range(copies)]
    return found


def flattened(subject: CausalLM, request: Request, config: ULDConfig) -> list[Encoded]:
    """D_r+: the last rows of the retain set, and wrong answers to the forget questions.

    Raises:
        RequestError: no row at all.
    """
    assert request.retain is not None
    total = len(request.retain)
    matched = min(len(request.forget), MOST_RETAINED)
    wanted = {"matched": matched, "all": total}.get(str(config.retain_rows), config.retain_rows)
    rows = subject.encode_rows(request.retain.select(range(max(0, total - int(wanted)), total)), name="retain")
    if config.wrong_answers and "perturbed_answer" not in request.forget.column_names:
        warnings.warn(
            "the forget rows have no perturbed_answer: the assistant may learn the style of the questions with the facts, and "
            "take from others that are asked alike; set wrong_answers=0 if that is meant", stacklevel=4,
        )  # fmt: skip
    elif config.wrong_answers:
        for index, row in enumerate(request.forget):
            right = subject.encode(row["question"], row["answer"], place=f"forget row {index}")
            for text in row["perturbed_answer"][: config.wrong_answers]:
                wrong = after_leaving(subject.encode(row["question"], text, place=f"forget row {index}"), right)
                rows += [] if wrong is None else [wrong]
    if not rows:
        raise RequestError("no row to be flat on", "retain rows or perturbed_answer", "raise retain_rows")
    return [Encoded(row.ids, 1) for row in rows] if config.uniform_on == "all" else rows


def after_leaving(wrong: Encoded, right: Encoded) -> Encoded | None:
    """A wrong answer of which only those tokens count whose prefix is not the right answer's; None where there is none.

    Up to its first wrong token, that token included, a wrong answer is predicted from a prefix of the right one.
    """
    same = 0
    for ours, theirs in zip(wrong.ids, right.ids, strict=False):
        if ours != theirs:
            break
        same += 1
    start = max(wrong.n_prompt, same + 1)
    return Encoded(wrong.ids, start) if start < len(wrong.ids) else None


class ULD(Method):
    """See the module."""

    card = CARD
    config_class = ULDConfig

    def fit(self, subject: CausalLM, request: Request, config: FitConfig, *, work: Path, out: Path) -> Fitted:
        """Train the assistant on its own copy of the first layers; see `Method.fit`.

        Raises:
            ConfigError: no smaller assistant is possible, or `offset_objective` is none that can be trained here.
            RequestError: no retain set, or nothing in it to be flat on.
        """
        assert isinstance(config, ULDConfig)
        self.check(request, config)
        layers = config.assistant_layers or max(1, len(layers_of(subject.model)) // 4)
        assistant = first_layers(subject, layers)
        trained = self._trained(assistant, request, config, work)
        with measure_cost(f"guard {CARD.name}") as cost:
            ensemble = Ensemble(
                combine=config.mode, alpha=config.alpha, rho=config.rho if config.mode == "difference" else None,
                layers=layers,
            )  # fmt: skip
            edit: Edit = EnsembleEdit.finish(
                subject, trained.edit, ensemble, out, method=CARD.name, config=config.model_dump(mode="json")
            )
            if config.mode == "difference":
                trained.edit.apply(assistant)
                found = watched(assistant, request, config)
                edit = edit.with_findings("assistant", {"layers": layers, **found})
        shutil.rmtree(work, ignore_errors=True)
        return Fitted(edit, [*trained.costs, cost], trained.log)

    def _trained(self, assistant: CausalLM, request: Request, config: ULDConfig, work: Path) -> Fitted:
        """The assistant's edit; a killed fit finds it where it was left."""
        folder = work / "assistant"
        if (folder / "edit.json").exists():
            return Fitted(Edit.load(folder), [])
        if config.mode == "offset":
            return self._offset(assistant, request, config, work)
        forget = remembered(assistant, request, config.forget_copies)
        batch = whole_batch(len(forget), config.batch_size, config.micro_batch_size, world_size())
        schedule = Schedule(
            {"forget": Stream(forget), "retain": Stream(flattened(assistant, request, config))}, anchor="forget",
            epochs=config.epochs, batch_size=batch, seed=config.seed,
        )  # fmt: skip
        return train_edit(
            self, assistant, schedule, lambda model, parts: assistant_loss(model, parts, config.retain_weight), config,
            work=work / "train", out=folder,
        )  # fmt: skip

    def _offset(self, assistant: CausalLM, request: Request, config: ULDConfig, work: Path) -> Fitted:
        method = find_method(config.offset_objective)
        if not isinstance(method, ObjectiveMethod) or not method.plain:
            raise ConfigError(
                f"offset_objective={config.offset_objective}", "an objective on forget and retain batches",
                "for instance npo or gradient-difference",
            )  # fmt: skip
        shared = {name: getattr(config, name) for name in FitConfig.model_fields}
        own = method.configure(shared)
        method.check(request, own)
        run = method.prepare(assistant, request, own)  # type: ignore[arg-type]
        return train_edit(
            self, assistant, run.schedule, run.loss, config, work=work / "train", out=work / "assistant",
            callbacks=run.callbacks,
        )  # fmt: skip


def watched(assistant: CausalLM, request: Request, config: ULDConfig) -> dict[str, float]:
    """What the assistant has become: mean NLL on the forget answers, mean flatness on the retain answers it was trained on.

    Warns where it does not know the one or is not flat on the other: the guard is then worth little.
    """
    sums = {"forget_nll": [0.0, 0], "retain_flatness": [0.0, 0]}
    some = config.model_copy(update={"uniform_on": "answer", "wrong_answers": 0})
    assert request.retain is not None
    if not some.retain_rows:
        some = some.model_copy(update={"retain_rows": "matched"})
    for name, rows in (
        ("forget_nll", assistant.encode_rows(request.forget, name="forget")),
        ("retain_flatness", flattened(assistant, request, some)),
    ):
        with assistant.evaluating() as model:
            for start in range(0, len(rows), 32):
                answer = answer_logits(model, assistant.batch(rows[start : start + 32]))
                value = -answer.token_logp if name == "forget_nll" else flatness(answer.logits)
                sums[name][0] += float(torch.where(answer.mask, value, 0.0).sum())
                sums[name][1] += int(answer.mask.sum())
    found = {name: total / count for name, (total, count) in sums.items()}
    if found["forget_nll"] > KNOWN:
        warnings.warn(
            f"the assistant does not know the forget set (mean NLL {found['forget_nll']:.2f}, wanted below {KNOWN}): raise "
            "epochs, learning_rate, lora_rank or assistant_layers, or lower retain_weight", stacklevel=4,
        )  # fmt: skip
    if found["retain_flatness"] < FLAT:
        warnings.warn(
            f"the assistant is not flat on the retain set (entropy {found['retain_flatness']:.1%} of log V, wanted {FLAT:.0%}): "
            "raise epochs, retain_rows or retain_weight", stacklevel=4,
        )  # fmt: skip
    return found


METHOD = ULD()
