"""Figures of a head are measured once and kept; what they depend on is their key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from efface.lab import digit_heads
from efface.lab.digit_heads import head_embeddings, head_figures
from efface.lab.digit_learning import digit_split
from efface.learn.objectives import nt_xent

SMALL: dict[str, Any] = {"epochs": 0.2, "batch_size": 64, "projector": 16}


def test_figures_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFFACE_CACHE", str(tmp_path))
    data = digit_split(0)[0].select(range(200))
    seen: list[torch.Tensor] = []

    def look(encoder: Any, module: Any, values: list[dict[str, float]]) -> dict[str, float]:
        seen.append(head_embeddings(encoder, module, data))
        return {"steps": float(len(values)), "loss": values[-1]["loss"]}

    first = head_figures(nt_xent.RECIPE, 0, look, name="test", data=data, **SMALL)
    assert first["steps"] == 1
    assert first["seconds"] > 0
    assert {"knn", "probe", "knn50", "probe50", "loss"} <= set(first)
    assert seen[0].shape == (200, 16)
    torch.testing.assert_close(seen[0].norm(dim=1), torch.ones(200))
    monkeypatch.setattr(digit_heads, "fit", None)  # what would train
    assert head_figures(nt_xent.RECIPE, 0, look, name="test", data=data, **SMALL) == first
    for changed in ({"name": "other"}, {"temperature": 0.2}):
        with pytest.raises(TypeError):
            head_figures(nt_xent.RECIPE, 0, look, data=data, **({"name": "test"} | SMALL | changed))
