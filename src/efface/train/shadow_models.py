"""Shadow models: many models of a predictor's form, each trained on a random half of the data, kept for every later request.

Attacks that ask how a model treats an example with and without it in training (LiRA, RMIA) read everything from what the
shadow models say about the candidates. All rows of a request are candidates, forget, retain and holdout set alike, so the
models depend on the data, the form and the recipe, and not on what is to be forgotten: a later request with other forget rows
over the same data trains nothing.

Model 2k is trained on a random half of the candidates, model 2k + 1 on the other half. So every candidate is IN for half of
the models and OUT for the other half, with any even number of them, and more models are trained without a change to those
that are there. Equal rows (same input, same answer) are one candidate.

Kept in the cache folder under `attacks/shadows` (`efface purge` lists and removes it): a folder for each set of data, form
and recipe, with settings.json and, for each model, its logits and its row of the keep matrix; on request its weights.
"""

from __future__ import annotations

import copy
import functools
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from datasets import Dataset
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from efface.data.request import Request
from efface.errors import ConfigError, InputError, ModelError
from efface.run.cost import Cost
from efface.run.digests import digest_tensors, digest_value
from efface.run.files import make_folder, write_json, write_with
from efface.subjects.predictor import Predictor
from efface.subjects.samples import Sample
from efface.subjects.subject import Subject
from efface.train.config import TrainConfig
from efface.train.engine import isolated_rng
from efface.train.model_stack import Keep, outputs_of, train_stack
from efface.train.reference import cache_folder, rows_digest

MODELS = 64
"""LiRA, online (arXiv 2112.03570)."""

SHOWN = ("image", "text", "features", "label", "target")

LEAST = 4
"""Candidates below which there is nothing to halve."""

STACK_BYTES = 2**31
"""Weights, gradients and optimiser state of the models that are trained together take at most this."""

RECIPE = (
    "learning_rate", "epochs", "batch_size", "optimizer", "momentum", "weight_decay", "warmup_ratio", "schedule",
    "max_grad_norm",
)  # fmt: skip
"""What of a training configuration the models depend on."""


@dataclass(frozen=True)
class ShadowModels:
    """What N shadow models say about n candidates.

    Attributes:
        logits: [N, n, K] float32, or [N, n, 1] numbers.
        keep: [N, n] true where the model was trained on the candidate.
        places: key and answer of a candidate -> its column.
        targets: [n] class indices, or numbers.
        task: `classification` or `regression`.
        folder: where they are kept.
        trained: how many were trained in this call; 0 says that all of them were there.
        seconds: wall-clock seconds of this call.
        notes: what is to be known about how they were trained.
        settings: what they depend on.
    """

    logits: npt.NDArray[np.float32]
    keep: Keep
    places: Mapping[tuple[str, float], int] = field(repr=False)
    targets: npt.NDArray[np.float64]
    task: str
    folder: Path
    trained: int
    seconds: float
    notes: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.logits)

    def columns(self, rows: Sequence[Sample]) -> npt.NDArray[np.int64]:
        """The columns of rows.

        Raises:
            InputError: a row that is no candidate.
        """
        for index, row in enumerate(rows):
            if _identity(row) not in self.places:
                raise InputError(
                    f"row {index} is not among the {len(self.places)} candidates of the shadow models",
                    "rows of the request that they were trained for", "train them with all rows of this request",
                )  # fmt: skip
        return np.array([self.places[_identity(row)] for row in rows], dtype=np.int64)

    def predictor(self, index: int, like: Predictor) -> Predictor:
        """A shadow model with its weights.

        Args:
            like: a predictor of the same form.

        Raises:
            InputError: its weights were not kept.
        """
        path = _paths(self.folder, index)[1]
        if not path.exists():
            raise InputError(
                f"the weights of shadow model {index} were not kept", "kept weights", "ask with weights=True"
            )
        with isolated_rng(0):
            module = like.fresh().to(like.device)
        made = Predictor(
            module.eval(), like.part, form=like.form, head=like.head_name, source=f"shadow model {index}",
            trust_remote_code=like.trust_remote_code,
        )  # fmt: skip
        put_weights(made, load_file(path))
        return made


def put_weights(subject: Predictor, weights: Mapping[str, Tensor]) -> None:
    """Give a predictor other weights, by the names of `Predictor.weights`.

    Raises:
        ModelError: other names or shapes.
    """
    own = subject.weights()
    wrong = sorted(own.keys() ^ weights.keys()) or [name for name in own if own[name].shape != weights[name].shape]
    if wrong:
        raise ModelError(
            f"weights for '{subject.source}': tensor {wrong[0]} does not fit", "all tensors of the same form"
        )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(weights[name])
    subject.changed()


# -- candidates ----------------------------------------------------------------------------------------------------


def request_sets(request: Request) -> dict[str, Dataset]:
    """The sets of a request that a model could have been trained on: forget, retain and holdout set, and the evaluation sets
    of the same columns and classes (test rows of a class to be forgotten); not the `downstream` sets."""
    found = {}
    for name, data in request.sets().items():
        alike = all(data.features.get(key) == value for key, value in request.forget.features.items() if key in SHOWN)
        if not name.startswith("evaluate.") or (alike and not name.startswith("evaluate.downstream")):
            found[name] = data
    return found


def request_rows(subject: Predictor, request: Request) -> list[Sample]:
    """All rows of `request_sets`: what shadow models are to be asked about."""
    return [row for name, data in request_sets(request).items() for row in subject.encode_rows(data, name=name)]


def candidates(rows: Iterable[Sample]) -> list[Sample]:
    """Distinct rows in an order of their own, whatever order and split they came in."""
    found = {_identity(row): row for row in rows}
    return [found[key] for key in sorted(found)]


def _identity(row: Sample) -> tuple[str, float]:
    return row.key, float(row.target)


def keep_matrix(models: int, examples: int, seed: int) -> Keep:
    """[models, examples]: rows 2k and 2k + 1 are a random half and its complement, by the seed and k alone.

    Raises:
        ConfigError: an odd number of models, or none.
    """
    if models < 2 or models % 2:
        raise ConfigError(
            f"{models} shadow models", "an even number, 2 or more: each half of the data has its complement"
        )
    keep = np.zeros((models, examples), dtype=np.bool_)
    for pair in range(models // 2):
        chosen = np.random.default_rng([seed, pair, 0x5AD0]).permutation(examples)[: examples // 2]
        keep[2 * pair, chosen] = True
        keep[2 * pair + 1] = ~keep[2 * pair]
    return keep


# -- the models ----------------------------------------------------------------------------------------------------


def shadow_models(
    subject: Predictor, rows: Iterable[Sample], recipe: TrainConfig, *, models: int = MODELS, seed: int = 0,
    weights: bool = False, start: Predictor | None = None, together: int | None = None, cache: Path | None = None,
    cost: Cost | None = None,
) -> ShadowModels:  # fmt: skip
    """Train shadow models, or load those that are kept.

    Args:
        subject: the audited model, for its form: `Predictor.fresh()` gives the starts. It is not changed.
        rows: everything that may be asked about; see `request_rows`.
        recipe: how the audited model was trained; its seed is not used.
        models: N, even.
        seed: of the halves, the starting weights and the orders.
        weights: keep the weights too (N times the model's size), for attacks that go on with the models.
        start: what the audited model was fine-tuned from, if not from fresh weights; it must not have seen the candidates.
            Its parameters that require no gradient stay as they are.
        together: models in one stack; default: as many as fit 2 GiB with gradients and optimiser state.
        cache: folder; default `attacks/shadows` in the cache folder.
        cost: record to add items to; nothing is added for models that are kept.

    Raises:
        InputError: fewer than four candidates.
        ConfigError: an odd number of models.
        Diverged: a loss became NaN or infinite.
    """
    begun = time.perf_counter()
    chosen = candidates(rows)
    if len(chosen) < LEAST:
        raise InputError(f"{len(chosen)} distinct rows for shadow models", f"{LEAST} or more", "give more rows")
    keep = keep_matrix(models, len(chosen), seed)
    settings = {
        "kind": "shadow models", "form": form_digest(subject), "start": None if start is None else _start_key(start),
        "rows": rows_digest(chosen), "prepared": digest_tensors(chosen[0].make()), "seed": seed,
        "recipe": {name: getattr(recipe, name) for name in RECIPE}, "torch": torch.__version__,
    }  # fmt: skip
    folder = (cache or cache_folder() / "attacks" / "shadows") / digest_value(settings).removeprefix("sha256:")[:32]
    kept = {index: _stored(folder, index, keep[index], weights) for index in range(models)}
    missing = [index for index, found in kept.items() if found is None]
    if missing:
        write_json(make_folder(folder) / "settings.json", settings)
        size = together or max(1, STACK_BYTES // (16 * subject.n_parameters))
        for first in range(0, len(missing), size):
            part = missing[first : first + size]
            made = _trained(subject, chosen, keep, recipe, part, seed, start, folder, weights)
            kept.update(made)
        if cost is not None:
            cost.items += round(recipe.epochs * len(missing) * len(chosen) / 2) + len(missing) * len(chosen)
    whole = [found for found in kept.values() if found is not None]
    return ShadowModels(
        logits=np.stack([logits for logits, _ in whole]), keep=keep,
        places={_identity(row): column for column, row in enumerate(chosen)},
        targets=np.array([row.target for row in chosen], dtype=np.float64), task=subject.task, folder=folder,
        trained=len(missing), seconds=time.perf_counter() - begun,
        notes=tuple(sorted({note for _, note in whole if note})), settings=settings,
    )  # fmt: skip


def form_digest(subject: Predictor) -> str:
    """Digest of what a predictor is built like, whatever its weights and wherever it lies."""
    if subject.form is not None:
        form: Any = subject.form.model_dump(mode="json")
    else:
        told = json.loads(subject.model.config.to_json_string(use_diff=False))
        form = {
            name: value for name, value in told.items() if not name.startswith("_") and name != "transformers_version"
        }
    shapes = {name: list(tensor.shape) for name, tensor in subject.weights().items()}
    return digest_value(
        {"class": type(subject.model).__qualname__, "form": form, "shapes": shapes, "task": subject.task}
    )


def _start_key(start: Predictor) -> list[Any]:
    return [start.digest, sorted(name for name, tensor in start.model.named_parameters() if not tensor.requires_grad)]


Stored = tuple[npt.NDArray[np.float32], str]
"""Logits [n, K] and a note."""


def _paths(folder: Path, index: int) -> tuple[Path, Path]:
    return folder / f"{index:04d}.safetensors", folder / f"{index:04d}.weights.safetensors"


def _stored(folder: Path, index: int, keep: npt.NDArray[np.bool_], weights: bool) -> Stored | None:
    """What is kept of a model; a damaged file counts as absent."""
    path, heavy = _paths(folder, index)
    if not path.exists() or (weights and not heavy.exists()):
        return None
    try:
        with safe_open(path, framework="pt") as file:
            logits, own = file.get_tensor("logits").numpy(), file.get_tensor("keep").numpy()
            note = (file.metadata() or {}).get("note", "")
    except SafetensorError:
        path.unlink(missing_ok=True)
        return None
    return (logits, note) if np.array_equal(own.astype(np.bool_), keep) else None


def _seed(seed: int, index: int, purpose: int) -> int:
    return int(np.random.SeedSequence([seed, index, purpose]).generate_state(1)[0])


def _trained(
    subject: Predictor, rows: Sequence[Sample], keep: Keep, recipe: TrainConfig, indices: Sequence[int], seed: int,
    start: Predictor | None, folder: Path, weights: bool,
) -> dict[int, Stored]:  # fmt: skip
    modules = []
    for index in indices:
        if start is not None:
            modules.append(copy.deepcopy(start.model))
            continue
        with isolated_rng(_seed(seed, index, 1)):
            modules.append(subject.fresh())
    note = train_stack(
        subject, modules, rows, keep[list(indices)], recipe, seeds=[_seed(seed, index, 2) for index in indices],
        label=f"shadow models {indices[0]} to {indices[-1]}",
    )  # fmt: skip
    found: dict[int, Stored] = {}
    for index, module in zip(indices, modules, strict=True):
        path, heavy = _paths(folder, index)
        logits = outputs_of(subject, module, rows).contiguous()
        if weights:
            tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in Subject(module).weights().items()}
            write_with(heavy, functools.partial(save_file, tensors))
        both = {"logits": logits, "keep": torch.from_numpy(keep[index]).to(torch.uint8)}
        write_with(path, functools.partial(save_file, both, metadata={"note": note}))
        found[index] = (logits.numpy(), note)
    return found


__all__ = [
    "MODELS", "ShadowModels", "candidates", "form_digest", "keep_matrix", "put_weights", "request_rows", "request_sets",
    "shadow_models",
]  # fmt: skip
