"""Pictures with blocks of patches set to zero: what a student sees whose teacher sees the whole picture.

The block-wise draw is BEiT's (Bao et al., arXiv 2106.08254, algorithm 1), by way of iBOT; BECLR (arXiv 2402.02444) uses it on
patches of 16 pixels. Zero is the mean colour where pictures are normalised. Departure: a share that is below half a patch
masks nothing, and a block may touch two borders at once.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from efface.errors import ConfigError

ASPECT = 0.3
"""Height over width of a block is log-uniform between this and its inverse."""
TRIES = 10
FEWEST_PATCHES = 3
"""A picture of fewer patches a side is left whole, as BECLR leaves those of 32 pixels."""


class BlockMask:
    """Masks of patches for pictures.

    Args:
        patch: side of a patch in pixels.
        share: mean share of the patches that are masked, in [0, 1).
        spread: the share is uniform within this distance of the mean.

    Raises:
        ConfigError: a patch below one pixel, or shares that leave [0, 1).
    """

    def __init__(self, patch: int, share: float, spread: float) -> None:
        if patch < 1 or spread < 0 or share - spread < 0 or share + spread >= 1:
            raise ConfigError(
                f"patches of {patch} pixels, {share} +- {spread} of them masked", "a positive side and shares in [0, 1)"
            )
        self.patch, self.share, self.spread = patch, share, spread

    def grid(self, height: int, width: int) -> tuple[int, int] | None:
        """Patches down and across, or None where a picture is too small (or nothing is to be masked)."""
        size = height // self.patch, width // self.patch
        return size if min(size) >= FEWEST_PATCHES and self.share + self.spread > 0 else None

    def draw(self, count: int, height: int, width: int, seed: tuple[int, ...]) -> Tensor:
        """Boolean [count, 1, height, width], True where a picture is to be seen; the same for the same seed."""
        seen = torch.ones(count, 1, height, width, dtype=torch.bool)
        grid = self.grid(height, width)
        if grid is None:
            return seen
        rng = np.random.default_rng(np.random.SeedSequence([*seed, 0xB10C]))
        masks = torch.from_numpy(np.stack([self._mask(grid, rng) for _ in range(count)]))
        pixels = masks.repeat_interleave(self.patch, 1).repeat_interleave(self.patch, 2)
        seen[:, 0, : pixels.shape[1], : pixels.shape[2]] = ~pixels
        return seen

    def _mask(self, grid: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
        """One mask [down, across]: blocks until the drawn number of patches is reached."""
        down, across = grid
        mask = np.zeros(grid, dtype=bool)
        wanted = round(rng.uniform(self.share - self.spread, self.share + self.spread) * down * across)
        least = (min(grid) // 3) ** 2
        for _ in range(TRIES * wanted):
            room = wanted - int(mask.sum())
            if room == 0:
                break
            area = rng.uniform(min(least, room), room)
            ratio = math.exp(rng.uniform(math.log(ASPECT), -math.log(ASPECT)))
            high, wide = (max(1, round(math.sqrt(side))) for side in (area * ratio, area / ratio))
            if high > down or wide > across:
                continue
            top, left = rng.integers(down - high + 1), rng.integers(across - wide + 1)
            block = mask[top : top + high, left : left + wide]
            if 0 < block.size - int(block.sum()) <= room:
                block[:] = True
        return mask
