"""Several encoders of one kind of item as one: the concatenation of their unit rows.

Multistage contrastive learning (arXiv 2402.11816) keeps the encoder of every stage, since each has learnt what the others
left out. The cosine of two concatenated rows is the mean of the parts' cosines. Inference costs the sum of the parts: one
pass through each.

On the disk: `ensemble.json` names the parts, each of which lies in a sub-folder of that name as any encoder does.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from efface.errors import ModelError
from efface.run.files import read_json, write_json
from efface.subjects.encoder import Encoder, load_encoder
from efface.subjects.loading import ENSEMBLE
from efface.subjects.tower import Modality, Tower


class EnsembleTower(Tower):
    """The parts' towers side by side; all prepare items alike."""

    def __init__(self, module: Any, towers: Sequence[Any], modality: Modality, source: str, width: int) -> None:
        super().__init__(module, modality, source)
        self.towers, self._width = towers, width

    def prepare(self, items: Sequence[Any]) -> dict[str, Tensor]:
        """As each part prepares them."""
        inputs: dict[str, Tensor] = self.towers[0].prepare(items)
        return inputs

    def features(self, inputs: dict[str, Tensor]) -> Tensor:
        """[B, sum of widths] with gradient: unit rows of every part."""
        return torch.cat([nn.functional.normalize(one.features(inputs).float(), dim=1) for one in self.towers], dim=1)

    @property
    def image_processor(self) -> Any:
        """The parts' PIL image processor, None for other items."""
        return getattr(self.towers[0], "image_processor", None)


class EnsembleEncoder(Encoder):
    """Encoders of one modality whose unit rows are concatenated.

    Args:
        parts: one or more; they prepare items alike (the same image processor, tokenizer or size of array).

    Raises:
        ModelError: no parts, or parts that take different items or prepare them differently.
    """

    def __init__(self, parts: Sequence[Encoder], *, source: str = "in memory", **facts: Any) -> None:
        if not parts:
            raise ModelError("an ensemble of no encoders", "one or more")
        kinds = {part.modality for part in parts}
        if len(kinds) > 1:
            raise ModelError(f"an ensemble of encoders of {' and '.join(sorted(kinds))}", "one kind of item")
        ways = [_preparation(part) for part in parts]
        if any(way != ways[0] for way in ways):
            raise ModelError(
                "an ensemble of encoders that prepare items differently", "one image processor, tokenizer or array size",
                "train the parts from one start",
            )  # fmt: skip
        module = nn.ModuleList([part.model for part in parts])
        super().__init__(module, modality=parts[0].modality, source=source, **facts)
        self.parts = list(parts)

    @property
    def tower(self) -> Tower:
        """What runs the present modules."""
        return EnsembleTower(self.model, [part.tower for part in self.parts], self.modality, self.source, self.width)

    @property
    def width(self) -> int:
        """The sum of the parts' widths."""
        return sum(part.width for part in self.parts)

    def changed(self) -> None:
        """Say that the weights are other ones now, of the parts too."""
        super().changed()
        for part in self.parts:
            part.changed()

    def save_into(self, folder: Path) -> None:
        """Write `ensemble.json` and each part into a sub-folder."""
        names = [f"part-{place}" for place in range(len(self.parts))]
        for name, part in zip(names, self.parts, strict=True):
            (folder / name).mkdir(parents=True, exist_ok=True)
            part.save_into(folder / name)
        write_json(folder / ENSEMBLE, {"kind": "encoder", "modality": self.modality, "parts": names})


def _preparation(part: Encoder) -> Any:
    """What makes two encoders prepare items alike, comparable by value."""
    if part.modality == "features":
        return getattr(part.model.config, "inputs", None)
    if part.part is None:
        own = getattr(part.model, "tokenizer", None)  # sentence-transformers: it prepares by itself
        return own.get_vocab() if own is not None and hasattr(own, "get_vocab") else None, getattr(
            part.model, "max_seq_length", None
        )
    if part.modality == "image":
        found = dict(part.part.to_dict())
        return {name: found[name] for name in found if not name.startswith("_")}
    return part.part.get_vocab(), getattr(part.tower, "max_length", None)


def load_ensemble(source: str | Path, **options: Any) -> EnsembleEncoder:
    """Load the parts that `ensemble.json` of a folder names; options as of `load_encoder`.

    Raises:
        ModelError: a file that names no parts, or parts outside the folder; see `load_encoder`.
    """
    place = Path(source).expanduser()
    form = read_json(place / ENSEMBLE)
    names = form.get("parts") if isinstance(form, dict) else None
    plain = isinstance(names, list) and all(isinstance(name, str) and name == Path(name).name != "" for name in names)
    if not names or not plain or ".." in names:
        raise ModelError(
            f"{place / ENSEMBLE} names no parts", "a list 'parts' of sub-folders", "save the ensemble again"
        )
    parts = [load_encoder(place / name, **options) for name in names]
    return EnsembleEncoder(parts, source=str(source), trust_remote_code=bool(options.get("trust_remote_code", False)))


__all__ = ["EnsembleEncoder", "load_ensemble"]
