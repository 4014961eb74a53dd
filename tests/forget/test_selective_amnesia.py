"""Selective amnesia: m by hand and its published fault, what trains and what does not, the two-sided stop."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from efface.errors import ConfigError, ModelError
from efface.forget.method import find_method
from efface.forget.objectives.selective_amnesia import (
    RetainWeight,
    adaptive_retain_weight,
    joint_loss,
    judged,
    probabilities,
    spaced,
)
from efface.subjects.answers import AnswerLogits

METHOD = find_method("selective-amnesia")
QUICK = {"learning_rate": 5e-3, "epochs": 3, "batch_size": 4, "weight_decay": 0.5}


def fit(subject: Any, request: Any, folder: Path, **values: Any) -> Any:
    config = METHOD.configure({**QUICK, **values})
    return METHOD.fit(subject, request, config, work=folder / "work", out=folder / "edit")


def moved(subject: Any, edit: Any) -> set[str]:
    before = {name: value.detach().clone() for name, value in subject.weights().items()}
    edit.apply(subject)
    names = {name for name, value in subject.weights().items() if not torch.equal(value.detach(), before[name])}
    edit.remove(subject)
    return names


# -- the retain weight ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ce", "expected"),
    [(0.5, 1.2), (1.0, 1.2), (1.1, 1.2), (1.3, 1.3), (1.5, 1.5), (1.7, 1.9), (1.85, 2.2), (1.9, 2.3), (9.0, 2.3), (1e6, 2.3)],
)  # fmt: skip
def test_m_of_a_reference_of_one(ce: float, expected: float) -> None:
    """0.3 * 6^d + 0.8 to one decimal, between 1.2 and 2.3, for d = ce - 1."""
    assert adaptive_retain_weight(ce, 1.0) == pytest.approx(expected)


def test_the_loss_and_its_gradient() -> None:
    forget, retain = torch.tensor(2.0, requires_grad=True), torch.tensor(3.0, requires_grad=True)
    loss = joint_loss(forget, retain, 1.5)
    assert float(loss.detach()) == 2.5
    assert [float(g) for g in torch.autograd.grad(loss, [forget, retain])] == [-1.0, 1.5]


def feed(weight: RetainWeight, batches: list[tuple[float, int, int]]) -> list[float]:
    """m of steps of (nll sum, tokens, rows), one forward pass a step; m follows the loss of the step before."""
    found = []
    for step, (nll, tokens, rows) in enumerate(batches, start=weight.step + 1):
        found.append(weight.weight(nll, tokens, rows))
        weight.on_step_end(
            None, SimpleNamespace(global_step=step, is_world_process_zero=True), SimpleNamespace(should_save=True)
        )
    return found


def test_m_does_not_depend_on_how_a_step_is_cut_into_passes(tmp_path: Path) -> None:
    """Two passes of a step have one m, and together they give the next one what a single pass would."""
    whole = RetainWeight(METHOD.configure({}), 1, tmp_path / "a")  # type: ignore[arg-type]
    parts = RetainWeight(METHOD.configure({}), 1, tmp_path / "b")  # type: ignore[arg-type]
    end = SimpleNamespace(should_save=False)
    for step, passes in enumerate(
        [[(2.0, 2, 1), (2.0, 2, 1)], [(1.0, 2, 1), (5.0, 2, 1)], [(9.0, 1, 1), (0.5, 5, 1)]], start=1
    ):
        one = whole.weight(sum(p[0] for p in passes), sum(p[1] for p in passes), 2)
        assert {parts.weight(*p) for p in passes} == {one}
        for weight in (whole, parts):
            weight.on_step_end(None, SimpleNamespace(global_step=step), end)
    assert whole.reference == parts.reference == 1.0
    assert whole.last == parts.last == 9.5 / 6


def test_reference_is_over_tokens_and_the_published_one_is_too_small(tmp_path: Path) -> None:
    first = [(4.0, 4, 2), (10.0, 5, 2)]
    right = RetainWeight(METHOD.configure({}), 2, tmp_path)  # type: ignore[arg-type]
    wrong = RetainWeight(METHOD.configure({"paper_bug": True}), 2, tmp_path)  # type: ignore[arg-type]
    assert feed(right, first) == feed(wrong, first) == [1.2, 1.2], "epoch 0 has the floor"
    assert right.reference == pytest.approx(14 / 9)
    assert wrong.reference == pytest.approx((1.0 + 2.0) / 4)  # sum of batch means over the number of rows
    batch = [(3.2, 2, 2)]  # a loss of 1.6, about the start's
    assert feed(right, [*batch, *batch])[1] == 1.2  # round(0.3 * 6^0.04 + 0.8, 1) = 1.1, below the floor
    assert feed(wrong, [*batch, *batch])[1:] == [pytest.approx(round(0.3 * 6**0.85 + 0.8, 1))]
    fixed = RetainWeight(METHOD.configure({"adaptive": False}), 0, tmp_path)  # type: ignore[arg-type]
    assert feed(fixed, [(99.0, 1, 1)]) == [1.2]


def test_later_batches_do_not_move_the_reference_and_a_killed_run_goes_on(tmp_path: Path) -> None:
    config: Any = METHOD.configure({})
    weight = RetainWeight(config, 1, tmp_path)
    feed(weight, [(2.0, 2, 1), (50.0, 2, 1)])
    assert weight.reference == 1.0
    state = SimpleNamespace(global_step=2, is_world_process_zero=True)
    again = RetainWeight(config, 1, tmp_path)
    again.on_train_begin(None, state, None)
    assert again.reference == 1.0
    assert again.last == weight.last == 25.0
    assert (
        feed(again, [(3.0, 2, 1)] * 2)
        == feed(weight, [(3.0, 2, 1)] * 2)
        == [2.3, pytest.approx(round(0.3 * 6**0.5 + 0.8, 1))]
    )


# -- figures ----------------------------------------------------------------------------------------------------------


def test_probabilities_of_the_answer_or_its_first_token() -> None:
    p = torch.tensor([[[0.5, 0.5], [0.25, 0.75], [0.1, 0.9]], [[0.2, 0.8], [0.6, 0.4], [0.5, 0.5]]])
    mask = torch.tensor([[True, True, False], [False, True, True]])
    answer = AnswerLogits(p.log(), torch.tensor([[0, 1, 0], [0, 0, 1]]), mask)
    torch.testing.assert_close(probabilities(answer, "answer"), torch.tensor([(0.5 * 0.75) ** 0.5, (0.6 * 0.5) ** 0.5]))
    torch.testing.assert_close(probabilities(answer, "first"), torch.tensor([0.5, 0.6]))


def test_judged_rows_are_means_over_rows_and_tokens(tiny: Any, request_: Any) -> None:
    from efface.train.reference import answer_probabilities, reference_logp

    rows = tiny.encode_rows(request_.forget)
    with tiny.evaluating() as model:
        p, nll = judged(model, tiny, rows, "answer", batch_size=3)
    assert p == pytest.approx(sum(answer_probabilities(tiny, rows)) / len(rows), rel=1e-5)
    assert nll == pytest.approx(-float(reference_logp(tiny, rows).sum()) / sum(r.n_targets for r in rows), rel=1e-5)
    assert len(spaced(rows, 3)) == 3
    assert spaced(rows, 100) == rows


# -- what moves -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "part", "layers"),
    [
        ({}, "mlp", "01"), ({"layers": "1"}, "mlp", "1"), ({"layers": "0", "part": "attention"}, "self_attn", "0"),
        ({"scope": "all"}, "mlp", "01"),
    ],
)  # fmt: skip
def test_only_the_named_modules_move(
    values: dict[str, Any], part: str, layers: str, tiny: Any, request_: Any, tmp_path: Path
) -> None:
    names = moved(tiny, fit(tiny, request_, tmp_path, **values).edit)
    assert {name.split(".")[2] for name in names} == set(layers)
    assert {name.split(".")[3] for name in names} == {part}
    assert all(p.requires_grad for p in tiny.model.parameters())


def test_all_of_a_layer(tiny: Any, request_: Any, tmp_path: Path) -> None:
    names = moved(tiny, fit(tiny, request_, tmp_path, layers="1", part="all").edit)
    assert {name.split(".")[3] for name in names} >= {"mlp", "self_attn", "input_layernorm"}
    assert {name.split(".")[2] for name in names} == {"1"}


def test_a_mask_within_the_modules(tiny: Any, request_: Any, tmp_path: Path) -> None:
    edit = fit(tiny, request_, tmp_path, scope="mask", mask="random", density=0.3).edit
    names = moved(tiny, edit)
    assert {name.split(".")[3] for name in names} == {"mlp"}
    assert (tmp_path / "edit" / "mask.safetensors").exists()


# -- stopping ---------------------------------------------------------------------------------------------------------


def test_it_stops_when_both_sides_are_right(tiny: Any, request_: Any, tmp_path: Path) -> None:
    long = {"epochs": 200, "forget_target": 0.3, "learning_rate": 2e-3}
    one = fit(tiny, request_, tmp_path / "one", **long, retain_slack=None)
    assert len(one.log) < 400
    assert one.log[-1]["forget_probability"] < 0.3 or one.log[-1]["forget_probability"] < 0.4
    both = fit(tiny, request_, tmp_path / "both", **long, retain_slack=0.0)
    assert len(both.log) >= len(one.log), "the retain side may only make it longer"
    one.edit.apply(tiny)
    with tiny.evaluating() as model:
        p, _ = judged(model, tiny, tiny.encode_rows(request_.forget), "answer")
    assert p < 0.3


def test_every_batch_has_both_groups(tiny: Any, request_: Any, tmp_path: Path) -> None:
    log = fit(tiny, request_, tmp_path).log
    assert len(log) == 3 * 2
    assert all(row["retain"] > 0 and row["forget"] > 0 for row in log)
    assert [row["m"] for row in log[:2]] == [1.2, 1.2]
    assert all(1.2 <= row["m"] <= 2.3 for row in log)


# -- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        ({"scope": "lora"}, "confines training"), ({"layers": "0-5"}, "layers between 0 and 1"),
        ({"floor": 2.0, "ceiling": 1.0}, "floor <= ceiling"), ({"part": "self_attn"}, "part"),
        ({"forget_target": 0}, "forget_target"),
    ],
)  # fmt: skip
def test_bad_settings(bad: dict[str, Any], match: str, tiny: Any, request_: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=match):
        fit(tiny, request_, tmp_path, **bad)


def test_modules_that_are_not_found(tiny: Any, request_: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(tiny.model.model.layers[0]), "mlp", property(lambda layer: layer.feed), raising=False)
    for layer in tiny.model.model.layers:
        layer.add_module("feed", layer.mlp)
        del layer.mlp
    with pytest.raises(ModelError, match="no mlp parameters in LlamaDecoderLayer"):
        fit(tiny, request_, tmp_path)


def test_nothing_left_to_train(tiny: Any, request_: Any, tmp_path: Path) -> None:
    digest = tiny.digest
    with pytest.raises(ConfigError, match="no weight is left to rank"):
        fit(
            tiny,
            request_,
            tmp_path,
            scope="mask",
            mask="magnitude",
            density=0.5,
            mask_modules="model.layers.*.self_attn",
        )
    tiny.changed()
    assert tiny.digest == digest
