"""Selectors: the closed form, what gamma does, and what doubling the data must not do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from efface.errors import ConfigError, RequestError
from efface.train.gradient_stats import answer_gradients, own_parameters
from efface.train.mask_selectors import MaskRows, auto_gamma, mask_of, restricted, select, wagle_score
from efface.train.scopes import ScopeConfig


@pytest.fixture
def rows(tiny: Any, request_: Any) -> MaskRows:
    return MaskRows(tiny.encode_rows(request_.forget), tiny.encode_rows(request_.retain))


def flat(mask: Any) -> Tensor:
    return torch.cat([part.reshape(-1) for part in mask.masks.values()])


def test_the_score_by_hand() -> None:
    theta, g_f, g_r = torch.tensor([2.0, -1.0, 0.5]), torch.tensor([3.0, 2.0, -4.0]), torch.tensor([1.0, 0.5, 1.0])
    # (2 - 1/0.5) 3, (-1 - 0.5/0.5) 2, (0.5 - 1/0.5) (-4)
    assert wagle_score(theta, g_f, g_r, 0.5).tolist() == [0.0, 4.0, 6.0]
    assert torch.allclose(wagle_score(theta, g_f, g_r, 1e30), (theta * g_f).abs()), "gamma to infinity is SNIP"
    assert torch.allclose(wagle_score(theta, g_f, g_r, 1e-12) * 1e-12, (g_r * g_f).abs()), "gamma to 0 is |g_r g_f|"


def test_the_influence_is_that_of_a_quadratic_model() -> None:
    """l_r = gamma/2 |theta - c|^2: with weight i scaled by e and all weights re-optimised, d l_f / d e is S_i."""
    generator = torch.Generator().manual_seed(0)
    theta, a = (torch.randn(6, generator=generator, dtype=torch.float64) for _ in range(2))
    g_r, gamma, h = 0.1 * torch.randn(6, generator=generator, dtype=torch.float64), 3.0, 1e-6

    def forget(x: Tensor) -> Tensor:
        return torch.sin(x) @ a

    def after(i: int, e: float) -> Tensor:
        """The starting point with weight i at e theta_i, and one Newton step of the retain loss in proportion to 1 - e."""
        x = theta.clone()
        x[i] = theta[i] - (1 - e) * (theta[i] - g_r[i] / gamma)
        return forget(x)

    x = theta.clone().requires_grad_(True)
    g_f = torch.autograd.grad(forget(x), x)[0]
    for i in range(6):
        slope = (after(i, 1 + h) - after(i, 1 - h)) / (2 * h)
        assert float(slope) == pytest.approx(float(((theta - g_r / gamma) * g_f)[i]), abs=1e-6)


@pytest.mark.parametrize("selector", ["wagle", "gradient", "snip", "magnitude", "reverse"])
def test_against_a_sort_of_all_scores(selector: str, tiny: Any, rows: MaskRows) -> None:
    g_f = answer_gradients(tiny, rows.forget or ()).tensors
    g_r = answer_gradients(tiny, rows.retain or ()).tensors
    theta = {name: p.detach() for name, p in own_parameters(tiny.model).items()}
    score = {
        "wagle": lambda n: wagle_score(theta[n], g_f[n], g_r[n], 1e-3), "gradient": lambda n: g_f[n].abs(),
        "snip": lambda n: (theta[n] * g_f[n]).abs(), "magnitude": lambda n: theta[n].abs(),
        "reverse": lambda n: -wagle_score(theta[n], g_f[n], g_r[n], 1e-3),
    }[selector]  # fmt: skip
    every = torch.cat([score(name).reshape(-1) for name in theta])
    mask = select(tiny, selector, [0.1], rows, gamma=1e-3)[0]
    count = round(0.1 * len(every))
    expected = torch.zeros(len(every), dtype=torch.bool)
    expected[torch.sort(-every, stable=True).indices[:count]] = True
    assert torch.equal(flat(mask), expected)
    assert mask.selected == count
    assert mask.facts.selector == selector
    assert mask.facts.model == tiny.digest
    assert set(mask.facts.data) == {"gradient": {"forget"}, "snip": {"forget"}, "magnitude": set()}.get(
        selector, {"forget", "retain"}
    )


def test_doubling_the_retain_set_leaves_the_mask(tiny: Any, rows: MaskRows) -> None:
    """Means, not sums: the official code's gradients grow with the data, and with them the weight of the retain term."""
    assert rows.retain is not None
    twice = MaskRows(rows.forget, [*rows.retain, *rows.retain])
    for gamma in ("auto", 1e-4):
        one, two = (select(tiny, "wagle", [0.2], part, gamma=gamma)[0] for part in (rows, twice))
        assert one.jaccard(two) > 0.9995, "equal up to the rounding of sums"
        assert one.facts.retain_share == pytest.approx(two.facts.retain_share or 0, rel=1e-4)
    halved = select(tiny, "wagle", [0.2], rows, gamma=0.5e-4)[0]
    assert halved.jaccard(one) < 0.9995, "what summing would have done"


def test_which_term_dominates_is_on_record(tiny: Any, rows: MaskRows) -> None:
    share = {g: select(tiny, "wagle", [0.5], rows, gamma=g)[0].facts.retain_share or 0.0 for g in (1e-6, 1e6)}
    assert share[1e-6] > 0.9, "with the published gamma the retain term is nearly the whole score"
    assert share[1e6] < 0.01
    auto = select(tiny, "wagle", [0.5], rows)[0].facts
    assert auto.gamma == pytest.approx(auto_gamma(tiny, rows.retain or ()))
    assert auto.gamma is not None
    assert auto.gamma > 0


def test_random_masks_follow_their_seed(tiny: Any) -> None:
    a, b, c = (select(tiny, "random", [0.3], MaskRows(), seed=seed)[0] for seed in (0, 0, 1))
    assert torch.equal(flat(a), flat(b))
    assert 0.1 < a.jaccard(c) < 0.25, "two independent masks of density 0.3 share 0.3 / 1.7"


def test_layers_modules_and_exclusions(tiny: Any) -> None:
    def names(**values: Any) -> list[str]:
        return restricted(tiny.model, ScopeConfig(scope="mask", **values))

    assert all(".layers.1." in name for name in names(layers="-1"))
    assert names(mask_modules="model.layers.0.mlp, model.norm") == [
        *(f"model.layers.0.mlp.{part}_proj.weight" for part in ("gate", "up", "down")), "model.norm.weight",
    ]  # fmt: skip
    without = names(mask_exclude="model.embed_tokens,model.layers.*.input_layernorm")
    assert "model.embed_tokens.weight" not in without
    assert not any("input_layernorm" in name for name in without)
    assert any("post_attention_layernorm" in name for name in without)
    with pytest.raises(ConfigError, match="no weight is left"):
        names(mask_modules="model.norm", mask_exclude="model.norm")
    mask = select(tiny, "magnitude", [0.5], MaskRows(), names=names(layers="0"))[0]
    assert all(".layers.0." in name for name in mask.masks)
    assert abs(mask.density - 0.5) <= 1 / mask.size


def test_a_file_is_restricted_as_well_and_knows_its_model(tiny: Any, tmp_path: Any) -> None:
    mask = select(tiny, "magnitude", [0.5], MaskRows())[0]
    path = mask.save(tmp_path / "m.safetensors")
    again = mask_of(tiny, ScopeConfig(scope="mask", mask=str(path), layers="1"), MaskRows(), 0)
    assert all(".layers.1." in name for name in again.masks)
    assert all(torch.equal(part, mask.masks[name]) for name, part in again.masks.items())


def test_bad_selectors_and_missing_rows(tiny: Any, rows: MaskRows) -> None:
    with pytest.raises(ConfigError, match="did you mean 'wagle'"):
        select(tiny, "wagel", [0.5], rows)
    with pytest.raises(RequestError, match="mask=wagle without retain rows"):
        select(tiny, "wagle", [0.5], MaskRows(rows.forget, None))
    with pytest.raises(RequestError, match="mask=snip without forget rows"):
        select(tiny, "snip", [0.5], MaskRows(None, rows.retain))


@pytest.mark.parametrize("selector", ["gradient", "snip", "wagle", "reverse"])
def test_a_gradient_of_zero_ranks_nothing(selector: str, tiny: Any, rows: MaskRows) -> None:
    """A head of zeros: nothing below it has a gradient, and the first weights in order are no choice."""
    with torch.no_grad():
        tiny.model.model.norm.weight.zero_()
    tiny.changed()
    below = [name for name in own_parameters(tiny.model) if ".layers." in name]
    with pytest.raises(ConfigError, match=f"mask={selector}: the forget loss has a gradient of exactly zero"):
        select(tiny, selector, [0.5], rows, names=below, gamma=1.0)
    assert select(tiny, "magnitude", [0.5], rows, names=below)[0].masks.keys() == set(below)
