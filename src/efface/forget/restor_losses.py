"""The two forget terms of RESTOR's own code, for parity with its figures: NPO on batch means, and a cross-entropy of the model.

Paper: RESTOR, arXiv 2411.00204; code k1rezaei/restor. Its NPO takes the mean loss over all tokens of a *batch*, so there is one
ratio a batch instead of one a sequence: weaker, and dependent on the batch size. `restor_npo` follows NPO's paper (sums, one
ratio a sequence); `official_restor=True` gives the other. Its "KL" is a cross-entropy with the model's own distribution
first, taken at padding too; here padding is masked. Maximising it is unbounded.
"""

from __future__ import annotations

from torch import Tensor

from efface.forget.preference import preference_loss


def restor_npo(
    token_logp: Tensor, ref_token_logp: Tensor, mask: Tensor, beta: float = 0.1, *, official_restor: bool = False
) -> Tensor:
    """NPO on one batch, a scalar.

    Args:
        token_logp, ref_token_logp: [B, T] log p of the tokens under the model and under the corrupted one.
        mask: [B, T] bool, true at tokens that count.
        beta: inverse temperature; RESTOR: 0.1.
        official_restor: one ratio for the batch, of the mean losses over all its tokens.
    """
    ours, theirs = (logp.masked_fill(~mask, 0.0) for logp in (token_logp, ref_token_logp))
    if official_restor:
        ratio = (ours - theirs).sum() / mask.sum()  # -(NLL_theta - NLL_corr)
        return preference_loss(lose=ratio, beta=beta)
    return preference_loss(lose=(ours - theirs).sum(-1), beta=beta).mean()


def restor_cross_entropy(logp: Tensor, ref_logp: Tensor, mask: Tensor) -> Tensor:
    """-sum_v p_theta log p_corr, mean over the positions that count; RESTOR's "KL".

    Args:
        logp, ref_logp: [B, T, V] log-probabilities under the model and under the corrupted one.
        mask: [B, T] bool; padding is false.
    """
    crossed = -(logp.exp() * ref_logp).sum(-1)  # [B, T]
    return crossed.masked_fill(~mask, 0.0).sum() / mask.sum()


__all__ = ["restor_cross_entropy", "restor_npo"]
