"""MCL: pseudo-labels, coverage, stages that are kept apart, and the ensemble that comes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

import efface
from efface.errors import ConfigError, InputError, RequestError
from efface.learn import module
from efface.learn.recipes import mcl
from efface.learn.run import learn
from efface.run.files import read_json
from efface.subjects.ensemble import EnsembleEncoder
from efface.train.rows import GroupSchedule

SMALL: dict[str, Any] = {
    "stages": 3, "clusters": 2, "epochs": 1, "batch_size": 8, "stage_batch_size": 4, "start": {"widths": (16, 4)},
    "feature_views": {"corrupt": 0.0, "noise": 0.1}, "evaluations": 0,
}  # fmt: skip


def rows(count: int = 48) -> Dataset:
    """Four blobs: two far apart, each of two nearer ones."""
    rng = np.random.default_rng(0)
    centres = np.array([[9.0, 0, 1, 0], [9, 0, -1, 0], [-9, 0, 0, 1], [-9, 0, 0, -1]])
    values = centres[np.arange(count) % 4] + 0.05 * rng.standard_normal((count, 4))
    return Dataset.from_dict({"id": [f"row{i}" for i in range(count)], "features": values.astype(np.float32)})


def test_pseudo_labels_carry_every_stage() -> None:
    """The official loop keeps the last clustering only."""
    first, second = torch.tensor([0, 0, 2, 1]), torch.tensor([1, 1, 1, 0])
    u = mcl.pseudo_labels([first, second], 3)
    assert u.tolist() == [1, 1, 7, 3]
    agree = (first[:, None] == first) & (second[:, None] == second)
    assert torch.equal(u[:, None] == u, agree)
    assert mcl.pseudo_labels([first], 3).tolist() == first.tolist()
    for wrong in ([], [first, second[:3]], [first + 3], [first - 1], [first] * 64):
        with pytest.raises(InputError):
            mcl.pseudo_labels(wrong, 3)


def test_coverage_counts_rows_of_groups_that_fill_a_batch() -> None:
    groups = torch.tensor([5] * 6 + [800] * 3 + [9] * 1)
    assert mcl.coverage(groups, 3) == pytest.approx(0.9)
    assert mcl.coverage(groups, 7) == 0.0
    assert GroupSchedule(groups.tolist(), epochs=1, batch_size=3, seed=0).coverage == mcl.coverage(groups, 3)


def test_small_groups_go_to_the_nearest_usable_one() -> None:
    groups = torch.tensor([4, 4, 4, 7, 9, 9, 9])
    points = torch.tensor([[0.0, 0], [0, 1], [0, 2], [4, 1], [5, 1], [5, 0], [5, 2]])
    assert mcl.merged(groups, points, 3).tolist() == [4, 4, 4, 9, 9, 9, 9]
    assert mcl.merged(groups, points, 5).tolist() == groups.tolist(), "none is usable: nothing to go to"


def test_clusters_are_of_a_fixed_seed_and_need_enough_rows() -> None:
    points = torch.nn.functional.normalize(torch.randn(40, 3, generator=torch.Generator().manual_seed(0)), dim=1)
    found = mcl.cluster(points, 4, 0)
    assert torch.equal(found, mcl.cluster(points, 4, 0))
    assert sorted(found.unique().tolist()) == [0, 1, 2, 3]
    with pytest.raises(InputError, match="3 items for 4 clusters"):
        mcl.cluster(points[:3], 4, 0)


def test_stages_are_trained_in_groups_kept_and_put_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plans: list[Any] = []
    original = mcl.fit

    def seen(*args: Any, **kwargs: Any) -> Any:
        plans.append(kwargs["schedule"])
        return original(*args, **kwargs)

    monkeypatch.setattr(mcl, "fit", seen)
    found = learn("mcl", rows(), tmp_path / "model", **SMALL)
    assert isinstance(found, EnsembleEncoder)
    assert found.width == 12
    assert len({part.digest for part in found.parts}) == 3, "no stage overwrote another"
    again = efface.load(tmp_path / "model")
    assert again.digest == found.digest
    items = list(rows().with_format("numpy")[:]["features"])
    torch.testing.assert_close(again.embed(items), found.embed(items))

    beside = read_json(tmp_path / "model" / "clusters.json")
    assert beside["ids"] == rows()["id"][:]
    stages = [torch.tensor(one) for one in beside["stages"]]
    assert [len(one) for one in stages] == [48, 48]
    # raw rows in evaluation mode, normalised: what is stored can be found again from the stored encoder
    assert torch.equal(stages[0], mcl.cluster(found.parts[0].embed(items), 2, 0))

    assert plans[0] is None
    for stage in (1, 2):
        u = mcl.pseudo_labels(stages[:stage], 2)
        batches = [plans[stage].plan[i : i + 4] for i in range(0, len(plans[stage]), 4)]
        assert all(len(u[batch].unique()) == 1 for batch in batches)
    facts = read_json(tmp_path / "model" / "learn.json")["stages"]
    assert [one["stage"] for one in facts] == [0, 1, 2]
    assert all(one["coverage"] >= 0.5 and sum(one["cluster_sizes"]) == 48 for one in facts[1:])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"], "no work folder is left"


def test_low_coverage_is_refused_and_says_what_helps(tmp_path: Path) -> None:
    wide = SMALL | {"clusters": 24, "stage_batch_size": 8}
    with pytest.raises(ConfigError, match=r"of the items lie in groups.*stage_batch_size"):
        learn("mcl", rows(), tmp_path / "model", **wide)
    assert not (tmp_path / "model").exists()


def test_small_groups_can_be_merged(tmp_path: Path) -> None:
    uneven = rows(48).select([i for i in range(48) if i % 4 == 0 or i < 16])  # groups of 12, 4, 4, 4
    config = SMALL | {"clusters": 4, "stage_batch_size": 6, "stages": 2, "epochs": 0.5, "small_groups": "merge"}
    learn("mcl", uneven, tmp_path / "model", **config)
    assert read_json(tmp_path / "model" / "learn.json")["stages"][1]["coverage"] == 1.0


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain encoder's folder."""
    out = tmp_path_factory.mktemp("given") / "model"
    learn("nt-xent", rows(), out, epochs=1, batch_size=8, start={"widths": (16, 4)}, evaluations=0)
    return out


@pytest.mark.parametrize("begin", ["fresh", "auto"])
def test_a_given_model_is_the_first_stage_as_it_is(begin: str, given: Path, tmp_path: Path) -> None:
    config = SMALL | {"stages": 2, "epochs": 0.5, "begin": begin, "learning_rate": 1e-9}
    found = learn("mcl", rows(), tmp_path / "model", model=given, **config)
    assert found.parts[0].digest == efface.load(given).digest
    weights = [dict(part.model.named_parameters()) for part in found.parts]
    same = all(torch.allclose(weights[0][name], weights[1][name], atol=1e-5) for name in weights[0])
    assert same == (begin == "auto"), "a given model is gone on with unless asked otherwise"


def test_settings_of_the_base_reach_it() -> None:
    recipe, config = mcl.base_recipe(mcl.MCLConfig(base="moco", base_settings={"queue_size": 7}, epochs=3))
    assert (recipe.card.name, config.epochs, config.queue_size) == ("moco", 3, 7)  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="queue_sise"):
        mcl.base_recipe(mcl.MCLConfig(base="moco", base_settings={"queue_sise": 7}))
    with pytest.raises(ConfigError, match="dual encoder"):
        mcl.base_recipe(mcl.MCLConfig(base="clip"))
    with pytest.raises(ConfigError, match="no contrastive recipe"):
        mcl.base_recipe(mcl.MCLConfig(base="causal-lm"))


def test_a_killed_run_goes_on_in_its_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors.torch import load_file

    config = SMALL | {"checkpoint_seconds": 1e-9, "stages": 2, "epochs": 1}
    learn("mcl", rows(), tmp_path / "whole", **config)

    class Killed(Exception):
        pass

    steps: list[int] = []
    original = module.Steps.on_step_end

    def killed(self: Any, args: Any, state: Any, control: Any, **rest: Any) -> None:
        original(self, args, state, control, **rest)
        steps.append(state.global_step)
        if len(steps) == 9:  # six steps of the first stage, three of the second
            raise Killed

    monkeypatch.setattr(module.Steps, "on_step_end", killed)
    with pytest.raises(Killed):
        learn("mcl", rows(), tmp_path / "model", **config)
    assert steps[6:] == [1, 2, 3]
    learn("mcl", rows(), tmp_path / "model", **config)
    assert steps[9] in (3, 4), "the first stage was not trained again"
    for name in ("part-0", "part-1"):
        whole, resumed = (load_file(tmp_path / one / name / "model.safetensors") for one in ("whole", "model"))
        assert all(torch.equal(value, resumed[key]) for key, value in whole.items())


def test_bad_input(tmp_path: Path) -> None:
    twice = Dataset.from_dict({"id": ["a", "a", "b"], "features": [[1.0], [2.0], [3.0]]})
    with pytest.raises((RequestError, InputError), match="id"):
        learn("mcl", twice, tmp_path / "model", **SMALL)
    texts = Dataset.from_dict({"id": ["0", "1"], "text": ["a fox", "a dog"]})
    size = {"width": 16, "depth": 1, "heads": 2, "context": 8}
    encoder = learn("nt-xent", texts, tmp_path / "texts", epochs=1, batch_size=2, start=size, evaluations=0)
    with pytest.raises(RequestError, match="column 'text'"):
        learn("mcl", rows(), tmp_path / "model", model=encoder, **SMALL)
