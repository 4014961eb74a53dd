"""Importance-weighted CLIP: pairs that look like the wanted domain to a frozen model count more.

Paper: arXiv 2506.22881 v2 (CLIP-like Model as a Foundational Density Ratio Estimator). With a frozen reference CLIP g,

    L = mean_j w_j (CE_first-to-second,j + CE_second-to-first,j) / 2,   w_j = exp(a' <g_img(x_j), g_txt("A photo of <domain>")>)

Departures from the official code: it does not normalise w, so that a' also multiplies the learning rate by up to e^a'; we
divide by the batch's mean unless `paper_exact`. The paper body was not available: the equations are those of its code.
"""

from __future__ import annotations

import math

import torch
from datasets import Dataset
from pydantic import Field
from torch import Tensor

from efface.catalog import Card
from efface.errors import InputError, RequestError
from efface.learn.objective import Embedded, Recipe
from efface.learn.objectives.clip import CLIPConfig, batch_losses, clip_losses
from efface.numerics.contrast import check_marks, check_pair, shape
from efface.run.progress import track

CARD = Card(
    name="importance-weighted-clip",
    system="information-gain",
    title="Importance-weighted CLIP",
    summary="CLIP's loss with each pair weighted by how much its picture looks like a wanted domain.",
    paper="CLIP-like Model as a Foundational Density Ratio Estimator, arXiv 2506.22881 v2 (2025)",
    verb="learn",
    mechanism="objectives",
    modalities=("image", "text"),
    subjects=("dual-encoder",),
    needs=("reference",),
    defaults_source="a' = 10: official code (clip_ig, iwl); its own scale of about 100 overflows",
)
SHARPNESS = 10.0
"""a' of the official code."""


class WeightedCLIPConfig(CLIPConfig):
    """Where the weights come from, and whether they are taken as they are."""

    reference: str | None = Field(
        None,
        description="frozen CLIP that weighs the pictures (official code: ViT-L-14, LAION); default: column 'weight'",
    )
    domain: str = Field("", description="with reference: what 'A photo of ...' is wanted")
    sharpness: float = Field(SHARPNESS, description="a' of the weights' exponent; official code: 10")
    paper_exact: bool = Field(False, description="do not divide the weights by their batch mean (official code)")


def importance(images: Tensor, domain: Tensor, sharpness: float = SHARPNESS) -> Tensor:
    """w_j = exp(a' <g_img(x_j), g_txt(domain)>), [N].

    Args:
        images: [N, D] unit rows of the frozen reference's image tower.
        domain: [D] unit embedding of "A photo of <domain>" by its text tower.
        sharpness: a'.

    Raises:
        InputError: shapes that do not fit, values that are not finite, or an a' whose exponential overflows float32.
    """
    if images.ndim != 2 or domain.shape != images.shape[1:]:
        raise InputError(f"images {shape(images)} and a domain {shape(domain)}", "[N, D] and [D]")
    if not abs(sharpness) <= math.log(torch.finfo(torch.float32).max):
        raise InputError(f"a' = {sharpness:g}: exp(a') overflows float32", "at most 88", "the official code uses 10")
    weights = torch.exp(sharpness * (images.float() @ domain.float()))
    if not bool(torch.isfinite(weights).all()):
        raise InputError(f"weights of images {shape(images)} that are not finite", "unit rows", "normalise both sides")
    return weights


def item_weights(data: Dataset, config: WeightedCLIPConfig) -> Tensor:
    """[N] float32: the column `weight`, or the importance of each picture under the frozen reference.

    Raises:
        RequestError: neither a column nor a reference with a domain.
    """
    if config.reference is None:
        if "weight" not in data.column_names:
            raise RequestError(
                f"no column 'weight' (there are: {', '.join(data.column_names)})", "one number a pair",
                "add it, or give reference=CLIP and domain=WORDS",
            )  # fmt: skip
        return torch.tensor(data["weight"], dtype=torch.float32)
    if not config.domain:
        raise RequestError("a reference without a domain", "domain=WORDS, as in 'A photo of WORDS'")
    from efface.data.items import open_picture
    from efface.subjects.dual_encoder import load_dual_encoder

    reference = load_dual_encoder(config.reference)
    domain = reference.text.embed([f"A photo of {config.domain}"])[0]
    parts = []
    with track("weigh pictures", len(data)) as advance:
        for start in range(0, len(data), 256):
            pictures = [open_picture(item) for item in data[start : start + 256]["image"]]
            parts.append(reference.image.embed(pictures))
            advance(len(pictures))
    return importance(torch.cat(parts), domain, config.sharpness)


def weighted_clip(
    first: Tensor, second: Tensor, scale: Tensor | float, weights: Tensor, *, paper_exact: bool = False,
    ids: Tensor | None = None, tile: int | None = None,
) -> Tensor:  # fmt: skip
    """mean_j w_j L_j with CLIP's loss L_j of each pair, [].

    Args:
        first, second: [B, D] unit rows of the two sides.
        scale: [] one over the temperature.
        weights: [B] importance, not negative.
        paper_exact: do not divide the weights by their mean.
        ids: see `clip`.
        tile: side of a tile.

    Raises:
        InputError: see `clip`; weights that are negative, not finite, all zero or of another shape.
    """
    check_pair(first, second, scale, paired=True)
    ids = None if ids is None else check_marks("ids", ids, len(first))
    losses = clip_losses(first, second, first, second, scale, ids=ids, ids_all=ids, tile=tile)
    return (shares(weights, len(first), paper_exact) * losses).mean()


def shares(weights: Tensor | None, rows: int, paper_exact: bool) -> Tensor:
    """What each row's loss is multiplied by, [B]: the weights, divided by their mean unless `paper_exact`."""
    if weights is None:
        raise InputError("no weights", f"{rows} numbers", "give the pairs a column of weights, as from `importance`")
    if weights.shape != (rows,):
        raise InputError(f"weights of shape {shape(weights)} for {rows} rows", f"shape [{rows}]")
    if not bool((torch.isfinite(weights) & (weights >= 0)).all()) or not bool((weights > 0).any()):
        raise InputError(
            f"weights {shape(weights)} from {float(weights.min()):g} to {float(weights.max()):g}",
            "finite numbers >= 0, not all of them 0", "lower a' if they overflow",
        )  # fmt: skip
    if paper_exact:
        return weights
    scaled = weights / weights.max()  # a sum of large weights could overflow
    return scaled / scaled.mean()


def _loss(batch: Embedded, config: WeightedCLIPConfig) -> tuple[Tensor, dict[str, float]]:
    losses = batch_losses(batch, config)
    everyone = batch.weights if batch.weights_all is None else batch.weights_all  # the mean is the whole batch's
    weights = shares(everyone, batch.total, config.paper_exact)[batch.start : batch.start + len(losses)].to(
        losses.dtype
    )
    return (weights * losses).sum() / batch.total, {"largest_weight": float(weights.max())}


CONFIG = WeightedCLIPConfig
RECIPE = Recipe(CARD, CONFIG, _loss, takes="pairs", learns_scale=True, weights=item_weights)
