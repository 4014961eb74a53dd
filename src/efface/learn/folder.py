"""The folder of a trained model: made whole at the end, gone on with after a kill, never replaced."""

from __future__ import annotations

import contextlib
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from efface.errors import RunError
from efface.run.cost import Cost
from efface.run.digests import digest_value, short
from efface.run.files import make_folder, read_json, refuse_occupied, whole_folder, write_json
from efface.run.locks import locked
from efface.subjects.subject import Subject
from efface.train.engine import first_process, wait_for_all, world_size

FACTS = "learn.json"
SubjectT = TypeVar("SubjectT", bound=Subject)


def learn_into(
    out: Path, settings: dict[str, Any], *, load: Callable[[], SubjectT],
    fit: Callable[[Path], tuple[SubjectT, dict[str, Any], Cost]], beside: Callable[[Path], None] | None = None,
) -> SubjectT:  # fmt: skip
    """Train into a folder, or load what a former call trained there.

    Args:
        out: the model folder; `learn.json` in it holds settings, results and cost.
        settings: all that the result depends on, as plain values.
        load: reads a finished `out`.
        fit: trains with a work folder for checkpoints; returns the subject, facts for `learn.json`, and the cost.
        beside: writes what belongs to the model and is no part of the subject, before the folder is whole.

    Raises:
        RunError: `out` holds a model that was trained with other settings or data.
        StorageError: `out` holds anything else; nothing is replaced.
    """
    digest = digest_value(settings)
    if (out / FACTS).exists():
        if read_json(out / FACTS)["digest"] != digest:
            raise RunError(f"{out} holds a model of other settings or data", "an empty folder", "choose another --out")
        return load()
    refuse_occupied(out)
    work = make_folder(out.parent) / f"{out.name}.work-{short(digest)}"  # checkpoints of these settings and no others
    with locked(work / "run", wait=math.inf) if world_size() == 1 else contextlib.nullcontext():
        if (out / FACTS).exists():  # another process was faster
            shutil.rmtree(work, ignore_errors=True)
            return load()
        subject, facts, cost = fit(work)
        _save(out, subject, {"digest": digest, **settings, **facts, "cost": cost.model_dump()}, beside)
    return subject


def _save(out: Path, subject: Subject, facts: dict[str, Any], beside: Callable[[Path], None] | None) -> None:
    subject.source = str(out)
    if first_process():
        with whole_folder(out) as partial:
            subject.save_into(partial)
            if beside is not None:
                beside(partial)
            write_json(partial / FACTS, facts)
    wait_for_all()
