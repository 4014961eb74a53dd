"""Untrained models of every kind with rows to forget, and gradients of single rows by a plain loop, for one-shot edits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from datasets import ClassLabel, Dataset, Features, Value
from predictor_worlds import heaps
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor

from efface.data.request import Request
from efface.subjects.answers import answer_logits
from efface.subjects.factory import FactoryForm
from efface.subjects.predictor import Predictor
from efface.train.engine import isolated_rng

WORDS = "good bad fine poor film book song play very not".split()
KINDS = ("mlp", "conv", "bert", "regressor")


def _spread(model: Any, seed: int) -> Any:
    """Weights and statistics that no default has, so that every layer counts."""
    with torch.no_grad(), isolated_rng(seed):
        for p in model.parameters():
            p.add_(0.2 * torch.randn_like(p))
        for name, buffer in model.named_buffers():
            if "running_var" in name:
                buffer.uniform_(0.5, 2)
    return model.eval()


def _factory(name: str, seed: int, task: Any = "classification", **arguments: Any) -> Predictor:
    labels = ("a", "b", "c") if task == "classification" else ()
    form = FactoryForm(factory=f"efface.subjects.networks:{name}", arguments=arguments, labels=labels, task=task)
    with isolated_rng(seed):
        return Predictor(_spread(form.build(), seed), form=form)


def _bert(seed: int) -> Predictor:
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    names = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *WORDS]
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(names)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    part = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", model_max_length=16,
        model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip
    config = BertConfig(
        vocab_size=len(names), hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=16, num_labels=3, id2label={0: "a", 1: "b", 2: "c"}, label2id={"a": 0, "b": 1, "c": 2},
    )  # fmt: skip
    with isolated_rng(seed):
        return Predictor(_spread(BertForSequenceClassification(config), seed), part)


def model_of(kind: str, seed: int = 0) -> Predictor:
    """A classifier of three classes or a regressor; conv has batch norms, bert dropout."""
    if kind == "bert":
        return _bert(seed)
    if kind == "conv":
        return _factory("conv", seed, channels=1, side=4, outputs=3, widths=[3], features=5, norm=True)
    task = "regression" if kind == "regressor" else "classification"
    return _factory(
        "mlp", seed, task=task, inputs=4, outputs=1 if kind == "regressor" else 3, hidden=[6, 5], dropout=0.2
    )


def data_of(kind: str, n: int = 12, seed: int = 0) -> Dataset:
    """Rows of the model's kind; texts have two to six words."""
    if kind in ("mlp", "regressor"):
        return heaps(n, seed, numbers=kind == "regressor")
    rng = np.random.default_rng(seed)
    columns: dict[str, Any] = {"id": [f"{seed}-{i}" for i in range(n)], "label": (np.arange(n) % 3).tolist()}
    if kind == "bert":
        columns["text"] = [" ".join(rng.choice(WORDS, 2 + i % 5)) + f" {WORDS[i % 10]}" for i in range(n)]
        return Dataset.from_dict(columns).cast_column("label", ClassLabel(names=["a", "b", "c"]))
    from datasets import Array3D

    columns["features"] = list(rng.standard_normal((n, 1, 4, 4)).astype(np.float32))
    kinds = {
        "id": Value("string"),
        "label": ClassLabel(names=["a", "b", "c"]),
        "features": Array3D((1, 4, 4), "float32"),
    }
    return Dataset.from_dict(columns, features=Features(kinds))


def split(kind: str, gone: Sequence[int] = (0, 3, 6), n: int = 12) -> Request:
    """Some rows to forget, the others to keep."""
    data = data_of(kind, n)
    return Request(forget=data.select(list(gone)), retain=data.select([i for i in range(n) if i not in set(gone)]))


def by_hand(subject: Any, batches: Sequence[Sequence[Any]], loss: Callable[[Any], Tensor]) -> list[dict[str, Tensor]]:
    """The gradient of each batch's loss, one backward pass each, in float64."""
    subject.model.eval()
    own = {name: p for name, p in subject.model.named_parameters() if p.requires_grad}
    found = []
    for rows in batches:
        value = loss(answer_logits(subject.model, subject.batch(rows)))
        grads = torch.autograd.grad(value, list(own.values()), allow_unused=True)
        found.append({
            name: torch.zeros_like(p).double() if g is None else g.double()
            for (name, p), g in zip(own.items(), grads, strict=True)
        })  # fmt: skip
    return found


def mean_of(parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Mean by name."""
    return {name: torch.stack([part[name] for part in parts]).mean(0) for name in parts[0]}


def close(found: dict[str, Tensor], expected: dict[str, Tensor], share: float = 1e-4) -> None:
    """Equal to a share of each tensor's largest entry; what is zero but for rounding (keys' biases) has a floor."""
    assert found.keys() == expected.keys()
    most = max(float(value.abs().max()) for value in expected.values())
    assert most > 0
    for name, value in found.items():
        scale = max(float(expected[name].abs().max()), 1e-2 * most)
        assert float((value.double() - expected[name]).abs().max()) <= share * scale, name
