"""The proof of lol compares what its specification names: base, ICD and LOL with one amateur, and the worst seed."""

from __future__ import annotations

from typing import Any

import pytest

from efface.forget.guards.contrastive_model import Contrast
from efface.forget.method import find_method
from efface.proofs import lol
from efface.proofs.proof import find_proof


def figures(**more: float) -> dict[str, float]:
    names = ["base", *lol.VARIANTS, *(f"unseen myths: {name}" for name in ("base", lol.ICD, lol.LOL))]
    return {**dict.fromkeys(names, 0.5), "base": 0.59, lol.ICD: 0.77, lol.LOL: 0.79, lol.NOTHING: 0.0, **more}


@pytest.mark.parametrize(
    ("more", "holding"),
    [
        ({}, [True, True, True]),
        ({lol.LOL: 0.77}, [False, True, True]),
        ({"base": 0.78}, [True, False, True]),
        ({lol.NOTHING: 1e-7}, [True, True, False]),
    ],
)
def test_the_worst_seed_counts(monkeypatch: pytest.MonkeyPatch, more: dict[str, float], holding: list[bool]) -> None:
    monkeypatch.setattr(lol, "seed_figures", lambda seed: figures(**(more if seed == 2 else {})))
    monkeypatch.setattr(lol, "capitals_figures", lambda seed: dict.fromkeys(lol.FORGET, (0.1, 0.9)))
    checks = find_proof("lol").checks()
    assert [check.holds for check in checks if check.threshold is not None] == holding
    assert all(check.threshold == 0.0 for check in checks[:3])
    assert len({check.name for check in checks}) == len(checks)


def test_the_amateur_is_the_same_for_every_variant_and_has_sixty_steps() -> None:
    config: Any = find_method("lol").configure({**lol.AMATEUR, "mode": "icd"})
    assert (config.keep, config.alpha, config.gamma) == (0.0, 0.0, 0.0)
    assert lol.STEPS == 60
    training = set(type(config).model_fields) - set(Contrast.model_fields)
    for values in [*lol.VARIANTS.values()]:
        assert not training & set(values), "a variant changes the contrast only"
    assert lol.VARIANTS[lol.LOL] == {"mode": "lol", "layer": 1, "omega": 0.5}
