"""Classifiers and regressors as subjects: rows, features, heads, storage, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset
from safetensors.torch import save_file
from torch import nn

import efface
from efface.data.labelled import read_labelled
from efface.errors import ModelError, RequestError
from efface.learn.recipes.classifier import ClassifierConfig, new_model
from efface.subjects.answers import answer_logits
from efface.subjects.factory import FactoryForm, ImageForm
from efface.subjects.loading import glance
from efface.subjects.networks import conv, mlp
from efface.subjects.predictor import Predictor, load_predictor
from efface.train.gradient_stats import answer_gradients

MLP = "efface.subjects.networks:mlp"


def rows(n: int = 12, *, classes: int = 3, width: int = 4) -> Dataset:
    values = np.random.default_rng(0).standard_normal((n, width)).astype(np.float32)
    made = Dataset.from_dict(
        {"id": [str(i) for i in range(n)], "features": list(values), "label": [i % classes for i in range(n)]}
    )
    return made


def small(classes: int = 3, seed: int = 0, **arguments: Any) -> Predictor:
    torch.manual_seed(seed)
    labels = tuple(f"c{i}" for i in range(classes))
    form = FactoryForm(
        factory=MLP, arguments={"inputs": 4, "outputs": classes, "hidden": [5], **arguments}, labels=labels
    )
    return Predictor(form.build().eval(), form=form)


def tiny_bert(labels: int = 3, **config: Any) -> Any:
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    settings = BertConfig(vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
                          max_position_embeddings=24, num_labels=labels, **config)  # fmt: skip
    return BertForSequenceClassification(settings).eval()


def tiny_tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{i}" for i in range(30))]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
                                   sep_token="[SEP]", model_max_length=24)  # fmt: skip


def test_rows_features_and_head() -> None:
    model = small()
    samples = model.encode_rows(rows())
    features, logits = model.read(samples)
    assert features.shape == (12, 5)
    assert torch.allclose(model.head(features), logits, atol=1e-6)  # what goes into the head gives the outputs
    answer = answer_logits(model.model, model.batch(samples[:4]))
    assert answer.logits.shape == (4, 1, 3)
    assert torch.allclose(answer.logp_sum, logits[:4].log_softmax(-1)[range(4), [0, 1, 2, 0]], atol=1e-6)
    assert samples[0].labelled(2).target == 2
    assert samples[0].key == samples[0].labelled(2).key


def test_save_and_load_bit_for_bit(tmp_path: Path) -> None:
    model = small()
    model.save(tmp_path / "m")
    assert glance(str(tmp_path / "m")).kind == "classifier"
    again = efface.load(tmp_path / "m")
    assert isinstance(again, Predictor)
    assert again.digest == model.digest
    assert again.labels == ("c0", "c1", "c2")
    with pytest.raises(ModelError, match="head 'nowhere'"):
        load_predictor(tmp_path / "m", head="nowhere")


def test_a_foreign_factory_needs_your_word(tmp_path: Path) -> None:
    small().save(tmp_path / "m")
    form = json.loads((tmp_path / "m" / "model.json").read_text())
    form["factory"] = "torch.nn:Linear"
    form["arguments"] = {"in_features": 4, "out_features": 3}
    form["head"] = ""
    (tmp_path / "m" / "model.json").write_text(json.dumps({**form, "head": None}))
    save_file(nn.Linear(4, 3).state_dict(), tmp_path / "m" / "model.safetensors")
    with pytest.raises(ModelError, match=r"set factory=torch\.nn:Linear"):
        load_predictor(tmp_path / "m")
    with pytest.raises(ModelError, match=r"as model\.json says"):
        load_predictor(tmp_path / "m", factory="torch.nn:Bilinear")
    model = load_predictor(tmp_path / "m", factory="torch.nn:Linear")
    with pytest.raises(ModelError, match="given"):  # one linear layer: its input is the data, there are no features
        model.forward(model.model, {"x": torch.zeros(2, 3, 4)})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"factory": "nowhere.at.all:made"}, "cannot import"), ({"factory": "efface.errors:nearest"}, "failed"),
        ({"factory": "no colon"}, "cannot be read"), ({"arguments": {"inputs": 4}}, "failed"),
        ({"arguments": {"inputs": 5, "outputs": 3, "hidden": [5]}}, "another shape"),
        ({"labels": ["a", "b"]}, "no linear layer with 2 outputs"), ({"tusk": "x"}, "cannot be read"),
    ],
)  # fmt: skip
def test_broken_folders(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    small().save(tmp_path / "m")
    form = json.loads((tmp_path / "m" / "model.json").read_text())
    (tmp_path / "m" / "model.json").write_text(json.dumps({**form, **change}))
    with pytest.raises(ModelError, match=said) as caught:
        load_predictor(tmp_path / "m", trust_remote_code=True)
    assert "\n" not in str(caught.value)


def test_missing_and_damaged_weights(tmp_path: Path) -> None:
    model = small()
    model.save(tmp_path / "m")
    whole = (tmp_path / "m" / "model.safetensors").read_bytes()
    (tmp_path / "m" / "model.safetensors").write_bytes(whole[:40])
    with pytest.raises(ModelError, match="not whole"):
        load_predictor(tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"no model\.safetensors"):
        load_predictor(tmp_path / "m")
    with torch.no_grad():
        model.head.weight[0, 0] = float("nan")
    model.save(tmp_path / "n")
    with pytest.raises(ModelError, match="NaN"):
        load_predictor(tmp_path / "n")


def test_labels_are_mapped_by_name() -> None:
    model = small()
    named = rows().cast_column("label", ClassLabel(names=["c2", "c0", "c1"]))
    assert model.targets(named)[:3] == [2, 0, 1]
    assert model.targets(rows())[:3] == [0, 1, 2]  # plain numbers are indices
    with pytest.raises(RequestError, match="class 'x'"):
        model.targets(rows().cast_column("label", ClassLabel(names=["c0", "c1", "x"])))
    with pytest.raises(RequestError, match="0 to 2"):
        model.targets(rows(classes=4))


def test_rows_of_another_kind_are_refused() -> None:
    model = small()
    with pytest.raises(RequestError, match="takes features"):
        model.encode_rows(Dataset.from_dict({"id": ["0"], "text": ["a"], "label": [0]}))
    with pytest.raises(RequestError, match="labelled rows"):
        model.encode_rows(Dataset.from_dict({"id": ["0"], "question": ["a"], "answer": ["b"]}))
    with pytest.raises(RequestError, match="predicts classes"):
        model.encode_rows(Dataset.from_dict({"id": ["0"], "features": [[0.0] * 4], "target": [0.5]}))
    form = FactoryForm(factory=MLP, arguments={"inputs": 4, "outputs": 1, "hidden": [5]}, task="regression")
    with pytest.raises(RequestError, match="predicts a number"):
        Predictor(form.build(), form=form).encode_rows(rows())


def test_a_text_classifier_pads_without_changing_what_it_says(tmp_path: Path) -> None:
    model = Predictor(tiny_bert(), tiny_tokenizer())
    assert (model.kind, model.modality, model.head_name) == ("classifier", "text", "classifier")
    data = Dataset.from_dict({"id": ["0", "1"], "text": ["w1 w2", "w3 w4 w5 w6 w7 w8"], "label": [0, 1]})
    samples = model.encode_rows(data)
    _, together = model.read(samples)
    alone = torch.cat([model.read([sample])[1] for sample in samples])
    assert torch.allclose(together, alone, atol=1e-5)
    model.save(tmp_path / "m")
    again = efface.load(tmp_path / "m")
    assert again.digest == model.digest
    assert glance(str(tmp_path / "m")).modality == "text"


def test_a_regressor_of_transformers(tmp_path: Path) -> None:
    model = Predictor(tiny_bert(1), tiny_tokenizer())
    assert model.kind == "regressor"
    data = Dataset.from_dict({"id": ["0"], "text": ["w1 w2"], "target": [0.5]})
    samples = model.encode_rows(data)
    said = model.read(samples)[1][0, 0]
    assert torch.isclose(answer_logits(model.model, model.batch(samples)).logp_sum[0], -0.5 * (said - 0.5) ** 2)
    model.save(tmp_path / "m")
    assert efface.load(tmp_path / "m").kind == "regressor"
    with pytest.raises(ModelError, match="several labels at once"):
        Predictor(tiny_bert(3, problem_type="multi_label_classification"), tiny_tokenizer())


def small_vit() -> Predictor:
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

    torch.manual_seed(0)
    config = ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=8,
                       patch_size=4, num_labels=3)  # fmt: skip
    return Predictor(ViTForImageClassification(config).eval(), ViTImageProcessorPil(size={"height": 8, "width": 8}))


def test_an_image_classifier_of_transformers(tmp_path: Path) -> None:
    model = small_vit()
    np.savez(tmp_path / "a.npz", images=np.random.default_rng(0).integers(0, 255, (6, 8, 8, 3), dtype=np.uint8),
             labels=np.arange(6) % 3)  # fmt: skip
    data = read_labelled(tmp_path / "a.npz")
    features, logits = model.read(model.encode_rows(data))
    assert (features.shape, logits.shape) == ((6, 16), (6, 3))
    model.save(tmp_path / "m")
    again = efface.load(tmp_path / "m")
    assert (again.kind, again.modality) == ("classifier", "image")
    assert torch.allclose(again.read(again.encode_rows(data))[1], logits, atol=1e-6)


def test_pictures_for_a_factory(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=np.full((6, 9, 9), 51, dtype=np.uint8), labels=np.arange(6) % 2)
    data = read_labelled(tmp_path / "a.npz")
    model = new_model(ClassifierConfig(image=ImageForm(height=8, width=8, mode="L", mean=(0.2,), std=(0.5,))), data)
    inputs = model.batch(model.encode_rows(data)[:2])["inputs"]
    assert isinstance(inputs, dict)
    assert inputs["x"].shape == (2, 1, 8, 8)
    assert torch.allclose(inputs["x"], torch.zeros(2, 1, 8, 8), atol=1e-6)  # (51 / 255 - 0.2) / 0.5
    assert model.read(model.encode_rows(data))[1].shape == (6, 2)


def test_networks_have_the_sizes_they_say() -> None:
    assert mlp(6, 2, [4, 3], dropout=0.1)(torch.zeros(2, 2, 3)).shape == (2, 2)
    assert conv(1, 8, 10, norm=True)(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    for hidden in ([], ()):
        linear = mlp(4, 2, hidden)
        assert [type(layer) for layer in linear] == [nn.Flatten, nn.Linear], "no hidden layer: a linear model"
        assert linear(torch.zeros(3, 4)).shape == (3, 2)
    assert conv(3, [12, 8], 4, [4, 5, 6])(torch.zeros(2, 3, 12, 8)).shape == (2, 4)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("kind", ["arrays", "pictures", "checkpoint"])
def test_a_model_in_half_precision_takes_inputs_in_its_precision(kind: str, dtype: str, tmp_path: Path) -> None:
    if kind == "arrays":
        data, made = rows(), small(hidden=[])
    else:
        images = np.random.default_rng(0).integers(0, 255, (6, 8, 8, 3), dtype=np.uint8)
        np.savez(tmp_path / "a.npz", images=images, labels=np.arange(6) % 3)
        data = read_labelled(tmp_path / "a.npz")
        if kind == "pictures":
            made = new_model(ClassifierConfig(image=ImageForm(height=8, width=8)), data)
        else:
            made = small_vit()
    made.save(tmp_path / "model")
    full, half = (load_predictor(tmp_path / "model", dtype=name) for name in ("float32", dtype))
    assert half.dtype == getattr(torch, dtype)
    batch = half.batch(half.encode_rows(data))
    assert isinstance(batch["inputs"], dict)
    assert {tensor.dtype for tensor in batch["inputs"].values()} == {half.dtype}
    said = half.read(half.encode_rows(data))[1]
    assert said.dtype == torch.float32
    assert torch.allclose(said, full.read(full.encode_rows(data))[1], atol=0.05)
    squares = answer_gradients(half, half.encode_rows(data), power=2, per="sample", cache=False)
    exact = answer_gradients(full, full.encode_rows(data), power=2, per="sample", cache=False)
    assert squares.mean() == pytest.approx(exact.mean(), rel=0.1)
    assert answer_logits(half.model, batch).logits.dtype == torch.float32


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_target_that_is_no_number_is_refused(bad: float) -> None:
    form = FactoryForm(factory=MLP, arguments={"inputs": 4, "outputs": 1, "hidden": []}, task="regression")
    subject = Predictor(form.build().eval(), form=form)
    data = rows(4).remove_columns("label").add_column("target", [1.0, 2.0, bad, 3.0])  # type: ignore[call-arg]
    with pytest.raises(RequestError, match=r"forget row 2, column 'target': -?(nan|inf)"):
        subject.encode_rows(data, name="forget")
    assert len(subject.encode_rows(data.select([0, 1, 3]))) == 3
