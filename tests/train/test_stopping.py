"""Stopping early: at the step whose figure crosses the bound, whatever the accumulation, and again there after a kill."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from efface.train.stopping import StopWhen


def step(stop: StopWhen, number: int, model: Any = None) -> Any:
    control = SimpleNamespace(should_training_stop=False, should_save=True)
    stop.on_step_end(SimpleNamespace(device="cpu"), SimpleNamespace(global_step=number), control, model=model)
    return control


def test_shares_of_a_step_are_summed_and_forgotten() -> None:
    stop = StopWhen(lambda ce: ce > 10, "sum")
    for number, shares in enumerate(([4.0, 5.0], [6.0, 3.5], [6.0, 5.0]), 1):
        for share in shares:
            stop.see(share)
        control = step(stop, number)
        assert control.should_training_stop == (number == 3)
        assert control.should_save == (number != 3), "a checkpoint of the last step would be gone on from"
    assert stop.stopped_at == 3


def test_a_maximum_is_confirmed_on_the_model_before_the_run_ends() -> None:
    asked = []

    def confirm(model: Any) -> bool:
        asked.append(model)
        return bool(model)

    stop = StopWhen(lambda p: p < 1e-6, "max", confirm=confirm)
    for number, (figures, model) in enumerate((([1e-7, 0.5], 1), ([1e-7, 1e-8], 0), ([1e-7, 1e-8], 1)), 1):
        for figure in figures:
            stop.see(figure)
        assert step(stop, number, model).should_training_stop == (number == 3)
    assert asked == [0, 1]
