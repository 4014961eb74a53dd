"""The proof of semantic faithfulness: its verdicts from figures; the whole of it runs by `efface prove`."""

from __future__ import annotations

import pytest

from efface.proofs import semantic_faithfulness as proof

HOLDS = {
    "whole": {"EM": 1.0, "same TS-R": 0.3, "unknown TS-R": 0.0, "same TS-R+gold": 0.4, "same negated": 0.9},
    "interventions": {"EM": 1.0, "same TS-R": 0.0, "unknown TS-R": 1.0, "same TS-R+gold": 0.05, "same negated": 0.9},
}  # fmt: skip
BESIDE = {"right TS": 0.3, "same OS-R": 0.1, "unknown OS-R": 0.1, "false unknown": 0.0, "kl": 1.0}


def verdicts(kind: str = "", name: str = "", value: float = 0.0) -> list[bool]:
    seen = {one: {seed: {**own, **BESIDE} for seed in (0, 1, 2)} for one, own in HOLDS.items()}
    if kind:
        seen[kind][1][name] = value
    return [check.holds for check in proof.judged(seen) if check.threshold is not None]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("place", "kind", "name", "value"),
    [
        (0, "interventions", "same TS-R", 0.05), (1, "whole", "same TS-R", 0.2), (2, "whole", "unknown TS-R", 0.05),
        (3, "interventions", "unknown TS-R", 0.95), (4, "whole", "same TS-R+gold", 0.25),
        (5, "interventions", "same TS-R+gold", 0.15), (6, "interventions", "same negated", 0.75),
        (6, "whole", "same negated", 0.7),
        (7, "whole", "EM", 0.95), (7, "interventions", "EM", float("nan")),
    ],
)  # fmt: skip
def test_one_bad_seed_fails_its_check_alone(place: int, kind: str, name: str, value: float) -> None:
    assert verdicts() == [True] * 8
    assert [i for i, holds in enumerate(verdicts(kind, name, value)) if not holds] == [place]
