"""DeepCUT, our reconstruction: rows to forget leave their class in the space before the head, seen in several dropout views.

Paper: He et al., DeepCUT: deep contrastive unlearning for language models, arXiv 2503.14900 (2025). Neither code nor full
equations were available: the form L_CE + gamma L_f, the contrast in the latent space and the dropout views are theirs, the
loss below and its numbers are reconstructed, and no figure of the paper may be quoted for it. With z = h/|h| of what goes
into the head, Z_u the V views [V B] of the forget batch U, Z_r the retain batch R, A+(i) = {j : y_j != y_i} and A-(i) the
others of Z_r,

    L_f = mean_i -(1/|A+(i)|) sum_{j in A+(i)} [ <z_i, z_j>/tau - lse_{k in A+(i) u A-(i)} <z_i, z_k>/tau ]
    L = CE(R) + gamma L_f,   gamma is `forget_weight`

`denominator=same_class` sums over A-(i) alone, which is the loss of contrastive unlearning. Features (the loss) and logits
(the head) are of one forward pass. The norm of gamma times the term's gradient is held below `forget_norm`, since the term's
scale changes with tau and the batch. Token-level tasks are not offered.

It works on any classifier whose features pass through dropout. Small gammas do little; rows with right labels are pushed
below what a retrained model would say (stop at the level of unseen rows), and with two classes the push is a label flip.
"""

from __future__ import annotations

import warnings
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.modules.dropout import _DropoutNd

from efface.catalog import Card, Taxonomy
from efface.errors import ConfigError
from efface.forget.objectives.contrastive_unlearning import ContrastConfig, ContrastiveUnlearning
from efface.numerics.inverted_contrast import Denominator
from efface.subjects.predictor import Predictor

CARD = Card(
    name="deepcut",
    system="deepcut",
    title="DeepCUT (reconstruction)",
    summary="Our reconstruction: drives dropout views of each row to forget towards other classes, in the space that the head "
    "reads, and holds retained rows by their labels.",
    paper="He et al., DeepCUT: deep contrastive unlearning for language models, arXiv 2503.14900 (2025); reconstructed",
    verb="forget",
    mechanism="objectives",
    modalities=("text",),
    subjects=("classifier",),
    needs=("forget", "retain", "labels", "gradients"),
    claims="empirical",
    taxonomy=Taxonomy(
        intention="removal", mechanism="representation_steering", survey_class="parameter_optimisation", level="weights_all",
        threat_model="weight holder",
    ),
    defaults_source="form of the objective: a public summary of the paper; every number is efface's",
    experimental=True,
)  # fmt: skip

ALIKE = 1e-6
"""Largest difference between two views of one row that is only rounding, relative to the features."""


class DeepcutConfig(ContrastConfig):
    """The views, the denominator, and the numbers of the reconstruction, for an encoder of BERT's size."""

    views: int = Field(2, ge=1, description="V, dropout views of each forget row; mechanism: paper, number: efface")
    denominator: Denominator = Field("all", description="context of the log-sum-exp; reconstruction: all of the batch")
    forget_norm: float = Field(
        10.0, gt=0, description="largest norm of gamma times the contrastive term's gradient; efface"
    )
    tau: float = Field(0.5, gt=0, description="temperature; efface: 0.5")
    forget_weight: float = Field(1.0, ge=0, description="gamma; efface: 1, search 0.1 to 10")
    learning_rate: float = Field(2e-5, gt=0, description="efface: 2e-5 with AdamW; small networks need 1e-3 and more")
    batch_size: int = Field(16, ge=1, description="forget rows of a step; efface: 16")
    retain_ratio: int = Field(4, ge=1, description="retain rows beside each forget row of a step; efface: 4, so 64")
    balanced: bool = Field(True, description="retain batches with all classes alike often; efface")
    omega: int = Field(1, ge=1, description="steps in which a forget batch stays; efface: 1")
    epochs: float = Field(5, gt=0, description="passes over the forget set; efface: 5")
    warmup_ratio: float = Field(0.0, ge=0, le=1, description="efface: none")
    schedule: Literal["linear", "cosine", "constant"] = Field("constant", description="efface: constant")


def dropping(model: torch.nn.Module) -> bool:
    """Whether a dropout layer is at work: in training mode, with a rate above 0."""
    return any(isinstance(module, _DropoutNd) and module.training and module.p > 0 for module in model.modules())


def coincide(views: Tensor) -> bool:
    """Whether the views of every row are the same but for rounding.

    Args:
        views: [V, B, D].
    """
    return bool((views - views[:1]).abs().max() <= ALIKE * views.abs().max().clamp(min=1))


class Deepcut(ContrastiveUnlearning):
    """See the module."""

    def check_model(self, subject: Predictor, config: ContrastConfig) -> None:
        """Warns for two classes besides."""
        super().check_model(subject, config)
        if subject.outputs == 2:
            warnings.warn(
                "deepcut with two classes: towards the other class is a label flip, which membership and label-inversion "
                "attacks can see; stop at the level of unseen rows, or use another method", stacklevel=3,
            )  # fmt: skip

    def embedded(
        self, subject: Predictor, model: Any, part: dict[str, Any], config: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        """V views of each row, one after another: [V B, D], [V B], [V B].

        Raises:
            ConfigError: several views that coincide, as without dropout they do.
        """
        V = config.views
        inputs = {name: tensor.repeat(V, *[1] * (tensor.ndim - 1)) for name, tensor in part["inputs"].items()}
        features, _ = subject.forward(model, inputs)  # a mask of its own for every row
        if V > 1 and not dropping(model) and coincide(features.detach().view(V, -1, features.shape[1])):
            raise ConfigError(
                f"views={V} of a model without active dropout, in which all views coincide", "a dropout rate above 0",
                "set views=1, or give the model dropout before its head",
            )  # fmt: skip
        return features, part["target"].repeat(V), part["gone"].repeat(V)

    def denominator(self, config: Any) -> Denominator:
        """As configured."""
        found: Denominator = config.denominator
        return found

    def weighed(self, term: Tensor, model: Any, config: Any) -> float:
        """gamma, less where gamma times the term's gradient would be longer than `forget_norm`."""
        movable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        gradients = torch.autograd.grad(term, movable, retain_graph=True, allow_unused=True)
        length = config.forget_weight * float(
            torch.stack([part.float().norm() for part in gradients if part is not None]).norm()
        )
        return float(config.forget_weight) * min(1.0, config.forget_norm / length if length > 0 else 1.0)


METHOD = Deepcut(CARD, DeepcutConfig)
