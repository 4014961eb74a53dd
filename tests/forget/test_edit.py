"""Edits: damage is found, precision is kept, an edited model can be saved and cleaned in another process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import efface
from efface.errors import RunError
from efface.forget.edit import Edit
from efface.train.snapshot import Snapshot, bits


@pytest.fixture
def edit(tiny: Any, request_: Any, tmp_path: Path) -> Edit:
    """A short NPO edit."""
    made = efface.forget(tiny, request_, method="npo", learning_rate=5e-3, epochs=1, batch_size=4)
    made.save(tmp_path / "edit")
    return Edit.load(tmp_path / "edit")


def test_a_changed_file_is_refused_by_name(edit: Edit, tiny: Any) -> None:
    path = edit.folder / "delta.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(RunError, match=r"delta\.safetensors was changed"):
        edit.apply(tiny)
    path.unlink()
    with pytest.raises(RunError, match="is missing"):
        edit.apply(tiny)


def test_a_saved_edited_model_gives_the_original_back(edit: Edit, tiny: Any, tmp_path: Path) -> None:
    digest = tiny.digest
    edit.apply(tiny).save(tmp_path / "edited")
    other = efface.load(tmp_path / "edited")
    assert other.digest == edit.facts.edited_digest
    edit.remove(other)
    assert other.digest == digest


def test_findings_stand_beside_the_configuration(edit: Edit, tiny: Any) -> None:
    before, digest = dict(edit.facts.config), tiny.digest
    noted = edit.with_findings("weights", {"share_below": 0.25})
    assert type(noted) is type(edit)
    assert noted.facts.config == {**before, "weights": {"share_below": 0.25}}
    assert edit.facts.config == before, "the object that was there is as it was"
    assert Edit.load(noted.folder).facts == noted.facts
    noted.apply(tiny)
    noted.remove(tiny)
    assert tiny.digest == digest


def test_an_edit_in_a_temporary_folder_goes_with_its_object(tiny: Any, request_: Any) -> None:
    made = efface.forget(tiny, request_, method="gradient-ascent", learning_rate=5e-3, epochs=1, batch_size=4)
    folder = made.folder
    assert folder.exists()
    del made
    import gc

    gc.collect()
    assert not folder.exists()


def test_unknown_folder_and_kind(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no edit in"):
        Edit.load(tmp_path)
    (tmp_path / "edit.json").write_text('{"kind": "weigths"}', encoding="utf-8")
    with pytest.raises(RunError, match="did you mean 'weights'"):
        Edit.load(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_a_snapshot_restores_every_bit_in_every_precision(dtype: torch.dtype, tmp_path: Path) -> None:
    tensor = torch.randn(7, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    tensor[0, 0], tensor[0, 1] = -0.0, float("nan")
    before = bits(tensor).clone()
    with Snapshot({"w": tensor}, tmp_path / "base.safetensors") as snapshot:
        tensor.mul_(3)
        assert snapshot.changed() == ["w"]
    assert torch.equal(bits(tensor), before)
    assert not (tmp_path / "base.safetensors").exists()
