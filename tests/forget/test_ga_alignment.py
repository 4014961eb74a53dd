"""GA-alignment: the composite against plain loops, its stop, its bank, and the traps of its specification."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import efface
from efface.errors import ConfigError, RequestError
from efface.forget.method import find_method
from efface.forget.objectives import ga_alignment as ga
from efface.learn.recipes.causal_lm import CausalLMConfig, new_model
from efface.subjects import PromptFormat
from efface.train.streams import Collator, Schedule

QUICK: dict[str, Any] = {"learning_rate": 5e-3, "epochs": 3, "batch_size": 4}


def test_the_composite_against_a_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    mask = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 1]], dtype=torch.bool)
    logp = -torch.rand(2, 4, generator=generator, dtype=torch.float64)
    slow = []
    for b in range(2):
        chosen = [float(logp[b, t]) for t in range(4) if mask[b, t]]
        slow.append(-sum(chosen) / len(chosen))
    ce = ga.answer_ce(logp.masked_fill(~mask, 0.0), mask)
    assert ce.tolist() == pytest.approx(slow)
    assert (ce > 0).all(), "the stop compares a positive number"
    random_ce, kl = torch.tensor(0.7), torch.tensor(0.2)
    total = ga.composite(ce.mean(), random_ce, kl, eps1=0.5, eps2=2.0, eps3=3.0)
    assert float(total) == pytest.approx(-0.5 * sum(slow) / 2 + 2 * 0.7 + 3 * 0.2)
    assert float(ga.composite(ce.mean(), None, None, eps1=1, eps2=1, eps3=1)) == pytest.approx(-sum(slow) / 2)


def fit(tiny: Any, request: Any, folder: Path, **values: Any) -> Any:
    method = find_method("ga-alignment")
    config = method.configure({**QUICK, **values})
    return method.fit(tiny, request, config, work=folder / "work", out=folder / "edit")


def test_the_reference_is_the_model_before(tiny: Any, request_: Any, tmp_path: Path) -> None:
    """The KL is nothing before the first step and something afterwards: no comparison of the model with itself."""
    log = fit(tiny, request_, tmp_path, retain_top_k=10_000).log
    assert log[0]["retain"] == pytest.approx(0.0, abs=1e-5)
    assert log[-1]["retain"] > 1e-3
    assert log[-1]["forget_ce"] > log[0]["forget_ce"] > 0


def test_the_stop_fires_on_the_positive_ce(tiny: Any, request_: Any, tmp_path: Path) -> None:
    values: dict[str, Any] = {"epochs": 20, "learning_rate": 1e-2, "random_weight": 0.0, "retain_term": "none"}
    log = fit(tiny, request_, tmp_path, max_forget=3.0, **values).log
    assert log[-1]["forget_ce"] > 3.0
    assert all(row["forget_ce"] <= 3.0 for row in log[:-1])
    assert len(log) < 40


def test_the_stop_sums_the_parts_of_a_step(tiny: Any, request_: Any, tmp_path: Path) -> None:
    values: dict[str, Any] = {
        "epochs": 20,
        "learning_rate": 1e-2,
        "random_weight": 0.0,
        "retain_term": "none",
        "max_forget": 3.0,
    }
    whole = fit(tiny, request_, tmp_path / "a", **values)
    parts = fit(tiny, request_, tmp_path / "b", micro_batch_size=1, **values)
    assert len(parts.log) == 4 * len(whole.log)


def test_the_run_has_as_many_steps_as_its_schedule(tiny: Any, request_: Any, tmp_path: Path) -> None:
    few = efface.Request(forget=request_.forget, retain=request_.retain.select(range(3)))
    log = fit(tiny, few, tmp_path, epochs=4, random_answers=2).log
    assert len(log) == 8, "the shorter set is cycled, the longer run neither cut nor overrun"


def test_random_answers_differ_and_only_they_are_trained(tiny: Any, request_: Any) -> None:
    method = find_method("ga-alignment")
    assert isinstance(method, ga.GAAlignment)
    config = method.configure({**QUICK, "random_answers": 3, "epochs": 2})
    assert isinstance(config, ga.GAAlignmentConfig)
    streams = method.streams(tiny, request_, config)
    names = sorted(name for name in streams if name.startswith("random"))
    assert len(names) == 3
    schedule = Schedule(streams, anchor="forget", epochs=2, batch_size=4, seed=0)
    for position in range(len(schedule)):
        forget = schedule.row("forget", position)
        rows = [schedule.row(name, position) for name in names]
        prompt = forget.ids[: forget.n_prompt]
        assert all(row.ids[: row.n_prompt] == prompt for row in rows), "the mask begins with the answer"
        answers = [tuple(row.ids[row.n_prompt :]) for row in rows]
        assert len({*answers, tuple(forget.ids[forget.n_prompt :])}) == 4
    batch = Collator(tiny.pad_id)([schedule[i] for i in range(4)])["random000"]
    labels = batch["labels"]
    assert bool((labels[batch["attention_mask"] == 0] == -100).all()), "padding is no target, whatever its id"
    assert tiny.pad_id == tiny.tokenizer.eos_token_id
    assert bool((labels == tiny.tokenizer.eos_token_id).any(1).all()), "the end of the answer is"


def test_random_answers_come_from_the_users_file(tiny: Any, request_: Any, tmp_path: Path) -> None:
    path = tmp_path / "bank.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in ("red .", "green .")), encoding="utf-8")
    log = fit(tiny, request_, tmp_path, random_bank=str(path), random_answers=2, random_weight=5.0, epochs=8).log
    assert log[-1]["random_ce"] < 0.7 * log[0]["random_ce"]
    with pytest.raises(ConfigError, match="random_answers=3 with a bank of 2 different answers"):
        fit(tiny, request_, tmp_path / "b", random_bank=str(path), random_answers=3)


def test_a_row_that_does_not_fit_is_named(request_: Any, tmp_path: Path) -> None:
    long = {"id": "long", "question": "who ? " * 40, "answer": "nobody"}
    retain = [{"id": str(i), "question": "who ?", "answer": f"number {i}"} for i in range(8)]
    texts = sorted(row["question"] + " " + row["answer"] for row in [long, *retain])
    config = CausalLMConfig(tokenizer="words", width=16, depth=1, heads=2, context=32)
    subject = new_model(config, texts, PromptFormat(prompt="{question}"))
    request = efface.Request.from_rows([long], retain)
    with pytest.raises(RequestError, match=r"forget row 0: 8\d tokens; expected at most 32"):
        fit(subject, request, tmp_path)


def test_unsafe_responses_become_forget_rows() -> None:
    row = {
        "prompt": "q",
        "response_0": "bad",
        "response_1": "good",
        "is_response_0_safe": False,
        "is_response_1_safe": True,
    }
    assert ga.unsafe_rows([row]) == [{"id": "0/0", "question": "q", "answer": "bad"}]
    both = {**row, "is_response_1_safe": False}
    assert [found["id"] for found in ga.unsafe_rows([row, both])] == ["0/0", "1/0", "1/1"]
    with pytest.raises(RequestError, match=r"row 1 lacks is_response_1_safe"):
        ga.unsafe_rows([row, {key: value for key, value in row.items() if key != "is_response_1_safe"}])
    with pytest.raises(RequestError, match=r"column 'is_response_0_safe': 'no'"):
        ga.unsafe_rows([{**row, "is_response_0_safe": "no"}])
    with pytest.raises(RequestError, match=r"column 'response_0': empty"):
        ga.unsafe_rows([{**row, "response_0": "  "}])


def test_accumulation_changes_nothing(tiny: Any, request_: Any, tmp_path: Path) -> None:
    edits = {}
    for micro in (4, 1):
        edits[micro] = fit(
            tiny, request_, tmp_path / str(micro), micro_batch_size=micro, learning_rate=1e-3, epochs=1
        ).edit
    found = {}
    for micro, edit in edits.items():
        edit.apply(tiny)
        found[micro] = {name: tensor.detach().clone() for name, tensor in tiny.weights().items()}
        edit.remove(tiny)
    for name in found[4]:
        torch.testing.assert_close(found[1][name], found[4][name], rtol=1e-4, atol=2e-5)
    assert math.isfinite(sum(float(tensor.sum()) for tensor in found[4].values()))
