"""The public surface: names, callable verbs, quick import."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import efface


def test_all_names_are_there() -> None:
    for name in efface.__all__:
        assert getattr(efface, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = efface.nothing  # type: ignore[attr-defined]
    assert (Path(efface.__file__).parent / "py.typed").exists()


def test_import_is_quick_because_torch_waits() -> None:
    code = "import efface, sys; print('torch' in sys.modules, 'transformers' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["False", "False"]


def test_the_verbs_in_ten_lines(tiny: Any, request_: Any, tiny_folder: Path, retrained_folder: Path) -> None:
    before = tiny.digest
    edit = efface.forget(tiny, request_, method="npo", learning_rate=1e-2, epochs=2, batch_size=8)
    assert tiny.digest == before
    edit.apply(tiny)
    assert tiny.digest == edit.facts.edited_digest != before
    conclusion = efface.audit(
        tiny, request_, original=tiny_folder, against=retrained_folder, suite=("tofu", "memorisation"), max_new_tokens=8
    )
    assert conclusion.outcome.word in {"not forgotten", "damaged", "not judged"}
    assert {finding.metric for finding in conclusion.findings} >= {"tofu/model_utility", "memorisation/exact"}
    edit.remove(tiny)
    assert tiny.digest == before
