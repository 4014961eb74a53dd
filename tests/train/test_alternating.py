"""Alternating optimisers: a plain loop's numbers, exact resume, no leak between turns, nothing global left behind.

Run as a script, it trains in one process or under torchrun, for the test of two processes.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from efface.errors import ConfigError, InputError
from efface.train.alternating import STATE, TENSORS, Turn, alternate
from efface.train.config import TrainConfig
from efface.train.engine import Diverged
from efface.train.rows import RowSchedule

X = torch.randn(24, 6, generator=torch.Generator().manual_seed(0))
Y = torch.randn(24, 2, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    """Dropout draws random numbers, the batch norm keeps statistics: both must come back after a kill."""

    def __init__(self, dropout: float = 0.3, norm: bool = True) -> None:
        super().__init__()
        self.below = nn.Sequential(
            nn.Linear(6, 8), *([nn.BatchNorm1d(8)] if norm else []), nn.ReLU(), nn.Dropout(dropout)
        )
        self.above = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.above(self.below(x))


def net(**more: Any) -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return Net(**more)


def settings(**more: Any) -> TrainConfig:
    values = {"epochs": 5, "batch_size": 6, "optimizer": "adam", "weight_decay": 0.0, "schedule": "constant", "seed": 7}
    return TrainConfig(**{**values, "max_grad_norm": 1e9, "checkpoint_seconds": 1e9, **more})


def schedule(config: TrainConfig) -> RowSchedule:
    return RowSchedule(24, epochs=config.epochs, batch_size=config.batch_size, seed=config.seed)


def collate(items: list[tuple[int, int]]) -> dict[str, Tensor]:
    rows = [row for row, _ in items]
    return {"x": X[rows], "y": Y[rows]}


def squared(model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
    """This process's share of the mean over a step of 6 rows."""
    loss = (model(batch["x"]) - batch["y"]).square().sum() / 6
    return loss, {"rows": float(len(batch["x"]))}


def signed(model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
    return (model(batch["x"]) * batch["y"].sign()).exp().sum() / 12, {}


def run(model: Net, folder: Path, config: TrainConfig, turns: list[Turn] | None = None, **more: Any) -> Any:
    turns = turns or [Turn("first", squared, 1e-2), Turn("second", signed, 3e-3)]
    return alternate(model, schedule(config), turns, config, folder=folder, collator=collate, **more)


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def same(one: nn.Module | dict[str, Tensor], two: nn.Module | dict[str, Tensor]) -> bool:
    left, right = (part if isinstance(part, dict) else state(part) for part in (one, two))
    return all(torch.equal(left[name], right[name]) for name in left)


# -- what is computed -------------------------------------------------------------------------------------------------


def test_two_optimisers_equal_a_plain_loop(tmp_path: Path) -> None:
    config = settings()
    found, slow = net(dropout=0.0), net(dropout=0.0)
    log = run(found, tmp_path, config)
    slow.train()
    optimisers = [torch.optim.Adam(slow.parameters(), lr=rate) for rate in (1e-2, 3e-3)]
    order, losses = schedule(config), []
    for step in range(order.steps):
        batch = collate([order[step * 6 + i] for i in range(6)])
        for optimiser, loss in zip(optimisers, (squared, signed), strict=True):
            value, _ = loss(slow, batch)
            optimiser.zero_grad()
            value.backward()
            optimiser.step()
            losses.append(float(value.detach()))
    assert same(found, slow)
    assert [value for row in log.values for value in (row["first"], row["second"])] == losses
    assert log.steps == list(range(order.steps))
    assert log.values[0]["rows"] == 6


def test_each_turn_moves_its_own_and_no_gradient_leaks_into_another(tmp_path: Path) -> None:
    model = net(norm=False)
    below, above = list(model.below.parameters()), list(model.above.parameters())

    def nothing(model: Any, batch: Any) -> tuple[Tensor, dict[str, float]]:
        return 0.0 * model.above.weight.sum(), {}

    before = state(model)
    turns = [Turn("below", squared, 1e-2, below), Turn("above", nothing, 1e-2, above)]
    run(model, tmp_path, settings(optimizer="sgd", momentum=0.0), turns)
    moved = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert moved == {"below.0.weight", "below.0.bias"}


def test_frozen_weights_rest_under_decay_and_decay_is_for_matrices(tmp_path: Path) -> None:
    model = net()
    model.above.weight.requires_grad_(False)
    before = state(model)

    def flat(model: Any, batch: Any) -> tuple[Tensor, dict[str, float]]:
        return 0.0 * sum(p.sum() for p in model.parameters()), {}

    run(model, tmp_path, settings(optimizer="adamw", weight_decay=1.0), [Turn("flat", flat, 1e-2)], training=False)
    moved = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert moved == {"below.0.weight"}
    assert not model.above.weight.requires_grad


def test_rates_follow_the_schedule_of_each_turn(tmp_path: Path) -> None:
    model, config = (
        net(dropout=0.0, norm=False),
        settings(optimizer="sgd", momentum=0.0, schedule="linear", warmup_ratio=0.2),
    )
    steps = []

    def straight(model: Any, batch: Any) -> tuple[Tensor, dict[str, float]]:
        steps.append(float(model.above.bias[0].detach()))
        return model.above.bias[0], {}

    run(model, tmp_path, config, [Turn("straight", straight, 0.1)])
    taken = -np.diff(steps)
    total = 20
    expected = [0.1 * (t / 4 if t < 4 else (total - t) / (total - 4)) for t in range(total - 1)]
    np.testing.assert_allclose(taken, expected, atol=1e-6)


def test_evaluation_mode_keeps_statistics_and_drops_nothing(tmp_path: Path) -> None:
    model = net(dropout=0.9)
    before = state(model)
    modes = []

    def watched(model: Any, batch: Any) -> tuple[Tensor, dict[str, float]]:
        modes.append({module.training for module in model.modules()})
        return squared(model, batch)

    model.train()
    run(model, tmp_path, settings(), [Turn("watched", watched, 1e-2)], training=False)
    assert {frozenset(mode) for mode in modes} == {frozenset({False})}
    assert all(module.training for module in model.modules())
    assert torch.equal(model.below[1].running_mean, before["below.1.running_mean"])
    assert not torch.equal(model.above.weight, before["above.weight"])


# -- a kill -----------------------------------------------------------------------------------------------------------


def dying(loss: Callable[..., Any], at: int) -> Callable[..., Any]:
    """The loss, dead at its n-th call: in the middle of a step, after the first turn moved the weights."""
    calls = 0

    def told(model: Any, batch: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == at:
            raise KeyboardInterrupt
        return loss(model, batch)

    return told


KINDS: list[dict[str, Any]] = [
    {"optimizer": "adam", "schedule": "linear", "warmup_ratio": 0.2},
    {"optimizer": "adamw", "weight_decay": 0.1, "schedule": "cosine", "max_grad_norm": 0.5},
    {"optimizer": "sgd", "momentum": 0.9},
    {"optimizer": "sgd", "momentum": 0.0},
]


@pytest.mark.parametrize("kind", KINDS, ids=["adam", "adamw", "momentum", "sgd"])
def test_a_killed_run_goes_on_to_the_same_bits(kind: dict[str, Any], tmp_path: Path) -> None:
    whole, resumed = net(), net()
    every = run(whole, tmp_path / "a", settings(**kind))
    often = settings(**kind, checkpoint_seconds=1e-9)
    with pytest.raises(KeyboardInterrupt):
        run(net(), tmp_path / "b", often, [Turn("first", squared, 1e-2), Turn("second", dying(signed, 9), 3e-3)])
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == ["checkpoint-8"]
    log = run(resumed, tmp_path / "b", often)
    assert log.resumed_from == 8
    assert log.values == every.values[8:]
    assert same(whole, resumed)


def test_python_and_numpy_draws_come_back_too(tmp_path: Path) -> None:
    def drawn(model: Any, batch: Any) -> tuple[Tensor, dict[str, float]]:
        factor = random.random() + float(np.random.rand()) + float(np.random.normal()) ** 2
        return factor * squared(model, batch)[0], {}

    runs = [net(), net()]
    run(runs[0], tmp_path / "a", settings(), [Turn("drawn", drawn, 1e-2)])
    often = settings(checkpoint_seconds=1e-9)
    with pytest.raises(KeyboardInterrupt):
        run(net(), tmp_path / "b", often, [Turn("drawn", dying(drawn, 5), 1e-2)])
    run(runs[1], tmp_path / "b", often, [Turn("drawn", drawn, 1e-2)])
    assert same(*runs)


@pytest.mark.parametrize("harm", ["torn tensors", "torn state", "no manifest", "other settings"])
def test_a_checkpoint_that_is_not_whole_or_of_another_run_does_not_count(harm: str, tmp_path: Path) -> None:
    often = settings(checkpoint_seconds=1e-9)
    with pytest.raises(KeyboardInterrupt):
        run(net(), tmp_path / "b", often, [Turn("first", squared, 1e-2), Turn("second", dying(signed, 9), 3e-3)])
    place = tmp_path / "b" / "checkpoint-8"
    if harm == "torn tensors":
        (place / TENSORS).write_bytes((place / TENSORS).read_bytes()[:-4])
    elif harm == "torn state":
        (place / STATE).write_text("{", encoding="utf-8")
    elif harm == "no manifest":
        (place / "manifest.json").unlink()
    turns = [Turn("first", squared, 2e-2 if harm == "other settings" else 1e-2), Turn("second", signed, 3e-3)]
    fresh, anew = net(), net()
    assert run(anew, tmp_path / "b", often, turns).resumed_from == 0
    run(fresh, tmp_path / "a", settings(), turns)
    assert same(fresh, anew)


def test_a_checkpoint_is_plain_tensors_and_json(tmp_path: Path) -> None:
    often = settings(checkpoint_seconds=1e-9)
    with pytest.raises(KeyboardInterrupt):
        run(net(), tmp_path, often, [Turn("first", dying(squared, 4), 1e-2)])
    place = tmp_path / "checkpoint-3"
    assert sorted(path.name for path in place.iterdir()) == ["manifest.json", STATE, TENSORS]
    assert json.loads((place / STATE).read_text(encoding="utf-8"))["step"] == 3
    names = set(load_file(place / TENSORS))
    assert {"model/below.1.running_var", "model/above.weight", "turn/first/0/exp_avg_sq", "random/torch"} <= names


def test_an_end_before_the_schedule_is_the_same_after_a_kill(tmp_path: Path) -> None:
    def seven(step: int) -> bool:
        return step == 7

    whole, resumed = net(), net()
    often = settings(checkpoint_seconds=1e-9)
    assert len(run(whole, tmp_path / "a", often, after=seven).steps) == 7
    assert (tmp_path / "a" / "checkpoint-6").exists(), (
        "the step that ended the run leaves none: it must be come to again"
    )
    log = run(resumed, tmp_path / "a", often, after=seven)
    assert (log.resumed_from, log.steps) == (6, [6])
    assert same(whole, resumed)


# -- what is left alone ------------------------------------------------------------------------------------------------


def test_global_generators_are_left_alone(tmp_path: Path) -> None:
    def draws() -> tuple[float, float, float]:
        return random.random(), float(np.random.random()), float(torch.rand(1))

    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    expected = draws()
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    run(net(), tmp_path, settings(epochs=1))
    assert draws() == expected


@pytest.mark.parametrize("fails", [False, True])
def test_modes_flags_and_gradients_come_back(fails: bool, tmp_path: Path) -> None:
    model = net()
    model.train()
    model.below[1].eval()  # a caller's own mixture of modes
    model.above.bias.requires_grad_(False)
    modes = [module.training for module in model.modules()]
    seen = []

    def looked(model: Any, batch: Any) -> tuple[Tensor, dict[str, float]]:
        seen.append({name for name, p in model.named_parameters() if p.requires_grad})
        if fails:
            raise OSError("no disk")
        return squared(model, batch)

    turns = [Turn("above", looked, 1e-2, [model.above.weight])]
    if fails:
        with pytest.raises(OSError, match="no disk"):
            run(model, tmp_path, settings(), turns)
    else:
        run(model, tmp_path, settings(), turns)
    assert seen[0] == {"above.weight"}
    assert [module.training for module in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == [True] * 5 + [False]
    assert all(p.grad is None for p in model.parameters())


def test_same_seed_same_bits_other_seed_other_bits(tmp_path: Path) -> None:
    models = [net(), net(), net()]
    for index, (model, seed) in enumerate(zip(models, (1, 1, 2), strict=True)):
        run(model, tmp_path / str(index), settings(seed=seed))
    assert same(models[0], models[1])
    assert not same(models[0], models[2])


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_a_diverging_loss_names_its_turn(tmp_path: Path) -> None:
    def broken(model: Any, batch: Any) -> tuple[Tensor, dict[str, float]]:
        return squared(model, batch)[0] * float("nan"), {}

    with pytest.raises(Diverged, match="the second loss became nan at step 0"):
        run(net(), tmp_path, settings(), [Turn("first", squared, 1e-2), Turn("second", broken, 1e-2)])


def test_turns_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    config = settings()

    def go(turns: list[Turn], config: TrainConfig = config) -> None:
        alternate(net(), schedule(config), turns, config, folder=tmp_path, collator=collate)

    with pytest.raises(ConfigError, match="at least one, each with a name"):
        go([])
    with pytest.raises(ConfigError, match="name of its own"):
        go([Turn("one", squared, 1e-2), Turn("one", signed, 1e-2)])
    with pytest.raises(InputError, match=r"outside the model.*one module"):
        go([Turn("one", squared, 1e-2, [nn.Parameter(torch.zeros(1))])])
    with pytest.raises(InputError, match="moves nothing"):
        go([Turn("one", squared, 1e-2, [])])
    with pytest.raises(ConfigError, match=r"micro_batch_size=2.*whole batch"):
        go([Turn("one", squared, 1e-2)], settings(micro_batch_size=2))


# -- two processes -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    train_into(tmp_path / "one")
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", __file__]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run([*words, str(tmp_path / "two")], capture_output=True, text=True, env=environment, timeout=400)
    assert done.returncode == 0, done.stderr[-2000:]
    one, two = (load_file(tmp_path / name / "weights.safetensors") for name in ("one", "two"))
    start = state(net(dropout=0.0, norm=False))
    assert all((one[name] - start[name]).abs().max() > 1e-3 for name in start)
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, atol=1e-6, rtol=1e-5)


def train_into(folder: Path) -> None:
    """Train with a checkpoint at every step and store the weights."""
    folder.mkdir(exist_ok=True)
    model = net(dropout=0.0, norm=False)
    run(model, folder / "work", settings(optimizer="sgd", checkpoint_seconds=1e-9))
    if os.environ.get("RANK", "0") == "0":
        save_file(state(model), folder / "weights.safetensors")


if __name__ == "__main__":
    train_into(Path(sys.argv[1]))
