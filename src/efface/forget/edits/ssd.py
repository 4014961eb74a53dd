"""SSD: shrink the weights that matter far more for the forget set than for all data; no training step.

Paper: Foster, Schoepf, Brintrup, Fast Machine Unlearning Without Retraining Through Selective Synaptic Dampening, arXiv
2308.07707 (AAAI 2024). With theta [P], the diagonal Fisher importances I_D of all data D (forget set included) and I_f of the
forget set, both [P],

    I_S[i] = E over (x, y) in S of (d/dtheta_i log p(y|x))^2,   S = {i : I_f[i] > alpha I_D[i]},
    theta_i <- beta_i theta_i,   beta_i = min(lambda I_D[i] / I_f[i], 1)   for i in S

`loss=outputs` is the loss-free form: I_S[i] = E |d/dtheta_i ||f(x)||^2|, without labels. The importance of D is cached by the
digests of model and rows, put into an order that does not depend on how D is split: another request on the same model and
data costs its forget set. `efface purge` removes the entry, which derives from the data to be forgotten.

Departures from the official code, and why. It squares the gradient of a batch's mean (`estimator=batch`, batch 128), which is
not the Fisher diagonal, falls with the batch size and mixes classes in D but not in the forget set; here each row counts by
itself (`estimator=sample`). alpha means something only together with estimator and batch size: both are stored. With rows,
I_D >= (n_f / n) I_f, so alpha >= n / n_f can select nothing and is refused, where the code returns the model as it was. Of a
language model a row's loss is the mean over its answer tokens.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from efface.catalog import Card, Taxonomy
from efface.data.request import Request
from efface.errors import CheckFailed, ConfigError, InputError, ModelError
from efface.forget.edits.one_shot import Change, OneShotConfig, edit_once, movable
from efface.forget.edits.row_gradients import absolute_gradients
from efface.forget.method import FitConfig, Fitted, Method
from efface.subjects.answers import AnswerLogits
from efface.subjects.learner import Learner
from efface.train.gradient_stats import GradStats, answer_gradients
from efface.train.reference import rows_digest
from efface.train.weight_mask import matching

CARD = Card(
    name="ssd",
    system="ssd",
    title="SSD: selective synaptic dampening",
    summary="Shrinks the weights that matter far more for the forget set than for all data, in one pass and without training. "
    "For a class or a concept: scattered rows, such as wrong labels, it does not forget.",
    paper="Foster et al., Fast machine unlearning through selective synaptic dampening, arXiv 2308.07707 (AAAI 2024)",
    verb="forget",
    mechanism="edits",
    modalities=("any",),
    subjects=("causal-lm", "classifier", "regressor"),
    needs=("forget", "retain", "gradients"),
    claims="empirical",
    taxonomy=Taxonomy(
        intention="removal", mechanism="localise_edit", survey_class="parameter_optimisation", level="weights_subset",
        threat_model="weight holder",
    ),
    defaults_source="official code: alpha 10, lambda 1, batch 128; importances by single rows as in the paper (code: batches)",
)  # fmt: skip

MANY = 0.3
"""Above this share of selected weights a warning is given: the model is damaged, not edited."""


class SSDConfig(OneShotConfig):
    """What is selected and how far it is shrunk."""

    alpha: float = Field(
        10.0,
        gt=0,
        description="select where I_f > alpha I_D; code: 10, with batches; with rows it must be below n / n_f",
    )
    dampening: float = Field(1.0, gt=0, description="lambda: beta = min(lambda I_D / I_f, 1); code: 1")
    estimator: Literal["sample", "batch"] = Field(
        "sample", description="square the gradient of each row (paper), or of each batch's mean (code)"
    )
    batch_size: int = Field(128, ge=1, description="rows of a batch with estimator=batch; code: 128")
    loss: Literal["labels", "outputs"] = Field(
        "labels",
        description="log p(y|x) squared, or |gradient| of ||f(x)||^2, which needs no labels (not for causal-lm)",
    )
    exclude: str | None = Field(
        None, description="leave these alone, comma-separated: norm, bias, or names from their beginning; code: none"
    )


class Dampened(NamedTuple):
    """Which entries are selected, and the factor of each (1 where not)."""

    selected: Tensor
    beta: Tensor


def dampening(i_d: Tensor, i_f: Tensor, alpha: float, strength: float = 1.0) -> Dampened:
    """The module's equation, entry by entry.

    Args:
        i_d: importance for all data, of any shape, not negative.
        i_f: importance for the forget set.
        strength: lambda.

    Raises:
        InputError: other shapes; NaN, infinite or negative importances.
    """
    if i_d.shape != i_f.shape:
        raise InputError(f"importances {list(i_d.shape)} and {list(i_f.shape)}", "one shape")
    for found in (i_d, i_f):
        if not bool((torch.isfinite(found) & (found >= 0)).all()):
            raise InputError("an importance is NaN, infinite or negative", "finite squares", "check the model")
    selected = i_f > alpha * i_d
    ratio = strength * i_d / torch.where(selected, i_f, torch.ones_like(i_f))  # i_f > 0 where selected: no 0 / 0
    return Dampened(selected, torch.where(selected, ratio.clamp(max=1.0), torch.ones_like(ratio)))


def output_norm(answer: Any) -> Tensor:
    """Mean over the batch of ||f(x)||^2, of logits [B, 1, K] or numbers [B, 1]."""
    said: Tensor = answer.logits if isinstance(answer, AnswerLogits) else answer.values
    return said.square().sum(-1).mean()


def canonical_order(rows: Sequence[Any]) -> list[Any]:
    """Rows in the order of their digests: it does not know which of them are to be forgotten, and mixes classes."""
    return sorted(rows, key=lambda row: rows_digest([row]))


def importance(subject: Learner, rows: Sequence[Any], config: SSDConfig, names: Sequence[str]) -> GradStats:
    """I_S of rows, in float32, cached by the digests of model and rows.

    Raises:
        ConfigError: `loss=outputs` of a language model.
    """
    ordered = canonical_order(rows)
    if config.loss == "labels":
        return answer_gradients(
            subject,
            ordered,
            power=2,
            per=config.estimator,
            batch_size=config.batch_size,
            weighting="equal",
            names=names,
        )
    return absolute_gradients(
        subject, ordered, output_norm, "||f||^2", per=config.estimator, batch_size=config.batch_size, names=names
    )


def excluded(model: torch.nn.Module, names: Sequence[str], text: str | None) -> set[str]:
    """Names that `exclude` means: parameters of normalisation layers, biases, or by pattern.

    Raises:
        ConfigError: a pattern that fits no name.
    """
    gone: set[str] = set()
    for word in (part.strip() for part in (text or "").split(",")):
        if word == "norm":
            gone |= {
                f"{place}.{own}" if place else own for place, module in model.named_modules()
                if "norm" in type(module).__name__.lower() for own, _ in module.named_parameters(recurse=False)
            }  # fmt: skip
        elif word == "bias":
            gone |= {name for name in names if name.rpartition(".")[2] == "bias"}
        elif word:
            gone |= set(matching(names, [word]))
    return gone


class SSD(Method):
    """See the module."""

    card = CARD
    config_class = SSDConfig

    def check(self, request: Request, config: FitConfig) -> None:
        """Besides a retain set, an alpha at which something can be selected.

        Raises:
            RequestError: no retain set.
            ConfigError: alpha >= n / n_f with the importances of rows.
        """
        super().check(request, config)
        assert isinstance(config, SSDConfig)
        assert request.retain is not None
        n_f, n = len(request.forget), len(request.forget) + len(request.retain)
        if config.estimator == "sample" and config.alpha >= n / n_f:
            raise ConfigError(
                f"alpha={config.alpha:g} where {n_f} of {n} rows are to be forgotten: I_D >= (n_f / n) I_f, so no weight can "
                "be selected", f"alpha below n / n_f = {n / n_f:.4g}", f"try alpha={(n / n_f) ** 0.5:.2g}",
            )  # fmt: skip

    def fit(self, subject: Learner, request: Request, config: FitConfig, *, work: Path, out: Path) -> Fitted:
        """See `Method.fit`.

        Raises:
            RequestError, ConfigError: see `check`; a pattern that fits nothing; `loss=outputs` of a language model.
            ModelError: no gradient reaches any weight.
            CheckFailed: nothing is selected, or nothing that is selected shrinks.
        """
        assert isinstance(config, SSDConfig)
        self.check(request, config)
        assert request.retain is not None
        if config.loss == "outputs" and subject.kind == "causal-lm":
            raise ConfigError("loss=outputs of a causal-lm", "a classifier or a regressor", "set loss=labels")
        own = movable(subject, config, CARD.name)
        kept = list(own.keys() - excluded(subject.model, list(own), config.exclude))
        if not kept:
            raise ConfigError(f"exclude='{config.exclude}' leaves no weight", "at least one", "exclude less")
        forget = subject.encode_rows(request.forget, name="forget")
        retain = subject.encode_rows(request.retain, name="retain")

        def change() -> Change:
            i_f = importance(subject, forget, config, list(own))
            i_d = importance(subject, [*forget, *retain], config, list(own))  # not of `kept`: one entry for any exclude
            parts = {name: own[name] for name in own if name in set(kept)}
            notes = self._notes(parts, i_d, i_f, config, len(forget))
            return Change(self._values(parts, i_d, i_f, config), notes, len(forget))

        return edit_once(self, subject, config, own, change, work=work, out=out)

    @staticmethod
    def _values(
        own: Mapping[str, torch.nn.Parameter], i_d: GradStats, i_f: GradStats, config: SSDConfig
    ) -> Iterator[tuple[str, Tensor]]:
        for name, parameter in own.items():
            found = dampening(i_d.tensors[name], i_f.tensors[name], config.alpha, config.dampening)
            if bool(found.selected.any()):
                shrunk = parameter.detach().to(found.beta.dtype) * found.beta
                yield name, torch.where(found.selected, shrunk.to(parameter.dtype), parameter.detach())

    @staticmethod
    def _notes(
        own: Mapping[str, torch.nn.Parameter], i_d: GradStats, i_f: GradStats, config: SSDConfig, n_f: int
    ) -> dict[str, Any]:
        """What was selected, overall and by tensor, and with which estimator; warns where that cannot go well."""
        if not any(float(i_d.tensors[name].sum()) > 0 for name in own):
            raise ModelError(
                "no gradient reaches any weight: every importance is 0", "a loss that depends on the weights",
                "check the model; squares below the range of float32 count as 0",
            )  # fmt: skip
        layers: dict[str, dict[str, float]] = {}
        of = count = shrunk = 0
        total = 0.0
        for name in own:
            selected, beta = dampening(i_d.tensors[name], i_f.tensors[name], config.alpha, config.dampening)
            part, size, sum_ = int(selected.sum()), selected.numel(), float(beta[selected].double().sum())
            layers[name] = {"selected_share": part / size, "mean_beta": sum_ / part if part else 1.0, "of": size}
            of, count, total, shrunk = of + size, count + part, total + sum_, shrunk + int((beta < 1).sum())
        if not shrunk:
            raise CheckFailed(
                f"ssd changes nothing: I_f > alpha I_D holds for {count} of {of} weights at alpha={config.alpha:g}, and "
                f"{'they keep their size; lower dampening' if count else 'none is selected; lower alpha'}"
            )
        share = count / of
        if share > MANY:
            warnings.warn(
                f"ssd selects {share:.0%} of the weights at alpha={config.alpha:g} (above {MANY:.0%}): expect damage; raise "
                "alpha, or use another method", UserWarning, stacklevel=2,
            )  # fmt: skip
        return {
            "selected_share": share, "mean_beta": total / count, "rows": i_d.rows, "forget_rows": n_f,
            "alpha_ceiling": i_d.rows / n_f if config.estimator == "sample" else None, "estimator": config.estimator,
            "batch_size": i_d.batch_size, "loss": config.loss, "model": i_d.model, "data": i_d.data, "forget": i_f.data,
            "layers": layers,
        }  # fmt: skip


METHOD = SSD()
