"""The one preference loss behind DPO and NPO."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid


def preference_loss(*, win: Tensor | None = None, lose: Tensor | None = None, beta: float) -> Tensor:
    """-(2 / beta) log sigmoid(beta (win - lose)), per example.

    `win` and `lose` are log-ratios log pi_theta(y|x) - log pi_ref(y|x), summed over the answer's tokens, [B] each.
    Both give DPO (arXiv 2305.18290, scaled by 2 / beta as in NPO's code); `lose` alone gives NPO (arXiv 2404.05868, eq. 3).

    Raises:
        ValueError: neither side is given, or beta is not positive.
    """
    if beta <= 0:
        raise ValueError(f"beta={beta}: must be positive")
    if win is None and lose is None:
        raise ValueError("preference_loss needs a winning or a losing side")
    if win is None:
        assert lose is not None
        return -(2 / beta) * logsigmoid(-beta * lose)  # [B]
    return -(2 / beta) * logsigmoid(beta * (win if lose is None else win - lose))  # [B]
