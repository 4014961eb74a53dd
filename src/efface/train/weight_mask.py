"""Weight masks: which single weights may move, as one boolean a weight.

A mask comes from scores (the top share over all weights together, or of each tensor), or from module names. It knows how
much it selects and where, how far it agrees with another one, and is stored in one bit a weight with the digests of the
model and the data that it was made from. What a mask does not name is frozen.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from efface.errors import ConfigError, InputError, RunError, StorageError, nearest
from efface.run.files import write_with
from efface.train.gradient_stats import own_parameters
from efface.train.mask_threshold import apply_cuts, cuts

FORMAT = "efface weight mask 1"


class MaskFacts(BaseModel):
    """Where a mask comes from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    selector: str = Field("given", description="what the scores were, or 'names'")
    density: float | None = Field(None, description="share that was asked for")
    per_layer: bool = Field(False, description="ranked within each tensor, not over all together")
    model: str | None = Field(None, description="digest of the model")
    data: dict[str, str] = Field(default_factory=dict, description="digest of each data set by role")
    gamma: float | None = Field(None, description="WAGLE's constant for the diagonal of the retain loss's Hessian")
    retain_share: float | None = Field(
        None, description="share of the retain term in WAGLE's score: sum |g_r g_f| / gamma over the sum of both terms"
    )


@dataclass(frozen=True)
class WeightMask:
    """One boolean a weight.

    Attributes:
        masks: by parameter name (tied weights once); True may move.
        facts: where it comes from.
    """

    masks: dict[str, Tensor]
    facts: MaskFacts = field(default_factory=MaskFacts)

    # -- making ---------------------------------------------------------------------------------------------------

    @classmethod
    def from_scores(
        cls, scores: Mapping[str, Tensor], density: float, *, per_layer: bool = False, largest: bool = True,
        facts: MaskFacts | None = None,
    ) -> WeightMask:  # fmt: skip
        """The top `density` share; see `several`."""
        return cls.several(scores, [density], per_layer=per_layer, largest=largest, facts=facts)[0]

    @classmethod
    def several(
        cls, scores: Mapping[str, Tensor], densities: Sequence[float], *, per_layer: bool = False, largest: bool = True,
        facts: MaskFacts | None = None,
    ) -> list[WeightMask]:  # fmt: skip
        """Masks of several densities; all thresholds come from one selection.

        Args:
            scores: by parameter name, ranked as float32; a mapping may compute them when asked.
            densities: shares of all entries, each in (0, 1]; round(density * N) entries are selected, to the entry.
            per_layer: rank within each tensor; the tensors' counts add up to the same number.
            largest: False selects the lowest scores.

        Raises:
            ConfigError: a density out of range.
            InputError: no scores, or a score that is NaN or infinite.
        """
        for density in densities:
            if not 0 < density <= 1:
                raise ConfigError(f"density={density}", "above 0 and at most 1")
        sizes = {name: scores[name].numel() for name in scores}
        total = sum(sizes.values())
        if not total:
            raise InputError("no weights to rank", "at least one", "widen mask_modules or layers")
        counts = [round(density * total) for density in densities]
        found: list[dict[str, Tensor]] = [{} for _ in counts]
        if per_layer:
            shares = [_shares(list(sizes.values()), count) for count in counts]
            for i, name in enumerate(sizes):
                one = {name: scores[name]}
                own = apply_cuts(one, cuts(one, [share[i] for share in shares], largest=largest), largest=largest)
                for masks, part in zip(found, own, strict=True):
                    masks.update(part)
        else:
            found = apply_cuts(scores, cuts(scores, counts, largest=largest), largest=largest)
        base = facts or MaskFacts()
        return [
            cls(masks, base.model_copy(update={"density": density, "per_layer": per_layer}))
            for masks, density in zip(found, densities, strict=True)
        ]

    @classmethod
    def from_names(cls, model: torch.nn.Module, patterns: Sequence[str]) -> WeightMask:
        """Everything in the modules or parameters that the patterns name; see `matching`."""
        chosen = matching(own_parameters(model), patterns)
        masks = {n: torch.ones_like(p, dtype=torch.bool) for n, p in own_parameters(model, chosen).items()}
        return cls(masks, MaskFacts(selector="names"))

    # -- figures --------------------------------------------------------------------------------------------------

    @property
    def size(self) -> int:
        """Entries that the mask speaks of."""
        return sum(mask.numel() for mask in self.masks.values())

    @property
    def selected(self) -> int:
        """Entries that may move."""
        return sum(int(mask.sum()) for mask in self.masks.values())

    @property
    def density(self) -> float:
        """Share of the entries that may move."""
        return self.selected / self.size

    def counts(self) -> dict[str, tuple[int, int]]:
        """(selected, all) by the module's own name: `q_proj`, `embed_tokens`, `input_layernorm`."""
        found: dict[str, tuple[int, int]] = {}
        for name, mask in self.masks.items():
            kind = name.rpartition(".")[0].rpartition(".")[2] or name
            selected, size = found.get(kind, (0, 0))
            found[kind] = (selected + int(mask.sum()), size + mask.numel())
        return dict(sorted(found.items()))

    def union(self, other: WeightMask) -> WeightMask:
        """What either lets move."""
        return self._with(other, torch.logical_or)

    def intersection(self, other: WeightMask) -> WeightMask:
        """What both let move."""
        return self._with(other, torch.logical_and)

    def jaccard(self, other: WeightMask) -> float:
        """|both| / |either|; 1 where neither selects anything."""
        either = self.union(other).selected
        return self.intersection(other).selected / either if either else 1.0

    def _with(self, other: WeightMask, operation: Any) -> WeightMask:
        """Entry by entry; a tensor that one of the two does not name is frozen there."""
        masks = {}
        for name in [*self.masks, *(name for name in other.masks if name not in self.masks)]:
            ours, theirs = self.masks.get(name), other.masks.get(name)
            known = ours if ours is not None else theirs
            assert known is not None
            if ours is not None and theirs is not None and ours.shape != theirs.shape:
                raise InputError(
                    f"'{name}' has shapes {tuple(ours.shape)} and {tuple(theirs.shape)}", "one model's masks"
                )
            none = torch.zeros_like(known)
            left, right = (ours if ours is not None else none), (theirs if theirs is not None else none)
            masks[name] = operation(left, right.to(left.device))
        same = self.facts.model == other.facts.model
        return WeightMask(masks, MaskFacts(selector="combined", model=self.facts.model if same else None))

    def parameters(self, model: torch.nn.Module, digest: str | None = None) -> dict[str, torch.nn.Parameter]:
        """The model's parameters that the mask names.

        Args:
            digest: of the model, compared with the one that the mask was made on where both are known.

        Raises:
            InputError: a name that the model lacks, the second name of a tied weight, another shape.
            RunError: made on another model.
        """
        own = own_parameters(model, self.masks)
        for name, parameter in own.items():
            if parameter.shape != self.masks[name].shape:
                raise InputError(
                    f"the mask of '{name}' has shape {tuple(self.masks[name].shape)}",
                    f"{tuple(parameter.shape)}, the parameter's", "use a mask made on this model",
                )  # fmt: skip
        if digest and self.facts.model and digest != self.facts.model:
            raise RunError(
                f"the mask was made on the model {self.facts.model[:19]}", f"{digest[:19]}, this one",
                "make it again on this model",
            )  # fmt: skip
        return own

    # -- storing --------------------------------------------------------------------------------------------------

    def save(self, path: Path) -> Path:
        """One bit a weight, with names, shapes and facts, in a safetensors file.

        Raises:
            StorageError: cannot be written.
        """
        packed = {n: torch.from_numpy(np.packbits(mask.cpu().numpy().reshape(-1))) for n, mask in self.masks.items()}
        shapes = {name: list(mask.shape) for name, mask in self.masks.items()}
        meta = {"format": FORMAT, "facts": self.facts.model_dump_json(), "shapes": json.dumps(shapes)}
        return write_with(Path(path), lambda partial: save_file(packed, partial, metadata=meta))

    @classmethod
    def load(cls, path: str | Path) -> WeightMask:
        """Read what `save` wrote.

        Raises:
            RunError: no mask there.
            StorageError: not whole.
        """
        path = Path(path)
        if not path.is_file():
            raise RunError(f"no mask at '{path}'", "a file written by WeightMask.save", "check the path")
        try:
            with safe_open(path, framework="pt") as file:
                meta = file.metadata() or {}
                if meta.get("format") != FORMAT:
                    raise RunError(f"'{path}' is not a weight mask", "a file written by WeightMask.save")
                facts, shapes = MaskFacts.model_validate_json(meta["facts"]), json.loads(meta["shapes"])
                masks = {}
                for name, shape in shapes.items():
                    bits = np.unpackbits(file.get_tensor(name).numpy(), count=int(np.prod(shape)))
                    masks[name] = torch.from_numpy(bits.astype(bool)).view(shape)
        except (SafetensorError, ValidationError, ValueError, KeyError) as error:
            raise StorageError(f"{path} is not a whole weight mask ({str(error)[:100]})") from error
        return cls(masks, facts)


def _shares(sizes: Sequence[int], count: int) -> list[int]:
    """Split a count over tensors in proportion to their sizes; what rounding leaves goes to the largest remainders."""
    total = sum(sizes)
    exact = [size * count / total for size in sizes]
    found = [min(int(x), size) for x, size in zip(exact, sizes, strict=True)]
    order = sorted(range(len(sizes)), key=lambda i: (found[i] - exact[i], i))
    rest = count - sum(found)
    for i in [*order, *order]:
        if rest and found[i] < sizes[i]:
            found[i] += 1
            rest -= 1
    return found


def matching(names: Iterable[str], patterns: Sequence[str]) -> list[str]:
    """Names that a pattern fits from their beginning and in whole parts.

    A pattern is dotted as the names are, each part may hold `*` and `?`: `model.layers.1` fits everything in layer 1 and
    nothing in layer 10; `model.layers.*.mlp` fits every MLP; `mlp` alone fits nothing.

    Raises:
        ConfigError: a pattern that fits no name; suggests the nearest module.
    """
    known = list(names)
    found: set[str] = set()
    for pattern in patterns:
        parts = pattern.strip().split(".")
        fits = [name for name in known if _fits(name.split("."), parts)]
        if not fits:
            modules = {".".join(name.split(".")[:end]) for name in known for end in range(1, name.count(".") + 2)}
            raise ConfigError(
                f"'{pattern}' names no weight of this model",
                "a name from its beginning, such as 'model.layers.*.mlp'", nearest(pattern, modules),
            )  # fmt: skip
        found.update(fits)
    return [name for name in known if name in found]


def _fits(name: Sequence[str], pattern: Sequence[str]) -> bool:
    return len(pattern) <= len(name) and all(fnmatchcase(part, want) for part, want in zip(name, pattern, strict=False))
