"""Accidents leave the model as it was, and the trace tells how far weights moved."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from efface.audit.attacks.weight_noise import NOISE, PRUNED, accidents, relative_change, shaken, thinned, trace


def test_accidents_are_put_right(tiny: Any, request_: Any) -> None:
    digest = tiny.digest
    found = accidents(tiny, tiny.encode_rows(request_.forget), seed=0)
    assert set(found) == {"noise", "prune"}
    tiny.changed()
    assert tiny.digest == digest
    assert accidents(tiny, tiny.encode_rows(request_.forget), seed=0) == found
    assert accidents(tiny, tiny.encode_rows(request_.forget), seed=1) != found


def test_their_size() -> None:
    weight = torch.randn(400, 300, generator=torch.Generator().manual_seed(0)) * 3
    noisy = shaken(weight, torch.Generator().manual_seed(1))
    assert float((noisy - weight).std() / weight.std()) == pytest.approx(NOISE, rel=0.02)
    thin = thinned(weight, torch.Generator().manual_seed(1))
    assert float((thin == 0).double().mean()) == pytest.approx(PRUNED, rel=0.05)
    assert torch.equal(thin[thin != 0], weight[thin != 0])


def test_the_trace(tiny: Any) -> None:
    before = trace(tiny)
    assert relative_change(before, trace(tiny)) == dict.fromkeys(before, 0.0)
    scaled = {name: [1.1 * value for value in row] for name, row in before.items()}
    assert all(value == pytest.approx(0.1, rel=1e-6) for value in relative_change(before, scaled).values())
    assert relative_change(before, {}) == {}
