"""The embedding while it is trained: curves, collapse, what a kill leaves, the map, and rows of every kind."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

import efface
from efface.errors import ConfigError, InputError, RequestError
from efface.learn.run import learn
from efface.learn.watch import Watch, knn_score, probe_score, ridge_errors
from efface.numerics.spectrum import effective_rank
from efface.run.files import read_json
from efface.subjects.encoder import Encoder

SMALL: dict[str, Any] = {"batch_size": 20, "epochs": 4, "learning_rate": 3e-3}


def arrays(n: int = 60, seed: int = 0, **columns: Any) -> Dataset:
    """Three heaps in six dimensions."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    rows = (rng.standard_normal((n, 6)) * 0.3 + 3 * np.eye(6)[labels]).astype(np.float32)
    return Dataset.from_dict(
        {"id": [str(i) for i in range(n)], "features": rows.tolist(), "label": labels.tolist(), **columns}
    )


def pictures(n: int = 40) -> Dataset:
    from efface.lab.digit_learning import digit_pixels
    from efface.lab.digit_learning import pictures as rows

    pixels, labels = digit_pixels()
    return rows(pixels[:n], labels[:n], range(n))


@pytest.mark.parametrize(("rows", "rank"), [
    (torch.eye(8), 8.0), (torch.ones(5, 3), 1.0), (torch.diag(torch.tensor([1.0, 1.0, 0.0])), 2.0),
])  # fmt: skip
def test_effective_rank_of_known_spectra(rows: torch.Tensor, rank: float) -> None:
    assert effective_rank(rows) == pytest.approx(rank)


def test_effective_rank_is_that_of_the_entropy_and_centring_takes_the_mean_away() -> None:
    values = torch.tensor([3.0, 2.0, 1.0])
    p = values / values.sum()
    expected = float(torch.exp(-(p * p.log()).sum()))
    turned = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0)))[0]
    assert effective_rank(values.diag() @ turned) == pytest.approx(expected, rel=1e-5)
    line = torch.tensor([[1.0, 5.0], [2.0, 5.0], [3.0, 5.0]])
    assert effective_rank(line, centre=True) == pytest.approx(1.0)
    with pytest.raises(InputError):
        effective_rank(torch.zeros(3, 2))


def test_readings_find_what_is_there_and_nothing_where_nothing_is() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(90) % 3
    rows = torch.eye(3)[labels] + 0.05 * torch.randn(90, 3, generator=generator)
    assert knn_score(rows[:60], labels[:60], rows[60:], labels[60:]) == 1.0
    assert probe_score(rows[:60], labels[:60], rows[60:], labels[60:]) == 1.0
    noise = torch.randn(90, 3, generator=generator)
    assert probe_score(noise[:60], labels[:60], noise[60:], labels[60:]) < 0.7
    targets = rows @ torch.tensor([1.0, -2.0, 0.5])
    assert ridge_errors(rows[:60], targets[:60], rows[60:], targets[60:]).max() < 1e-2
    assert probe_score(rows[:3], torch.zeros(3, dtype=torch.int64), rows[60:], labels[60:]) == pytest.approx(1 / 3)


def test_arrays_learn_are_saved_and_loaded_and_keep_their_standardisation(tmp_path: Path) -> None:
    data = arrays()
    model = learn("nt-xent", data, tmp_path / "model", feature_views={"corrupt": 0.3, "noise": 0.1}, **SMALL)
    again = efface.load(tmp_path / "model")
    assert isinstance(again, Encoder)
    assert again.modality == "features"
    assert again.digest == model.digest
    rows = list(data.with_format("numpy")[:]["features"])
    torch.testing.assert_close(again.embed(rows), model.embed(rows))
    assert again.width == 64
    torch.testing.assert_close(again.model.mean, torch.tensor(np.stack(rows).mean(0)))
    with pytest.raises(InputError, match="6 values a row"):
        again.embed([np.zeros(5, dtype=np.float32)])


@pytest.mark.parametrize("recipe", ["nt-xent", "sup-con"])
def test_curves_are_kept_and_read_on_unseen_rows(recipe: str, tmp_path: Path) -> None:
    learn(recipe, arrays(), tmp_path / "model", test=arrays(30, 1), evaluations=3, **SMALL)
    facts = read_json(tmp_path / "model" / "learn.json")
    assert [point["step"] for point in facts["curves"]] == [0, 4, 8, 12]
    for point in facts["curves"]:
        assert {"effective_rank", "uniformity", "alignment", "knn", "probe"} < set(point)
        assert all(math.isfinite(value) for value in point.values())
    assert len(facts["losses"]) == 12
    plane = read_json(tmp_path / "model" / "map.json")
    assert len(plane["points"]) == 60
    assert 0 < plane["explained"] <= 1
    assert np.abs(plane["points"]).max() == pytest.approx(1.0)


def test_looking_changes_nothing(tmp_path: Path) -> None:
    seen = learn(
        "nt-xent", pictures(), tmp_path / "seen", start={"architecture": "conv", "image_size": 8, "patch": 4}, **SMALL
    )
    blind = learn(
        "nt-xent", pictures(), tmp_path / "blind", start={"architecture": "conv", "image_size": 8, "patch": 4}, evaluations=0,
        **SMALL,
    )  # fmt: skip
    assert seen.digest == blind.digest
    assert not (tmp_path / "blind" / "map.json").exists()


def test_a_killed_run_keeps_its_curve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from efface.learn import module

    learn("nt-xent", arrays(), tmp_path / "whole", checkpoint_seconds=1e-9, **SMALL)
    original = module.Steps.on_step_end

    class Killed(Exception):
        pass

    def killed(self: Any, args: Any, state: Any, control: Any, **more: Any) -> None:
        original(self, args, state, control, **more)
        if state.global_step == 7:
            raise Killed

    monkeypatch.setattr(module.Steps, "on_step_end", killed)
    with pytest.raises(Killed):
        learn("nt-xent", arrays(), tmp_path / "cut", checkpoint_seconds=1e-9, **SMALL)
    monkeypatch.setattr(module.Steps, "on_step_end", original)
    learn("nt-xent", arrays(), tmp_path / "cut", checkpoint_seconds=1e-9, **SMALL)
    whole, cut = (read_json(tmp_path / name / "learn.json") for name in ("whole", "cut"))
    assert [point["step"] for point in cut["curves"]] == [point["step"] for point in whole["curves"]]
    for a, b in zip(whole["curves"], cut["curves"], strict=True):
        assert a == pytest.approx(b)
    weights = [efface.load(tmp_path / name).digest for name in ("whole", "cut")]
    assert weights[0] == weights[1]


def test_a_rank_that_falls_is_called_a_collapse(tmp_path: Path) -> None:
    spaces = [torch.eye(8), torch.eye(8), torch.ones(8, 8)]
    watch = Watch(
        lambda items: torch.nn.functional.normalize(spaces.pop(0)), Drawn(), None, steps=2, times=2, folder=tmp_path
    )  # type: ignore[arg-type]
    for step in range(3):
        watch._look(step)
        assert bool(watch.warnings) == (step == 2)
    assert "collapses: its effective rank is 1.0 and was 8.0" in watch.warnings[0]
    assert len((tmp_path / "curves.jsonl").read_text().splitlines()) == 3


class Drawn:
    """A draw without marks."""

    items = tuple(range(8))
    labels = targets = None


@pytest.mark.parametrize("architecture", ["resnet", "convnext"])
def test_any_architecture_of_transformers_from_scratch(architecture: str, tmp_path: Path) -> None:
    own: dict[str, Any] = {
        "resnet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
        "convnext": {"num_stages": 2, "hidden_sizes": [8, 16], "depths": [1, 1], "patch_size": 1},
    }[architecture]
    start = {"architecture": architecture, "arguments": own, "image_size": 8, "patch": 4}
    model = learn("nt-xent", pictures(), tmp_path / "model", start=start, **(SMALL | {"epochs": 1}))
    assert efface.load(tmp_path / "model").digest == model.digest
    assert model.width == 16


@pytest.mark.parametrize(
    ("start", "data", "words"),
    [
        ({"architecture": "rezzet"}, "pictures", "resnet"),
        ({"architecture": "conv"}, "arrays", "mlp"),
        ({"architecture": "timm:resnet18"}, "pictures", "pip install timm"),
        ({"architecture": "conv", "channels": [12]}, "pictures", "multiples of 8"),
        ({"architecture": "mlp", "widths": []}, "arrays", "positive numbers"),
    ],
)
def test_a_start_that_cannot_be(start: dict[str, Any], data: str, words: str, tmp_path: Path) -> None:
    rows = pictures() if data == "pictures" else arrays()
    with pytest.raises((ConfigError, InputError, efface.errors.EffaceError), match=words):
        learn("nt-xent", rows, tmp_path / "model", start={"image_size": 8, "patch": 4, **start}, **SMALL)


def test_targets_are_wanted_by_name_and_read_by_ridge(tmp_path: Path) -> None:
    data = arrays().remove_columns("label").add_column("target", [float(i % 3) for i in range(60)])
    learn("nt-xent", data, tmp_path / "model", **SMALL)
    assert "mae" in read_json(tmp_path / "model" / "learn.json")["curves"][-1]
    with pytest.raises(RequestError, match="label"):
        learn("sup-con", data, tmp_path / "other", **SMALL)


def test_test_rows_are_for_contrastive_recipes(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="test data for 'classifier'"):
        learn("classifier", arrays(), tmp_path / "model", test=arrays(), epochs=1)


def test_group_norm_goes_with_chunks_and_batch_norm_is_refused(tmp_path: Path) -> None:
    start = {"architecture": "conv", "image_size": 8, "patch": 4}
    whole = learn("nt-xent", pictures(), tmp_path / "whole", start={**start, "norm": "group"}, **SMALL)
    parts = learn("nt-xent", pictures(), tmp_path / "parts", start={**start, "norm": "group"}, chunk=4, **SMALL)
    for a, b in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    with pytest.raises(efface.errors.EffaceError, match=r"[Bb]atch"):
        learn("nt-xent", pictures(), tmp_path / "refused", start=start, chunk=4, **SMALL)


def test_maps_of_pictures() -> None:
    from efface.learn.starts import StartConfig, new_encoder

    for architecture, side in (("conv", 2), ("vit", 2)):
        size = StartConfig(architecture=architecture, image_size=8, patch=4, width=32)
        encoder = new_encoder(size, "image", (), 0)
        inputs = encoder.prepare(list(pictures(3)["image"]))
        found = encoder.maps(inputs)
        assert found.shape == (3, encoder.width, side, side)
        if architecture == "conv":
            torch.testing.assert_close(found.mean((2, 3)), encoder.features(inputs))
    with pytest.raises(efface.errors.ModelError, match="no map"):
        new_encoder(StartConfig(), "features", (), 0, arrays=torch.randn(5, 3)).maps({})
