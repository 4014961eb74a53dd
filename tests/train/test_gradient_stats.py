"""Gradient statistics against plain loops, and the traps: aliases, dropout, tied weights, batch sizes, stale caches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from efface.errors import ConfigError, InputError
from efface.subjects.answers import answer_logits
from efface.subjects.prompts import collate
from efface.train.gradient_stats import accumulate, accumulate_samples, answer_gradients, mean_nll, own_parameters


def loop(subject: Any, rows: list[Any], *, size: int, power: int, tokens: bool) -> dict[str, Tensor]:
    """One backward pass a batch, summed by hand in float64."""
    found: dict[str, Tensor] = {}
    total = 0.0
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        subject.model.zero_grad(set_to_none=True)
        mean_nll(answer_logits(subject.model, collate(part, subject.pad_id))).backward()
        weight = sum(row.n_targets for row in part) if tokens else 1
        total += weight
        for name, p in subject.model.named_parameters():
            found[name] = found.get(name, 0) + weight * p.grad.double() ** power
    subject.model.zero_grad(set_to_none=True)
    return {name: value / total for name, value in found.items()}


def close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in found.items():
        scale = float(expected[name].abs().max()) + 1e-12
        assert float((value.double() - expected[name]).abs().max()) <= 1e-4 * scale, name


@pytest.fixture
def rows(tiny: Any, request_: Any) -> list[Any]:
    """Eight rows of two lengths."""
    kept = tiny.encode_rows(request_.retain)
    return [*kept[:5], *(tiny.encode("Which colour ?", "person9 likes red .") for _ in range(3))]


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("tokens", [True, False])
@pytest.mark.parametrize(("per", "size"), [("batch", 3), ("batch", 8), ("sample", 1)])
def test_against_the_loop(tiny: Any, rows: Any, power: Any, tokens: bool, per: Any, size: int) -> None:
    made = answer_gradients(
        tiny, rows, power=power, per=per, batch_size=size, weighting="tokens" if tokens else "equal", cache=False
    )
    close(made.tensors, loop(tiny, rows, size=size, power=power, tokens=tokens))


def test_chunks_change_nothing(tiny: Any, rows: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = answer_gradients(tiny, rows, power=2, per="sample", cache=False)
    monkeypatch.setattr("efface.train.gradient_stats.SAMPLE_NUMBERS", 2 * tiny.n_parameters)
    parts = answer_gradients(tiny, rows, power=2, per="sample", cache=False)
    close(parts.tensors, {name: value.double() for name, value in whole.tensors.items()})


def test_the_plain_mean_does_not_know_the_batch_size_and_the_square_does(tiny: Any, rows: Any) -> None:
    one = answer_gradients(tiny, rows, batch_size=1, cache=False)
    eight = answer_gradients(tiny, rows, batch_size=8, cache=False)
    close(one.tensors, {name: value.double() for name, value in eight.tensors.items()})
    squares = [answer_gradients(tiny, rows, power=2, batch_size=size, cache=False) for size in (1, 8)]
    assert squares[0].mean() > 1.5 * squares[1].mean(), "the square of a batch mean is not the Fisher diagonal"
    assert [stats.batch_size for stats in squares] == [1, 8], "the batch size travels with the figures"
    exact = answer_gradients(tiny, rows, power=2, per="sample", cache=False)
    close(exact.tensors, {name: value.double() for name, value in squares[0].tensors.items()})


def test_nothing_is_left_behind_or_shared(tiny: Any, rows: Any) -> None:
    digest = tiny.digest
    tiny.model.train()
    flags = {}
    for i, (name, p) in enumerate(tiny.model.named_parameters()):
        p.requires_grad_(i % 2 == 0)
        flags[name] = i % 2 == 0
    first = answer_gradients(tiny, rows[:2], cache=False)
    before = {name: value.clone() for name, value in first.tensors.items()}
    second = answer_gradients(tiny, rows[2:4], cache=False)
    assert tiny.model.training
    assert {name: p.requires_grad for name, p in tiny.model.named_parameters()} == flags
    assert all(p.grad is None for p in tiny.model.parameters())
    assert all(torch.equal(before[name], value) for name, value in first.tensors.items()), "an alias was kept"
    assert any(not torch.equal(first.tensors[name], value) for name, value in second.tensors.items())
    tiny.changed()
    assert tiny.digest == digest


def test_a_tied_weight_appears_once(tiny: Any) -> None:
    assert tiny.model.config.tie_word_embeddings
    names = list(own_parameters(tiny.model))
    assert "model.embed_tokens.weight" in names
    assert "lm_head.weight" not in names
    with pytest.raises(InputError, match=r"'lm_head.weight' is tied to 'model.embed_tokens.weight'"):
        own_parameters(tiny.model, ["lm_head.weight"])
    with pytest.raises(InputError, match="no floating parameter 'nothing'"):
        own_parameters(tiny.model, ["nothing"])


@pytest.mark.parametrize("per", ["batch", "sample"])
def test_no_dropout_and_any_module(per: str) -> None:
    generator = torch.Generator().manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Dropout(0.5), torch.nn.Linear(6, 3)).double()
    x, y = torch.randn(10, 4, generator=generator).double(), torch.randint(0, 3, (10,), generator=generator)
    model.train()

    def loss(call: Any, batch: Any) -> Tensor:
        return cross_entropy(call(batch["x"]), batch["y"])

    if per == "batch":
        made = accumulate(model, loss, [({"x": x[i : i + 1], "y": y[i : i + 1]}, 1.0) for i in range(10)], power=2)
    else:
        ones = torch.ones(10)
        made = accumulate_samples(
            model, loss, [({"x": x[:7], "y": y[:7]}, ones[:7]), ({"x": x[7:], "y": y[7:]}, ones[7:])]
        )
    expected = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    model.eval()
    for i in range(10):
        grads = torch.autograd.grad(cross_entropy(model(x[i : i + 1]), y[i : i + 1]), list(model.parameters()))
        for (name, _), g in zip(model.named_parameters(), grads, strict=True):
            expected[name] += g**2 / 10
    for name, value in made.items():
        assert value.dtype == torch.float64
        assert torch.allclose(value, expected[name], rtol=1e-10, atol=1e-14)


def test_the_cache_knows_model_data_and_kind(
    tiny: Any, rows: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EFFACE_CACHE", str(tmp_path))
    folder = tmp_path / "reference"
    first = answer_gradients(tiny, rows)
    files = list(folder.glob("grad-*.safetensors"))
    assert len(files) == 1
    again = answer_gradients(tiny, rows)
    assert all(torch.equal(value, again.tensors[name]) for name, value in first.tensors.items())
    assert len(list(folder.glob("grad-*"))) == 1
    answer_gradients(tiny, rows, power=2)
    answer_gradients(tiny, rows[:-1])
    assert len(list(folder.glob("grad-*"))) == 3
    answer_gradients(tiny, rows, loss=lambda answer: answer.logits.square().mean())
    assert len(list(folder.glob("grad-*"))) == 3, "a loss without a name must not be taken for another"
    files[0].write_bytes(b"torn")
    mended = answer_gradients(tiny, rows)
    assert all(torch.equal(value, mended.tensors[name]) for name, value in first.tensors.items())
    with torch.no_grad():
        tiny.model.model.layers[0].mlp.up_proj.weight.add_(0.01)
    tiny.changed()
    other = answer_gradients(tiny, rows)
    assert any(not torch.equal(value, other.tensors[name]) for name, value in first.tensors.items())


def test_bad_input(tiny: Any, rows: Any) -> None:
    with pytest.raises(InputError, match="no rows"):
        answer_gradients(tiny, [])
    with pytest.raises(ConfigError, match="batch_size=0"):
        answer_gradients(tiny, rows, batch_size=0)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_rows_at_once_are_rows_one_by_one_in_every_architecture(kind: Any, request_: Any) -> None:
    """GPT-2 looks into its ids for padding, which vmap cannot do; the look is off meanwhile and comes back."""
    from efface.learn.recipes.causal_lm import CausalLMConfig, new_model

    size = CausalLMConfig(
        tokenizer="words", vocabulary=64, width=16, depth=2, heads=2, context=64, architecture=kind, start="unit"
    )  # fmt: skip
    subject = new_model(size, [f"{row['question']} {row['answer']}" for row in request_.retain])
    pad = subject.model.config.pad_token_id
    rows = subject.encode_rows(request_.retain)[:3]
    made = answer_gradients(subject, rows, power=2, per="sample", cache=False)
    close(made.tensors, loop(subject, rows, size=1, power=2, tokens=True))
    assert subject.model.config.pad_token_id == pad is not None
