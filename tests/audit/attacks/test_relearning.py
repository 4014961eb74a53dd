"""The relearning attack: the subject comes back, the halves are apart, the curves begin at the plain probability."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from efface.audit.attacks import relearning
from efface.audit.attacks.relearning import RelearningConfig, halves, relearn
from efface.data.columns import canonical
from efface.errors import RequestError
from efface.learn.recipes.causal_lm import CausalLMConfig, new_model
from efface.run.cost import Cost
from efface.subjects import CausalLM, PromptFormat
from efface.train.reference import answer_probabilities

CONFIG = RelearningConfig(learning_rate=1e-2, batch_size=2, max_steps=7, every=3)


def rows(count: int) -> Dataset:
    words = ["red", "blue", "green", "black", "white", "pink", "grey", "gold"]
    return canonical(
        [
            {"id": f"r{i}", "question": f"colour {word} ?", "answer": f"it is {word}"}
            for i, word in enumerate(words[:count])
        ],
        "rows",
    )


@pytest.fixture
def subject() -> CausalLM:
    texts = [f"{row['question']} {row['answer']}" for row in rows(8)]
    config = CausalLMConfig(tokenizer="words", width=16, depth=1, heads=2, context=16)
    return new_model(config, texts, PromptFormat(prompt="{question}"))


def plain_probability(subject: CausalLM, row: dict[str, Any]) -> float:
    """exp of the mean log-probability of the answer's tokens, one at a time."""
    encoded = subject.encode(row["question"], row["answer"])
    total = 0.0
    for place in range(encoded.n_prompt, len(encoded.ids)):
        with torch.no_grad():
            logits = subject.model(input_ids=torch.tensor([encoded.ids[:place]])).logits[0, -1].double()
        total += float(logits.log_softmax(-1)[encoded.ids[place]])
    return math.exp(total / encoded.n_targets)


def test_probabilities_equal_plain_loops(subject: CausalLM) -> None:
    data = rows(5)
    found = answer_probabilities(subject, subject.encode_rows(data), batch_size=2)
    assert found == pytest.approx([plain_probability(subject, row) for row in data], rel=1e-5)


def test_the_subject_comes_back_bit_for_bit(subject: CausalLM, tmp_path: Path) -> None:
    before = {name: tensor.detach().clone() for name, tensor in subject.weights().items()}
    frozen = next(iter(subject.weights().values()))
    frozen.requires_grad_(False)
    digest = subject.digest
    state = torch.random.get_rng_state()
    found = relearn(subject, rows(8), CONFIG, cache=tmp_path)
    after = subject.weights()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert subject.digest == digest
    assert not frozen.requires_grad
    assert all(tensor.grad is None for tensor in after.values())
    assert not subject.model.training
    assert torch.equal(torch.random.get_rng_state(), state)
    assert sum(found["speed"]["rows"][-1]) > 1.5 * sum(found["speed"]["rows"][0])  # and yet it was trained


def test_curves_begin_at_the_plain_probability_and_end_at_the_budget(subject: CausalLM, tmp_path: Path) -> None:
    data = rows(7)
    found = relearn(subject, data, CONFIG, cache=tmp_path)
    plain = [plain_probability(subject, row) for row in data]
    assert found["speed"]["rows"][0] == pytest.approx(plain, rel=1e-5)
    assert found["transfer"]["rows"][0] == pytest.approx(
        plain[3:], rel=1e-5
    )  # watched: the half that is not trained on
    for curve, watched in (("speed", 7), ("transfer", 4)):
        assert found[curve]["steps"][:3] == [0, 3, 6]
        assert found[curve]["steps"][-1] in {6, 7}
        assert [len(values) for values in found[curve]["rows"]] == [watched] * len(found[curve]["steps"])


@pytest.mark.parametrize("count", [4, 5, 8])
def test_halves_are_disjoint_and_whole(count: int) -> None:
    first, second = halves(rows(count))
    assert not set(first) & set(second)
    assert sorted(first + second) == list(range(count))
    assert min(len(first), len(second)) >= 2
    assert max(first) < min(second)  # contiguous: a person's rows stay together


def test_transfer_trains_on_the_first_half_only(
    subject: CausalLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, set[tuple[int, ...]]] = {}
    plain_train = relearning.train

    def spy(model: Any, schedule: Any, *args: Any, label: str, **kwargs: Any) -> Any:
        seen[label] = {tuple(schedule.row("train", i).ids) for i in range(len(schedule))}
        return plain_train(model, schedule, *args, label=label, **kwargs)

    monkeypatch.setattr(relearning, "train", spy)
    data = rows(6)
    relearn(subject, data, CONFIG, cache=tmp_path)
    ids = [tuple(row.ids) for row in subject.encode_rows(data)]
    assert seen == {"relearn all": set(ids), "relearn half": set(ids[:3])}


def test_the_cache_is_used_for_the_same_attack_only(
    subject: CausalLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cost = Cost(phase="first")
    first = relearn(subject, rows(6), CONFIG, cost=cost, cache=tmp_path)
    assert cost.items > 0
    assert cost.tokens > cost.items

    def no_training(*_: Any, **__: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(relearning, "train", no_training)
    again = Cost(phase="again")
    assert relearn(subject, rows(6), CONFIG, cost=again, cache=tmp_path) == first
    assert again.items == again.tokens == 0
    with pytest.raises(AssertionError, match="trained again"):
        relearn(subject, rows(7), CONFIG, cache=tmp_path)  # other data
    with pytest.raises(AssertionError, match="trained again"):
        relearn(subject, rows(6), CONFIG.model_copy(update={"seed": 1}), cache=tmp_path)
    with torch.no_grad():
        next(iter(subject.weights().values())).add_(1e-3)
    subject.changed()
    with pytest.raises(AssertionError, match="trained again"):
        relearn(subject, rows(6), CONFIG, cache=tmp_path)  # another model


def test_a_failed_attack_still_puts_the_subject_back(
    subject: CausalLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = subject.digest

    def breaks(model: Any, *_: Any, **__: Any) -> None:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(1.0)
        raise RuntimeError("in the middle")

    monkeypatch.setattr(relearning, "train", breaks)
    with pytest.raises(RuntimeError, match="in the middle"):
        relearn(subject, rows(6), CONFIG, cache=tmp_path)
    subject.changed()
    assert subject.digest == digest
    assert not list(tmp_path.iterdir())  # nothing cached


def test_same_seed_same_curve(subject: CausalLM, tmp_path: Path) -> None:
    short = CONFIG.model_copy(update={"max_steps": 2, "every": 1})
    first = relearn(subject, rows(4), short, cache=tmp_path / "a")
    assert relearn(subject, rows(4), short, cache=tmp_path / "b") == first


def test_too_few_rows_are_refused(subject: CausalLM, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="forget set of 3 rows for the relearning attack; expected at least 4"):
        relearn(subject, rows(3), CONFIG, cache=tmp_path)
