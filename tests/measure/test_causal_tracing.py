"""Causal tracing against one restoration at a time by hand, and its roles, windows and refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from efface.errors import ConfigError, RequestError
from efface.learn.recipes.causal_lm import CausalLMConfig, new_model
from efface.measure.causal_tracing import ROLES, Fact, positions, subject_spread, trace, window
from efface.subjects import CausalLM, PromptFormat
from efface.subjects.hooks import layers_of
from efface.subjects.spans import Located


@pytest.fixture(scope="module")
def model() -> CausalLM:
    texts = ["what is the capital of south africa ? pretoria", "what is the capital of france ? paris"]
    config = CausalLMConfig(tokenizer="words", width=16, depth=3, heads=2, context=32)
    made = new_model(config, texts, PromptFormat(prompt="{question}"))
    with torch.no_grad():
        for parameter in made.model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(6)
    return made


def greedy(model: CausalLM, prompt: str) -> str:
    ids = model.tokenizer(prompt, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        return str(model.tokenizer.decode(model.model(input_ids=ids).logits[0, -1].argmax()))


@pytest.fixture(scope="module")
def facts(model: CausalLM) -> list[Fact]:
    prompts = {"south africa": "what is the capital of south africa ?", "france": "what is the capital of france ?"}
    return [Fact(prompt, name, greedy(model, prompt)) for name, prompt in prompts.items()]


def by_hand(
    model: CausalLM, fact: Fact, index: int, sigma: float, copies: int, seed: int, kind: str, width: int
) -> Any:
    """p_corr and the table of one fact, one copy, one cell and one plain forward pass at a time."""
    from efface.measure.causal_tracing import locate_fact

    where, answer = locate_fact(model, fact)
    embed, blocks = model.model.get_input_embeddings(), layers_of(model.model)
    state = int(np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)[0] >> np.uint64(1))
    noise = sigma * torch.randn(copies, len(where.tokens), 16, generator=torch.Generator().manual_seed(state))
    modules = {
        "residual": [embed, *blocks], "mlp": [b.mlp for b in blocks], "attention": [b.self_attn for b in blocks]
    }[kind]  # fmt: skip
    ids = torch.tensor([where.ids])
    clean: list[torch.Tensor] = []
    handles = [
        m.register_forward_hook(lambda _, a, out: clean.append(out[0] if isinstance(out, tuple) else out))
        for m in modules
    ]
    with torch.no_grad():
        model.model(input_ids=ids)
    for handle in handles:
        handle.remove()

    def run(copy: int, put: dict[int, int]) -> float:
        def noised(_: Any, a: Any, out: torch.Tensor) -> torch.Tensor:
            out = out.clone()
            out[0, where.first : where.last + 1] += noise[copy]
            return out

        hooks = [embed.register_forward_hook(noised)]
        for i, token in put.items():

            def back(_: Any, a: Any, out: Any, i: int = i, token: int = token) -> Any:
                first = (out[0] if isinstance(out, tuple) else out).clone()
                first[0, token] = clean[i][0, token]
                return (first, *out[1:]) if isinstance(out, tuple) else first

            hooks.append(modules[i].register_forward_hook(back))
        with torch.no_grad():
            p = float(model.model(input_ids=ids).logits[0, -1].softmax(-1)[answer])
        for handle in hooks:
            handle.remove()
        return p

    corrupted = np.mean([run(c, {}) for c in range(copies)])
    table = np.zeros((len(modules), len(where.ids)))
    for layer in range(len(modules)):
        span = [layer] if kind == "residual" else list(window(layer, 3, width))
        for token in range(len(where.ids)):
            table[layer, token] = np.mean([run(c, dict.fromkeys(span, token)) for c in range(copies)])
    return corrupted, table


@pytest.mark.parametrize(("kind", "width"), [("residual", 1), ("mlp", 1), ("mlp", 2), ("attention", 3)])
def test_against_one_cell_at_a_time(model: CausalLM, facts: list[Fact], kind: Any, width: int) -> None:
    found = trace(model, facts, kinds=[kind], copies=3, width=width, seed=5, batch_size=7)
    assert found.skipped == 0
    for index, (fact, one) in enumerate(zip(facts, found.facts, strict=True)):
        corrupted, table = by_hand(model, fact, index, found.sigma, 3, 5, kind, width)
        assert one.corrupted == pytest.approx(corrupted, abs=1e-6)
        np.testing.assert_allclose(one.restored[kind], table, atol=1e-6)
        np.testing.assert_allclose(one.effect(kind), table - corrupted, atol=1e-6)


def test_what_must_hold_by_construction(model: CausalLM, facts: list[Fact]) -> None:
    found = trace(model, facts, kinds=["residual"], copies=4, seed=1)
    for one in found.facts:
        table = one.restored["residual"]
        np.testing.assert_allclose(table[-1, -1], one.clean, atol=1e-6)  # the last state decides alone
        np.testing.assert_allclose(table[-1, :-1], one.corrupted, atol=1e-6)  # and the others are past
        before = slice(0, one.where.first)
        np.testing.assert_allclose(table[:, before], one.corrupted, atol=1e-6)  # they never saw the noise
    single = found.facts[1]
    np.testing.assert_allclose(single.restored["residual"][0, single.where.last], single.clean, atol=1e-6)


def test_the_same_seed_and_batch_size(model: CausalLM, facts: list[Fact]) -> None:
    first, second = (trace(model, facts, kinds=["mlp"], copies=2, seed=3, batch_size=size) for size in (2, 500))
    other = trace(model, facts, kinds=["mlp"], copies=2, seed=4)
    for a, b, c in zip(first.facts, second.facts, other.facts, strict=True):
        np.testing.assert_allclose(a.restored["mlp"], b.restored["mlp"], atol=1e-6)
        assert abs(a.corrupted - c.corrupted) > 1e-9
    alone = trace(model, facts[:1], kinds=["mlp"], copies=2, seed=3, sigmas=3 * first.sigma / 3)
    assert alone.facts[0].where == first.facts[0].where


def test_sigma_is_three_standard_deviations_of_the_subjects(model: CausalLM, facts: list[Fact]) -> None:
    ids = model.tokenizer("south africa france")["input_ids"]
    rows = model.model.get_input_embeddings().weight[ids].detach().double()
    found = trace(model, facts, kinds=["residual"], copies=1)
    assert found.sigma == pytest.approx(3 * float(rows.std()), rel=1e-9)
    assert subject_spread(model, [one.where for one in found.facts]) == pytest.approx(found.sigma / 3)


def test_roles_cover_every_token_once() -> None:
    for where in (Located([0] * 9, 3, 5), Located([0] * 9, 3, 3), Located([0] * 9, 0, 1), Located([0] * 4, 2, 3)):
        places = [i for role in ROLES for i in positions(where, role)]
        assert sorted(places) == list(range(len(where.ids))) or where.last == len(where.ids) - 1
        assert len(set(places)) == len(places)
    where = Located([0] * 9, 3, 5)
    found = {role: positions(where, role) for role in ROLES}
    assert list(found.values()) == [[0, 1, 2], [3], [4], [5], [6, 7], [8]]


def test_windows_are_cut_and_counted(model: CausalLM, facts: list[Fact]) -> None:
    assert list(window(0, 8, 4)) == [0, 1]
    assert list(window(4, 8, 4)) == [2, 3, 4, 5]
    assert list(window(7, 8, 4)) == [5, 6, 7]
    assert list(window(3, 8, 1)) == [3]
    assert len(window(16, 32, 10)) == 10
    found = trace(model, facts, kinds=["residual", "mlp"], copies=1, width=3)
    assert found.covered == {"residual": [1, 1, 1, 1], "mlp": [2, 3, 2]}
    assert sorted(found.strongest("mlp")) == [0, 1, 2]
    curve = found.by_role("mlp")["subject last"]
    assert curve[found.strongest("mlp")[0]] == curve.max()


def test_facts_that_the_model_does_not_answer_are_left_out(model: CausalLM, facts: list[Fact]) -> None:
    said = {fact.answer for fact in facts}
    wrong = next(word for word in ("paris", "pretoria", "capital") if word not in said)
    found = trace(model, [facts[0], facts[1]._replace(answer=wrong)], kinds=["residual"], copies=1)
    assert (len(found.facts), found.skipped) == (1, 1)
    with pytest.raises(RequestError, match="none of 1 facts"):
        trace(model, [facts[0]._replace(answer=wrong)], copies=1)


def test_bad_input(model: CausalLM, facts: list[Fact]) -> None:
    with pytest.raises(RequestError, match="no fact to trace"):
        trace(model, [])
    with pytest.raises(RequestError, match="the name 'spain' is not in the prompt"):
        trace(model, [facts[0]._replace(subject="spain")])
    for bad in ({"copies": 0}, {"width": 0}, {"sigmas": 0.0}):
        with pytest.raises(ConfigError, match="at least one copy"):
            trace(model, facts, **bad)  # type: ignore[arg-type]
