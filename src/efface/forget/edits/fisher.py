"""Fisher forgetting: noise on every weight, large where the retain set does not care about it. One shot, no training.

Paper: Golatkar, Achille, Soatto, Eternal Sunshine of the Spotless Net, arXiv 1911.04933 (CVPR 2020), in the form of the
baseline FF of Jia et al., arXiv 2304.04934 (`fisher_new`). With F [P] the diagonal Fisher information of the retain set,

    F_i = E_x sum_y p(y|x) (d/dtheta_i CE(x, y))^2,   v_i = alpha min(1 / (F_i + 1e-8), 1e3),   theta_i <- theta_i + N(0, v_i)

Of a tensor with two dimensions or more, v is the mean over dimension 1; of the last layer 1 / (F + 1e-8) is held at 1e2, and
v times 10; of other one-dimensional tensors v times 10.

Departures from the official code, and why. The square is that of each row's gradient: the code squares batch means of 32,
which is not the Fisher diagonal. The last layer is the head itself, not every tensor whose first side is the number of
classes. When a forget set has the size of a class of CIFAR, the code puts the head's row of that class to zero: an oracle that
knows the answer; it is left out. The sum runs over the model's own p(y|x), so no labels are used. The method does not look
at the forget set at all: it forgets what the retain set does not hold in place.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from efface.catalog import Card, Taxonomy
from efface.data.request import Request
from efface.forget.edits.one_shot import Change, OneShotConfig, edit_once, movable
from efface.forget.edits.row_gradients import shaped
from efface.forget.method import FitConfig, Fitted, Method
from efface.run.progress import track
from efface.subjects.answers import answer_logits
from efface.subjects.predictor import Predictor
from efface.train.gradient_stats import accumulate_samples, mean_nll

CARD = Card(
    name="fisher",
    system="sparse-unlearning",
    title="Fisher forgetting",
    summary="Adds noise to every weight, the more the less the retain set depends on it.",
    paper="Golatkar et al., Eternal sunshine of the spotless net, arXiv 1911.04933 (CVPR 2020); as in arXiv 2304.04934",
    verb="forget",
    mechanism="edits",
    modalities=("any",),
    subjects=("classifier",),
    needs=("forget", "retain", "gradients"),
    claims="empirical",
    taxonomy=Taxonomy(
        intention="removal", mechanism="second_order", survey_class="parameter_optimisation", level="weights_all",
        threat_model="weight holder",
    ),
    defaults_source="code of arXiv 2304.04934: floor 1e-8, clamps 1e3 and 1e2; its parser's alpha of 0.2 is noise only, so "
    "alpha is efface's, from the lab's digits",
)  # fmt: skip

FLOOR, MOST, MOST_HEAD, LOUDER = 1e-8, 1e3, 1e2, 10.0


class FisherConfig(OneShotConfig):
    """How loud the noise is."""

    alpha: float = Field(
        1e-6, gt=0, description="scale of the variance; tune it: too loud wrecks the model, too low does nothing"
    )


def noise_variance(fisher: Tensor, alpha: float, *, head: bool) -> Tensor:
    """v of the module's equation.

    Args:
        fisher: F of one tensor, of its shape.
        head: it belongs to the last layer.
    """
    v = alpha * (1 / (fisher + FLOOR)).clamp(max=MOST_HEAD if head else MOST)
    if v.ndim > 1:
        v = v.mean(1, keepdim=True).expand_as(fisher)
    return v * LOUDER if head or v.ndim == 1 else v


def class_fisher(subject: Predictor, rows: list[Any], names: list[str]) -> dict[str, Tensor]:
    """E_x sum_y p(y|x) (d CE(x, y) / d theta)^2 by parameter name, p the model's own: K gradients a row."""
    _, logits = subject.read(rows)
    p = logits.double().softmax(-1).to(subject.device)  # [N, K]
    numbers = sum(tensor.numel() for name, tensor in subject.model.named_parameters() if name in set(names))

    def every_class() -> Iterator[tuple[Any, Tensor]]:
        with track("Fisher information, classes x rows", subject.outputs * len(rows)) as advance:
            for part, batch in shaped(subject, rows, numbers):
                for y in range(subject.outputs):
                    yield {**batch, "target": torch.full_like(batch["target"], y)}, p[part, y]
                    advance(len(part))

    return accumulate_samples(
        subject.model, lambda model, batch: mean_nll(answer_logits(model, batch)), every_class(), power=2, names=names
    )


class Fisher(Method):
    """See the module."""

    card = CARD
    config_class = FisherConfig

    def fit(self, subject: Predictor, request: Request, config: FitConfig, *, work: Path, out: Path) -> Fitted:
        """See `Method.fit`.

        Raises:
            RequestError: no retain set.
            ConfigError: not a classifier, or every weight is frozen.
        """
        assert isinstance(config, FisherConfig)
        self.check_subject(subject)
        self.check(request, config)
        assert request.retain is not None
        own = movable(subject, config, CARD.name)
        rows = subject.encode_rows(request.retain, name="retain")
        head = {id(parameter) for parameter in subject.head.parameters()}

        def change() -> Change:
            found = class_fisher(subject, rows, list(own))
            v = {name: noise_variance(found[name], config.alpha, head=id(p) in head) for name, p in own.items()}
            size = sum(float(p.detach().double().square().sum()) for p in own.values())
            noise = sum(float(tensor.double().sum()) for tensor in v.values())
            notes = {
                "relative_noise": (noise / size) ** 0.5 if size else float("inf"),
                "standard_deviations": {name: float(tensor.double().mean().sqrt()) for name, tensor in v.items()},
            }
            return Change(_noised(own, v, config.seed), notes, len(rows))

        return edit_once(self, subject, config, own, change, work=work, out=out)


def _noised(own: Mapping[str, torch.nn.Parameter], v: Mapping[str, Tensor], seed: int) -> Iterator[tuple[str, Tensor]]:
    """theta + sqrt(v) eps; eps is drawn on the CPU, so that the device does not change it."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in own.items():
        eps = torch.randn(parameter.shape, generator=generator).to(parameter.device)
        yield name, parameter.detach().to(v[name].dtype) + v[name].sqrt() * eps


METHOD = Fisher()
