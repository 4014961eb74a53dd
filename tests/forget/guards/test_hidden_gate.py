"""The gate on hidden states: its mean against a loop, padding, storage, what it learns, and what it leaves alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from efface.errors import ConfigError, ModelError, RequestError
from efface.forget.guards.guard import METHOD, asked_texts
from efface.forget.guards.hidden_gate import HiddenGate, chosen_layer, mean_state
from efface.forget.guards.prompt_gate import PromptGate

CONFIG = METHOD.configure({"epochs": 12, "batch_size": 8, "learning_rate": 1e-2})


@pytest.fixture
def texts(tiny: Any, request_: Any) -> tuple[list[str], list[str]]:
    return asked_texts(tiny, request_.forget), asked_texts(tiny, request_.retain)


def fit(tiny: Any, texts: tuple[list[str], list[str]], folder: Path, **more: Any) -> HiddenGate:
    return HiddenGate.fit(tiny, *texts, CONFIG, work=folder / "work", **more)[0]


def test_the_mean_counts_tokens_and_no_padding() -> None:
    states = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1, 1, 1, 0, 0], [0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    z = mean_state(states, mask)
    for i in range(3):
        kept = [states[i, j].tolist() for j in range(5) if mask[i, j]]
        assert z[i].tolist() == pytest.approx([sum(column) / len(kept) for column in zip(*kept, strict=True)], abs=1e-6)
    assert torch.equal(mean_state(states, torch.zeros(3, 5)), torch.zeros(3, 4))


def test_the_states_are_those_that_transformers_calls_the_last_but_one(tiny: Any, texts: Any, tmp_path: Path) -> None:
    gate = fit(tiny, texts, tmp_path)
    assert gate.layer == 0
    ids = torch.tensor([tiny.tokenizer(texts[0][0])["input_ids"]])
    with torch.no_grad():
        hidden = tiny.model(ids, output_hidden_states=True).hidden_states
    assert len(hidden) == 3
    torch.testing.assert_close(gate.states(texts[0][:1]), hidden[-2].mean(1), rtol=0, atol=1e-6)


def test_it_tells_the_prompts_apart_and_leaves_the_model_alone(tiny: Any, texts: Any, tmp_path: Path) -> None:
    digest = tiny.digest
    tiny.model.train()
    gate = fit(tiny, texts, tmp_path)
    assert tiny.model.training
    tiny.model.eval()
    tiny.changed()
    assert tiny.digest == digest
    assert all(p.requires_grad and p.grad is None for p in tiny.model.parameters())
    assert not (tmp_path / "work").exists()
    assert gate.fires(texts[0]).all()
    assert not gate.fires(texts[1]).any()


def test_a_prompt_scores_alike_in_any_batch(tiny: Any, texts: Any, tmp_path: Path) -> None:
    gate = fit(tiny, texts, tmp_path)
    several = [*texts[0], "Which ?", *texts[1][:3], texts[0][0] + " " + texts[1][0]]
    together = gate.scores(several)
    assert np.allclose(together, [gate.scores([text])[0] for text in several], atol=1e-6)
    assert len(gate.scores([])) == 0


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_it_is_stored(dropout: float, tiny: Any, texts: Any, tmp_path: Path) -> None:
    gate = fit(tiny, texts, tmp_path, dropout=dropout, hidden=16)
    gate.threshold = 0.7
    gate.write(tmp_path / "gate")
    read = PromptGate.read(tmp_path / "gate")
    assert isinstance(read, HiddenGate)
    with pytest.raises(ModelError, match="bind"):
        read.scores(texts[0])
    read.bind(tiny)
    assert read.threshold == 0.7
    assert np.array_equal(read.scores(texts[0]), gate.scores(texts[0]))


def test_few_forget_prompts_weigh_as_much_as_many_others(tiny: Any, texts: Any, tmp_path: Path) -> None:
    gate = fit(tiny, (texts[0][:1], texts[1]), tmp_path)
    assert gate.fires(texts[0][:1]).all()
    assert not gate.fires(texts[1]).any()


def test_bad_input(tiny: Any, texts: Any, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="0 to let pass"):
        fit(tiny, (texts[0], []), tmp_path)
    with pytest.raises(ConfigError, match="layer=7"):
        chosen_layer(tiny.model, 7)
