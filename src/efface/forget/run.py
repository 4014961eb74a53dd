"""The verb `forget`: fit a method and leave a run folder that says all about it.

A run folder is started with `inputs.json` (what was asked), works in `work/`, and is finished with `run.json`, `costs.json`
and, last, the manifest. The same command on an unfinished folder goes on; on a finished one it changes nothing; a
different command on either is refused.
"""

from __future__ import annotations

import contextlib
import datetime
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from efface.data.request import Request
from efface.errors import ConfigError, InputError, RunError
from efface.forget.edit import Edit
from efface.forget.method import FitConfig, Method, find_method
from efface.forget.sequence import check_stackable, fit_sequence
from efface.run.cost import Cost
from efface.run.digests import digest_value
from efface.run.files import make_folder, read_json, sweep, write_json
from efface.run.manifest import MANIFEST, write_manifest
from efface.run.record import RunRecord, environment, load_costs, save_costs
from efface.subjects.learner import Learner
from efface.subjects.load import load
from efface.subjects.loading import glance
from efface.train.engine import Diverged, world_size

OWN_FILES = {"inputs.json", "edit", "work", "run.json", "costs.json", MANIFEST}


def now() -> str:
    """UTC, to the second, ISO 8601."""
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def forget(
    model: Learner | str | Path, request: Request, method: str = "npo", *, out: str | Path | None = None, **config: Any
) -> Edit:
    """Fit a forgetting method; nothing is changed until `edit.apply(model)`.

    Args:
        model: a subject, hub id or folder.
        request: what to forget and what to keep.
        method: a card's name (`efface systems` lists them).
        out: a run folder; without one the edit lives in a temporary folder until saved.
        config: the method's keys; unknown ones raise `ConfigError`.
    """
    chosen = find_method(method)
    parsed = chosen.configure(config)
    subject = as_learner(model)
    chosen.check_subject(subject)
    if out is not None:
        return forget_into(subject, request, chosen, parsed, Path(out))
    folder = Path(tempfile.mkdtemp(prefix="efface-edit-"))
    edit = chosen.fit(subject, request, parsed, work=folder / "work", out=folder / "edit").edit
    edit.own_folder(folder)
    return edit


def start(out: Path, inputs: dict[str, Any]) -> bool:
    """Open a run folder for these inputs; True where its work is finished.

    Raises:
        RunError: the folder belongs to another run, or to something else.
    """
    digest = digest_value(inputs)
    if out.exists() and not out.is_dir():
        raise RunError(f"--out '{out}' is a file", "a folder", "choose another --out")
    present = {path.name for path in out.iterdir()} if out.exists() else set()
    if "inputs.json" in present:
        before = read_inputs(out)
        if digest_value(before) != digest:
            changed = sorted(key for key in inputs.keys() | before.keys() if inputs.get(key) != before.get(key))
            raise RunError(
                f"'{out}' holds a run with another {', '.join(changed)}", "the same command, or an empty folder",
                "choose another --out, or delete that run",
            )  # fmt: skip
        sweep(out)
        return "run.json" in present
    if any(not name.startswith(".partial-") for name in present):
        raise RunError(
            f"'{out}' is not empty and holds no run of efface", "an empty or new folder", "choose another --out"
        )
    make_folder(out)
    write_json(out / "inputs.json", inputs)
    return False


def read_inputs(folder: Path) -> dict[str, Any]:
    """What was asked of a run folder.

    Raises:
        RunError: `inputs.json` is not what efface writes.
    """
    inputs = read_json(folder / "inputs.json")
    if not isinstance(inputs, dict):
        raise RunError(
            f"{folder / 'inputs.json'} is not what efface writes",
            "the file of the run",
            "choose another folder, or delete it",
        )
    return inputs


@contextlib.contextmanager
def begin(out: Path, inputs: dict[str, Any]) -> Iterator[bool]:
    """`start`, taken back where the work inside refuses the input.

    The same command would be refused again, and what it left would keep the mended command out of the folder. After
    any other failure (a full disk, a kill) the folder stays, and the same command goes on in it.
    """
    made = not out.exists()
    finished = start(out, inputs)
    try:
        yield finished
    except (InputError, Diverged):
        if not (out / "run.json").exists():
            shutil.rmtree(out / "work", ignore_errors=True)
            (out / "inputs.json").unlink(missing_ok=True)
            if made:
                with contextlib.suppress(OSError):
                    out.rmdir()
        raise


def forget_into(
    subject: Any, request: Request, method: Method, config: FitConfig, out: Path, *, merkle_root: str | None = None,
    sequence: bool = False,
) -> Edit:  # fmt: skip
    """Fit into a run folder; see the module for what happens when it is there already.

    Args:
        merkle_root: root over keyed hashes of the forget rows.
        sequence: the request is a joined one, whose parts are forgotten one after another (`efface.forget.sequence`).
    """
    if world_size() > 1:
        raise ConfigError(
            f"'forget' in {world_size()} processes", "one: every process would write the same run folder",
            "run it without accelerate launch",
        )  # fmt: skip
    method.check_subject(subject)
    method.check(request, config)
    if sequence:
        check_stackable(method, config)
    record = request.record(merkle_root)
    inputs = {
        "method": method.card.name, "config": config.model_dump(mode="json"), "model": subject.digest, "request": record.id,
        "prompt": prompt_of(subject), **({"sequence": True} if sequence else {}),
    }  # fmt: skip
    with begin(out, inputs) as finished:
        if finished:
            if not (out / MANIFEST).exists():
                write_manifest(out, kind="run")
            return Edit.load(out / "edit")
        edit, costs = _fitted(subject, request, method, config, out, sequence)
    save_costs(out, costs)
    taxonomy = method.card.taxonomy
    run = RunRecord(
        kind="forget", created=now(), method=method.card.name, system=method.card.system, claim=edit.facts.claim,
        intention=taxonomy.intention if taxonomy else "none", config=edit.facts.config, model=subject.record(),
        request=record, environment=environment(), edit=edit.record, guarantee=edit.facts.guarantee,
    )  # fmt: skip
    write_json(out / "run.json", run.model_dump(mode="json"))
    write_manifest(out, kind="run")
    return edit


def prompt_of(subject: Any) -> dict[str, Any]:
    """The prompt format of a language model; nothing for other kinds."""
    prompt = getattr(subject, "prompt", None)
    return {} if prompt is None else dict(prompt.model_dump())


def as_learner(model: Any) -> Any:
    """A subject; a hub id or folder is loaded as the causal LM, classifier or regressor that it is."""
    if not isinstance(model, (str, Path)):
        return model
    kind = glance(str(model)).kind
    return load(model, kind if kind in ("classifier", "regressor") else "causal-lm")


def _fitted(
    subject: Any, request: Request, method: Method, config: FitConfig, out: Path, sequence: bool
) -> tuple[Edit, list[Cost]]:
    """The edit of a run folder and its costs: fitted, or read where a kill came between the edit and its record."""
    if (out / "edit" / "edit.json").exists():
        lost = Cost(phase=f"fit {method.card.name} (interrupted: its cost was lost)")
        return Edit.load(out / "edit"), load_costs(out) or [lost]
    if sequence:
        fitted = fit_sequence(method, subject, request, config, work=out / "work", out=out / "edit")
    else:
        fitted = method.fit(subject, request, config, work=out / "work", out=out / "edit")
    return fitted.edit, fitted.costs


def read_run(folder: Path) -> RunRecord:
    """The record of a run folder.

    Raises:
        RunError: no finished run there.
    """
    path = folder / "run.json"
    if not path.exists():
        begun = (folder / "inputs.json").exists()
        remedy = "run the same 'efface forget' again to finish it" if begun else "check the path"
        raise RunError(
            f"'{folder}' holds {'an unfinished' if begun else 'no'} run", "a folder made by 'efface forget'", remedy
        )
    try:
        return RunRecord.model_validate(read_json(path))
    except ValueError as error:
        raise RunError(
            f"{path} is not a run record", "one written by efface", "it was changed after it was written"
        ) from error
