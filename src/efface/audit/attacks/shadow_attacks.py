"""Membership attacks on classifiers and regressors that compare with models trained with and without each example.

LiRA and RMIA give every row of the forget set (members) and of the holdout set (never seen) a score, larger = member, from
what the audited model says and what the kept shadow models say (`efface.train.shadow_models`). LiRA: phi, the log-odds of the
label, against its distribution under models that saw the row (IN) and that did not (OUT). RMIA: the label's probability
against that under the same models, and that ratio against the same ratio of the holdout rows. U-LiRA: `u_lira`.

The aim is the retrained model's value, not 0.5. Where the two sets differ in kind (a class to be forgotten), no attack on them
measures membership: see `classifier_membership` for the baseline that tells.

Source: Carlini et al., arXiv 2112.03570 (LiRA); Zarifzadeh et al., arXiv 2312.03262 (RMIA). For a number, phi is minus the
absolute error and the probability exp(-error^2 / 2): efface's choice, the papers have classes only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import log_softmax

from efface.audit.metrics import lira, rmia
from efface.audit.metrics.roc import auc_interval, tpr_at_fpr
from efface.audit.predictions import Predictions
from efface.data.request import Request
from efface.errors import InputError
from efface.subjects.predictor import Predictor
from efface.train.shadow_models import ShadowModels

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

RATES = (0.01, 0.001)
"""False positive rates at which the true positive rate is read; not measurable below 100 and 1000 non-members."""

SETS = ("forget", "holdout")


def phi_of(outputs: npt.ArrayLike, targets: npt.ArrayLike, task: str) -> Floats:
    """[..., n] log-odds of the label; of a number minus the absolute error.

    Args:
        outputs: [..., n, K] logits, or [..., n, 1] numbers.
        targets: [n].
    """
    said, aim = np.asarray(outputs, dtype=np.float64), np.asarray(targets, dtype=np.float64)
    return lira.logit_margin(said, aim.astype(np.int64)) if task == "classification" else -np.abs(said[..., 0] - aim)


def logp_of(outputs: npt.ArrayLike, targets: npt.ArrayLike, task: str) -> Floats:
    """[..., n] log-probability of the label; of a number -(y - target)^2 / 2. Arguments as `phi_of`."""
    said, aim = np.asarray(outputs, dtype=np.float64), np.asarray(targets, dtype=np.float64)
    if task != "classification":
        return np.asarray(-0.5 * np.square(said[..., 0] - aim), dtype=np.float64)
    found: Floats = log_softmax(said, axis=-1)[..., np.arange(len(aim)), aim.astype(np.int64)]
    return found


@dataclass(frozen=True)
class AuditedRows:
    """Forget rows, then holdout rows.

    Attributes:
        columns: [n] their places among the candidates of the shadow models.
        member: [n] true for forget rows.
        targets: [n].
    """

    columns: npt.NDArray[np.int64]
    member: Flags
    targets: Floats

    @classmethod
    def of(cls, subject: Predictor, request: Request, shadows: ShadowModels) -> AuditedRows:
        """The rows of a request.

        Args:
            subject: any predictor of the audited form; makes the rows.

        Raises:
            InputError: no holdout set, or a row that the shadow models do not know.
        """
        if request.holdout is None:
            raise InputError("a request without a holdout set", "rows that the model never saw", "give --holdout")
        parts = [
            subject.encode_rows(data, name=name)
            for name, data in zip(SETS, (request.forget, request.holdout), strict=True)
        ]
        return cls(
            np.concatenate([shadows.columns(rows) for rows in parts]), np.repeat([True, False], [len(rows) for rows in parts]),
            np.array([row.target for rows in parts for row in rows], dtype=np.float64),
        )  # fmt: skip

    def outputs(self, tables: Mapping[str, Predictions]) -> Floats:
        """[n, K] what a model says about them.

        Args:
            tables: `forget` and `holdout`.

        Raises:
            InputError: a table is missing, or is of other rows.
        """
        missing = [name for name in SETS if name not in tables]
        if missing:
            raise InputError(
                f"no predictions on the {missing[0]} set", "those on forget and holdout set", "score it too"
            )
        targets = np.concatenate([tables[name].targets for name in SETS])
        if not np.array_equal(targets, self.targets) or len(tables["forget"]) != int(self.member.sum()):
            raise InputError("predictions on other rows than the request's", "tables of its forget and holdout set")
        return np.concatenate([tables[name].outputs for name in SETS])


def shadow_attacks(
    rows: AuditedRows, tables: Mapping[str, Predictions], shadows: ShadowModels, *, gamma: float = rmia.GAMMA,
    a: float | None = None, seed: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """LiRA and RMIA, online and offline, on one model.

    Args:
        rows: of the request.
        tables: what the audited model says about `forget` and `holdout`.
        shadows: kept shadow models whose candidates include the rows.
        gamma: of RMIA.
        a: of offline RMIA; default: chosen on the shadow models themselves, or 0.3 with fewer than four.
        seed: of the intervals.

    Returns:
        JSON values: `attacks` by name, each as `judged` says, and facts about the models.
    """
    said = rows.outputs(tables)
    phi, logp = phi_of(said, rows.targets, shadows.task), logp_of(said, rows.targets, shadows.task)
    theirs, keep = shadows.logits[:, rows.columns], shadows.keep[:, rows.columns]
    phis, logps = phi_of(theirs, rows.targets, shadows.task), logp_of(theirs, rows.targets, shadows.task)
    if a is None:
        every = logp_of(shadows.logits, shadows.targets, shadows.task)
        a = rmia.choose_a(every, shadows.keep) if len(shadows) >= 4 else rmia.A
    scores = {
        "lira_online": lira.online(phi, phis, keep),
        "lira_offline": lira.offline(phi, phis, keep, log_odds=True),
        "rmia_online": rmia.attack(logp, logps, keep, ~rows.member, gamma=gamma),
        "rmia_offline": rmia.attack(logp, logps, keep, ~rows.member, a=a, gamma=gamma),
    }
    return {
        "attacks": {name: judged(own[rows.member], own[~rows.member], seed=seed) for name, own in scores.items()},
        "models": len(shadows), "gamma": gamma, "a": a, "pooled_variance": len(shadows) < lira.FEW_SHADOWS,
        "notes": list(shadows.notes),
    }  # fmt: skip


def judged(members: npt.ArrayLike, others: npt.ArrayLike, *, seed: int = 0) -> dict[str, Any]:
    """AUC with its interval, the true positive rate at low false positive rates, and the scores themselves.

    Returns:
        JSON values: `auc`; `tpr` by rate, where the value is None with a `reason` if there are too few non-members;
        `n_members`, `n_nonmembers`; `scores` of `members` and `nonmembers`.
    """
    inside, outside = np.asarray(members, dtype=np.float64), np.asarray(others, dtype=np.float64)
    rates = {}
    for target in RATES:
        found = tpr_at_fpr(inside, outside, target)
        rates[f"{target:g}"] = {
            "estimate": None if found.estimate is None else found.estimate.model_dump(), "reason": found.reason,
        }  # fmt: skip
    return {
        "auc": auc_interval(inside, outside, seed=seed).model_dump(), "tpr": rates,
        "n_members": len(inside), "n_nonmembers": len(outside),
        "scores": {"members": inside.tolist(), "nonmembers": outside.tolist()},
    }  # fmt: skip


__all__ = ["RATES", "SETS", "AuditedRows", "judged", "logp_of", "phi_of", "shadow_attacks"]
