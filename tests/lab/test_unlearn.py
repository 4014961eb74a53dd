"""A forgotten model is changed inside the block and itself again outside, also after an error."""

from __future__ import annotations

from pathlib import Path

import pytest

from efface.data import Request
from efface.lab.unlearn import forgotten
from efface.learn.recipes.causal_lm import CausalLMConfig, new_model


def test_the_model_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFFACE_CACHE", str(tmp_path))
    forget, retain = {"question": "who ?", "answer": "me"}, {"question": "where ?", "answer": "here"}
    request = Request.from_rows([forget], [retain])
    config = CausalLMConfig(tokenizer="words", width=16, depth=1, heads=2, context=32)
    subject = new_model(config, ["Question: who ? Answer: me", "Question: where ? Answer: here"])
    before = subject.digest
    with forgotten("npo", subject, request, epochs=2, learning_rate=1e-3) as edited:
        assert edited is subject
        assert subject.digest != before
    assert subject.digest == before
    with pytest.raises(ZeroDivisionError), forgotten("npo", subject, request, epochs=2, learning_rate=1e-3):
        raise ZeroDivisionError
    assert subject.digest == before
