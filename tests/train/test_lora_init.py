"""Adapters from singular vectors: best approximation, floors, large and transposed weights, and the residual that must travel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

from efface.errors import ConfigError, ModelError, RunError
from efface.train import lora_init
from efface.train.lora_init import (
    linear_targets,
    lora_from_svd,
    matrix,
    merge_back,
    refuse_residual,
    row_weight,
    start_from,
)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_row_weight_by_a_loop() -> None:
    f_f, f_r = random(4, 3).square(), random(4, 3, seed=1).square()
    eps = 1e-3 * float(f_r.mean())
    found = row_weight(f_f, f_r)
    for o in range(4):
        total = sum(float(f_f[o, i]) / (float(f_r[o, i]) + eps) for i in range(3))
        assert float(found.d[o]) == pytest.approx(total**0.5, rel=1e-5)
    assert found.floored == 0.0


def test_the_floor_follows_the_scale_of_the_gradients_and_the_published_one_decides_alone() -> None:
    f_f, f_r = 1e-10 * random(6, 5).square(), 1e-10 * random(6, 5, seed=1).square()
    f_r[2] = 0.0
    ours, published = row_weight(f_f, f_r), row_weight(f_f, f_r, compat=True)
    assert ours.floored == pytest.approx(1 / 6), "one row of six has no retain gradient"
    assert published.floored == 1.0, "1e-5 is far above squared gradients of 1e-10"
    assert torch.allclose(published.d, (f_f / 1e-5).sum(1).sqrt(), rtol=1e-4), "so F_r has no say"
    scaled = row_weight(1e6 * f_f, 1e6 * f_r)
    assert torch.allclose(ours.d, scaled.d, rtol=1e-5), "relative floors do not know the unit"


@pytest.mark.parametrize("r", [1, 3, 5])
def test_the_best_row_weighted_approximation(r: int) -> None:
    W, d = random(7, 5), random(7, seed=2).abs() + 0.5
    A, B = lora_from_svd(W, d, r, 2.0)
    assert A.shape == (r, 5)
    assert B.shape == (7, r)
    left = torch.linalg.svdvals(d[:, None] * W)[r:].square().sum()
    error = (d[:, None] * (W - 2.0 * B @ A)).square().sum()
    assert float(error) == pytest.approx(float(left), rel=1e-3, abs=1e-6), "Eckart-Young: no rank-r matrix is nearer"


def test_without_a_weight_it_is_pissa_and_with_full_rank_the_whole() -> None:
    W = random(6, 4)
    plain, ones = lora_from_svd(W, None, 4, 2.0), lora_from_svd(W, torch.ones(6), 4, 2.0)
    assert torch.equal(plain.A, ones.A)
    assert torch.allclose(2.0 * plain.B @ plain.A, W, atol=1e-5)
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    two = lora_from_svd(W, None, 2, 0.5)
    assert torch.allclose(0.5 * two.B @ two.A, (U[:, :2] * S[:2]) @ Vh[:2], atol=1e-5)
    assert torch.allclose(two.A.square().sum(1), two.B.square().sum(0), rtol=1e-4), "both factors carry the root"


def test_dead_rows_do_not_blow_up() -> None:
    W, d = random(6, 4), torch.ones(6)
    d[1] = 0.0
    found = lora_from_svd(W, d, 3, 2.0)
    assert float(found.B.abs().max()) < 1e3
    tiny = d.clone()
    tiny[1] = 1e-9
    published = lora_from_svd(W, tiny, 3, 2.0, compat=True)
    assert torch.isfinite(published.B).all()
    none = lora_from_svd(W, torch.zeros(6), 3, 2.0)
    assert torch.equal(none.A, lora_from_svd(W, None, 3, 2.0).A), "no weight anywhere counts as the same everywhere"


def test_the_randomised_decomposition_follows_its_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    W = random(60, 8) @ random(8, 50, seed=1)
    exact = lora_from_svd(W, None, 4, 1.0)
    monkeypatch.setattr(lora_init, "FULL_SVD", 10)
    state = torch.random.get_rng_state()
    one, again = (lora_from_svd(W, None, 4, 1.0, seed=3) for _ in range(2))
    assert torch.equal(one.A, again.A)
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.allclose(one.B @ one.A, exact.B @ exact.A, atol=1e-2)


def test_bad_input() -> None:
    with pytest.raises(ConfigError, match=r"rank 5 .* \[6, 4\]"):
        lora_from_svd(random(6, 4), None, 5, 1.0)
    with pytest.raises(ModelError, match=r"row weight of shape \(4,\)"):
        lora_from_svd(random(6, 4), torch.ones(4), 2, 1.0)
    with pytest.raises(ModelError, match="a weight of shape"):
        lora_from_svd(torch.ones(3), None, 1, 1.0)


def gpt2() -> Any:
    """A tiny GPT-2: its Conv1D stores W transposed."""
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(vocab_size=31, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0, n_positions=32)
    ).eval()


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_network_starts_unchanged_and_merging_gives_it_back(kind: str, tiny: Any) -> None:
    model = tiny.model if kind == "llama" else gpt2()
    ids = torch.arange(12).view(2, 6)
    with torch.no_grad():
        before = model(ids).logits
    targets = linear_targets(model, "all-linear")
    assert not any("lm_head" in name for name in targets)
    shapes = {name: tuple(matrix(module).shape) for name, module in targets.items()}
    if kind == "gpt2":
        assert shapes["transformer.h.0.mlp.c_fc"] == (64, 16), "[out, in], though stored the other way"
    weights = {name: module.weight.detach().clone() for name, module in targets.items()}
    factors = {
        name: lora_from_svd(matrix(module), torch.rand(shapes[name][0]) + 0.1, 3, 2.0)
        for name, module in targets.items()
    }
    turned = kind == "gpt2"
    adapted = get_peft_model(
        model, LoraConfig(r=3, lora_alpha=6, target_modules=list(targets), fan_in_fan_out=turned, task_type="CAUSAL_LM")
    ).eval()
    start_from(adapted, factors)
    with torch.no_grad():
        assert float((adapted(ids).logits - before).abs().max()) < 1e-4
    moved = [not torch.equal(weights[name], module.weight) for name, module in targets.items()]
    assert all(moved), "the base is the residual now"
    merge_back(adapted)
    for name, module in targets.items():
        assert torch.allclose(weights[name], module.weight, atol=1e-5)


def test_saving_only_the_adapter_is_refused(tiny: Any, tmp_path: Path) -> None:
    from efface.forget.edit import AdapterEdit

    targets = linear_targets(tiny.model, "q_proj", "1")
    assert list(targets) == ["model.layers.1.self_attn.q_proj"]
    adapted = get_peft_model(tiny.model, LoraConfig(r=2, lora_alpha=4, target_modules=list(targets)))
    refuse_residual(adapted)
    start_from(adapted, {name: lora_from_svd(matrix(module), None, 2, 2.0) for name, module in targets.items()})
    with pytest.raises(RunError, match="residual base"):
        AdapterEdit.harvest(
            tiny, adapted, tmp_path / "edit", base_digest="x", method="loku", claim="empirical", config={}
        )
    assert not (tmp_path / "edit").exists()


def test_targets_that_are_none(tiny: Any) -> None:
    with pytest.raises(ConfigError, match="lora_targets='nothing'"):
        linear_targets(tiny.model, "nothing")
    with pytest.raises(ModelError, match="shares its weight with the embedding"):
        linear_targets(tiny.model, "lm_head")
