"""FLAT: its probability and loss against plain loops, its gradient in closed form, and the traps of its specification."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import efface
from efface.errors import ConfigError, RequestError
from efface.forget.method import find_method
from efface.forget.objective import ForgetBatch
from efface.forget.objectives import flat
from efface.numerics.divergences import F_DIVERGENCES
from efface.subjects.answers import AnswerLogits

B, T, V = 3, 5, 7
MASK = torch.tensor([[1, 1, 0, 0, 0], [0, 1, 1, 1, 0], [1, 1, 1, 1, 1]], dtype=torch.bool)
QUICK: dict[str, Any] = {"learning_rate": 5e-3, "epochs": 3, "batch_size": 4, "warmup_ratio": 0.0}


def answer(seed: int, requires_grad: bool = False) -> AnswerLogits:
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(B, T, V, generator=generator, dtype=torch.float64)
    targets = torch.randint(0, V, (B, T), generator=generator).masked_fill(~MASK, 0)
    return AnswerLogits(logits.requires_grad_(requires_grad), targets, MASK)


def slow_probability(found: AnswerLogits, row: int) -> float:
    values = []
    for t in range(T):
        if MASK[row, t]:
            scores = [math.exp(float(x)) for x in found.logits[row, t].detach()]
            values.append(scores[int(found.targets[row, t])] / sum(scores))
    return sum(values) / len(values)


def batch(forget: AnswerLogits, template: AnswerLogits, reference: Tensor | None = None) -> ForgetBatch:
    share = torch.full((B,), 1 / B, dtype=torch.float64)
    return ForgetBatch(forget, reference, template, None, share, share, share)


def test_probability_is_the_mean_over_the_answer_whatever_the_padding() -> None:
    found = answer(0)
    slow = [slow_probability(found, row) for row in range(B)]
    assert flat.probabilities(found).tolist() == pytest.approx(slow)
    wider = AnswerLogits(*(torch.cat([part, torch.zeros_like(part)], dim=1) for part in found))
    assert flat.probabilities(wider).tolist() == pytest.approx(slow), "the official code divides by the padded width"


@pytest.mark.parametrize("name", F_DIVERGENCES)
def test_the_loss_against_a_loop(name: str) -> None:
    forget, template = answer(0), answer(1)
    row, slow = F_DIVERGENCES[name], 0.0
    for b in range(B):
        P_e, P_f = (torch.tensor(slow_probability(each, b), dtype=torch.float64) for each in (template, forget))
        slow += float(-row.g(row.argument(P_e)) + row.f_star_g(row.argument(P_f))) / B
    assert float(flat.loss(flat.FlatConfig(divergence=name), batch(forget, template))) == pytest.approx(slow)


def test_the_batch_mean_takes_g_of_the_mean() -> None:
    forget, template = answer(0), answer(1)
    P_e, P_f = (sum(slow_probability(each, b) for b in range(B)) / B for each in (template, forget))
    whole = flat.loss(flat.FlatConfig(batch_mean=True), batch(forget, template))
    assert float(whole) == pytest.approx(-math.tanh(P_e) / 2 + math.tanh(P_f) / 2)
    assert float(whole) != pytest.approx(float(flat.loss(flat.FlatConfig(), batch(forget, template))), rel=1e-6)


@pytest.mark.parametrize("name", F_DIVERGENCES)
def test_the_weights_are_the_slopes_and_have_the_right_sign(name: str) -> None:
    row = F_DIVERGENCES[name]
    P_e = torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64, requires_grad=True)
    P_f = torch.tensor([0.9, 0.4, 0.1], dtype=torch.float64, requires_grad=True)
    loss = flat.flat_loss(P_e, P_f, torch.full((3,), 1 / 3, dtype=torch.float64), row)
    of_e, of_f = torch.autograd.grad(loss, (P_e, P_f))
    assert bool((of_e < 0).all()), "the loss falls when the template becomes likelier"
    assert bool((of_f > 0).all()), "the loss falls when the answer becomes less likely"
    step = 1e-6
    for P, gradient, function, sign in ((P_e, of_e, row.g, -1), (P_f, of_f, row.f_star_g, 1)):
        P = P.detach()
        slope = (function(row.argument(P + step)) - function(row.argument(P - step))) / (2 * step)
        torch.testing.assert_close(gradient, sign * slope / 3, rtol=1e-5, atol=1e-8)


def test_the_gradient_of_total_variation_in_closed_form() -> None:
    forget, template = answer(0, requires_grad=True), answer(1)
    (ours,) = torch.autograd.grad(flat.loss(flat.FlatConfig(), batch(forget, template)), forget.logits)
    p = forget.logits.detach().softmax(-1)
    for b in range(B):
        weight = (1 - math.tanh(slow_probability(forget, b)) ** 2) / 2 / B / int(MASK[b].sum())
        for t in range(T):
            own = torch.nn.functional.one_hot(forget.targets[b, t], V)
            chosen = p[b, t, forget.targets[b, t]]
            expected = weight * chosen * (own - p[b, t]) if MASK[b, t] else torch.zeros(V, dtype=torch.float64)
            torch.testing.assert_close(ours[b, t], expected)


def test_a_long_forgotten_answer_has_no_gradient_left() -> None:
    """p (1 - p) fades: why the method stops early, and why log-probabilities would be another loss."""
    logits = torch.zeros(1, 1, V, dtype=torch.float64)
    logits[0, 0, 0] = -30
    logits.requires_grad_(True)
    found = AnswerLogits(logits, torch.zeros(1, 1, dtype=torch.long), torch.ones(1, 1, dtype=torch.bool))
    (gradient,) = torch.autograd.grad(flat.probabilities(found).sum(), logits)
    assert float(gradient.abs().max()) < 1e-12


def test_a_reference_is_refused() -> None:
    with pytest.raises(ConfigError, match="flat with a reference"):
        flat.loss(flat.FlatConfig(), batch(answer(0), answer(1), torch.zeros(B)))
    method = find_method("flat")
    assert not {"reference", "retain"} & set(method.card.needs)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"divergence": "GLS"}, "divergence='GLS'"),
        ({"divergence": "total_variation"}, "did you mean 'total-variation'"),
        ({"templates": []}, "one or more non-empty templates"),
        ({"templates": ["I don't know.", " "]}, "non-empty templates"),
        ({"batch_mean": True, "batch_size": 8, "micro_batch_size": 4}, "one forward pass"),
    ],
)
def test_bad_values_are_refused_by_name(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        find_method("flat").configure(values)


def fit(tiny: Any, request: Any, folder: Path, **values: Any) -> Any:
    method = find_method("flat")
    config = method.configure({**QUICK, **values})
    return method.fit(tiny, request, config, work=folder / "work", out=folder / "edit")


def test_it_needs_neither_retain_set_nor_reference(
    tiny: Any, request_: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("a reference was asked for")

    monkeypatch.setattr("efface.forget.objective.reference_logp", never)
    monkeypatch.setattr("efface.forget.retain.reference_top_k", never)
    fitted = fit(tiny, efface.Request(forget=request_.forget), tmp_path, templates=["I don't know."], epochs=12)
    assert fitted.log[-1]["P_f"] < fitted.log[0]["P_f"]
    assert fitted.log[-1]["P_e"] > fitted.log[0]["P_e"]


def test_templates_are_drawn_by_the_seed_and_logged(tiny: Any, request_: Any, tmp_path: Path) -> None:
    def drawn(seed: int, name: str) -> list[dict[str, float]]:
        log = fit(tiny, request_, tmp_path / name, seed=seed, epochs=4).log
        return [{key: n for key, n in row.items() if key.startswith("template_")} for row in log]

    first, again, other = drawn(0, "a"), drawn(0, "b"), drawn(1, "c")
    assert first == again != other
    assert all(sum(step.values()) == 4 for step in first), "one template a row"
    assert len({key for step in first for key in step}) > 4, "a fresh one in each pass"


def test_the_edit_says_which_texts_of_a_file_were_used(tiny: Any, request_: Any, tmp_path: Path) -> None:
    path = tmp_path / "templates.jsonl"
    path.write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in ("unknown", "I could not say.")), encoding="utf-8"
    )
    fitted = fit(tiny, request_, tmp_path, templates_file=str(path))
    assert list(fitted.edit.facts.config["templates"]) == ["unknown", "I could not say."]


def test_a_template_that_is_the_answer_and_plain_text_are_refused(tiny: Any, request_: Any, tmp_path: Path) -> None:
    same = " ".join(request_.forget["answer"][2].upper().split())
    with pytest.raises(RequestError, match="forget row 2: a template equals its answer"):
        fit(tiny, request_, tmp_path, templates=["I don't know.", same])
    book = efface.Request.from_rows([{"text": "a page of a book"}])
    with pytest.raises(RequestError, match=r"row 0 has no question.*split each chunk"):
        fit(tiny, book, tmp_path)


def test_it_stops_once_every_answer_is_forgotten(tiny: Any, request_: Any, tmp_path: Path) -> None:
    few = request_.forget.select(range(4))
    long = fit(tiny, efface.Request(forget=few), tmp_path / "a", epochs=12, learning_rate=2e-2, stop_below=0.0)
    bound = long.log[-4]["P_f_max"] * 1.01
    short = fit(tiny, efface.Request(forget=few), tmp_path / "b", epochs=12, learning_rate=2e-2, stop_below=bound)
    assert len(long.log) == 12
    assert len(short.log) < 12
    assert short.edit.facts.edited_digest != long.edit.facts.edited_digest


def test_a_rate_that_half_precision_rounds_away_is_refused(tiny: Any, request_: Any, tmp_path: Path) -> None:
    tiny.model.bfloat16()
    tiny.changed()
    with pytest.raises(ConfigError, match=r"learning_rate=2e-07 on bfloat16 weights.*float32 master weights"):
        fit(tiny, request_, tmp_path, learning_rate=2e-7)
    assert not (tmp_path / "edit").exists()
