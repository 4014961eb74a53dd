"""Small sides and slow loops that the tests of information gain share."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa

from efface.measure.information_gain import GainConfig
from efface.measure.sides import EmbeddedSide

A = 12.0


def rows(n: int, d: int, seed: int) -> np.ndarray:
    """[n, d] float32 unit rows around a common direction."""
    found = np.random.default_rng(seed).standard_normal((n, d))
    found[:, 0] += 1.0
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def config(**values: Any) -> GainConfig:
    """As the command line makes it."""
    return GainConfig.parse(values)


def sides(n: int = 60, m: int = 90, d: int = 8) -> tuple[EmbeddedSide, EmbeddedSide]:
    """Images and texts with ids and contents."""
    images = EmbeddedSide(rows(n, d, 0), ids=[f"i{k}" for k in range(n)], keys=[f"picture {k}" for k in range(n)])
    texts = EmbeddedSide(
        rows(m, d, 1), ids=[f"t{k}" for k in range(m)], texts=[f"a caption number {k}" for k in range(m)]
    )
    return images, texts


def column(table: pa.Table, name: str) -> np.ndarray:
    """A column as an array."""
    return table.column(name).to_numpy()


def unit64(values: np.ndarray) -> np.ndarray:
    """Unit rows in float64."""
    double = values.astype(np.float64)
    return double / np.linalg.norm(double, axis=1, keepdims=True)


def by_loops(u: np.ndarray, own: np.ndarray, sample: np.ndarray, a: float) -> dict[str, float]:
    """One query's modes from the definitions."""
    s = np.array([a * float(u @ v) for v in sample])
    w = np.exp(s - s.max())
    w /= w.sum()
    log_z = math.log(float(np.exp(s - s.max()).mean())) + float(s.max())
    G = np.zeros((len(u), len(u)))
    for v in sample:
        G += np.outer(v - sample.mean(axis=0), v - sample.mean(axis=0)) / len(sample)
    x = u - own.mean(axis=0)
    return {
        "kl": float(w @ s) - log_z, "klr": log_z - float(s.mean()), "cov_norm": 0.5 * a * a * float(x @ G @ x),
        "cov_norm_zero": 0.5 * a * a * float(u @ G @ u), "centered_norm": a * a * float(x @ x),
        "ess": 1 / float(w @ w), "k2_half": float(s.var()) / 2,
    }  # fmt: skip
