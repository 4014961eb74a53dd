"""Classifiers and regressors as subjects: pictures, texts or arrays in, classes or a number out.

Behind one stands a model of transformers (`...ForImageClassification`, `...ForSequenceClassification`) with its image
processor or tokenizer, or any torch module that an importable factory makes (`efface.subjects.factory`). The head is the
last linear layer with as many outputs as there are classes; what goes into it are the features.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from datasets import ClassLabel, Dataset
from torch import Tensor

from efface.data.labelled import content_key, is_labelled
from efface.data.pictures import open_picture
from efface.errors import InputError, ModelError, RequestError, nearest
from efface.run.files import read_json
from efface.subjects.answers import predicted
from efface.subjects.factory import FORM, FactoryForm, read_form, read_module, save_module
from efface.subjects.loading import (
    check_dtype,
    load_image_processor,
    load_tokenizer,
    look_at_place,
    look_before_loading,
    one_device,
    place_of,
    reading_weights,
    refuse_incomplete,
)
from efface.subjects.samples import Inputs, Sample, collate_samples, to_device
from efface.subjects.subject import Subject, refuse_bad_values
from efface.subjects.tower import longest

Task = Literal["classification", "regression"]
Modality = Literal["image", "text", "features"]
COLUMN: dict[str, str] = {"image": "image", "text": "text", "features": "features"}

PREPARED_BYTES = 2**29
"""Inputs of a data set are kept ready up to this size; above it they are made batch by batch."""


class Predictor(Subject):
    """A classifier (`kind` classifier) or a regressor of one number (`kind` regressor).

    Args:
        model: the module; called with named inputs if it is of transformers, else with one tensor.
        part: its image processor or tokenizer; None for a module of a factory.
        form: of a factory's module.
        labels: names of the classes in the order of the outputs; default: what the configuration says.
        head: name of the last linear layer; default: the last one with as many outputs as there are classes.

    Raises:
        ModelError: no head, or several kinds of output that are not supported.
    """

    def __init__(
        self, model: Any, part: Any = None, *, form: FactoryForm | None = None, head: str | None = None,
        source: str = "in memory", revision: str | None = None, trust_remote_code: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(model, source=source, revision=revision, trust_remote_code=trust_remote_code)
        self.part = part
        self.form = form
        config: Any = getattr(model, "config", None)
        if form is not None:
            self.task: Task = form.task
            self.modality: Modality = form.modality
            labels: Sequence[str] = form.labels
        else:
            self.task = _task_of(config, source)
            pictures = getattr(model, "main_input_name", "input_ids") == "pixel_values"
            self.modality = "image" if pictures else "text"
            labels = [str(config.id2label[i]) for i in sorted(config.id2label)] if config.id2label else ()
        self.head_name = _head_name(model, head or (form.head if form else None), len(labels), self.task, source)
        self.outputs = self.head.out_features
        if self.task == "regression" and self.outputs != 1:
            raise ModelError(
                f"'{source}' is a regressor with {self.outputs} outputs", "one number", "use another model"
            )
        if self.task == "classification" and not labels:
            labels = [str(i) for i in range(self.outputs)]
        self.labels = tuple(labels) if self.task == "classification" else ()
        if self.task == "classification" and len(self.labels) != self.outputs:
            raise ModelError(
                f"'{source}' names {len(self.labels)} classes and has {self.outputs} outputs", "a name for every output",
                "mend the labels",
            )  # fmt: skip

    @property
    def kind(self) -> str:  # type: ignore[override]
        """`classifier` or `regressor`."""
        return "classifier" if self.task == "classification" else "regressor"

    @property
    def pad_id(self) -> int:
        """Fills up token ids."""
        return int(getattr(self.part, "pad_token_id", None) or 0)

    @property
    def head(self) -> Any:
        """The last linear layer."""
        inner = getattr(self.model, "get_base_model", lambda: self.model)()
        return inner.get_submodule(self.head_name)

    # -- rows -----------------------------------------------------------------------------------------------------

    def prepare(self, item: Any, place: str = "input") -> Inputs:
        """The tensors of one input, without a batch dimension.

        Args:
            item: a picture, a text or an array.
        """
        if self.form is not None:
            if self.form.image is not None:
                return {"x": self.form.image.tensor(item)}
            return {"x": torch.as_tensor(np.asarray(item, dtype=np.float32))}
        if self.modality == "image":
            made = self.part(images=open_picture(item, place=place), return_tensors="pt")
            return {"pixel_values": made["pixel_values"][0]}
        made = self.part(item, truncation=True, max_length=longest(self.part, self.model.config), return_tensors="pt")
        return {name: made[name][0] for name in made if name in ("input_ids", "attention_mask", "token_type_ids")}

    def encode_rows(self, data: Dataset, *, name: str = "data", targets: Sequence[Any] | None = None) -> list[Sample]:
        """Samples of labelled rows.

        Args:
            targets: instead of those of the rows; for rows whose labels are not the model's.

        Raises:
            RequestError: no labels or targets, another kind of input, or a class that the model does not have.
        """
        targets = self.targets(data, name) if targets is None else targets
        column = COLUMN[self.modality]
        if column not in data.column_names:
            there = [known for known in COLUMN.values() if known in data.column_names]
            raise RequestError(
                f"the {name} set has the inputs {there}, '{self.source}' takes {column}", f"a column '{column}'",
                "give rows of the model's kind",
            )  # fmt: skip
        own = data.select_columns([column])  # a column at once: row by row costs fifty times as much
        items = list((own.with_format("numpy") if column == "features" else own)[:][column])
        keys = [content_key({column: item}) for item in items]
        first = self.prepare(items[0], f"{name} row 0") if items else {}
        small = len(items) * sum(t.numel() * t.element_size() for t in first.values()) <= PREPARED_BYTES
        ready = [self.prepare(item, f"{name} row {i}") for i, item in enumerate(items)] if small else None

        def maker(index: int) -> Callable[[], Inputs]:
            if ready is not None:
                return lambda: ready[index]
            return lambda: self.prepare(items[index], f"{name} row {index}")

        return [Sample(maker(i), target, key) for i, (target, key) in enumerate(zip(targets, keys, strict=True))]

    def targets(self, data: Dataset, name: str = "data") -> list[Any]:
        """Class indices or numbers of labelled rows; see `encode_rows`.

        Raises:
            RequestError: as `encode_rows`; a target that is NaN or infinite.
        """
        if not is_labelled(data):
            raise RequestError(
                f"the {name} set has the columns {', '.join(data.column_names)}", f"labelled rows, for a {self.kind}",
                "give a column 'label' or 'target'",
            )  # fmt: skip
        if self.task == "regression":
            if "target" not in data.column_names:
                raise RequestError(
                    f"the {name} set has classes, '{self.source}' predicts a number", "a column 'target'"
                )
            numbers = [float(value) for value in data.select_columns(["target"])[:]["target"]]
            for index, number in enumerate(numbers):
                if not math.isfinite(number):
                    raise RequestError(
                        f"{name} row {index}, column 'target': {number}", "a finite number", "mend the row"
                    )
            return numbers
        if "label" not in data.column_names:
            raise RequestError(f"the {name} set has numbers, '{self.source}' predicts classes", "a column 'label'")
        feature = data.features["label"]
        order: list[int] | None = None
        if isinstance(feature, ClassLabel) and tuple(feature.names) != self.labels:
            unknown = [known for known in feature.names if known not in self.labels]
            if not unknown:
                order = [self.labels.index(known) for known in feature.names]
            elif not (_nameless(self.labels) and len(feature.names) == self.outputs):
                raise RequestError(
                    f"the {name} set has the class '{unknown[0]}', which '{self.source}' lacks",
                    f"classes of the model: {', '.join(self.labels[:8])}", nearest(unknown[0], self.labels),
                )  # fmt: skip
        found = [
            int(label) if order is None else order[int(label)] for label in data.select_columns(["label"])[:]["label"]
        ]
        for index, label in enumerate(found):
            if not 0 <= label < self.outputs:
                raise RequestError(f"{name} row {index}, column 'label': {label}", f"0 to {self.outputs - 1}, the model's "
                                   "classes", "mend the row")  # fmt: skip
        return found

    def batch(self, rows: Sequence[Sample]) -> dict[str, Inputs | Tensor]:
        """Tensors of samples, where the model is and numbers in its precision; see `collate_samples`."""
        made = to_device(collate_samples(rows, self.pad_id), self.device)
        inputs = made["inputs"]
        assert isinstance(inputs, dict)
        own = {name: part.to(self.dtype) if part.is_floating_point() else part for name, part in inputs.items()}
        return {**made, "inputs": own}

    # -- running --------------------------------------------------------------------------------------------------

    def forward(self, model: Any, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Features and outputs of one pass, with gradients where they are on.

        Args:
            model: the module, or the same one wrapped (an adapter, a distributed model).

        Returns:
            [B, D] what goes into the head, [B, K] logits or [B, 1] numbers, float32.

        Raises:
            ModelError: the features are no vectors.
        """
        with self._catching() as caught:
            said = predicted(model, inputs)
        if not caught or caught[-1].ndim != 2:
            shape = list(caught[-1].shape) if caught else "nothing"
            raise ModelError(
                f"the head '{self.head_name}' of '{self.source}' is given {shape}", "one vector an input, [B, D]",
                "name the last linear layer with head=NAME",
            )  # fmt: skip
        return caught[-1].float(), said

    @contextlib.contextmanager
    def _catching(self) -> Iterator[list[Tensor]]:
        caught: list[Tensor] = []
        handle = self.head.register_forward_pre_hook(lambda _, given: caught.append(given[0]))
        try:
            yield caught
        finally:
            handle.remove()

    def read(self, rows: Sequence[Sample], batch_size: int = 256) -> tuple[Tensor, Tensor]:
        """Features [N, D] and outputs [N, K] of samples, in evaluation mode, float32 on the CPU."""
        parts = []
        with self.evaluating() as model:
            for start in range(0, len(rows), batch_size):
                inputs = self.batch(rows[start : start + batch_size])["inputs"]
                assert isinstance(inputs, dict)
                parts.append(tuple(tensor.cpu() for tensor in self.forward(model, inputs)))
        if not parts:
            raise InputError("no rows to read", "at least one", "check the data")
        return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])

    def fresh(self) -> Any:
        """A module of the same form with fresh weights, from torch's global generator."""
        if self.form is not None:
            return self.form.build()
        return type(self.model)(self.model.config)

    # -- saving ---------------------------------------------------------------------------------------------------

    def beside(self) -> list[Any]:
        """Tokenizer or image processor."""
        return [] if self.part is None else [self.part]

    def save_into(self, folder: Path) -> None:
        """The library's own layout, or model.json with safetensors."""
        if self.form is not None:
            save_module(self.model, self.form, folder, self.weights())
        else:
            super().save_into(folder)


def _nameless(labels: Sequence[str]) -> bool:
    """Whether the names say nothing: LABEL_0, or 0."""
    return all(name in (f"LABEL_{i}", str(i)) for i, name in enumerate(labels))


def _task_of(config: Any, source: str) -> Task:
    kind = getattr(config, "problem_type", None)
    if kind == "multi_label_classification":
        raise ModelError(
            f"'{source}' gives several labels at once", "one class or one number an input", "use another model"
        )
    return "regression" if kind == "regression" or config.num_labels == 1 else "classification"


def _head_name(model: Any, given: str | None, classes: int, task: Task, source: str) -> str:
    linears: dict[str, Any] = {
        name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)
    }
    if given is not None:
        if given not in linears:
            raise ModelError(f"head '{given}' of '{source}'", None, nearest(given, linears))
        return given
    wanted = 1 if task == "regression" else classes
    fitting = [name for name, module in linears.items() if not wanted or module.out_features == wanted]
    if not fitting:
        raise ModelError(
            f"'{source}' has no linear layer with {wanted} outputs",
            "a head of one linear layer",
            "name it with head=NAME",
        )
    return fitting[-1]


def load_predictor(
    source: str | Path, *, factory: str | None = None, head: str | None = None, revision: str | None = None,
    dtype: str = "float32", trust_remote_code: bool = False, check_values: bool = True,
) -> Predictor:  # fmt: skip
    """Load a classifier or a regressor from a hub id or folder, safetensors only.

    Args:
        source: hub id or folder; with model.json the module of a factory.
        factory: `package.module:function` that model.json names: your word that it may be imported. Needed for factories
            outside efface.
        head: name of the last linear layer.
        revision: commit, tag or branch on the hub.
        dtype: `float32`, `bfloat16`, `float16` or `auto`.
        trust_remote_code: run code from the repository, or import the factory that a folder names; recorded.
        check_values: refuse weights with NaN or infinity.

    Raises:
        ModelError: one line that says what is wrong with the folder or id.
    """
    text = str(source)
    check_dtype(dtype)
    place = Path(place_of(text))
    if (place / FORM).exists():
        look_at_place(text, revision)
        form = read_form(place, factory, trust_remote_code)
        module = read_module(place, form)
        if dtype not in ("auto", "float32"):
            module = module.to(getattr(torch, dtype))
        if torch.cuda.is_available():
            module = module.to("cuda")
        subject = Predictor(module, form=form, head=head, source=text, trust_remote_code=trust_remote_code)
    else:
        subject = _of_transformers(text, factory, head, revision, dtype, trust_remote_code)
    if check_values:
        refuse_bad_values(subject)
    return subject


def _of_transformers(
    text: str, factory: str | None, head: str | None, revision: str | None, dtype: str, trust: bool
) -> Predictor:
    from transformers import AutoModelForImageClassification, AutoModelForSequenceClassification

    from efface.subjects.loading import glance

    if factory is not None:
        raise ModelError(
            f"factory '{factory}' for '{text}', which has no {FORM}", f"a folder with {FORM}", "leave it out"
        )
    seen = glance(text, revision)
    pictures = seen.modality == "image"
    what = f"a classifier of {'images' if pictures else 'texts'}"
    look_before_loading(text, revision, tokenizer=not pictures, image_processor=pictures)
    facts: dict[str, Any] = {"revision": revision, "trust_remote_code": trust}
    place = place_of(text)
    part = (load_image_processor if pictures else load_tokenizer)(text, place, facts, what)
    auto = AutoModelForImageClassification if pictures else AutoModelForSequenceClassification
    with reading_weights(text, what):
        model, info = auto.from_pretrained(
            place, dtype=dtype, device_map=one_device(), use_safetensors=True, output_loading_info=True,
            ignore_mismatched_sizes=True, **facts,
        )  # fmt: skip
    refuse_incomplete(text, info)
    return Predictor(model.eval(), part, head=head, source=text, **facts)


def stored_form(folder: Path) -> dict[str, Any] | None:
    """model.json of a folder, if it has one; not checked."""
    path = folder / FORM
    found = read_json(path) if path.exists() else None
    return found if isinstance(found, dict) else None


__all__ = ["Predictor", "load_predictor", "stored_form"]
