"""The verb `measure`: any measure by name, on a model and items or on ready embeddings."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel
from torch import Tensor

from efface.catalog import find
from efface.errors import ConfigError, InputError
from efface.measure.gain_folder import STATISTICS, load_gain, measure_into
from efface.measure.geometry import GeometryConfig, geometry
from efface.measure.inputs import Given, Loaded, load_inputs
from efface.measure.modality_gap import ModalityGapConfig, modality_gap
from efface.measure.sides import EmbeddedSide, check_sides, survey
from efface.measure.similarity import SimilarityConfig, similarity
from efface.numerics.moments import Moments, load_moments, save_moments
from efface.run.digests import digest_value, short
from efface.run.files import refuse_occupied, whole_folder, write_json, write_with
from efface.run.manifest import MANIFEST, read_manifest, write_manifest
from efface.run.settings import Settings

Finish = Callable[[Path, Any], object]


class Reports(BaseModel):
    """The reports of one measure, by what they are about (a side, or the pairs)."""

    measure: str
    reports: dict[str, Any]


def measure(
    name: str, *, out: str | Path | None = None, against: Any = None, against_image_embeddings: Path | None = None,
    against_text_embeddings: Path | None = None, finish: Finish | None = None, given: Given | None = None, **values: Any,
) -> Any:  # fmt: skip
    """Measure a representation.

    Args:
        name: `information-gain`, `geometry`, `modality-gap` or `similarity`.
        out: folder for the results; needed for information gain, whose results are tables.
        against: for `similarity`: the other model; or embeddings of the other in `against_*_embeddings`.
        finish: called with the folder and the result before the folder is whole (a page is added there).
        given: where the items come from; or its fields as keywords (model, images, texts, image_embeddings, ...).
        values: fields of `Given`, and the measure's own keys; unknown ones raise `ConfigError`.

    Returns:
        a `GainResult` for information gain, else the reports by side.

    Raises:
        InputError and its kinds, each in one line.
    """
    module = find(name, "measure").module
    fields = {key: values.pop(key) for key in list(values) if key in Given.__dataclass_fields__}
    given = replace(given, **fields) if given is not None else Given(**fields)
    config = module.CONFIG.parse(values, owner=name)
    if name == "information-gain":
        if out is None:
            raise ConfigError("information gain without a folder", "--out", "say where its tables go")
        return _gain(given, Path(out), config, finish)
    other = None
    if name == "similarity":
        other = replace(given, model=against, image_embeddings=against_image_embeddings,
                        text_embeddings=against_text_embeddings)  # fmt: skip
        if against is None and against_image_embeddings is None and against_text_embeddings is None:
            raise ConfigError("similarity without a second model", "--against", "say what to compare with")
    if out is not None and not (Path(out) / MANIFEST).exists():
        refuse_occupied(Path(out))
    work = _work(Path(out)) if out is not None else None
    with _temporary(work) as place:
        loaded = load_inputs(given, place / "first")
        second = None if other is None else load_inputs(other, place / "second")
        reports = _reports(name, loaded, second, config)
    result = Reports(measure=name, reports={key: report.model_dump(mode="json") for key, report in reports.items()})
    if out is not None:
        _store(Path(out), result, config, finish)
        shutil.rmtree(_work(Path(out)), ignore_errors=True)
    return reports


def _work(out: Path) -> Path:
    return out.parent / f".{out.name}-parts"


class _temporary:
    """The work folder that is given, or one that goes away."""

    def __init__(self, path: Path | None) -> None:
        self.path = path

    def __enter__(self) -> Path:
        import tempfile

        self.made = None if self.path is not None else tempfile.mkdtemp(prefix="efface-measure-")
        return Path(self.made) if self.made else Path(str(self.path))

    def __exit__(self, *_: object) -> None:
        if self.made:
            shutil.rmtree(self.made, ignore_errors=True)


def rows_of(side: EmbeddedSide) -> Tensor:
    """[N, d] in memory."""
    values = side.values
    return values if isinstance(values, Tensor) else torch.from_numpy(np.array(values))


def _labels(loaded: Loaded, name: str) -> Tensor | None:
    data = loaded.data.get(name)  # type: ignore[call-overload]
    if data is None or "label" not in data.column_names:
        return None
    labels = torch.tensor(data["label"], dtype=torch.int64)
    return labels if len(set(labels.tolist())) < len(labels) else None  # one of each: tolerance has nothing to compare


def _reports(name: str, loaded: Loaded, second: Loaded | None, config: Settings) -> dict[str, BaseModel]:
    rows = {side: rows_of(values) for side, values in loaded.sides.items()}
    if name == "similarity":
        assert second is not None
        assert isinstance(config, SimilarityConfig)
        if loaded.sides.keys() != second.sides.keys():
            raise InputError(f"{sorted(loaded.sides)} of one and {sorted(second.sides)} of the other", "the same sides")
        return {
            side: similarity(rows[side], rows_of(second.sides[side]), ids_a=loaded.sides[side].names(),
                             ids_b=second.sides[side].names(), config=config)
            for side in rows
        }  # fmt: skip
    pairs = len(rows) == 2 and len({len(values) for values in rows.values()}) == 1
    by_row = _align(loaded, rows) if pairs else False
    if name == "modality-gap":
        if not pairs:
            raise InputError(
                f"{' and '.join(f'{len(v)} {s}' for s, v in rows.items())}", "as many images as texts, in pairs",
                "give both sides of the same pairs, in one order",
            )  # fmt: skip
        assert isinstance(config, ModalityGapConfig)
        return {"pairs": _gap(loaded, rows, config, by_row)}
    assert isinstance(config, GeometryConfig)
    found: dict[str, BaseModel] = {
        side: geometry(values, None, _labels(loaded, side), config) for side, values in rows.items()
    }
    if pairs:
        found["pairs"] = geometry(rows["images"], rows["texts"], None, config)
        gap = ModalityGapConfig(t=config.t, tile=config.tile, seed=config.seed)
        found["modality gap"] = _gap(loaded, rows, gap, by_row)
    return found


def _align(loaded: Loaded, rows: dict[Any, Tensor]) -> bool:
    """Bring the texts into the pictures' order where both have the same ids; says whether rows count as pairs unproved."""
    images, texts = (loaded.sides[name].names() for name in ("images", "texts"))
    if images == texts or len(set(texts)) < len(texts) or set(images) != set(texts):
        return images != texts
    place = {key: row for row, key in enumerate(texts)}
    order = [place[key] for key in images]
    rows["texts"] = rows["texts"][torch.tensor(order)]
    side = loaded.sides["texts"]
    moved = None if side.texts is None else [side.texts[row] for row in order]
    loaded.sides["texts"] = replace(side, values=rows["texts"], ids=images, texts=moved, keys=None)
    return False


def _gap(loaded: Loaded, rows: dict[Any, Tensor], config: ModalityGapConfig, by_row: bool) -> BaseModel:
    report = modality_gap(rows["images"], rows["texts"], ids=_meanings(loaded), config=config)
    if by_row:
        note = "pictures and texts were paired by row: their ids differ; check that they stand in one order"
        report = report.model_copy(update={"warnings": [*report.warnings, note]})
    return report


def _meanings(loaded: Loaded) -> Tensor | None:
    """[N] equal numbers for equal texts: each is a right answer for the other's picture."""
    texts = loaded.sides["texts"].texts
    if texts is None:
        return None
    numbers: dict[str, int] = {}
    return torch.tensor([numbers.setdefault(text, len(numbers)) for text in texts])


def _store(out: Path, result: Reports, config: Settings, finish: Finish | None) -> None:
    inputs = digest_value({"config": config.model_dump(mode="json"), "reports": result.reports})
    if (out / MANIFEST).exists() and read_manifest(out).get("inputs") == inputs:
        return
    with whole_folder(out) as partial:
        write_json(
            partial / "measure.json", {**result.model_dump(mode="json"), "config": config.model_dump(mode="json")}
        )
        if finish is not None:
            finish(partial, result)
        write_manifest(partial, kind=result.measure, inputs=inputs)


def _gain(given: Given, out: Path, config: Any, finish: Finish | None) -> Any:
    """Information gain into a folder; a shard without statistics of the whole only gives its own statistics."""
    if not (out / MANIFEST).exists():
        refuse_occupied(out)
    if not given.statistics:  # said before anything is embedded
        for name in ("images", "texts"):
            if given.items(name) is None and given.file(name) is None:
                raise InputError(
                    f"no {name}", "both sides: one is measured against a sample of the other",
                    f"give {name}, or statistics of both sides from files",
                )  # fmt: skip
    work = _work(out)
    loaded = load_inputs(given, work / "embeddings")
    if given.shard is not None and not given.statistics:
        return _statistics(loaded, out, work, config)
    if loaded.model is not None:
        for path in given.statistics:
            for name, moments in load_moments(Path(path)).items():
                if moments.source and moments.source != loaded.model.digest:
                    raise InputError(
                        f"{path} holds {name} of the model {short(moments.source)}, not of '{loaded.model.source}' "
                        f"({short(loaded.model.digest)})", "statistics of this model", "gather them with the same weights",
                    )  # fmt: skip
    if loaded.scale is None:
        raise ConfigError(
            "no scale" if loaded.model is None else f"'{loaded.model.source}' has no scale", "one over the temperature",
            "give --logit-scale (CLIP's 100, not its logarithm 4.6)",
        )  # fmt: skip
    result = measure_into(
        out, loaded.sides.get("images"), loaded.sides.get("texts"), scale=loaded.scale, bias=loaded.bias,
        model=None if loaded.model is None else loaded.model.record(), config=config,
        statistics=list(given.statistics) or None, work=work / "scores",
        device="cuda" if torch.cuda.is_available() else "cpu", finish=finish,
    )  # fmt: skip
    shutil.rmtree(work, ignore_errors=True)
    return result


def _statistics(loaded: Loaded, out: Path, work: Path, config: Any) -> dict[str, Moments]:
    """Mean and scatter of a shard, checked as a whole is, and its embeddings."""
    check_sides(loaded.sides.get("images"), loaded.sides.get("texts"))
    moments = {
        str(name): survey(
            name, side, normalize=config.normalize, unit_needed=False, sample_size=config.sample_size, seed=config.seed
        ).moments
        for name, side in loaded.sides.items()
    }  # fmt: skip
    for found in moments.values():
        found.source = "" if loaded.model is None else loaded.model.digest
    with whole_folder(out) as partial:
        save_moments(partial / STATISTICS, moments)
        for name, side in loaded.sides.items():
            values = np.asarray(side.values)
            write_with(partial / f"{name}.npy", lambda path, values=values: _save(path, values))  # type: ignore[misc]
        write_manifest(partial, kind="statistics")
    shutil.rmtree(work, ignore_errors=True)
    return moments


def _save(path: Path, values: Any) -> None:
    with open(path, "wb") as handle:
        np.save(handle, values, allow_pickle=False)


__all__ = ["Reports", "load_gain", "measure"]
