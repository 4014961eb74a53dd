"""Train a classifier or a regressor on labelled rows: a small network from scratch, any factory's module, or a checkpoint.

The loss is the cross-entropy, for numbers half the squared error. Numbers are learnt as they are: standardise them before.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from datasets import ClassLabel, Dataset, concatenate_datasets
from pydantic import Field

from efface.catalog import Card
from efface.data.labelled import read_labelled
from efface.errors import ConfigError, RequestError
from efface.learn.folder import learn_into
from efface.run.cost import Cost, measure_cost
from efface.run.files import make_folder
from efface.subjects.encoder import Encoder
from efface.subjects.factory import FactoryForm, ImageForm
from efface.subjects.headed import with_head
from efface.subjects.predictor import Predictor, load_predictor
from efface.train.config import TrainConfig
from efface.train.engine import isolated_rng, train
from efface.train.streams import collator_of
from efface.train.supervised import answer_loss, supervised_schedule

CARD = Card(
    name="classifier",
    system="sparse-unlearning",
    title="Classifier or regressor on labelled rows",
    summary="Supervised training of a small network, of any module that a factory makes, or of a checkpoint.",
    paper="Jia et al., Model sparsity can simplify machine unlearning, arXiv 2304.04934 (its original models)",
    verb="learn",
    mechanism="recipes",
    modalities=("image", "text", "tabular"),
    subjects=("classifier", "regressor"),
    needs=("gradients", "labels"),
    defaults_source="Unlearn-Sparse's original training is for ResNets (SGD 0.1, momentum 0.9, decay 5e-4, 182 epochs); these "
    "defaults, for small networks, are efface's",
)


class ClassifierConfig(TrainConfig):
    """Optimisation and, from scratch, the network."""

    factory: str = Field(
        "auto", description="package.module:function of a module; auto: an MLP for arrays, a small convolutional net for "
        "pictures",
    )  # fmt: skip
    arguments: dict[str, Any] = Field({}, description="what the factory is called with, beside what auto fills in")
    head: str | None = Field(None, description="name of the last linear layer; default: the last one that fits")
    image: ImageForm | None = Field(None, description="height, width, mode L or RGB, mean and std of pictures")
    learning_rate: float = Field(0.05, gt=0, description="efface, for small networks")
    optimizer: Literal["adamw", "adam", "sgd"] = Field("sgd", description="Unlearn-Sparse: SGD with momentum 0.9")
    epochs: float = Field(60, gt=0, description="efface, for small networks")
    batch_size: int = Field(64, ge=1, description="efface, for small networks (Unlearn-Sparse: 256)")
    weight_decay: float = Field(5e-4, ge=0, description="Unlearn-Sparse: 5e-4")
    schedule: Literal["linear", "cosine", "constant"] = Field("constant", description="efface, for small networks")


def new_model(config: ClassifierConfig, data: Dataset) -> Predictor:
    """A freshly initialised predictor for rows of this kind.

    Raises:
        ConfigError: texts without a model, or pictures without their form for a factory.
    """
    numbers = "target" in data.column_names
    labels = () if numbers else _labels(data)
    if "text" in data.column_names:
        raise ConfigError(
            "texts and no --model", "a checkpoint to fine-tune", "give an encoder with --model, or features"
        )
    pictures = "image" in data.column_names
    image = config.image or (ImageForm(height=32, width=32) if pictures else None)
    arguments = dict(config.arguments)
    factory = config.factory
    if factory == "auto":
        outputs = 1 if numbers else len(labels)
        if pictures:
            assert image is not None
            own = {
                "channels": len(image.mode.replace("L", "1")),
                "side": [image.height, image.width],
                "outputs": outputs,
            }
            factory = "efface.subjects.networks:conv"
        else:
            shape = data.with_format("numpy")[0]["features"].shape
            own = {"inputs": int(_product(shape)), "outputs": outputs}
            factory = "efface.subjects.networks:mlp"
        arguments = {**own, **arguments}
    form = FactoryForm(
        factory=factory, arguments=arguments, task="regression" if numbers else "classification",
        modality="image" if pictures else "features", labels=labels, head=config.head, image=image,
    )  # fmt: skip
    with isolated_rng(config.seed):
        module = form.build()
    return Predictor(module.eval(), form=form, source="from scratch")


def on_encoder(encoder: Encoder, config: ClassifierConfig, data: Dataset) -> Predictor:
    """The encoder's weights with a new head for these rows."""
    numbers = "target" in data.column_names
    with isolated_rng(config.seed):
        return with_head(encoder, () if numbers else _labels(data), "regression" if numbers else "classification")


def _product(shape: Sequence[int]) -> int:
    found = 1
    for side in shape:
        found *= side
    return found


def _labels(data: Dataset) -> tuple[str, ...]:
    feature = data.features["label"]
    if isinstance(feature, ClassLabel):
        return tuple(feature.names)
    largest = max(data["label"])
    if min(data["label"]) < 0:
        raise RequestError("a label below 0", "whole numbers from 0", "mend the labels")
    return tuple(str(i) for i in range(largest + 1))


def fit(
    subject: Predictor, data: Dataset, config: TrainConfig, *, work: Path, label: str = "train"
) -> tuple[list[dict[str, float]], Cost]:
    """Train the subject's model in place; checkpoints live in `work` until done."""
    schedule = supervised_schedule(subject.encode_rows(data, name="train"), config)
    with measure_cost(label) as cost:
        log = train(
            subject.model,
            schedule,
            answer_loss,
            config,
            folder=make_folder(work),
            collator=collator_of(subject),
            label=label,
        )
        cost.items = len(schedule)
    shutil.rmtree(work, ignore_errors=True)
    subject.model.eval()
    subject.changed()
    return log.values, cost


def learn(
    data: Sequence[Dataset], out: Path, config: ClassifierConfig, *, model: Predictor | Encoder | None = None,
    prompt: Any = None,
    tokenizer_data: Sequence[Dataset] = (), label: str = "train",
) -> Predictor:  # fmt: skip
    """Train and save a model; a killed run goes on where it was, a finished one is loaded.

    Args:
        data: labelled sets, joined.
        out: the model folder.
        model: what to fine-tune; an encoder gets a new linear head; None builds a model from scratch.

    Raises:
        ConfigError: a prompt or tokenizer data.
        RunError: `out` holds a model of other settings or data.
    """
    from efface.data.request import data_digest

    if prompt is not None or tokenizer_data:
        raise ConfigError("a prompt or tokenizer data for 'classifier'", "neither", "they belong to causal-lm")
    joined = data[0] if len(data) == 1 else concatenate_datasets(list(data))
    settings = {
        "config": config.model_dump(mode="json"), "data": [data_digest(part) for part in data],
        "start": None if model is None else model.digest,
    }  # fmt: skip

    def fit_into(work: Path) -> tuple[Predictor, dict[str, Any], Cost]:
        subject = (
            on_encoder(model, config, joined) if isinstance(model, Encoder) else model or new_model(config, joined)
        )
        values, cost = fit(subject, joined, config, work=work, label=label)
        return subject, {"final_nll": values[-1]["nll"] if values else None}, cost

    return learn_into(out, settings, load=lambda: load_predictor(out, factory=_foreign(config)), fit=fit_into)


def _foreign(config: ClassifierConfig) -> str | None:
    return None if config.factory == "auto" else config.factory


CONFIG = ClassifierConfig
READ = read_labelled
