"""A trained encoder with a linear head: the classifier or regressor that stands on a learnt representation.

Encoders of pictures and arrays become a factory's module (model.json holds the encoder's configuration, so that the folder
stands alone); encoders of texts become the sequence classifier of their own type in transformers, whose pooler is new.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from efface.errors import ModelError
from efface.subjects.encoder import Encoder, pool_picture
from efface.subjects.factory import FactoryForm, ImageForm
from efface.subjects.predictor import Predictor

Task = Literal["classification", "regression"]
FACTORY = "efface.subjects.headed:headed"


class Headed(nn.Module):
    """An encoder's module, its pooling, and a linear layer."""

    def __init__(self, encoder: Any, pooling: str, width: int, outputs: int) -> None:
        super().__init__()
        self.encoder, self.pooling = encoder, pooling
        self.head = nn.Linear(width, outputs)

    def features(self, x: Tensor) -> Tensor:
        """[B, D] from [B, C, H, W] pictures or [B, ...] arrays."""
        if self.encoder.main_input_name == "features":
            found: Tensor = self.encoder(features=x).pooler_output
            return found
        return pool_picture(self.encoder(pixel_values=x, return_dict=True), self.pooling)

    def forward(self, x: Tensor) -> Tensor:
        """[B, outputs]."""
        out: Tensor = self.head(self.features(x))
        return out


def headed(encoder: dict[str, Any], pooling: str, width: int, outputs: int) -> Headed:
    """The module with fresh weights.

    Args:
        encoder: the configuration of a model of transformers, with its `model_type`.
        pooling: see `Encoder`.
        width: D of its features.
        outputs: of the head.
    """
    from transformers import AutoConfig, AutoModel

    import efface.subjects.small_encoders  # noqa: F401  (registers them)

    own = {name: value for name, value in encoder.items() if name != "model_type"}
    model = AutoModel.from_config(AutoConfig.for_model(encoder["model_type"], **own))
    if pooling != "pooler" and hasattr(model, "pooler"):
        model.pooler = None  # as an encoder without one is loaded
    return Headed(model, pooling, width, outputs)


def with_head(encoder: Encoder, labels: Sequence[str], task: Task = "classification") -> Predictor:
    """A predictor on a copy of an encoder's weights; the head is new, from torch's global generator.

    Args:
        labels: names of the classes; of no use for regression.

    Raises:
        ModelError: a sentence-transformers folder, or a text encoder of a type without a sequence classifier.
    """
    outputs = 1 if task == "regression" else len(labels)
    if encoder.modality == "text":
        return _text_classifier(encoder, labels, task)
    if encoder.part is None and encoder.modality == "image":
        raise ModelError(f"a head on '{encoder.source}', a sentence-transformers folder", "an encoder of transformers")
    config = {
        name: value for name, value in encoder.model.config.to_diff_dict().items()
        if name not in ("transformers_version", "architectures", "dtype", "efface_pooling")
    }  # fmt: skip
    config["model_type"] = encoder.model.config.model_type
    form = FactoryForm(
        factory=FACTORY, task=task, modality="image" if encoder.modality == "image" else "features",
        labels=tuple(labels) if task == "classification" else (), head="head", image=_form(encoder),
        arguments={"encoder": config, "pooling": encoder.pooling, "width": encoder.width, "outputs": outputs},
    )  # fmt: skip
    module: Any = form.build()
    missing = module.encoder.load_state_dict(encoder.model.state_dict(), strict=False)
    if missing.missing_keys:
        raise ModelError(f"'{encoder.source}' lacks {', '.join(missing.missing_keys[:3])}", "a whole encoder")
    return Predictor(module.eval(), form=form, source=encoder.source)


def _form(encoder: Encoder) -> ImageForm | None:
    """How the encoder's processor makes a picture."""
    if encoder.modality != "image":
        return None
    mean, std = encoder.normalisation
    shape = encoder.prepare([_blank()])["pixel_values"].shape
    return ImageForm(height=shape[2], width=shape[3], mean=tuple(mean), std=tuple(std))


def _blank() -> Any:
    from PIL import Image

    return Image.new("RGB", (32, 32))


def _text_classifier(encoder: Encoder, labels: Sequence[str], task: Task) -> Predictor:
    from transformers import AutoModelForSequenceClassification

    if encoder.part is None:
        raise ModelError(f"a head on '{encoder.source}', a sentence-transformers folder", "an encoder of transformers",
                         "give the transformer inside it")  # fmt: skip
    config = type(encoder.model.config).from_dict(encoder.model.config.to_dict())
    if hasattr(config, "efface_pooling"):
        del config.efface_pooling
    names = list(labels) if task == "classification" else ["value"]
    config.id2label, config.label2id = dict(enumerate(names)), {name: i for i, name in enumerate(names)}
    config.problem_type = "regression" if task == "regression" else "single_label_classification"
    try:
        model = AutoModelForSequenceClassification.from_config(config)
    except ValueError as error:
        raise ModelError(
            f"'{encoder.source}' (model type '{config.model_type}') has no sequence classifier", "a BERT-like encoder"
        ) from error
    with torch.no_grad():
        model.base_model.load_state_dict(encoder.model.state_dict(), strict=False)
    return Predictor(model.eval(), encoder.part, source=encoder.source)
