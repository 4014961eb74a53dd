"""LOL as a method: the amateur, the edit, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import efface
from efface.errors import ConfigError, ModelError
from efface.forget.edit import Edit
from efface.forget.guards.contrastive_model import ContrastiveModel
from efface.forget.method import find_method
from efface.subjects.answers import answer_logits

QUICK: dict[str, Any] = {"scope": "all", "learning_rate": 5e-3, "epochs": 4, "batch_size": 4}


def fit(subject: Any, request: Any, folder: Path, **values: Any) -> Edit:
    method = find_method("lol")
    config = method.configure({**QUICK, **values})
    return method.fit(subject, request, config, work=folder / "work", out=folder / "edit").edit


def logp(subject: Any, data: Any) -> torch.Tensor:
    with subject.evaluating() as model:
        found: torch.Tensor = answer_logits(model, subject.batch(subject.encode_rows(data))).logp_sum
    return found


def test_it_forgets_at_once_and_saved_is_loaded(tiny: Any, request_: Any, tmp_path: Path) -> None:
    digest, start = tiny.digest, logp(tiny, request_.forget)
    edit = fit(tiny, request_, tmp_path, mode="icd", strength=4.0)
    tiny.changed()
    assert tiny.digest == digest
    edit.save(tmp_path / "copy")
    edit.apply(tiny)
    assert isinstance(tiny.model, ContrastiveModel)
    assert not any(p.requires_grad for p in tiny.model.amateur.parameters())
    end, written = logp(tiny, request_.forget), tiny.generate(tiny.encode_prompts(request_.forget), max_new_tokens=8)
    assert float(end.mean()) < float(start.mean())
    edit.remove(tiny)
    assert tiny.digest == digest
    assert torch.equal(logp(tiny, request_.forget), start)
    again = Edit.load(tmp_path / "copy")
    again.apply(tiny)
    assert torch.equal(logp(tiny, request_.forget), end)
    assert tiny.generate(tiny.encode_prompts(request_.forget), max_new_tokens=8) == written
    again.remove(tiny)


def test_a_killed_fit_finds_its_amateur(
    tiny: Any, request_: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from efface.forget.guards.lol import ContrastiveEdit

    finish = ContrastiveEdit.finish
    monkeypatch.setattr(ContrastiveEdit, "finish", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        fit(tiny, request_, tmp_path, mode="icd")
    assert (tmp_path / "work" / "amateur" / "edit.json").exists()
    monkeypatch.setattr(ContrastiveEdit, "finish", finish)
    monkeypatch.setattr("efface.forget.guards.lol.train_edit", None)  # nothing is trained again
    assert fit(tiny, request_, tmp_path, mode="icd").facts.claim == "suppressed"
    assert not (tmp_path / "work").exists()


def test_dola_trains_nothing_and_the_mode_is_in_the_digest(tiny: Any, request_: Any, tmp_path: Path) -> None:
    edits = [fit(tiny, request_, tmp_path / c, mode="dola", candidates=c, keep=0.0) for c in ("0", "1", "0,1")]
    assert len({edit.facts.edited_digest for edit in edits}) == 3
    assert not any((edit.folder / "amateur").exists() for edit in edits)
    assert find_method("lol").configure({"mode": "dola", "candidates": 0}).candidates == "0"  # type: ignore[attr-defined]


def test_a_ready_amateur(tiny: Any, request_: Any, retrained_folder: Path, tmp_path: Path, own_model: Path) -> None:
    edit = fit(tiny, request_, tmp_path, mode="cd", amateur=str(retrained_folder))
    edit.apply(tiny)
    amateur = efface.load(retrained_folder)
    ids = torch.tensor(tiny.encode_prompts(request_.forget)[:1])
    with torch.no_grad():
        b, a = (model(ids).logits.log_softmax(-1) for model in (tiny.model.base, amateur.model))
        torch.testing.assert_close(tiny.model(ids).logits, 2 * b - a)
    edit.remove(tiny)
    gone = fit(tiny, request_, tmp_path / "other", mode="cd", amateur=str(own_model))
    amateur.save(tmp_path / "changed")
    for path in (tmp_path / "changed").iterdir():
        (own_model / path.name).write_bytes(path.read_bytes())
    with pytest.raises(ModelError, match="the amateur at"):
        gone.apply(tiny)


def test_bad_input(tiny: Any, request_: Any, tmp_path: Path) -> None:
    for values, message in (
        ({"mode": "cd"}, "mode=cd without an amateur"),
        ({"mode": "dola", "amateur": "somewhere"}, "mode=dola with an amateur"),
        ({"mode": "lol", "instruction": " "}, "without an instruction"),
        ({"mode": "lol", "layer": 7}, "candidates='7'"),
    ):
        with pytest.raises(ConfigError, match=message):
            fit(tiny, request_, tmp_path, **values)
    for values in ({"omega": -1}, {"alpha": 2}, {"scope": "mask"}, {"mode": "caad"}):
        with pytest.raises(ConfigError):
            find_method("lol").configure(values)
    assert find_method("lol").configure({"gamma": 0}).gamma == 0
    edit = fit(tiny, request_, tmp_path, mode="dola", candidates="1")
    edit.apply(tiny)
    with pytest.raises(ModelError, match="over another guard"):
        fit(tiny, request_, tmp_path / "again", mode="icd")
