"""Round trips against a slow loop, their error bound, and which weights are touched."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from efface.errors import ConfigError
from efface.subjects.quantise import linear_weights, round_trip
from efface.train.engine import isolated_rng


def slow(weight: torch.Tensor, bits: int) -> torch.Tensor:
    top = 2 ** (bits - 1) - 1
    rows = []
    for row in weight.numpy():
        scale = np.float32(np.abs(row).max() / np.float32(top))
        codes = [float(np.round(x / scale)) if scale > 0 else 0.0 for x in row]  # half to even
        rows.append([float(np.float32(min(max(code, -top), top)) * scale) for code in codes])
    return torch.tensor(rows, dtype=torch.float32)


@given(st.integers(0, 10_000), st.integers(2, 8), st.integers(1, 5), st.integers(1, 9))
@settings(deadline=None, max_examples=50)
def test_round_trip(seed: int, bits: int, height: int, width: int) -> None:
    weight = torch.from_numpy(np.random.default_rng(seed).normal(size=(height, width)).astype(np.float32))
    found = round_trip(weight, bits)
    torch.testing.assert_close(found, slow(weight, bits))
    scale = weight.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
    assert bool(((found - weight).abs() <= scale / 2 * (1 + 1e-5)).all())
    torch.testing.assert_close(round_trip(found, bits), found, rtol=1e-6, atol=0)  # idempotent
    codes = (found / scale).round()
    assert max(len(row.unique()) for row in codes) <= 2**bits - 1
    assert torch.equal(round_trip(-weight, bits), -found)  # symmetric


def test_a_row_of_zeros_stays_and_leaves_its_neighbours_alone() -> None:
    weight = torch.tensor([[0.0, 0.0, 0.0], [1.0, -0.6, 0.26]])
    found = round_trip(weight, 4)
    assert found[0].tolist() == [0.0, 0.0, 0.0]
    assert found[1].tolist() == pytest.approx([1.0, -4 / 7, 2 / 7])  # -4.2 and 1.82 sevenths


def test_precision_and_memory_are_kept() -> None:
    weight = torch.linspace(-1, 1, 12).view(3, 4).to(torch.bfloat16)
    before = weight.clone()
    assert round_trip(weight, 8).dtype == torch.bfloat16
    assert torch.equal(weight, before)


@pytest.mark.parametrize("bits", [0, 1, 9, 16])
def test_other_widths_are_refused(bits: int) -> None:
    with pytest.raises(ConfigError, match=f"{bits} bits"):
        round_trip(torch.ones(2, 2), bits)


def tiny(*, tied: bool) -> LlamaForCausalLM:
    size = LlamaConfig(
        vocab_size=20, hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, tie_word_embeddings=tied,
    )  # fmt: skip
    with isolated_rng(0):
        return LlamaForCausalLM(size)


def test_a_tied_head_and_the_embedding_are_skipped() -> None:
    inner = {f"model.layers.0.self_attn.{n}_proj.weight" for n in "qkvo"}
    inner |= {f"model.layers.0.mlp.{n}_proj.weight" for n in ("gate", "up", "down")}
    model = tiny(tied=True)
    chosen, skipped = linear_weights(model)
    assert set(chosen) == inner
    assert skipped == ["model.embed_tokens.weight"]
    assert all(chosen[name] is model.get_parameter(name) for name in chosen)
    chosen, skipped = linear_weights(tiny(tied=False))
    assert set(chosen) == inner | {"lm_head.weight"}
    assert skipped == ["model.embed_tokens.weight"]
