"""The space of features in two dimensions, before and after: where do the forgotten rows lie?

Each model's features of the same rows (all forget rows and retain rows, evenly spaced ones where there are many) are
projected on their own first two principal components; the maps are then turned and mirrored on the original's (orthogonal
Procrustes), since the axes of a projection mean nothing. A picture to look at, not a measurement: two components hold the
share of the variance that is said beside it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict
from scipy.linalg import orthogonal_procrustes

from efface.audit.evidence import ROLES, Evidence

Floats = npt.NDArray[np.float64]
MOST = {"forget": 150, "retain": 350}
"""Points of each set at most."""


class EmbeddingMap(BaseModel):
    """One model's map.

    `points` [N, 2], scaled so that the farthest is at distance 1 from the mean; `forget` [N] whether a row was to be
    forgotten; `label` [N] its class, -1 for numbers; `explained`: share of the variance in the two components.
    """

    model_config = ConfigDict(extra="forbid")

    points: list[tuple[float, float]]
    forget: list[bool]
    label: list[int]
    explained: float


def plane(features: Floats) -> tuple[Floats, float]:
    """[N, D] on its first two principal components [N, 2], and the share of the variance in them."""
    centred = features - features.mean(0)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    total = float(np.square(s).sum())
    points = np.zeros((len(features), 2))
    width = min(2, len(s))
    points[:, :width] = u[:, :width] * s[:width]
    return points, float(np.square(s[:2]).sum() / total) if total > 0 else 0.0


def embedding_maps(evidence: Evidence) -> dict[str, EmbeddingMap]:
    """The map of every model that was audited; empty for language models."""
    found: dict[str, EmbeddingMap] = {}
    reference: Floats | None = None
    order = [role for role in ("original", "unlearned", "retrained") if role in evidence.predictions]
    for role in order:
        parts, flags, labels = [], [], []
        for name, most in MOST.items():
            own = evidence.prediction(role, name)
            if own is None:
                continue
            picks = np.unique(np.linspace(0, len(own) - 1, min(most, len(own))).round().astype(int))
            parts.append(own.features[picks])
            flags += [name == "forget"] * len(picks)
            labels += [int(own.labels[i]) if own.task == "classification" else -1 for i in picks]
        if not parts:
            continue
        points, explained = plane(np.concatenate(parts))
        if reference is None:
            reference = points
        else:
            turn, _ = orthogonal_procrustes(points, reference)
            points = points @ turn
        size = float(np.linalg.norm(points, axis=1).max()) or 1.0
        found[role] = EmbeddingMap(
            points=[(round(float(x), 4), round(float(y), 4)) for x, y in points / size], forget=flags, label=labels,
            explained=round(explained, 4),
        )  # fmt: skip
    return {role: found[role] for role in ROLES if role in found}


__all__ = ["EmbeddingMap", "embedding_maps", "plane"]
