"""What is given to a measure: a model with pictures and texts, or ready embeddings, as embedded sides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from datasets import Dataset

from efface.data.embeddings import read_embeddings
from efface.data.items import read_items, thumbnail
from efface.errors import ConfigError, InputError, ModelError
from efface.measure.embeddings import embed_in_parts
from efface.measure.sides import EmbeddedSide, SideName
from efface.subjects.dual_encoder import DualEncoder
from efface.subjects.encoder import Encoder
from efface.subjects.load import load
from efface.subjects.subject import Subject

COLUMN: dict[SideName, str] = {"images": "image", "texts": "text"}
Source: TypeAlias = "Dataset | str | Path"


@dataclass(frozen=True)
class Given:
    """Where the items come from; each side is items for a model, ready embeddings, or both (then the items are shown).

    Attributes:
        model: subject, hub id or folder.
        images, texts: pictures and texts as `read_items` takes them.
        image_embeddings, text_embeddings: files as `read_embeddings` takes them; [N, d], row i is item i.
        logit_scale: one over the temperature, for embeddings without a model.
        logit_bias: SigLIP's b.
        statistics: files of merged parts.
        shard: (i, n): only the rows i - 1, i - 1 + n, ... of each side.
        batch_size: items in one pass of the model.
    """

    model: Subject | str | Path | None = None
    images: Source | None = None
    texts: Source | None = None
    image_embeddings: Path | None = None
    text_embeddings: Path | None = None
    logit_scale: float | None = None
    logit_bias: float | None = None
    statistics: Sequence[Path] = ()
    shard: tuple[int, int] | None = None
    batch_size: int = 64

    def items(self, name: SideName) -> Source | None:
        """The items of a side, where there are any."""
        return self.images if name == "images" else self.texts

    def file(self, name: SideName) -> Path | None:
        """The embeddings of a side, where there are any."""
        return self.image_embeddings if name == "images" else self.text_embeddings


@dataclass(frozen=True)
class Loaded:
    """The sides in memory or mapped, and what the model says about them.

    Attributes:
        sides: by name.
        data: the items of each side, where given.
        model: None for ready embeddings.
        scale, bias: of the model, or as given; scale None where neither says it.
    """

    sides: dict[SideName, EmbeddedSide]
    data: dict[SideName, Dataset]
    model: Subject | None
    scale: float | None
    bias: float | None


def load_inputs(given: Given, work: Path) -> Loaded:
    """Read items, load the model, embed (in parts below `work`, so that a killed run goes on).

    Raises:
        ConfigError: neither model nor embeddings for a side.
        ModelError: a model that has no tower for a side.
        InputError, RequestError: see the readers.
    """
    wanted: list[SideName] = [
        name for name in ("images", "texts") if given.items(name) is not None or given.file(name) is not None
    ]
    if not wanted:
        raise ConfigError("neither images nor texts", "--images, --texts, or embeddings of them", "give at least one")
    model = given.model
    subject = load(model) if isinstance(model, (str, Path)) else model
    for name in wanted:  # said before anything is embedded
        if given.file(name) is None:
            if subject is None:
                raise ConfigError(f"{name} without a model", "--model, or embeddings", "say what embeds them")
            tower_for(subject, name)
    sides: dict[SideName, EmbeddedSide] = {}
    data: dict[SideName, Dataset] = {}
    for name in wanted:
        source, file = given.items(name), given.file(name)
        if source is not None:
            data[name] = read_items(source, want=(COLUMN[name],))
        if file is not None:
            values = read_embeddings(file)
            if name in data and len(data[name]) != len(values):
                raise InputError(
                    f"{len(data[name])} {name} and {len(values)} embeddings in {file}", "one embedding an item",
                    "give the items of these embeddings, in their order",
                )  # fmt: skip
            side = EmbeddedSide(values, source=str(file))
        else:
            assert subject is not None
            found = embed_in_parts(
                tower_for(subject, name), data[name], COLUMN[name], work / name, model=subject.digest,
                batch_size=given.batch_size,
            )  # fmt: skip
            side = EmbeddedSide(found.values, keys=found.keys, modality=found.modality, source=str(source))
        sides[name] = sharded(dressed(side, data.get(name), name), given.shard)
    if given.shard is not None:
        data = {name: part.select(range(given.shard[0] - 1, len(part), given.shard[1])) for name, part in data.items()}
    scale, bias = given.logit_scale, given.logit_bias
    if isinstance(subject, DualEncoder):
        scale, bias = subject.scale if scale is None else scale, subject.bias if bias is None else bias
    return Loaded(sides, data, subject, scale, bias)


def dressed(side: EmbeddedSide, data: Dataset | None, name: SideName) -> EmbeddedSide:
    """A side with the ids, texts and small pictures of its items."""
    if data is None:
        return side
    found = replace(side, ids=list(data["id"]), texts=list(data["text"]) if "text" in data.column_names else None)
    return replace(found, thumbnail=lambda row: thumbnail(data[row]["image"])) if name == "images" else found


def tower_for(subject: Subject, name: SideName) -> Any:
    """The tower that embeds a side.

    Raises:
        ModelError: the model has none.
    """
    if isinstance(subject, DualEncoder):
        return subject.image if name == "images" else subject.text
    if isinstance(subject, Encoder):
        if subject.modality != COLUMN[name]:
            raise ModelError(
                f"{name} for '{subject.source}', an encoder of {subject.modality}s", f"a model that takes {name}",
                "give a dual encoder, or the other items",
            )  # fmt: skip
        return subject
    raise ModelError(
        f"'{subject.source}' is a {subject.kind}", "an encoder or a dual encoder", "measure takes models that embed"
    )


def sharded(side: EmbeddedSide, shard: tuple[int, int] | None) -> EmbeddedSide:
    """Every n-th row from the i-th on."""
    if shard is None:
        return side
    i, n = shard
    if not 1 <= i <= n:
        raise ConfigError(f"shard {i}/{n}", "i/n with 1 <= i <= n", "for example --shard 1/4")
    rows = range(i - 1, len(side), n)
    if len(rows) == 0:
        raise ConfigError(f"shard {i}/{n} of {len(side)} rows", "at least one row a shard", "use fewer shards")
    show = side.thumbnail

    def part(values: Sequence[Any] | None) -> list[Any] | None:
        return None if values is None else [values[row] for row in rows]

    return replace(
        side, values=np.ascontiguousarray(np.asarray(side.values)[i - 1 :: n]), ids=part(side.ids), keys=part(side.keys),
        texts=part(side.texts), thumbnail=None if show is None else (lambda row: show(rows[row])),
    )  # fmt: skip
