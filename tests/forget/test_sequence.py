"""Requests in sequence: equal to fitting one after another by hand, reversible, resumable, and what cannot be stacked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import efface
from efface.data import Request
from efface.data.muse import folds
from efface.errors import ConfigError, RequestError, RunError
from efface.forget.edit import Edit
from efface.forget.method import find_method
from efface.forget.sequence import SequenceEdit, fit_sequence, forget_sequence, joined_request, single_requests

FAST: dict[str, Any] = {"learning_rate": 5e-3, "epochs": 2, "batch_size": 4}


@pytest.fixture
def requests(request_: Request) -> list[Request]:
    """The small request in two halves."""
    return [
        Request(forget=part, retain=request_.retain, holdout=request_.holdout) for part in folds(request_.forget, 2)
    ]


def weights(subject: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in subject.weights().items()}


def test_a_sequence_is_fitting_and_applying_one_after_another(tiny: Any, requests: list[Request]) -> None:
    digest = tiny.digest
    edit = forget_sequence(tiny, requests, "gradient-ascent", **FAST)
    assert tiny.digest == digest
    by_hand = []
    before = weights(tiny)
    for request in requests:
        one = efface.forget(tiny, request, method="gradient-ascent", **FAST)
        one.apply(tiny)
        by_hand.append(one)
    after, last = weights(tiny), tiny.digest
    for one in reversed(by_hand):
        one.remove(tiny)
    assert [step.facts.base_digest for step in edit.steps] == [digest, by_hand[0].facts.edited_digest]
    assert edit.facts.edited_digest == last
    changed = [name for name in after if not torch.equal(before[name], after[name])]
    moved = sum(float((after[n].double() - before[n].double()).square().sum()) for n in changed) ** 0.5
    size = sum(float(before[n].double().square().sum()) for n in changed) ** 0.5
    assert edit.facts.relative_change == pytest.approx(moved / size)
    assert edit.facts.tensors == len(changed)
    assert edit.facts.parameters == sum(before[n].numel() for n in changed)


def test_saved_loaded_applied_and_removed(tiny: Any, requests: list[Request], tmp_path: Path) -> None:
    digest = tiny.digest
    edit = forget_sequence(tiny, requests, "npo", **FAST)
    edit.save(tmp_path / "edit")
    loaded = Edit.load(tmp_path / "edit")
    assert isinstance(loaded, SequenceEdit)
    assert loaded.facts == edit.facts
    assert loaded.apply(tiny).digest == edit.facts.edited_digest
    with pytest.raises(RunError, match="applied already"):
        loaded.apply(tiny)
    loaded.remove(tiny)
    assert tiny.digest == digest
    (tmp_path / "edit" / "step-2" / "delta.safetensors").write_bytes(b"x")
    with pytest.raises(RunError, match=r"step-2/delta\.safetensors was changed"):
        Edit.load(tmp_path / "edit").apply(tiny)
    assert tiny.digest == digest


def test_a_step_that_cannot_be_applied_takes_the_others_off(
    tiny: Any, requests: list[Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = tiny.digest
    edit = forget_sequence(tiny, requests, "gradient-ascent", **FAST)

    def broken(_: Any) -> None:
        raise RunError("step 2 is broken")

    monkeypatch.setattr(edit.steps[1], "_apply", broken)
    with pytest.raises(RunError, match="step 2 is broken"):
        edit.apply(tiny)
    assert tiny.digest == digest


def test_a_killed_sequence_goes_on_with_the_finished_steps(
    tiny: Any, requests: list[Request], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = find_method("gradient-ascent")
    config, joined, digest = method.configure(FAST), joined_request(requests), tiny.digest
    whole = fit_sequence(method, tiny, joined, config, work=tmp_path / "w0", out=tmp_path / "whole").edit
    fit, calls = type(method).fit, []

    def killed(self: Any, subject: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(len(request.forget))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return fit(self, subject, request, *args, **kwargs)

    monkeypatch.setattr(type(method), "fit", killed)
    with pytest.raises(KeyboardInterrupt):
        fit_sequence(method, tiny, joined, config, work=tmp_path / "w", out=tmp_path / "edit")
    assert tiny.digest == digest
    assert not (tmp_path / "edit").exists()
    again = fit_sequence(method, tiny, joined, config, work=tmp_path / "w", out=tmp_path / "edit")
    assert len(calls) == 3, "the first request was not fitted again"
    assert again.edit.facts == whole.facts
    assert [cost.phase for cost in again.costs] == [f"fit gradient-ascent, request {n}" for n in (1, 2)]
    assert tiny.digest == digest


def test_shared_rows_and_other_retain_sets_are_refused(request_: Request, requests: list[Request]) -> None:
    with pytest.raises(RequestError, match="is also request 1"):
        joined_request([requests[0], requests[0]])
    with pytest.raises(RequestError, match="two or more"):
        joined_request(requests[:1])
    with pytest.raises(RequestError, match="another retain"):
        joined_request([requests[0], Request(forget=requests[1].forget, retain=request_.holdout)])
    kept = Request(forget=requests[0].forget, retain=requests[1].forget)
    with pytest.raises(RequestError):  # what the second request forgets is what the first one keeps
        joined_request([kept, Request(forget=requests[1].forget)])
    joined = joined_request(requests)
    assert [len(single.forget) for single in single_requests(joined)] == [4, 4]
    assert joined.sources["forget"] == "in memory"


@pytest.mark.parametrize(
    ("method", "values", "reason"),
    [
        ("npo", {"scope": "lora"}, "adapter"),
        ("who-is-harry-potter", {"mode": "decode"}, "guard"),
        ("in-context", {}, "guard"),
    ],
)
def test_what_cannot_be_stacked_is_refused_before_any_work(
    tiny: Any, requests: list[Request], method: str, values: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason):
        forget_sequence(tiny, requests, method, **values)
