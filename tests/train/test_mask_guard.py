"""The guard holds frozen entries bit for bit against decay, momentum and clipping, and is not there where nothing is frozen."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from efface.errors import ConfigError
from efface.train.mask_guard import MaskGuard, guarding
from efface.train.scopes import ScopeConfig, scoped
from efface.train.snapshot import bits
from efface.train.weight_mask import WeightMask


def model_and_mask(density: float = 0.5) -> tuple[torch.nn.Module, WeightMask]:
    torch_state = torch.Generator().manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.Linear(5, 2))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=torch_state))
        model[0].weight[0, 0] = -0.0
    scores = {name: torch.rand(p.shape, generator=torch_state) for name, p in model.named_parameters()}
    scores["0.weight"][0, 0] = -1.0  # frozen
    return model, WeightMask.from_scores(scores, density)


def step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, i: int, clip: float = 0.1) -> float:
    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(i))
    optimizer.zero_grad()
    model(x).square().mean().backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()
    return float(norm)


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.5),
        lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.5, foreach=True),
        lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.5),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.5, nesterov=True),
    ],
)
def test_frozen_entries_keep_their_bits(make: Any) -> None:
    model, mask = model_and_mask()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = make(model.parameters())
    with MaskGuard(model, mask) as guard:
        guard.attach(optimizer)
        for i in range(5):
            step(model, optimizer, i)
    for name, p in model.named_parameters():
        frozen = ~mask.masks[name]
        assert torch.equal(bits(before[name])[frozen], bits(p)[frozen]), name
        assert not bool((before[name] == p)[~frozen].any()), "the others all moved"


def test_the_gradient_is_masked_before_the_norm_and_the_moments() -> None:
    model, mask = model_and_mask()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    with MaskGuard(model, mask) as guard:
        guard.attach(optimizer)
        norm = step(model, optimizer, 0)
    fresh, _ = model_and_mask()
    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
    fresh(x).square().mean().backward()
    masked = (
        torch.stack([(p.grad * mask.masks[name]).square().sum() for name, p in fresh.named_parameters()]).sum().sqrt()
    )
    whole = torch.stack([p.grad.square().sum() for p in fresh.parameters()]).sum().sqrt()
    assert norm == pytest.approx(float(masked), rel=1e-5)
    assert norm < 0.9 * float(whole), "the clipped norm is that of what may move"
    for name, p in model.named_parameters():
        for moment in ("exp_avg", "exp_avg_sq"):
            assert not bool(optimizer.state[p][moment][~mask.masks[name]].any()), "moments of frozen entries stay zero"


def test_accumulated_gradients_and_no_numbers_are_masked() -> None:
    model, mask = model_and_mask()
    with MaskGuard(model, mask):
        for i in range(3):
            (
                model(torch.randn(4, 6, generator=torch.Generator().manual_seed(i))).sum() * float("nan" if i else 1)
            ).backward()
    for name, p in model.named_parameters():
        assert p.grad is not None
        assert not bool(p.grad[~mask.masks[name]].any())


def test_the_hooks_go_also_after_an_error() -> None:
    model, mask = model_and_mask()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def broken() -> None:
        with MaskGuard(model, mask) as guard:
            guard.attach(optimizer)
            raise RuntimeError("the loop broke")

    with pytest.raises(RuntimeError, match="the loop broke"):
        broken()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    step(model, optimizer, 0)
    assert all(not torch.equal(before[name], p) for name, p in model.named_parameters())


def test_a_full_mask_is_no_guard_at_all() -> None:
    model, mask = model_and_mask(1.0)
    with MaskGuard(model, mask) as guard:
        assert guard.parameters == []
        assert guard.handles == []
    with guarding(model, None) as callbacks:
        assert callbacks == ()


def test_the_scope_freezes_whole_tensors_and_gives_the_flags_back(tiny: Any) -> None:
    mask = WeightMask.from_names(tiny.model, ["model.layers.1.mlp"])
    with scoped(tiny.model, ScopeConfig(scope="mask"), mask):
        moving = {name for name, p in tiny.model.named_parameters() if p.requires_grad}
    assert moving == set(mask.masks)
    assert all(p.requires_grad for p in tiny.model.parameters())
    with pytest.raises(ConfigError, match="takes none"), scoped(tiny.model, ScopeConfig(scope="mask")):
        pass
    with pytest.raises(ConfigError, match="set scope=mask"), scoped(tiny.model, ScopeConfig(mask="wagle")):
        pass


def test_adapters_and_quantised_models_are_refused(tiny: Any) -> None:
    from peft import LoraConfig, get_peft_model

    mask = WeightMask({"w": torch.ones(2, dtype=torch.bool)})
    with pytest.raises(ConfigError, match="adapter"):
        MaskGuard(get_peft_model(tiny.model, LoraConfig(r=2, target_modules="all-linear")), mask)

    class Packed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w: Tensor = torch.nn.Parameter(torch.zeros(2, dtype=torch.int8), requires_grad=False)

    with pytest.raises(ConfigError, match="quantised"):
        MaskGuard(Packed(), mask)
