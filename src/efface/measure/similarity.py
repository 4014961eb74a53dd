"""How alike two models place the same items: CKA, common neighbours, Procrustes distance, each against its chance level.

From the audit of Are We Truly Forgetting? (arXiv 2503.06991; code UUEF, MIT): linear CKA (Kornblith et al., 1905.00414)
with the unbiased HSIC of Song et al. (JMLR 2012, equation 5) beside the biased one, the orthogonal Procrustes distance of
Ding et al. (2108.01661), and mutual k-nearest neighbours (Huh et al., 2405.07987). Departures: CKA is never averaged over
batches (values then depend on the batch size and approach 1 for unrelated features); rows are checked to be the same items.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from efface.catalog import Card
from efface.errors import InputError
from efface.measure.estimate import Estimate, estimate, mean_estimate, missing
from efface.numerics.cka import CHUNK, Moments, cka_influence, cka_of, moments, procrustes_of
from efface.numerics.masks import TILE, slices
from efface.numerics.sphere import unit
from efface.run.digests import digest_value
from efface.run.settings import Settings

CARD = Card(
    name="similarity",
    system="representation-audit",
    title="Similarity of representations",
    summary="How alike two models, or two checkpoints, place the same items: CKA, common neighbours, Procrustes distance.",
    paper="Are we truly forgetting?, arXiv 2503.06991 (2025); CKA: Kornblith et al., arXiv 1905.00414",
    verb="measure",
    mechanism="measure",
    modalities=("any",),
    subjects=("encoder", "dual-encoder", "classifier"),
    defaults_source="unbiased HSIC: Song et al. (2012); mutual neighbours: k = 10, Huh et al., arXiv 2405.07987",
)

DEAD = "nothing varies in {}: every row is the same"


class SimilarityConfig(Settings):
    """How to compare."""

    neighbours: int = Field(10, ge=1, description="k of the mutual nearest neighbours; Huh et al.: 10")
    permutations: int = Field(20, ge=5, description="shuffles behind the chance level of Procrustes and biased CKA")
    tile: int | None = Field(None, ge=1, description="rows in one tile; default: chosen")
    resamples: int = Field(1000, ge=100, description="resamples of the bootstrap over items")
    seed: int = Field(0, ge=0, description="seed of resampling and shuffles")


class SimilarityReport(BaseModel):
    """Two representations of the same N items.

    `*_chance` are the values that unrelated rows of the same shapes give. CKA and Procrustes do not see rotation and
    scale, and neither tells what was forgotten from what was ruined: read them beside the same figures on retained items.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    n: int
    dimensions: tuple[int, int]
    items: str = Field(description="digest of the ids, in order")
    cka: Estimate = Field(description="linear CKA, unbiased HSIC; 1 = equal up to rotation and scale, 0 = unrelated")
    cka_biased: Estimate
    cka_biased_chance: Estimate
    mutual_neighbours: Estimate = Field(description="share of common nearest neighbours by cosine")
    mutual_neighbours_chance: float
    neighbours: int
    procrustes: Estimate = Field(
        description="2 - 2 ||X'Y||_* after centring and scaling: 0 = equal up to rotation, at most 2"
    )
    procrustes_chance: Estimate
    dead_columns: tuple[int, int] = Field(description="columns without variance")
    warnings: list[str]


def nearest_neighbours(z: Tensor, k: int, tile: int | None = None) -> Tensor:
    """[N, k] indices of the other rows that are nearest by cosine, by tiles.

    Raises:
        InputError: fewer than k + 1 rows, zero or non-finite rows.
    """
    if not 0 < k < len(z):
        raise InputError(f"{k} neighbours among {len(z)} items", f"1 to {len(z) - 1}")
    rows = unit(z.double())
    found = torch.empty(len(z), k, dtype=torch.int64, device=z.device)
    for part in slices(len(z), tile or TILE):
        s = rows[part] @ rows.T
        s.diagonal(part.start).fill_(-torch.inf)
        found[part] = s.topk(k, dim=1).indices
    return found


def common_neighbours(x: Tensor, y: Tensor, k: int, tile: int | None = None) -> Tensor:
    """[N] share of the k nearest neighbours that are the same in both. Raises as `nearest_neighbours`."""
    first, second = nearest_neighbours(x, k, tile), nearest_neighbours(y, k, tile)
    return (first[:, :, None] == second[:, None, :]).any(2).double().mean(1)


def similarity(
    a: Tensor, b: Tensor, *, ids_a: Sequence[str | int], ids_b: Sequence[str | int], config: SimilarityConfig | None = None
) -> SimilarityReport:  # fmt: skip
    """Compare two representations of the same items.

    Args:
        a, b: [N, d1], [N, d2] features, not the logits of a classifier.
        ids_a, ids_b: the items' ids, in the order of the rows.

    Raises:
        InputError: other items or another order, a repeated id, shapes that differ, fewer than four rows, a row that is not
            finite.
    """
    config = config or SimilarityConfig()
    items = _same_items(ids_a, ids_b, len(a), len(b))
    rng = np.random.default_rng(config.seed)
    with torch.no_grad():
        m = moments(a, b)
        n, dimensions = m.n, (a.shape[1], b.shape[1])
        still = [
            name for name, dead in zip(("the first features", "the second features"), m.still, strict=True) if dead
        ]
        if still:
            gone = missing(DEAD.format(" and ".join(still)), n)
            figures = {
                "cka": gone, "cka_biased": gone, "procrustes": gone, "cka_biased_chance": gone, "procrustes_chance": gone
            }  # fmt: skip
        else:
            figures = _figures(m, config, rng)
        k = min(config.neighbours, n - 1)
        try:
            common = common_neighbours(a, b, k, config.tile)
            mutual = mean_estimate(common.numpy(force=True), rng=rng, resamples=config.resamples)
        except InputError as error:
            mutual = missing(str(error), n)
        if still:
            mutual = missing(DEAD.format(" and ".join(still)), n)
        dead = (_dead_columns(a), _dead_columns(b))
    return SimilarityReport(
        n=n, dimensions=dimensions, items=items, mutual_neighbours=mutual, mutual_neighbours_chance=k / (n - 1), neighbours=k,
        dead_columns=dead, warnings=_warnings(n, dimensions, dead), **figures,
    )  # fmt: skip


def _figures(m: Moments, config: SimilarityConfig, rng: np.random.Generator) -> dict[str, Estimate]:
    """CKA and Procrustes with intervals, and what shuffled rows give."""
    distance, moved = procrustes_of(m)
    biased, far = [], []
    for _ in range(config.permutations):
        order = torch.from_numpy(rng.permutation(m.n)).to(m.x.device)
        xy = torch.zeros_like(m.xy)
        for part in slices(m.n, CHUNK):
            xy.addmm_(m.chunk(part)[0].T, m.y[order[part]].double() - m.mean_y)
        biased.append(float(xy.square().sum() / (m.xx.norm() * m.yy.norm())))
        far.append(float(2 - 2 * torch.linalg.svdvals(xy).sum() / (m.k.sum() * m.l.sum()).sqrt()))

    def of(value: float, influence: Tensor) -> Estimate:
        return estimate(value, influence.numpy(force=True), rng=rng, resamples=config.resamples)

    return {
        "cka": of(cka_of(m), cka_influence(m)),
        "cka_biased": of(cka_of(m, unbiased=False), cka_influence(m, unbiased=False)),
        "procrustes": of(distance, moved),
        "cka_biased_chance": _spread(biased), "procrustes_chance": _spread(far),
    }  # fmt: skip


def _dead_columns(x: Tensor) -> int:
    return int((x.amax(0) == x.amin(0)).sum())


def _spread(values: list[float]) -> Estimate:
    low, high = np.quantile(values, [0.025, 0.975])
    return Estimate(value=float(np.mean(values)), low=float(low), high=float(high), n=len(values))


def _same_items(ids_a: Sequence[str | int], ids_b: Sequence[str | int], rows_a: int, rows_b: int) -> str:
    """The digest of the ids; refuses other items, another order, repeated ids."""
    for name, ids, rows in (("first", ids_a, rows_a), ("second", ids_b, rows_b)):
        if len(ids) != rows:
            raise InputError(f"{len(ids)} ids for {rows} rows of the {name} features", "one id a row")
        if len(set(map(str, ids))) != len(ids):
            raise InputError(f"the {name} ids repeat ({len(ids) - len(set(map(str, ids)))} times)", "one row an item")
    digests = [digest_value([str(one) for one in ids]) for ids in (ids_a, ids_b)]
    if digests[0] != digests[1]:
        if sorted(map(str, ids_a)) == sorted(map(str, ids_b)):
            place = next(i for i, pair in enumerate(zip(ids_a, ids_b, strict=True)) if str(pair[0]) != str(pair[1]))
            raise InputError(
                f"the same items in another order, first at row {place}", "row i of both for one item",
                "extract both without shuffling",
            )  # fmt: skip
        raise InputError(
            f"other items: {len(set(map(str, ids_a)) ^ set(map(str, ids_b)))} ids are in one only", "the same items"
        )
    return digests[0]


def _warnings(n: int, dimensions: tuple[int, int], dead: tuple[int, int]) -> list[str]:
    found = []
    if n < 2 * max(dimensions):
        found.append(
            f"{n} items in {max(dimensions)} dimensions: by chance biased CKA and Procrustes are far from unrelated; read cka"
        )
    for name, count, width in zip(("first", "second"), dead, dimensions, strict=True):
        if count:
            found.append(f"{count} of {width} columns of the {name} features never vary")
    return found


CONFIG = SimilarityConfig
