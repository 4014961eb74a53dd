"""Gaussian Amnesiac: give the rows to forget random targets from the data's own distribution, and train on.

Paper: Tarun et al., Deep regression unlearning, arXiv 2210.08196 (ICML 2023). With mu and sigma the mean and
the standard deviation of the training targets y [N],

    y_i <- N(mu, sigma^2) for every row i to forget, drawn once;   theta <- argmin sum over all rows of the model's own loss

Departures from the official code: mean and deviation can be taken of the retain set alone (`stats_from=retain`), since the
published ones still carry the targets to be forgotten; draws leave the range of the data (negative ages), of which the log
tells the share, and are clipped where `clip` says to what; the loss is half the squared error, as in training.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from datasets import Dataset
from pydantic import Field, field_validator

from efface.catalog import Card, Taxonomy
from efface.data.request import Request
from efface.errors import RequestError
from efface.forget.method import FitConfig, Fitted, Method, train_edit
from efface.subjects.learner import Learner
from efface.train.mask_selectors import MaskRows
from efface.train.supervised import answer_loss, supervised_schedule

CARD = Card(
    name="gaussian-amnesiac",
    system="deep-regression-unlearning",
    title="Gaussian amnesiac",
    summary="Replaces the targets to be forgotten by draws from a Gaussian fitted to the data, and trains on.",
    paper="Tarun et al., Deep regression unlearning, arXiv 2210.08196 (ICML 2023)",
    verb="forget",
    mechanism="objectives",
    modalities=("any",),
    subjects=("regressor",),
    needs=("forget", "retain", "labels", "gradients"),
    claims="empirical",
    taxonomy=Taxonomy(
        intention="suppression", mechanism="relabel_refusal", survey_class="parameter_optimisation", level="weights_all",
        threat_model="API user",
    ),
    defaults_source="official code, AgeDB: Adam, learning rate 1e-3 without decay, 1 epoch, batch 256",
)  # fmt: skip

Floats = npt.NDArray[np.float64]


class GaussianAmnesiacConfig(FitConfig):
    """Where the Gaussian comes from."""

    stats_from: Literal["all", "retain"] = Field(
        "all", description="rows whose mean and deviation are taken; published: all, the forget rows too"
    )
    clip: tuple[float, float] | None = Field(None, description="lowest and highest valid target; published: no limits")
    learning_rate: float = Field(1e-3, gt=0, description="official code, AgeDB: 1e-3")
    optimizer: Literal["adamw", "adam", "sgd"] = Field("adam", description="official code: Adam")
    epochs: float = Field(1, gt=0, description="passes over all rows; official code: 1 (AgeDB), 5 (STS-B)")
    batch_size: int = Field(256, ge=1, description="official code: 256")
    weight_decay: float = Field(0.0, ge=0, description="official code: none")
    warmup_ratio: float = Field(0.0, ge=0, le=1, description="official code: none")
    schedule: Literal["linear", "cosine", "constant"] = Field(
        "constant", description="official code: its plateau scheduler is made and never stepped"
    )
    max_grad_norm: float = Field(1e9, gt=0, description="official code: no clipping")

    @field_validator("clip")
    @classmethod
    def _rising(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and not value[0] < value[1]:
            raise ValueError("the lowest valid target, then a higher one")
        return value


class Draws(NamedTuple):
    """New targets [n], the Gaussian's mean and deviation, and the share of draws outside the range of the data."""

    values: Floats
    mu: float
    sigma: float
    outside: float


def gaussian_targets(targets: npt.ArrayLike, n: int, seed: int, *, clip: tuple[float, float] | None = None) -> Draws:
    """n draws from N(mean, std^2) of the targets [N].

    Args:
        clip: where the draws end; the share outside the data's range is counted before.

    Raises:
        RequestError: all targets are equal.
    """
    y = np.asarray(targets, dtype=np.float64)
    mu, sigma = float(y.mean()), float(y.std())
    if not sigma > 0:
        raise RequestError(f"{len(y)} targets that all are {mu:g}", "targets that differ", "choose another set")
    drawn = np.random.default_rng([seed, 0x6A05]).normal(mu, sigma, n)
    outside = float(np.mean((drawn < y.min()) | (drawn > y.max())))
    return Draws(drawn if clip is None else drawn.clip(*clip), mu, sigma, outside)


def refuse_bad_targets(data: Dataset, name: str) -> None:
    """Raise where a number to be learnt is NaN or infinite.

    Raises:
        RequestError: naming the row.
    """
    if "target" not in data.column_names:
        return
    bad = np.flatnonzero(~np.isfinite(np.asarray(data["target"], dtype=np.float64)))
    if len(bad):
        raise RequestError(
            f"{name} row {int(bad[0])}, column 'target': {data['target'][int(bad[0])]}", "a finite number",
            "mend or drop the row",
        )  # fmt: skip


class GaussianAmnesiac(Method):
    """See the module."""

    card = CARD
    config_class = GaussianAmnesiacConfig

    def check(self, request: Request, config: FitConfig) -> None:
        """Besides the card's needs: every target is a finite number.

        Raises:
            RequestError: naming set and row.
        """
        super().check(request, config)
        assert request.retain is not None
        refuse_bad_targets(request.forget, "forget")
        refuse_bad_targets(request.retain, "retain")

    def fit(self, subject: Learner, request: Request, config: FitConfig, *, work: Path, out: Path) -> Fitted:
        """See `Method.fit`. The log begins with the Gaussian and the share of its draws outside the data's range.

        Raises:
            ConfigError: the model is no regressor.
            RequestError: see `check`.
        """
        assert isinstance(config, GaussianAmnesiacConfig)
        self.check_subject(subject)
        self.check(request, config)
        assert request.retain is not None
        forget: list[Any] = subject.encode_rows(request.forget, name="forget")
        retain: list[Any] = subject.encode_rows(request.retain, name="retain")
        known = [row.target for row in (retain if config.stats_from == "retain" else [*forget, *retain])]
        draws = gaussian_targets(known, len(forget), config.seed, clip=config.clip)
        rows = [row.labelled(float(y)) for row, y in zip(forget, draws.values, strict=True)] + retain
        fitted = train_edit(
            self, subject, supervised_schedule(rows, config), answer_loss, config, work=work, out=out,
            mask_rows=MaskRows(forget, retain),
        )  # fmt: skip
        told = {"mu": draws.mu, "sigma": draws.sigma, "outside": draws.outside}
        return Fitted(fitted.edit, fitted.costs, [told, *fitted.log])


METHOD = GaussianAmnesiac()
