"""What one-shot edits share: which weights they may move, and how new values become an edit.

For methods that compute new weights from gradients in one go (dampening, Fisher noise, influence): nothing is trained.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from efface.errors import CheckFailed, ConfigError
from efface.forget.edit import WeightEdit
from efface.forget.method import FitConfig, Fitted, Method
from efface.run.cost import measure_cost
from efface.run.files import make_folder, write_json
from efface.subjects.learner import Learner
from efface.train.gradient_stats import own_parameters
from efface.train.mask_guard import refuse_masked
from efface.train.scopes import scoped
from efface.train.snapshot import Snapshot

Own = Mapping[str, torch.nn.Parameter]


class OneShotConfig(FitConfig):
    """Which weights may move. The keys of training are not used: nothing is trained."""

    scope: Literal["all", "layers"] = Field(
        "all", description="all weights, or those of some layers; frozen ones never"
    )


class Change(NamedTuple):
    """What an edit does.

    Attributes:
        values: new values by parameter name, those that change.
        notes: written beside the edit as JSON; its numbers go into the log.
        rows: how many rows it is for.
    """

    values: Iterable[tuple[str, Tensor]]
    notes: dict[str, Any]
    rows: int


def movable(subject: Learner, config: FitConfig, what: str) -> dict[str, torch.nn.Parameter]:
    """Floating parameters within the scope that are not frozen, tied ones once.

    Args:
        what: the method, for errors.

    Raises:
        ConfigError: an adapter or a quantised model, a scope that does not fit, or nothing left.
    """
    model: torch.nn.Module = subject.model
    refuse_masked(model, what)
    free = {name for name, p in model.named_parameters() if p.requires_grad}
    with scoped(model, config):
        inside = {name for name, p in model.named_parameters() if p.requires_grad}
    own = {name: p for name, p in own_parameters(model).items() if name in free & inside}
    if not own:
        raise ConfigError(
            f"{what}: every weight within scope={config.scope} is frozen", "weights that require gradients",
            "thaw them, or widen the scope",
        )  # fmt: skip
    return own


def edit_once(
    method: Method,
    subject: Learner,
    config: FitConfig,
    own: Own,
    change: Callable[[], Change],
    *,
    work: Path,
    out: Path,
) -> Fitted:
    """Put new values into the live weights, harvest the edit, and put the old bits back.

    Args:
        own: the parameters that may change, by their names in the model.
        change: computes the new values, from the subject as it was.

    Raises:
        CheckFailed: a new value is NaN or infinite, or nothing changed.
    """
    name, base = method.card.name, subject.digest
    make_folder(work)
    with measure_cost(f"fit {name}") as cost:
        made = change()
        ids = {id(p) for p in own.values()}
        live = {key: tensor for key, tensor in subject.weights().items() if id(tensor) in ids}
        with Snapshot(live, work / "base.safetensors") as snapshot:
            with torch.no_grad():
                for key, value in made.values:
                    if not bool(torch.isfinite(value).all()):
                        raise CheckFailed(f"{name}: tensor {key} would hold NaN or infinity; lower alpha")
                    own[key].copy_(value)
            if not snapshot.changed():
                raise CheckFailed(f"{name}: no weight changed by as much as its precision holds; raise alpha")
            write_json(work / f"{name}.json", made.notes)
            edit = WeightEdit.harvest(
                subject, snapshot, out, base_digest=base, method=name, claim=str(method.card.claims),
                config=config.model_dump(mode="json"), beside=[work / f"{name}.json"],
            )  # fmt: skip
        cost.items = made.rows
    subject.changed()
    shutil.rmtree(work, ignore_errors=True)
    return Fitted(edit, [cost], [{key: float(value) for key, value in made.notes.items() if isinstance(value, float)}])


__all__ = ["Change", "OneShotConfig", "edit_once", "movable"]
