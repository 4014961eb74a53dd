"""What a classifier uses to know a class, and where in its pictures that stands: the first half of Concept poisoning.

Paper: arXiv 2405.15662, sections on concept inference and localised poisoning. Features of the training rows are projected on a
concept bank, a linear bottleneck on the projections ranks the concepts of the class to forget and finds the class that is most
like it (the donor); windows slid over a picture and put through the model show where a concept is strongest.

Departures: a window is enlarged to the model's input and scored by the model itself, by its projection on the concept (`concept`)
or by the bottleneck's logit (`margin`); the official code scores windows by CLIP's cosine. Its Grad-CAM variant is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from datasets import Dataset
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from efface.data.poisoning import Corner, peak
from efface.errors import ConfigError, RequestError, nearest
from efface.measure.concept_bank import (
    Bottleneck,
    ConceptBank,
    bank_of_embeddings,
    fit_bottleneck,
    learn_bank,
    read_concepts,
)
from efface.subjects.predictor import Predictor
from efface.subjects.samples import Inputs, Sample


@dataclass(frozen=True)
class Inferred:
    """What was found about class `target`.

    Attributes:
        concept: the target concept, a place in the bank.
        donor: the class that gives patches and, targeted, the label.
        donor_concept: the one that speaks most for the donor.
        accuracy: of the bottleneck on the rows that it was fitted on.
    """

    bank: ConceptBank
    bottleneck: Bottleneck
    target: int
    concept: int
    donor: int
    donor_concept: int
    accuracy: float

    def facts(self, labels: Sequence[str]) -> dict[str, Any]:
        """For the record of the edit."""
        return {
            "class": labels[self.target], "concept": self.bank.names[self.concept],
            "ranking": [self.bank.names[k] for k in self.bottleneck.ranked(self.target)],
            "most_similar_class": labels[self.bottleneck.most_similar(self.target)],
            "donor_concept": self.bank.names[self.donor_concept],
            "bottleneck_training_accuracy": self.accuracy,
        }  # fmt: skip


def infer(
    subject: Predictor, sets: Sequence[Dataset], rows: Sequence[Sample], target: int, source: str, *,
    concept: str | None = None, donor: int | None = None, seed: int = 0,
) -> Inferred:  # fmt: skip
    """Rank the concepts of a class.

    Args:
        sets: the request's retain and forget set.
        rows: their samples, in the same order.
        target: the class to forget.
        source: the concept file; see `read_concepts`.
        concept: name of the target concept; default: the one with the largest weight.
        donor: a class; default: the one whose concept weights are most like the target's.

    Raises:
        ConfigError: ConceptNet, or a concept that the file lacks.
        RequestError: the file does not fit the request or the model.
    """
    held = read_concepts(source)
    features = subject.read(rows)[0].double().numpy()
    bank = _bank(subject, sets, features, held, seed)
    projections = bank.project(features)
    labels = [int(row.target) for row in rows]
    bottleneck = fit_bottleneck(projections, labels, subject.outputs, seed=seed)
    chosen = bottleneck.ranked(target)[0] if concept is None else bank.place(concept)
    giver = bottleneck.most_similar(target) if donor is None else donor
    return Inferred(
        bank, bottleneck, target, chosen, giver, bottleneck.ranked(giver)[0], bottleneck.accuracy(projections, labels)
    )


def _bank(subject: Predictor, sets: Sequence[Dataset], features: Any, held: dict[str, Any], seed: int) -> ConceptBank:
    names = [str(name) for name in held["names"]]
    if "vectors" in held:
        return bank_of_embeddings(names, held["vectors"], held.get("intercepts"))
    shown = held["concepts"]
    if "ids" in held:
        known = {str(own): i for i, own in enumerate(own for part in sets for own in part["id"])}
        wanted = [str(identity) for identity in held["ids"]]
        missing = [identity for identity in wanted if identity not in known]
        if missing:
            raise RequestError(
                f"the concept file annotates the row '{missing[0]}'", "ids of the forget and the retain set",
                "leave other rows out",
            )  # fmt: skip
        return learn_bank(features[[known[identity] for identity in wanted]], shown, names, seed=seed)
    kind = "images" if "images" in held else "features"
    if (kind == "images") != (subject.modality == "image"):
        raise RequestError(
            f"the concept file holds {kind}, '{subject.source}' takes {subject.modality}", "inputs of the model's kind"
        )
    items = [Image.fromarray(item) for item in held[kind]] if kind == "images" else list(held[kind])
    made = [subject.prepare(item, f"concept row {i}") for i, item in enumerate(items)]
    own = [_ready(inputs) for inputs in made]
    return learn_bank(subject.read(own)[0].double().numpy(), shown, names, seed=seed)


def _ready(inputs: Inputs) -> Sample:
    """An input without a label."""
    return Sample(lambda: inputs, 0, "")


# -- pictures ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Canvas:
    """How the input of a sample is a picture [C, H, W].

    Args:
        key: name of the input.
        shape: of the input.
        size: [C, H, W].
    """

    key: str
    shape: tuple[int, ...]
    size: tuple[int, int, int]

    @classmethod
    def of(cls, inputs: Inputs, grid: str | None) -> Canvas:
        """The canvas of a model's inputs.

        Args:
            grid: 'HxW' for rows of features that are pictures.

        Raises:
            ConfigError: texts, or arrays that are no pictures.
        """
        if len(inputs) != 1 or not next(iter(inputs.values())).is_floating_point():
            raise ConfigError("a patch on texts", "pictures", "use mode=none: labels alone are changed")
        key, value = next(iter(inputs.items()))
        shape = tuple(value.shape)
        if len(shape) == 3:
            return cls(key, shape, (shape[0], shape[1], shape[2]))
        if len(shape) == 2:
            return cls(key, shape, (1, shape[0], shape[1]))
        sides = [int(part) for part in (grid or "").split("x") if part.isdecimal()]
        if len(sides) != 2 or sides[0] * sides[1] != value.numel():
            raise ConfigError(
                f"a patch on arrays of shape {list(shape)} with grid={grid}", "the rows and columns of the picture",
                "set grid=HxW, such as 8x8, or use mode=none",
            )  # fmt: skip
        return cls(key, shape, (1, sides[0], sides[1]))

    def picture(self, inputs: Inputs) -> Tensor:
        """[C, H, W]."""
        return inputs[self.key].reshape(self.size)

    def inputs(self, picture: Tensor) -> Inputs:
        """The way back."""
        return {self.key: picture.reshape(self.shape)}


def peaks(
    subject: Predictor, rows: Sequence[Sample], canvas: Canvas, side: int, score: Callable[[Any], Any]
) -> list[Corner]:
    """The window of each picture that scores highest.

    Args:
        score: [N, d] features of the enlarged windows -> [N].
    """

    def of_windows(cuts: list[Tensor]) -> list[float]:
        large = interpolate(torch.stack(cuts), size=canvas.size[1:], mode="bilinear", align_corners=False)
        own = [_ready(canvas.inputs(window)) for window in large]
        return [float(value) for value in score(subject.read(own)[0].double().numpy())]

    return [peak(canvas.picture(row.make()), side, of_windows) for row in rows]


def window_score(found: Inferred, kind: Literal["concept", "margin"], *, donor: bool) -> Callable[[Any], Any]:
    """p of the target's (or the donor's) concept, or the bottleneck's logit of its class."""
    place = found.donor_concept if donor else found.concept
    label = found.donor if donor else found.target
    if kind == "concept":
        return lambda features: found.bank.project(features)[:, place]
    return lambda features: found.bottleneck.logits(found.bank.project(features))[:, label]


def class_of(subject: Predictor, data: Dataset) -> int:
    """The one class of a forget set.

    Raises:
        RequestError: rows of several classes.
    """
    labels = sorted(set(subject.targets(data, "forget")))
    if len(labels) != 1:
        raise RequestError(
            f"the forget set holds {len(labels)} classes ({', '.join(subject.labels[i] for i in labels[:4])}, ...)",
            "one class: concept poisoning forgets a class", "forget one class at a time, or use random labels or salun",
        )  # fmt: skip
    return int(labels[0])


def label_named(subject: Predictor, name: str) -> int:
    """A class by its name.

    Raises:
        ConfigError: none of that name; suggests the nearest.
    """
    if name not in subject.labels:
        raise ConfigError(f"donor={name}", "a class of the model", nearest(name, subject.labels))
    return subject.labels.index(name)


__all__ = ["Canvas", "Inferred", "class_of", "infer", "label_named", "peaks", "window_score"]
