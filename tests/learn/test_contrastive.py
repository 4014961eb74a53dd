"""The runner of contrastive recipes: data in, a trained and saved model out; resumable, the same in chunks and over processes."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image, Value
from PIL import Image as Pictures

import efface
from efface.errors import ConfigError, ModelError, RequestError, RunError
from efface.learn.run import learn
from efface.run.files import read_json

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 50, 220), "white": (240, 240, 240)}
SMALL: dict[str, Any] = {
    "start": {"width": 32, "depth": 1, "heads": 2, "image_size": 16, "patch": 8, "context": 8},
    "batch_size": 8, "epochs": 4, "learning_rate": 3e-3,
}  # fmt: skip


def picture(colour: tuple[int, int, int], seed: int) -> bytes:
    import io

    rng = np.random.default_rng(seed)
    noise = rng.integers(-20, 20, (16, 16, 3))
    pixels = np.clip(np.asarray(colour) + noise, 0, 255).astype("uint8")
    out = io.BytesIO()
    Pictures.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


@pytest.fixture(scope="module")
def pairs() -> Dataset:
    """32 pictures in four colours, each with its name, and the colour as a label."""
    names = [name for name in COLOURS for _ in range(8)]
    rows = {
        "id": [f"item{i}" for i in range(32)],
        "image": [{"bytes": picture(COLOURS[name], i), "path": f"{i}.png"} for i, name in enumerate(names)],
        "text": [f"a {name} square" for name in names],
        "label": [list(COLOURS).index(name) for name in names],
    }
    kinds = Features(id=Value("string"), image=Image(decode=False), text=Value("string"), label=Value("int64"))
    return Dataset.from_dict(rows, features=kinds)


@pytest.mark.parametrize("recipe", ["clip", "siglip", "clip-uniformity", "importance-weighted-clip"])
def test_pairs_learn_to_find_each_other(recipe: str, pairs: Dataset, tmp_path: Path) -> None:
    more: dict[str, Any] = {"epochs": 30}
    if recipe == "importance-weighted-clip":
        pairs = pairs.add_column("weight", [1.0] * len(pairs))
    model = learn(recipe, pairs, tmp_path / "model", **(SMALL | more))
    again = efface.load(tmp_path / "model")
    assert again.kind == "dual-encoder"
    assert again.digest == model.digest
    images, texts = again.image.embed(list(pairs["image"])), again.text.embed([f"a {name} square" for name in COLOURS])
    right = ((images @ texts.T).argmax(1) == torch.tensor(pairs["label"])).float().mean()
    assert right > 0.9
    facts = read_json(tmp_path / "model" / "learn.json")
    assert facts["rows"] == 32
    assert facts["duplicate_share"] == pytest.approx(1 - 4 / 32)
    assert math.isclose(again.scale, 100.0 if recipe == "clip-uniformity" else facts["final_scale"], rel_tol=1e-4)


@pytest.mark.parametrize(
    "recipe",
    ["info-nce", "nt-xent", "moco", "triplet", "sup-con", "sup-nt-xent", "simple-contrastive", "hard-contrastive"],
)
def test_one_tower_recipes_run_and_lower_their_loss(recipe: str, pairs: Dataset, tmp_path: Path) -> None:
    more: dict[str, Any] = {"queue_size": 16, "momentum": 0.9} if recipe == "moco" else {}
    model = learn(recipe, pairs, tmp_path / "model", projector=16, **(SMALL | more))
    assert model.kind == "encoder"
    assert model.modality == "image"
    assert efface.load(tmp_path / "model").digest == model.digest
    assert math.isfinite(read_json(tmp_path / "model" / "learn.json")["final_loss"])


def test_texts_alone(tmp_path: Path) -> None:
    texts = Dataset.from_dict({
        "id": [str(i) for i in range(16)],
        "text": [f"the {a} {b} runs fast" for a in ("red", "blue", "old", "new") for b in ("car", "dog", "fox", "bus")],
    })  # fmt: skip
    model = learn("nt-xent", texts, tmp_path / "model", text_views={"view": "delete", "share": 0.2}, **SMALL)
    assert model.modality == "text"
    assert efface.load(tmp_path / "model").embed(["the red fox"]).shape == (1, 32)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("recipe", ["clip", "nt-xent"])
def test_gradient_caching_gives_the_same_model(recipe: str, pairs: Dataset, tmp_path: Path) -> None:
    whole, chunks = (
        learn(recipe, pairs, tmp_path / name, chunk=chunk, **SMALL) for name, chunk in (("whole", None), ("chunks", 3))
    )
    towers = [(model.image, model.text) if recipe == "clip" else (model,) for model in (whole, chunks)]
    for first, second in zip(*towers, strict=True):
        items = list(pairs["image"] if first.modality == "image" else pairs["text"])
        torch.testing.assert_close(second.embed(items), first.embed(items), atol=1e-3, rtol=0)
        assert (first.embed(items) - first.embed(items[::-1])).abs().max() > 0.1, "the rows must differ at all"


def test_the_same_again_is_loaded_and_other_settings_are_refused(pairs: Dataset, tmp_path: Path) -> None:
    first = learn("clip", pairs, tmp_path / "model", **SMALL)
    cost = read_json(tmp_path / "model" / "learn.json")["cost"]
    again = learn("clip", pairs, tmp_path / "model", **SMALL)
    assert again.digest == first.digest
    assert read_json(tmp_path / "model" / "learn.json")["cost"] == cost, "nothing was trained anew"
    with pytest.raises(RunError, match="other settings or data"):
        learn("clip", pairs, tmp_path / "model", **(SMALL | {"seed": 1}))


@pytest.mark.parametrize("recipe", ["clip", "nt-xent", "moco"])
def test_a_killed_run_ends_with_the_same_bits(
    recipe: str, pairs: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more: dict[str, Any] = {"checkpoint_seconds": 1e-9}
    if recipe == "moco":
        more |= {"queue_size": 12, "momentum": 0.9, "projector": 16}
    learn(recipe, pairs, tmp_path / "whole", **(SMALL | more))

    from efface.learn import module

    class Killed(Exception):
        pass

    original = module.Steps.on_step_end

    def killed(self: Any, args: Any, state: Any, control: Any, **rest: Any) -> None:
        original(self, args, state, control, **rest)
        if state.global_step == 7:
            raise Killed

    monkeypatch.setattr(module.Steps, "on_step_end", killed)
    with pytest.raises(Killed):
        learn(recipe, pairs, tmp_path / "model", **(SMALL | more))
    assert not (tmp_path / "model").exists()
    monkeypatch.setattr(module.Steps, "on_step_end", original)
    learn(recipe, pairs, tmp_path / "model", **(SMALL | more))
    whole, resumed = weights(tmp_path / "whole"), weights(tmp_path / "model")
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


def test_classes_of_several_sources_meet_by_name(pairs: Dataset) -> None:
    from datasets import ClassLabel

    from efface.learn.contrastive import class_names, items_digest, join

    def part(names: list[str], labels: list[int]) -> Dataset:
        rows = {"id": [f"{names[0]}{i}" for i in range(len(labels))], "text": ["x"] * len(labels), "label": labels}
        kinds = Features(id=Value("string"), text=Value("string"), label=ClassLabel(names=names))
        return Dataset.from_dict(rows, features=kinds)

    both = join([part(["a", "b"], [0, 1, 1]), part(["b", "c"], [0, 1])])
    assert class_names(both) == ["a", "b", "c"]
    assert both["label"][:] == [0, 1, 1, 1, 2]
    assert items_digest(part(["a", "b"], [0, 1])) != items_digest(part(["a", "z"], [0, 1]))
    with pytest.raises(RequestError, match="names in one source"):
        join([part(["a", "b"], [0, 1]), pairs.select_columns(["id", "text", "label"])])


def test_bad_input_says_what_and_what_to_do(pairs: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "model"
    with pytest.raises(RequestError, match="image"):
        learn("clip", pairs.remove_columns("image"), out, **SMALL)
    with pytest.raises(RequestError, match="label"):
        learn("sup-con", pairs.remove_columns("label"), out, **SMALL)
    with pytest.raises(ConfigError, match="learning_rate"):
        learn("clip", pairs, out, **(SMALL | {"learning_rat": 1}))
    with pytest.raises(ConfigError, match=r"start.widht.*width"):
        learn("clip", pairs, out, **(SMALL | {"start": {"widht": 3}}))
    encoder = learn("nt-xent", pairs, tmp_path / "encoder", **SMALL)
    with pytest.raises(ModelError, match="on a encoder; expected a dual-encoder"):
        learn("clip", pairs, out, model=encoder, **SMALL)
    clip = learn("clip", pairs, tmp_path / "clip", **SMALL)
    with pytest.raises(ModelError, match="no bias to keep"):
        learn("siglip", pairs, out, model=clip, **SMALL)
    with pytest.raises(ConfigError, match="patch"):
        learn("clip", pairs, out, **(SMALL | {"start": {"image_size": 16, "patch": 5}}))
    assert not out.exists()


def on_disk(pairs: Dataset, folder: Path) -> Path:
    """The pairs as a folder of pictures with metadata."""
    folder.mkdir()
    lines = []
    for row in pairs:
        (folder / f"{row['id']}.png").write_bytes(row["image"]["bytes"])
        lines.append(json.dumps({"file_name": f"{row['id']}.png", "text": row["text"]}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


@pytest.mark.parametrize("chunk", ["0", "3"])
def test_two_processes_train_what_one_trains(chunk: str, pairs: Dataset, tmp_path: Path) -> None:
    data, script = on_disk(pairs, tmp_path / "pictures"), str(Path(__file__).with_name("learn_script.py"))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for name, command in (("one", [sys.executable]), ("two", launch)):
        words = [*command, script, str(data), str(tmp_path / name), chunk]
        done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=400)
        assert done.returncode == 0, done.stderr[-2000:]
    one, two = efface.load(tmp_path / "one"), efface.load(tmp_path / "two")
    facts = [read_json(tmp_path / name / "learn.json") for name in ("one", "two")]
    assert facts[0]["steps"] == facts[1]["steps"] == 8
    for side, items in (("image", list(pairs["image"])), ("text", list(pairs["text"]))):
        first, second = getattr(one, side).embed(items), getattr(two, side).embed(items)
        torch.testing.assert_close(second, first, atol=1e-4, rtol=0)
    assert two.scale == pytest.approx(one.scale, rel=1e-5)


def test_the_command_line(pairs: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from efface.cli import run

    folder = on_disk(pairs, tmp_path / "pictures")
    words = ["learn", "clip", "--data", str(folder), "--out", str(tmp_path / "model"), "epochs=2", "batch_size=8"]
    sizes = [f"start.{name}={value}" for name, value in SMALL["start"].items()]
    assert run([*words, *sizes, "--json"]) == 0
    out = json.loads(capsys.readouterr().out)
    assert out["digest"] == efface.load(tmp_path / "model").digest
    assert run([*words, "--dry-run", "start.widht=3"]) == 2
    assert "did you mean 'width'" in capsys.readouterr().err
