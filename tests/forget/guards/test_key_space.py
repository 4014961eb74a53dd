"""Key Space Detection: the box against loops, its traps by name, and the same decision in every way of running."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import efface
from efface.errors import ConfigError, InputError, RequestError, RunError
from efface.forget.edit import Edit
from efface.forget.guards.abstention import Abstention
from efface.forget.guards.key_space import METHOD, Box, KeySpaceModel, calibrated_alpha, key_box
from efface.subjects.hooks import Site
from efface.subjects.neuron_statistics import prompt_keys
from efface.subjects.prompts import PromptFormat, pad

NARROW = "ignore:key-space. the box stops:UserWarning"


def some_keys(n: int = 40, h: int = 7) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, h, generator=generator) * torch.linspace(0.5, 3, h) + torch.arange(h)


def test_the_box_against_bisection() -> None:
    """The code bisects for the smallest k that holds every key; the closed form gives the same."""
    keys = some_keys()
    box = key_box(keys, sigma_floor=0.0)
    mean, std = keys.double().mean(0), keys.double().std(0, unbiased=False)
    low, high = 0.0, 1e4
    while high - low > 1e-6:
        middle = (low + high) / 2
        inside = all(
            abs(float(v[j] - mean[j])) <= middle * float(std[j]) for v in keys.double() for j in range(len(mean))
        )
        low, high = (low, middle) if inside else (middle, high)
    assert box.k == pytest.approx(high, abs=1e-5)
    slow = [max(abs(float(v[j] - mean[j])) / float(std[j]) for j in range(len(mean))) / high for v in keys.double()]
    assert box.distances(keys).tolist() == pytest.approx(slow, rel=1e-4)
    assert float(box.distances(keys).max()) == pytest.approx(1)


def test_one_outlier_does_not_set_the_width_of_a_quantile_box() -> None:
    keys = some_keys(200)
    keys[3] = 1000.0
    whole, most = key_box(keys), key_box(keys, coverage=0.99)
    assert float((most.distances(keys) <= 1).float().mean()) == pytest.approx(0.99, abs=0.005)
    assert most.k < whole.k / 2


def test_a_dead_neuron_does_not_reject_everything() -> None:
    keys = some_keys()
    keys[:, 2] = 0.5
    other = keys[:1].clone()
    other[0, 2] += 1e-3
    assert float(key_box(keys).distances(other)) <= 1
    assert float(key_box(keys, sigma_floor=0.0).distances(other)) > 100
    assert torch.isfinite(key_box(keys, sigma_floor=0.0).distances(keys)).all()


def test_alpha_is_calibrated_on_what_is_kept() -> None:
    generator = torch.Generator().manual_seed(1)
    rates = []
    for _ in range(200):
        kept, new = torch.rand(99, generator=generator) + 1, torch.rand(200, generator=generator) + 1
        rates.append(float((new < calibrated_alpha(kept, 0.05, 10.0)).float().mean()))
    assert sum(rates) / len(rates) == pytest.approx(0.05, abs=0.01)
    assert calibrated_alpha(torch.full((99,), 50.0), 0.05, 2.0) == 2.0, "never wider than the paper's"
    with pytest.raises(InputError, match="at least 99"):
        calibrated_alpha(torch.ones(20), 0.01, 2.0)


def test_bad_keys_are_refused() -> None:
    for keys in (torch.ones(1, 3), torch.full((3, 3), float("nan")), torch.ones(4, 3)):
        with pytest.raises(InputError):
            key_box(keys)


@pytest.fixture
def prompts(tiny: Any, request_: Any) -> list[list[int]]:
    """Of three lengths."""
    return [ids[i:] for i, ids in enumerate(tiny.encode_prompts(request_.forget)[:3])]


def between(tiny: Any, prompts: list[list[int]], **more: Any) -> KeySpaceModel:
    """A guard of the last layer whose box stops the first prompt alone."""
    keys = prompt_keys(tiny, prompts, Site("keys", 1))
    box = Box(keys[0], torch.ones(keys.shape[1]), 1.0)
    alpha = float(box.distances(keys)[1:].min()) / 2
    return KeySpaceModel(tiny.model, Site("keys", 1), box, alpha, Abstention.of(tiny, "I don't know."), **more).eval()


@pytest.mark.parametrize("how", [{}, {"use_cache": False}, {"num_beams": 2}])
def test_rows_of_a_batch_are_judged_one_by_one(tiny: Any, prompts: list[list[int]], how: dict[str, Any]) -> None:
    """The official hook reads item 0 for the whole batch; and the last token is never padding."""
    guarded = between(tiny, prompts)
    refusal = guarded.abstention.tokens.tolist()
    settings = {"max_new_tokens": 10, "pad_token_id": tiny.pad_id, **how}

    def answers(rows: list[list[int]], model: Any) -> list[list[int]]:
        batch = pad(rows, tiny.pad_id, side="left")
        return [row[batch["input_ids"].shape[1] :] for row in model.generate(**batch, **settings).tolist()]

    for order in ([0, 1, 2], [2, 1, 0]):
        rows = [prompts[i] for i in order]
        together = answers(rows, guarded)
        for i, row, made in zip(order, rows, together, strict=True):
            assert (made[: len(refusal)] == refusal) == (i == 0)
            alone = answers([row], guarded)[0]
            assert made[: len(alone)] == alone
            if i:
                assert alone == answers([row], tiny.model)[0], "who is not stopped is answered as before"


def test_the_state_is_the_requests_own(tiny: Any, prompts: list[list[int]]) -> None:
    """The official flag is global and stays on."""
    guarded = between(tiny, prompts)
    stopped, other = torch.tensor(prompts[:1]), torch.tensor(prompts[1:2])
    assert len(guarded(stopped).logits[0, -1].unique()) == 2
    assert torch.equal(guarded(other).logits, tiny.model(other).logits)
    assert len(guarded(stopped).logits[0, -1].unique()) == 2


def test_generated_tokens_are_tested_only_with_every_step(tiny: Any, prompts: list[list[int]]) -> None:
    row = prompts[1]
    answer = tiny.generate([row], max_new_tokens=4)[0]
    keys = prompt_keys(tiny, [row, [*row, *answer[:2]]], Site("keys", 1))
    box = Box(keys[1], torch.ones(keys.shape[1]), 1.0)  # round the second answer token
    alpha = float(box.distances(keys)[0]) / 2
    refusal = Abstention.of(tiny, "I don't know.")
    quiet = KeySpaceModel(tiny.model, Site("keys", 1), box, alpha, refusal).eval()
    strict = KeySpaceModel(tiny.model, Site("keys", 1), box, alpha, refusal, every_step=True).eval()
    ids = torch.tensor([row])
    settings = {"max_new_tokens": 8, "pad_token_id": tiny.pad_id, "attention_mask": torch.ones_like(ids)}
    plain = tiny.model.generate(ids, **settings)
    assert torch.equal(quiet.generate(ids, **settings), plain)
    made = strict.generate(ids, **settings)
    start = ids.shape[1] + 2
    assert made[0, :start].tolist() == [*row, *answer[:2]]
    assert made[0, start : start + 4].tolist() == refusal.tokens[:4].tolist()
    assert torch.equal(strict.generate(ids, **settings, use_cache=False), made)
    whole = torch.cat([ids, torch.tensor([answer])], 1)
    scored = strict(whole, prompt_lengths=torch.tensor([len(row)])).logits
    base = tiny.model(whole).logits
    torch.testing.assert_close(scored[0, : start - 1], base[0, : start - 1])
    assert int(scored[0, start - 1].argmax()) == int(refusal.tokens[0])
    with pytest.raises(ConfigError, match="beam search with every_step"):
        strict.generate(ids, num_beams=2)


def test_a_steering_key_replaces_the_stopped_one(tiny: Any, prompts: list[list[int]]) -> None:
    steering = torch.linspace(-1, 1, 96)
    guarded = between(tiny, prompts, steering=steering)
    batch = pad(prompts, tiny.pad_id, side="left")
    with torch.no_grad():
        made, plain = guarded(**batch).logits, tiny.model(**batch).logits
    assert torch.equal(made[1:], plain[1:])
    assert torch.equal(made[0, :-1], plain[0, :-1])
    assert float((made[0, -1] - plain[0, -1]).abs().max()) > 1e-2
    settings = {**batch, "max_new_tokens": 6, "pad_token_id": tiny.pad_id}
    assert torch.equal(guarded.generate(**settings), guarded.generate(**settings, use_cache=False))


def fit(tiny: Any, request: Any, folder: Path, **values: Any) -> Edit:
    config = METHOD.configure({"false_alarms": 0.25, **values})
    return METHOD.fit(tiny, request, config, work=folder / "work", out=folder / "edit").edit


@pytest.mark.filterwarnings(NARROW)
def test_fitted_saved_and_loaded(tiny: Any, request_: Any, tmp_path: Path) -> None:
    edit = fit(tiny, request_, tmp_path, respond="steer", layer=0)
    facts = edit.facts.config
    assert (facts["layer_chosen"], edit.facts.claim) == (0, "suppressed")
    assert 0 < facts["alpha_chosen"] <= 2
    assert facts["retain_stopped"] <= 0.25
    guarded = Edit.load(edit.folder).apply(tiny).model
    assert guarded.steering is not None
    keys = prompt_keys(tiny, tiny.encode_prompts(request_.forget), Site("keys", 0))
    box = key_box(keys)
    torch.testing.assert_close(guarded.box.centre, box.centre)
    assert guarded.box.k == pytest.approx(box.k)
    edit.remove(tiny)
    kept = box.distances(prompt_keys(tiny, tiny.encode_prompts(request_.retain), Site("keys", 0)))
    assert facts["alpha_chosen"] == pytest.approx(min(2.0, float(kept.sort().values[1])), rel=1e-5)


@pytest.mark.filterwarnings(NARROW)
def test_another_prompt_format_is_refused(tiny_folder: Path, tiny: Any, request_: Any, tmp_path: Path) -> None:
    """Probing with one template and testing with another fails silently in the official code."""
    edit = fit(tiny, request_, tmp_path)
    other = efface.load(tiny_folder)
    other.prompt = PromptFormat(prompt="{question}")
    with pytest.raises(RunError, match="another prompt format"):
        edit.apply(other)


def test_a_box_that_stops_little_says_so(tiny: Any, request_: Any, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="the box stops 0% of the forget prompts"):
        edit = fit(tiny, request_, tmp_path, alpha=0.06)  # the default of the official language script
    assert (edit.facts.config["forget_stopped"], edit.facts.config["alpha_chosen"]) == (0, 0.06)


def test_bad_requests(tiny: Any, request_: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least 99"):
        fit(tiny, request_, tmp_path, false_alarms=0.01)
    with pytest.raises(InputError, match="two or more"):
        fit(tiny, efface.Request(forget=request_.forget.select([0]), retain=request_.retain), tmp_path)
    with pytest.raises(ConfigError, match="layers between 0 and 1"):
        fit(tiny, request_, tmp_path, layer=7)
    with pytest.raises(RequestError, match="retain"):
        fit(tiny, efface.Request(forget=request_.forget), tmp_path)
    assert not (tmp_path / "edit").exists()
