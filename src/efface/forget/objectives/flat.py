"""FLAT: learn a template answer and unlearn the true one at once, each at the weight that an f-divergence gives it.

Paper: Wang et al., LLM unlearning via loss adjustment with only forget data, arXiv 2410.11143 (ICLR 2025), section 3. With
P(x, y) = (1/|y|) sum_t p_theta(y_t | x, y_<t), a number in [0, 1], a template answer y_e and the answer to forget y_f,

    L = E[ -g(P(x, y_e)) + f*(g(P(x, y_f))) ]

Both weights, g'(P_e) and (f*(g))'(P_f), are bounded because P is. It needs no retain set and no reference. Without one,
questions of the same form about other things get the template too.

Departures from the official code, and why: P divides by |y|, not by the padded width, which would make it depend on the
batch; P enters reverse KL, squared Hellinger and Neyman with a minus sign, because their activations fall (see
`efface.numerics.divergences`) and the loss would otherwise learn the answer and unlearn the template; Neyman's conjugate is
taken at g(v), not at v; g is taken for each sample, then averaged (`batch_mean` gives the code's mean first); a name that no
divergence has is refused (the published config asks for a loss that the trainer does not know).
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import torch
from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor

from efface.catalog import Card, Taxonomy
from efface.data.readers import read_dataset
from efface.data.refusals import REFUSALS
from efface.data.request import Request
from efface.errors import ConfigError, RequestError, nearest
from efface.forget.method import FitConfig, Fitted
from efface.forget.objective import ForgetBatch, ObjectiveConfig, ObjectiveMethod
from efface.numerics.divergences import F_DIVERGENCES, FDivergence, f_divergence
from efface.subjects.answers import AnswerLogits, answer_logits
from efface.subjects.causal_lm import CausalLM
from efface.subjects.prompts import Encoded, collate
from efface.train.engine import world_size
from efface.train.reference import batches
from efface.train.stopping import StopWhen
from efface.train.streams import Schedule, Stream

CARD = Card(
    name="flat",
    system="flat",
    title="Loss adjustment with only forget data",
    summary="Learns a template answer and unlearns the true one in one bounded loss; needs neither retain set nor reference.",
    paper="Wang et al., LLM unlearning via loss adjustment with only forget data, arXiv 2410.11143 (ICLR 2025)",
    verb="forget",
    mechanism="objectives",
    modalities=("text",),
    subjects=("causal-lm",),
    needs=("forget", "gradients"),
    claims="empirical",
    taxonomy=Taxonomy(
        intention="suppression", mechanism="relabel_refusal", survey_class="parameter_optimisation", level="weights_all",
        threat_model="API user",
    ),
    defaults_source="official code, TOFU: total variation, learning rate 1e-5, batch 16 x accumulation 4, 5 epochs, one of "
    "them warm-up",
)  # fmt: skip

ROUNDING = {torch.bfloat16: 2.0**-9, torch.float16: 2.0**-12}
"""Half the spacing of two numbers, relative to the larger power of two below them."""


class FlatConfig(ObjectiveConfig):
    """Which divergence, which templates, and when to stop."""

    divergence: str = Field("total-variation", description=f"one of {', '.join(F_DIVERGENCES)}; paper: total variation")
    batch_mean: bool = Field(False, description="g of the batch's mean P (official code) instead of the mean of g")
    templates: tuple[str, ...] = Field(REFUSALS, description="answers to learn; paper: a list of polite refusals")
    templates_file: str | None = Field(None, description="a file of templates instead: rows with a text or an answer")
    stop_below: float = Field(
        1e-6, ge=0, description="end once P of every forget answer is below this: the gradient has vanished (0: never)"
    )
    epochs: float = Field(5, gt=0, description="passes over the forget set; official code: 5")
    batch_size: int = Field(64, ge=1, description="official code: 16 x accumulation 4")
    warmup_ratio: float = Field(0.2, ge=0, le=1, description="official code: one epoch of five")

    @field_validator("divergence")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in F_DIVERGENCES:
            raise ValueError(f"a divergence; {nearest(value, F_DIVERGENCES)}")
        return value

    @field_validator("templates")
    @classmethod
    def _some(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value or not all(text.strip() for text in value):
            raise ValueError("one or more non-empty templates")
        return value

    @field_validator("batch_mean")
    @classmethod
    def _whole_batch(cls, value: bool, info: ValidationInfo) -> bool:
        micro, batch = info.data.get("micro_batch_size"), info.data.get("batch_size")
        if value and micro is not None and micro != batch:
            raise ValueError("no micro_batch_size: the mean of a step must be seen in one forward pass")
        return value


def mean_token_probability(token_logp: Tensor, mask: Tensor) -> Tensor:
    """P(x, y) = (1/|y|) sum_t p(y_t | x, y_<t), [B] in [0, 1]; a mean of probabilities, not of their logarithms.

    Args:
        token_logp: [B, T'] log p, anything outside the mask.
        mask: [B, T'] bool; every row has an answer token.
    """
    return token_logp.exp().masked_fill(~mask, 0.0).sum(-1) / mask.sum(-1)


def flat_loss(
    P_e: Tensor, P_f: Tensor, row_share: Tensor, divergence: FDivergence, *, batch_mean: bool = False
) -> Tensor:
    """The mean over the step of -g(P_e) + f*(g(P_f)).

    Args:
        P_e: [B] mean token probability of the templates.
        P_f: [B] of the answers to forget.
        row_share: [B] one over the rows of the optimiser step.
        batch_mean: take the mean of P before g.
    """
    v_e, v_f = divergence.argument(P_e), divergence.argument(P_f)
    if batch_mean:
        v_e, v_f = (v_e * row_share).sum(), (v_f * row_share).sum()
        return -divergence.g(v_e) + divergence.f_star_g(v_f)
    return ((-divergence.g(v_e) + divergence.f_star_g(v_f)) * row_share).sum()


def probabilities(answer: AnswerLogits) -> Tensor:
    """`mean_token_probability` of a forward pass, [B]."""
    return mean_token_probability(answer.token_logp, answer.mask)


def loss(config: FlatConfig, batch: ForgetBatch) -> Tensor:
    """The objective on one batch.

    Raises:
        ConfigError: numbers of a reference came with the batch; this loss has none.
    """
    if batch.answer_ref is not None or batch.alternative_ref is not None:
        raise ConfigError("flat with a reference", "none: its weights come from the divergence", "use dpo-idk or npo")
    assert batch.answer is not None
    assert batch.alternative is not None
    return flat_loss(
        probabilities(batch.alternative), probabilities(batch.answer), batch.row_share, f_divergence(config.divergence),
        batch_mean=config.batch_mean,
    )  # fmt: skip


class Flat(ObjectiveMethod):
    """See the module."""

    def check(self, request: Request, config: FitConfig) -> None:
        """Besides the card's needs: every row has a question, and no template is the answer to forget.

        Raises:
            RequestError: naming the row.
        """
        super().check(request, config)
        assert isinstance(config, FlatConfig)
        known = {" ".join(text.split()).casefold() for text in _templates(config)}
        for index, (question, answer) in enumerate(
            zip(request.forget["question"], request.forget["answer"], strict=True)
        ):
            if not question.strip():
                raise RequestError(
                    f"forget row {index} has no question, so no answer can be told from it", "a question and an answer",
                    "split each chunk of plain text into its beginning (question) and its continuation (answer)",
                )  # fmt: skip
            if " ".join(answer.split()).casefold() in known:
                raise RequestError(
                    f"forget row {index}: a template equals its answer, so the two terms cancel", "other templates",
                    "set templates=... or drop the row",
                )  # fmt: skip

    def _alternatives(self, subject: CausalLM, request: Request, config: ObjectiveConfig) -> Stream:
        """A template for every row and pass, drawn by the seed; `template` is its place in the list, for the log."""
        assert isinstance(config, FlatConfig)
        bank = _templates(config)
        rng = np.random.default_rng([config.seed, 0xF1A7])
        count = min(len(bank), int(np.ceil(config.epochs)))
        picks = [[int(i) for i in rng.choice(len(bank), count, replace=False)] for _ in range(len(request.forget))]
        variants = [
            [subject.encode(question, bank[pick], place=f"forget row {i} with template {pick}") for pick in drawn]
            for i, (question, drawn) in enumerate(zip(request.forget["question"], picks, strict=True))
        ]
        return Stream(variants, {"template": picks}, of="forget")

    def fit(self, subject: CausalLM, request: Request, config: FitConfig, *, work: Path, out: Path) -> Fitted:
        """See `Method.fit`.

        Raises:
            ConfigError: the learning rate is lost in the rounding of half-precision weights.
        """
        assert isinstance(config, FlatConfig)
        self.check(request, config)
        config = config.model_copy(update={"templates": _templates(config)})  # the edit says which texts were used
        _refuse_lost_updates(subject, config)
        if config.batch_mean and world_size() > 1:
            raise ConfigError(f"batch_mean on {world_size()} processes", "one", "leave batch_mean out")
        return super().fit(subject, request, config, work=work, out=out)

    def stop(self, subject: CausalLM, schedule: Schedule, config: ObjectiveConfig) -> StopWhen:
        """Once P of every answer to forget has vanished."""
        assert isinstance(config, FlatConfig)
        rows = [row for row in schedule.streams["forget"].rows if isinstance(row, Encoded)]
        return StopWhen(
            lambda figure: figure < config.stop_below, "max", watched="P_f_max",
            confirm=lambda _: _all_below(subject, rows, config),
        )  # fmt: skip

    def told(self, batch: ForgetBatch, parts: dict[str, dict[str, Tensor]]) -> dict[str, float]:
        """Both P, and how often each template was used."""
        assert batch.answer is not None
        assert batch.alternative is not None
        with torch.no_grad():
            P_e, P_f = probabilities(batch.alternative), probabilities(batch.answer)
        used = Counter(parts["alternative"]["template"].tolist())
        return {
            "P_e": float(P_e.mean()), "P_f": float(P_f.mean()), "P_f_max": float(P_f.max()),
            **{f"template_{index}": float(count) for index, count in used.items()},
        }  # fmt: skip


def _templates(config: FlatConfig) -> tuple[str, ...]:
    if config.templates_file is None:
        return config.templates
    return tuple(str(text) for text in read_dataset(config.templates_file)["answer"])


def _all_below(subject: CausalLM, rows: list[Encoded], config: FlatConfig) -> bool:
    """Whether P of every forget answer is below the bound, after this step's update."""
    with subject.evaluating() as model:
        for part in batches(rows, config.micro_batch_size or config.batch_size):
            batch = collate([rows[i] for i in part], subject.pad_id)
            found = answer_logits(model, {name: tensor.to(subject.device) for name, tensor in batch.items()})
            if bool((probabilities(found) >= config.stop_below).any()):
                return False
    return True


def _refuse_lost_updates(subject: CausalLM, config: FlatConfig) -> None:
    """An AdamW step moves a weight by about the learning rate; in half precision that may round to nothing."""
    if subject.dtype not in ROUNDING or config.scope == "lora":
        return
    lost = total = 0
    for tensor in subject.weights().values():
        if tensor.is_floating_point() and tensor.dtype in ROUNDING:
            lost += int((tensor.detach().abs().float() * ROUNDING[tensor.dtype] > config.learning_rate).sum())
            total += tensor.numel()
    if total and lost > total / 2:
        raise ConfigError(
            f"learning_rate={config.learning_rate:g} on {str(subject.dtype).removeprefix('torch.')} weights: a step rounds to "
            f"nothing for {lost / total:.0%} of them", "float32 master weights",
            "load the model in float32 and set precision=bfloat16, or set scope=lora",
        )  # fmt: skip


METHOD = Flat(CARD, FlatConfig, loss, alternative=True)
