"""Selective pruning: the neurons are those of a plain loop, and what is cut is as if their keys were zero."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from efface.errors import ModelError
from efface.forget.edits.selective_pruning import EPSILON, METHOD
from efface.subjects.hooks import Site, recorded, replaced, value_matrix


def mean_keys(subject: Any, data: Any, layer: int) -> torch.Tensor:
    """[h] mean |k| over every token, one row at a time."""
    found = []
    for row in subject.encode_rows(data):
        with torch.no_grad(), recorded(subject.model, [Site("keys", layer)]) as seen:
            subject.model(torch.tensor([row.ids]))
        found.append(seen[Site("keys", layer)][0].abs())
    return torch.cat(found).double().mean(0)


def test_the_neurons_of_a_loop_are_cut(tiny: Any, request_: Any, tmp_path: Path) -> None:
    config = METHOD.configure({"share": 0.05})
    edit = METHOD.fit(tiny, request_, config, work=tmp_path / "work", out=tmp_path / "edit").edit
    ratios = [
        mean_keys(tiny, request_.forget, layer) / (mean_keys(tiny, request_.retain, layer) + EPSILON)
        for layer in (0, 1)
    ]
    top = torch.cat(ratios).topk(round(0.05 * 192)).indices.tolist()
    want = {layer: [i - 96 * layer for i in top if i // 96 == layer] for layer in (0, 1)}
    ids = torch.tensor(tiny.encode_prompts(request_.forget)[:2])

    def silent(layer: int) -> Any:
        return lambda keys: keys.index_fill(-1, torch.tensor(want[layer], dtype=torch.long), 0)

    with torch.no_grad(), replaced(tiny.model, {Site("keys", layer): silent(layer) for layer in (0, 1)}):
        expected = tiny.model(ids).logits
    edit.apply(tiny)
    for layer in (0, 1):
        assert value_matrix(tiny.model, layer).abs().sum(0).eq(0).nonzero().flatten().tolist() == sorted(want[layer])
    with torch.no_grad():
        torch.testing.assert_close(tiny.model(ids).logits, expected, rtol=1e-4, atol=1e-4)


def test_a_frozen_projection_is_refused(tiny: Any, request_: Any, tmp_path: Path) -> None:
    value_matrix(tiny.model, 1).requires_grad_(False)
    with pytest.raises(ModelError, match="may not move"):
        METHOD.fit(tiny, request_, METHOD.configure({}), work=tmp_path / "work", out=tmp_path / "edit")
