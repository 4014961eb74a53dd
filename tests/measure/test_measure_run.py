"""The verb `measure` from a model or from ready embeddings to a folder; parts of a corpus give what the whole gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import efface
from efface.cli import run
from efface.errors import ConfigError, InputError, ModelError
from efface.learn.starts import StartConfig, new_dual_encoder, new_encoder
from efface.run.files import read_json

SIZE = StartConfig(width=32, depth=1, heads=2, image_size=16, patch=8, context=8)
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 50, 220), "white": (240, 240, 240)}
TEXTS = [f"a {size} {colour} square" for colour in COLOURS for size in ("tiny", "small", "large", "huge", "plain", "odd",
         "old", "new", "nice", "flat")]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, forty pictures with captions, and forty texts."""
    from PIL import Image

    root = tmp_path_factory.mktemp("measure")
    new_dual_encoder(SIZE, TEXTS, 0).save(root / "model")
    new_encoder(SIZE, "image", [], 1).save(root / "encoder")
    (root / "pictures").mkdir()
    rng = np.random.default_rng(0)
    lines = []
    for i, text in enumerate(TEXTS):
        colour = np.asarray(COLOURS[text.split()[2]])
        pixels = np.clip(colour + rng.integers(-30, 30, (16, 16, 3)), 0, 255).astype("uint8")
        Image.fromarray(pixels).save(root / "pictures" / f"{i:02d}.png")
        lines.append(json.dumps({"file_name": f"{i:02d}.png", "text": text}))
    (root / "pictures" / "metadata.jsonl").write_text("\n".join(lines))
    (root / "texts.txt").write_text("\n".join(TEXTS))
    return root


def gain_words(place: Path, out: Path) -> list[str]:
    return [
        "measure", "information-gain", "--model", str(place / "model"), "--images", str(place / "pictures"),
        "--texts", str(place / "texts.txt"), "--out", str(out),
    ]  # fmt: skip


def test_information_gain_writes_scores_statistics_and_a_gallery(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(gain_words(place, tmp_path / "out")) == 0
    said = capsys.readouterr().out
    assert "gallery.html" in said
    table = pq.read_table(tmp_path / "out" / "scores.parquet")
    assert table.num_rows == 80
    assert {"side", "id", "kl", "klr", "cov_norm", "cov_norm_zero", "centered_norm", "ess", "saturated"} <= set(
        table.column_names
    )
    page = (tmp_path / "out" / "gallery.html").read_text(encoding="utf-8")
    assert "data:image/png;base64" in page
    assert "<script" not in page
    assert (tmp_path / "out" / "statistics.safetensors").exists()
    assert not list(tmp_path.glob(".out*")), "no work folder is left"
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert run(gain_words(place, tmp_path / "out")) == 0, "the same again is read back"
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert run([*gain_words(place, tmp_path / "out"), "unit=bits"]) == 2
    assert "choose a new or empty folder" in capsys.readouterr().err


def test_ready_embeddings_give_the_same_numbers(place: Path, tmp_path: Path) -> None:
    model = efface.load(place / "model")
    from efface.data.items import read_items

    pictures = read_items(place / "pictures", want=("image",))
    np.save(tmp_path / "a.npy", model.image.embed(list(pictures["image"])).numpy())
    np.save(tmp_path / "b.npy", model.text.embed(TEXTS).numpy())
    words = ["measure", "information-gain", "--image-embeddings", str(tmp_path / "a.npy"), "--text-embeddings",
             str(tmp_path / "b.npy"), "--out", str(tmp_path / "ready")]  # fmt: skip
    assert run([*words]) == 2, "embeddings have no scale of their own"
    assert run([*words, "--logit-scale", str(model.scale)]) == 0
    assert run(gain_words(place, tmp_path / "model")) == 0
    one, other = (pq.read_table(tmp_path / name / "scores.parquet") for name in ("ready", "model"))
    for mode in ("kl", "klr", "cov_norm"):
        np.testing.assert_allclose(one[mode].to_numpy(), other[mode].to_numpy(), rtol=1e-6)


def test_a_corpus_in_three_parts_is_scored_as_the_whole(place: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    assert run(gain_words(place, whole)) == 0
    rows = pq.read_table(whole / "scores.parquet").to_pylist()
    expected = {row["id"]: row["cov_norm"] for row in rows if row["side"] == "images"}
    pieces: list[str] = []
    for i in (1, 2, 3):
        assert run([*gain_words(place, tmp_path / f"s{i}"), "--shard", f"{i}/3"]) == 0
        pieces += ["--statistics", str(tmp_path / f"s{i}" / "statistics.safetensors")]
    found: dict[str, float] = {}
    for i in (1, 2, 3):
        out = tmp_path / f"scored{i}"
        assert run([*gain_words(place, out), "--shard", f"{i}/3", *pieces]) == 0
        rows = pq.read_table(out / "scores.parquet").to_pylist()
        assert "kl" not in rows[0], "a gain needs the sample itself"
        found |= {row["id"]: row["cov_norm"] for row in rows if row["side"] == "images"}
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, rel=1e-9)


def test_geometry_and_gap(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model", str(place / "model"), "--images", str(place / "pictures"), "--texts", str(place / "texts.txt")]
    assert run(["measure", "geometry", *words, "--out", str(tmp_path / "out"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["reports"]
    assert set(told) == {"images", "texts", "pairs", "modality gap"}
    assert told["modality gap"] == efface.measure("modality-gap", model=place / "model", images=place / "pictures",
                                                  texts=place / "texts.txt")["pairs"].model_dump(mode="json")  # fmt: skip
    stored = read_json(tmp_path / "out" / "measure.json")
    assert stored["reports"]["pairs"]["alignment"]["value"] == told["pairs"]["alignment"]["value"]
    assert (
        told["images"]["uniformity"]["low"]
        < told["images"]["uniformity"]["value"]
        < told["images"]["uniformity"]["high"]
    )


def test_similarity_of_a_model_with_itself_and_with_another(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["measure", "similarity", "--model", str(place / "encoder"), "--images", str(place / "pictures")]
    assert run([*words, "--against", str(place / "encoder"), "--json"]) == 0
    same = json.loads(capsys.readouterr().out)["reports"]["images"]
    assert same["cka"]["value"] == pytest.approx(1)
    assert same["procrustes"]["value"] == pytest.approx(0, abs=1e-5)
    assert same["mutual_neighbours"]["value"] == 1
    new_encoder(SIZE, "image", [], 5).save(tmp_path / "other")
    assert run([*words, "--against", str(tmp_path / "other"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["reports"]["images"]["cka"]["value"] < 0.999


def test_bad_input(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases: dict[str, tuple[list[str], str]] = {
        "no items": (["measure", "geometry", "--model", str(place / "model")], "neither images nor texts"),
        "no model": (["measure", "geometry", "--texts", str(place / "texts.txt")], "texts without a model"),
        "no out": (gain_words(place, tmp_path / "x")[:-2], "--out"),
        "no measure": (["measure"], "a measure's name"),
        "unknown": (["measure", "geometri"], "did you mean 'geometry'"),
        "unknown key": ([*gain_words(place, tmp_path / "x"), "centr=zero"], "did you mean 'centre'"),
        "one side": ([*gain_words(place, tmp_path / "x")[:6], "--out", str(tmp_path / "x")], "both sides"),
        "shard": ([*gain_words(place, tmp_path / "x"), "--shard", "5/3"], "shard 5/3"),
        "shard form": ([*gain_words(place, tmp_path / "x"), "--shard", "half"], "i/n"),
        "against": (["measure", "similarity", "--model", str(place / "encoder"), "--images", str(place / "pictures")],
                    "--against"),
        "wrong tower": (["measure", "geometry", "--model", str(place / "encoder"), "--texts", str(place / "texts.txt")],
                        "encoder of images"),
        "no file": (["measure", "geometry", "--image-embeddings", str(place / "none.npy")], "none.npy"),
    }  # fmt: skip
    for name, (words, expected) in cases.items():
        assert run(words) == 2, name
        said = capsys.readouterr().err
        assert expected in said, f"{name}: {said}"
        errors = [line for line in said.splitlines() if not line.startswith("embed ")]  # progress of what was sound
        assert len(errors) == 1
        assert errors[0].startswith("error: ")
    assert not (tmp_path / "x").exists()


def test_parts_that_are_given_twice_and_rows_of_zeros(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*gain_words(place, tmp_path / "s1"), "--shard", "1/2"]) == 0
    twice = ["--statistics", str(tmp_path / "s1" / "statistics.safetensors")] * 2
    assert run([*gain_words(place, tmp_path / "x"), *twice]) == 2
    assert "each part once" in capsys.readouterr().err
    new_dual_encoder(SIZE, TEXTS, 3).save(tmp_path / "other")
    words = [
        "--model",
        str(tmp_path / "other"),
        "--images",
        str(place / "pictures"),
        "--texts",
        str(place / "texts.txt"),
    ]
    assert run(["measure", "information-gain", *words, "--out", str(tmp_path / "x"), *twice[:2]]) == 2
    assert "statistics of this model" in capsys.readouterr().err
    assert run(["measure", "information-gain", *words, "--out", str(tmp_path / "s2"), "--shard", "2/2"]) == 0
    capsys.readouterr()
    mixed = [*twice[:2], "--statistics", str(tmp_path / "s2" / "statistics.safetensors")]
    assert run([*gain_words(place, tmp_path / "x"), *mixed]) == 2
    assert "model" in capsys.readouterr().err
    rows = np.random.default_rng(0).standard_normal((6, 4))
    np.save(tmp_path / "b.npy", rows)
    rows[3] = 0
    np.save(tmp_path / "a.npy", rows)
    words = ["measure", "information-gain", "--image-embeddings", str(tmp_path / "a.npy"), "--text-embeddings",
             str(tmp_path / "b.npy"), "--out", str(tmp_path / "x"), "--shard", "2/2"]  # fmt: skip
    assert run(words) == 2
    assert "row 1" in capsys.readouterr().err


def test_pairs_meet_by_id_where_they_can(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [json.dumps({"id": f"{i:02d}.png", "text": text}) for i, text in enumerate(TEXTS)]
    found = []
    for name, lines in (("same", rows), ("turned", rows[::-1])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
        words = ["measure", "modality-gap", "--model", str(place / "model"), "--images", str(place / "pictures"),
                 "--texts", str(tmp_path / f"{name}.jsonl"), "--json"]  # fmt: skip
        assert run(words) == 0
        found.append(json.loads(capsys.readouterr().out)["reports"]["pairs"])
    assert found[0]["alignment"]["value"] == pytest.approx(found[1]["alignment"]["value"], rel=1e-6)
    by_row = efface.measure("modality-gap", model=place / "model", images=place / "pictures", texts=place / "texts.txt")
    assert any("by row" in text for text in by_row["pairs"].warnings)


def test_one_mode_by_its_name(place: Path, tmp_path: Path) -> None:
    assert run([*gain_words(place, tmp_path / "x"), "modes=kl"]) == 0
    assert "cov_norm" not in pq.read_table(tmp_path / "x" / "scores.parquet").column_names


@pytest.mark.parametrize(
    ("scale", "expected"),
    [("14.3", 0), ("4.6052", 2), ("4.6", 2), ("2.66", 2), ("2.3", 2), ("0.3", 2), ("900", 2), ("0", 2)],
)
def test_a_scale_that_cannot_be_one(
    scale: str, expected: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        np.save(tmp_path / f"{name}.npy", rng.standard_normal((12, 4)))
    words = ["measure", "information-gain", "--image-embeddings", str(tmp_path / "a.npy"), "--text-embeddings",
             str(tmp_path / "b.npy"), "--out", str(tmp_path / "out"), "--logit-scale", scale]  # fmt: skip
    assert run(words) == expected
    said = capsys.readouterr().err
    assert ("logarithm" in said or "exponential" in said) == (expected == 2), said


def test_the_python_verb_refuses_alike(place: Path, tiny: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="causal-lm"):
        efface.measure("geometry", model=tiny, texts=place / "texts.txt")
    with pytest.raises(ConfigError, match="neither images nor texts"):
        efface.measure("geometry", model=place / "model")
    values = torch.randn(10, 4, generator=torch.Generator().manual_seed(0)).numpy()
    np.save(tmp_path / "a.npy", values)
    np.save(tmp_path / "b.npy", values[:9])
    with pytest.raises(InputError, match="10 images and 9 texts"):
        efface.measure("modality-gap", image_embeddings=tmp_path / "a.npy", text_embeddings=tmp_path / "b.npy")
