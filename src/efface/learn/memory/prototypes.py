"""Prototypes: K trained directions that embeddings are scored against.

Paper: SwAV, Caron et al., arXiv 2006.09882, section 3. The rows have unit length, so that scores are cosines; `renormalise`
is to be called before a forward pass and not after the optimiser's step, which leaves rows of any length.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from efface.errors import ConfigError, InputError


class Prototypes(nn.Module):
    """K unit rows [K, D]; calling it gives the cosines of unit embeddings with them.

    Args:
        count: K.
        width: D.

    Raises:
        ConfigError: a count or width below 1.
    """

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        if count < 1 or width < 1:
            raise ConfigError(f"{count} prototypes of width {width}", "at least 1 each")
        self.count, self.width = count, width
        self.weight = nn.Parameter(nn.functional.normalize(torch.randn(count, width), dim=1))

    @torch.no_grad()
    def renormalise(self) -> None:
        """Give every row unit length again, in place."""
        self.weight.copy_(nn.functional.normalize(self.weight, dim=1))

    def forward(self, z: Tensor) -> Tensor:
        """[b, K] in float32 (or float64), also under autocast: half precision is too coarse for what is divided by eps.

        Args:
            z: [b, D] unit rows.

        Raises:
            InputError: rows of another width.
        """
        if z.ndim != 2 or z.shape[1] != self.width:
            raise InputError(f"embeddings of shape {list(z.shape)}", f"[b, {self.width}]")
        with torch.autocast(z.device.type, enabled=False):
            wide = z.to(torch.promote_types(z.dtype, self.weight.dtype))
            return wide @ self.weight.to(wide).T
