"""RMU: its loss against loops, which layers move, and what it does to states."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from efface.errors import ConfigError, RequestError
from efface.forget.method import find_method
from efface.forget.objectives.rmu import RMUConfig, direction, reference_states, state_loss, where
from efface.subjects.hooks import Site, recorded
from efface.subjects.prompts import Encoded


def test_the_loss_against_loops() -> None:
    generator = torch.Generator().manual_seed(0)
    states, target = torch.randn(2, 3, 4, generator=generator), torch.randn(2, 3, 4, generator=generator)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    share = torch.full((2,), 1 / 3)
    slow = []
    for b in range(2):
        for t in range(3):
            if mask[b, t]:
                slow.append(sum(float(states[b, t, d] - target[b, t, d]) ** 2 for d in range(4)) / 4)
    assert float(state_loss(states, target, mask, share)) == pytest.approx(sum(slow) / 3, rel=1e-5)
    far = states.clone()
    far[0, 2] = 1e6  # padding
    assert float(state_loss(far, target, mask, share)) == pytest.approx(sum(slow) / 3, rel=1e-5)


def test_the_direction() -> None:
    u = direction(64, 3)
    assert float(u.norm()) == pytest.approx(1.0)
    assert torch.equal(u, direction(64, 3))
    assert not torch.equal(u, direction(64, 4))


def test_which_layers_move() -> None:
    assert where(32, RMUConfig())[0] == 7
    assert where(32, RMUConfig())[1].layers == "5-7"
    assert where(4, RMUConfig(layers="1-2"))[0] == 2
    assert where(4, RMUConfig(scope="all", layer=3))[1].layers is None
    with pytest.raises(ConfigError, match="0 to 3"):
        where(4, RMUConfig(layer=4))
    with pytest.raises(ConfigError, match="a layer up to that one"):
        where(4, RMUConfig(layer=1, layers="2-3"))


def test_states_go_where_they_are_sent(tiny: Any, request_: Any, tmp_path: Path) -> None:
    method = find_method("rmu")
    config = method.configure(
        {
            "layer": 1,
            "coefficient": 4.0,
            "alpha": 5.0,
            "scope": "all",
            "part": "all",
            "learning_rate": 5e-3,
            "epochs": 30,
        }
    )
    rows = [Encoded(row.ids, 1) for row in tiny.encode_rows(request_.forget)]
    kept = [Encoded(row.ids, 1) for row in tiny.encode_rows(request_.retain)]
    target = 4.0 * direction(32, 0)

    def apart(subject: Any, which: list[Encoded], to: Any) -> float:
        found = reference_states(subject, which, Site("residual", 1))
        return float(torch.stack([(a - b).square().mean() for a, b in zip(found, to, strict=True)]).mean())

    before, start = apart(tiny, rows, [target] * len(rows)), reference_states(tiny, kept, Site("residual", 1))
    edit = method.fit(tiny, request_, config, work=tmp_path / "w", out=tmp_path / "e").edit
    edit.apply(tiny)
    try:
        assert apart(tiny, rows, [target] * len(rows)) < 0.4 * before
        assert apart(tiny, kept, start) < 0.2 * before  # what is kept moves less
    finally:
        edit.remove(tiny)


def test_reference_states_are_those_of_single_rows(tiny: Any, request_: Any) -> None:
    rows = [Encoded(row.ids, 1) for row in tiny.encode_rows(request_.retain)][:3]
    site = Site("residual", 0)
    for row, states in zip(rows, reference_states(tiny, rows, site), strict=True):
        with recorded(tiny.model, [site]) as seen, torch.no_grad():
            tiny.model(torch.tensor([row.ids]))
        torch.testing.assert_close(states, seen[site][0, :-1])


def test_it_needs_a_retain_set(tiny: Any, sets: Any, tmp_path: Path) -> None:
    from efface.data import Request

    method, lone = find_method("rmu"), Request.from_rows(sets["forget"])
    with pytest.raises(RequestError, match="retain set"):
        method.fit(tiny, lone, method.configure({}), work=tmp_path / "w", out=tmp_path / "e")
