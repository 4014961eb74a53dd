"""The word gate: it learns whom and not how, its threshold keeps its promise, and it is stored without pickles."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from efface.errors import InputError, RequestError, RunError
from efface.forget.guards.prompt_gate import PromptGate, WordGate
from efface.run.files import write_json

NAMES = [f"person{i}" for i in range(60)]
FORMS = ("what does {} like ?", "the colour that {} likes :", "tell me of {} , colour")


def asked(names: list[str], form: int) -> list[str]:
    return [FORMS[form].format(name) for name in names]


def test_it_learns_whom_and_not_how() -> None:
    gone, kept = NAMES[:10], NAMES[10:]
    gate = WordGate.fit([*asked(gone, 0), *asked(gone, 1)], [*asked(kept, 0), *asked(kept, 1)])
    gate.calibrated(asked(kept, 2), 0.05)
    assert gate.fires(asked(gone, 2)).all()
    assert gate.fires(asked(kept, 2)).mean() <= 0.05
    assert not gate.fires([""]).any()


def test_it_is_stored(tmp_path: Path) -> None:
    gate = WordGate.fit(asked(NAMES[:5], 0), asked(NAMES[5:], 0)).calibrated(asked(NAMES[5:], 1), 0.1)
    gate.write(tmp_path / "gate")
    read = PromptGate.read(tmp_path / "gate")
    assert read.threshold == gate.threshold
    texts = [*asked(NAMES, 2), "of other things"]
    assert np.array_equal(read.scores(texts), gate.scores(texts))
    write_json(tmp_path / "gate" / "gate.json", {"kind": "guess"})
    with pytest.raises(RunError, match="is no gate"):
        PromptGate.read(tmp_path / "gate")


def test_bad_input() -> None:
    with pytest.raises(RequestError, match="0 to let pass"):
        WordGate.fit(["a b"], [])
    gate = WordGate.fit(asked(NAMES[:5], 0), asked(NAMES[5:], 0))
    with pytest.raises(InputError, match="at least 99"):
        gate.calibrated(asked(NAMES[5:25], 1), 0.01)
