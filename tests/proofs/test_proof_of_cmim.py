"""The proof of cMIM: its verdicts at once; the whole of it runs by `efface prove`."""

from __future__ import annotations

import pytest

from efface.proofs import cmim as proof


def figures(name: str, batch_size: int, seed: int) -> dict[str, float]:
    if name == "info-nce":
        return {"knn": 0.9 if batch_size == 8 else 0.93, "probe": 0.9, "probe50": 0.8}
    better = 0.01 * (name == "cmim")
    return {
        "knn": 0.95 + better, "probe": 0.94 + better, "probe50": 0.8, "hidden_probe50": 0.81, "loss": 16.5 + 10 * better,
        "deviation": 0.9 if name == "vae" else 0.05,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("place", "change"),
    [
        (0, {("cmim", "knn"): 0.94}), (1, {("cmim", "probe"): 0.93}), (2, {("cmim", "loss"): 19.0}),
        (3, {("info-nce", "knn"): 0.93}), (4, {("mim", "hidden_probe50"): 0.79, ("vae", "hidden_probe50"): 0.79}),
        (5, {("vae", "deviation"): 0.04}),
    ],
)  # fmt: skip
def test_each_verdict_turns(place: int, change: dict[tuple[str, str], float], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str, batch_size: int, seed: int) -> dict[str, float]:
        found = figures(name, batch_size, seed)
        return found | {figure: value for (of, figure), value in change.items() if of == name}

    monkeypatch.setattr(proof, "outcome", figures)
    assert [check.holds for check in proof.checks()[:6]] == [True] * 6
    monkeypatch.setattr(proof, "outcome", broken)
    assert [check.holds for check in proof.checks()[:6]] == [i != place for i in range(6)]
