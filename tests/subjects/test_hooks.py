"""Hooks against the model's own outputs in four architectures; what is unknown is refused by name."""

from __future__ import annotations

import pytest
import torch
from small_decoders import KINDS, decoder

from efface.errors import ConfigError, ModelError
from efface.subjects.hooks import (
    Site,
    at_positions,
    down_projection,
    layers_of,
    part_parameters,
    recorded,
    replaced,
    value_matrix,
)
from efface.train.scopes import ScopeConfig, scoped

IDS = torch.tensor([[2, 3, 4, 5, 6, 7], [7, 6, 5, 4, 3, 2]])


@pytest.mark.parametrize("kind", KINDS)
def test_states_are_those_of_the_model(kind: str) -> None:
    subject = decoder(kind)
    sites = [Site("embedding"), *(Site(k, i) for i in range(3) for k in ("residual", "attention", "mlp", "keys"))]  # type: ignore[arg-type]
    with torch.no_grad(), recorded(subject.model, sites) as found:
        states = subject.model(input_ids=IDS, output_hidden_states=True, use_cache=False).hidden_states
    assert len(layers_of(subject.model)) == 3
    for layer in range(2):  # the last hidden state is normed
        torch.testing.assert_close(found[Site("residual", layer)], states[layer + 1])
    torch.testing.assert_close(found[Site("embedding")], subject.model.get_input_embeddings()(IDS))
    for layer in range(3):
        keys, values = found[Site("keys", layer)], value_matrix(subject.model, layer)
        assert values.shape == (16, 24)
        bias = getattr(down_projection(subject.model, layer), "bias", None)
        by_columns = sum(keys[..., j, None] * values[:, j] for j in range(24)) + (0 if bias is None else bias)
        torch.testing.assert_close(found[Site("mlp", layer)], by_columns, rtol=1e-4, atol=1e-5)
        assert found[Site("attention", layer)].shape == (2, 6, 16)


@pytest.mark.parametrize("kind", KINDS)
def test_the_gate_is_each_neuron_before_its_activation(kind: str) -> None:
    subject = decoder(kind)
    with torch.no_grad(), recorded(subject.model, [Site("gate", 1), Site("keys", 1)]) as found:
        subject.model(input_ids=IDS, use_cache=False)
    z, k = found[Site("gate", 1)], found[Site("keys", 1)]
    assert z.shape == k.shape == (2, 6, 24)
    mlp = getattr(layers_of(subject.model)[1], "mlp", layers_of(subject.model)[1])
    act = next(getattr(mlp, name) for name in ("act_fn", "act", "activation_fn") if hasattr(mlp, name))
    if kind == "llama":  # gated: the key is act(z) times the other half, so both vanish together
        changes = {Site("gate", 1): lambda x: x.index_fill(-1, torch.tensor([3]), 0)}
        with torch.no_grad(), replaced(subject.model, changes), recorded(subject.model, [Site("keys", 1)]) as after:
            subject.model(input_ids=IDS, use_cache=False)
        assert after[Site("keys", 1)][..., 3].abs().max() == 0
    else:
        torch.testing.assert_close(k, act(z))


@pytest.mark.parametrize("kind", KINDS)
def test_a_block_is_the_sum_of_its_parts(kind: str) -> None:
    subject = decoder(kind)
    sites = [Site("residual", 0), Site("residual", 1), Site("attention", 1), Site("mlp", 1)]
    with torch.no_grad(), recorded(subject.model, sites) as found:
        subject.model(input_ids=IDS, use_cache=False)
    total = found[sites[0]] + found[sites[2]] + found[sites[3]]
    torch.testing.assert_close(found[sites[1]], total, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_replacing_changes_and_leaves_nothing_behind(kind: str) -> None:
    subject = decoder(kind)
    before = subject.model(input_ids=IDS).logits.detach()
    for where in ("embedding", "residual", "attention", "mlp", "keys"):
        with torch.no_grad(), replaced(subject.model, {Site(where, 0): lambda x: x * 2}):  # type: ignore[arg-type]
            assert float((subject.model(input_ids=IDS).logits - before).abs().max()) > 1e-3
        with torch.no_grad(), replaced(subject.model, {Site(where, 0): lambda x: x.mul_(1)}):  # type: ignore[arg-type]
            torch.testing.assert_close(subject.model(input_ids=IDS).logits, before)
    with pytest.raises(ZeroDivisionError), replaced(subject.model, {Site("mlp", 1): lambda x: x * 0}):
        raise ZeroDivisionError
    torch.testing.assert_close(subject.model(input_ids=IDS).logits.detach(), before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in subject.model.modules())


def test_only_the_changed_position_moves_and_later_ones() -> None:
    subject = decoder("llama")

    def change(states: torch.Tensor) -> torch.Tensor:
        states[:, 3] = 0
        return states

    with torch.no_grad():
        before = subject.model(input_ids=IDS).logits
        with replaced(subject.model, {Site("residual", 0): change}):
            after = subject.model(input_ids=IDS).logits
    torch.testing.assert_close(after[:, :3], before[:, :3])
    assert float((after[:, 3:] - before[:, 3:]).abs().amax(dim=(0, 2)).min()) > 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_writing_to_a_value_vector_writes_to_the_model(kind: str) -> None:
    subject = decoder(kind)
    digest = subject.digest
    with torch.no_grad():
        value_matrix(subject.model, 1)[:, 5] += 1.0
    subject.changed()
    assert subject.digest != digest
    with torch.no_grad(), recorded(subject.model, [Site("keys", 1), Site("mlp", 1)]) as found:
        subject.model(input_ids=IDS)
        before = found[Site("mlp", 1)].clone()
        value_matrix(subject.model, 1)[:, 5] += 2.0
        subject.model(input_ids=IDS)
    torch.testing.assert_close(
        found[Site("mlp", 1)] - before, (2 * found[Site("keys", 1)][..., 5:6]).expand_as(before), rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_of_a_part(kind: str) -> None:
    model = decoder(kind).model
    mlp, attention = part_parameters(model, 1, "mlp"), part_parameters(model, 1, "attention")
    assert not {id(p) for p in mlp.values()} & {id(p) for p in attention.values()}
    assert any(p.data_ptr() == value_matrix(model, 1).data_ptr() for p in mlp.values())
    assert len(mlp) + len(attention) < len(part_parameters(model, 1, "all"))  # the norms belong to neither


def test_gradients_reach_a_recorded_state() -> None:
    subject = decoder("gpt2")
    with recorded(subject.model, [Site("residual", 0)], detach=False) as found:
        loss = subject.model(input_ids=IDS).logits.square().sum()
    (gradient,) = torch.autograd.grad(loss, [found[Site("residual", 0)]])
    assert float(gradient.abs().sum()) > 0


def test_under_a_lora_wrapper() -> None:
    subject = decoder("llama")
    matrix = value_matrix(subject.model, 0).clone()
    with scoped(subject.model, ScopeConfig(scope="lora", lora_rank=2)) as adapted:
        torch.testing.assert_close(value_matrix(adapted, 0), matrix)
        with torch.no_grad(), recorded(adapted, [Site("keys", 0)]) as found:
            adapted(input_ids=IDS)
        assert found[Site("keys", 0)].shape == (2, 6, 24)


def test_positions() -> None:
    states = torch.arange(24.0).view(2, 3, 4)
    assert at_positions(states, torch.tensor([2, 0])).tolist() == [[8, 9, 10, 11], [12, 13, 14, 15]]


def test_what_is_unknown_is_named() -> None:
    subject = decoder("llama")
    with pytest.raises(ModelError, match="no layers found in Linear"):
        layers_of(torch.nn.Linear(2, 2))
    with pytest.raises(ConfigError, match="layer 3; expected 0 to 2"), recorded(subject.model, [Site("mlp", 3)]):
        pass
    with pytest.raises(ConfigError, match="layer -1"):
        value_matrix(subject.model, -1)
    layers_of(subject.model)[1].mlp = torch.nn.Identity()
    with pytest.raises(ModelError, match="no MLP down-projection found in LlamaDecoderLayer"):
        value_matrix(subject.model, 1)


class Odd(torch.nn.Module):
    """A matrix whose orientation its class does not tell."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(*shape))


def test_orientation_by_shape_and_a_square_one_is_refused() -> None:
    subject = decoder("llama")
    block = layers_of(subject.model)[0]
    for shape in ((16, 24), (24, 16)):
        block.mlp.down_proj = Odd(*shape)
        assert value_matrix(subject.model, 0).shape == (16, 24)
    block.mlp.down_proj = Odd(16, 16)
    with pytest.raises(ModelError, match=r"Odd of shape \[16, 16\].*orientation"):
        value_matrix(subject.model, 0)
    block.mlp.down_proj = torch.nn.ReLU()
    with pytest.raises(ModelError, match="without a floating-point matrix"):
        value_matrix(subject.model, 0)
