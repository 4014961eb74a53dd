"""Requests one after another: each is fitted on the model that the one before left, and all of them are one reversible edit.

Deletion requests come in a stream; MUSE (arXiv 2407.06460, sustainability) shows that utility falls with each. The edit is a
folder of edits, `step-1`, `step-2`, ..., applied in that order and taken off in the other; the audit looks at the model after
each (suite `sequence`). Only edits of weights can be stacked so: a guard or an adapter is fitted anew on all rows together.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from efface.data.joined import JOIN, join, split_joined
from efface.data.request import Request, data_digest
from efface.errors import ConfigError, RequestError
from efface.forget.edit import Edit, EditFacts, WeightEdit
from efface.forget.method import FitConfig, Fitted, Method, find_method
from efface.run.cost import Cost
from efface.run.digests import digest_file
from efface.run.files import make_folder, read_json, whole_folder, write_json
from efface.subjects.learner import Learner
from efface.train.snapshot import bits

CLAIMS = ("exact", "certified", "empirical", "suppressed")
"""From the strongest to the weakest: a sequence claims what its weakest step claims."""


class SequenceEdit(Edit):
    """Several edits of weights, each bound to the model that the one before leaves."""

    kind = "sequence"

    @cached_property
    def steps(self) -> list[Edit]:
        """The edits, in the order of the requests."""
        count = len(self.facts.config["requests"])
        return [Edit.load(self.folder / f"step-{number}") for number in range(1, count + 1)]

    def _apply(self, subject: Any) -> None:
        put_on(subject, self.steps)

    def _remove(self, subject: Any) -> None:
        for step in reversed(self.steps):
            step.remove(subject)


def put_on(subject: Any, steps: Sequence[Edit]) -> None:
    """Apply edits in order; where one cannot be, those before it are taken off again."""
    done: list[Edit] = []
    try:
        for step in steps:
            step.apply(subject)
            done.append(step)
    except BaseException:
        for step in reversed(done):
            step.remove(subject)
        raise


def check_stackable(method: Method, config: FitConfig) -> None:
    """Refuse a method whose edits cannot be stacked, before any work.

    Raises:
        ConfigError: a guard, a decoding rule or an adapter.
    """
    guard = method.card.mechanism == "guards" or getattr(config, "mode", "") == "decode"
    if guard or getattr(config, "scope", "all") == "lora":
        what = "an adapter (scope=lora)" if not guard else "a guard, which acts at inference,"
        raise ConfigError(
            f"requests in sequence with {method.card.name}: {what} is not stacked", "a method that changes weights",
            "give all rows in one --forget (a guard is fitted anew), or use scope=all",
        )  # fmt: skip


def joined_request(requests: Sequence[Request]) -> Request:
    """All requests as one, with numbered ids: what the run records and the audit is about.

    Raises:
        RequestError: fewer than two, rows shared between requests, or other retain, holdout or evaluation rows in some.
    """
    if len(requests) < 2:
        raise RequestError(f"{len(requests)} request", "two or more", "use efface.forget for a single one")
    beside = [{n: data_digest(d) for n, d in request.sets().items() if n != "forget"} for request in requests]
    for number, sets in enumerate(beside[1:], 2):
        if sets != beside[0]:
            raise RequestError(
                f"request {number} has another retain, holdout or evaluation set than request 1", "the same rows to keep",
                "keep what no request names",
            )  # fmt: skip
    first = requests[0]
    names = [str(request.sources["forget"]) for request in requests]
    sources = {**first.sources, "forget": "in memory" if "in memory" in names else JOIN.join(names)}
    return Request(
        forget=join([request.forget for request in requests], names), retain=first.retain, holdout=first.holdout,
        evaluate=first.evaluate, concepts=first.concepts, scope=first.scope, received=first.received,
        approved_by=first.approved_by, sources=sources,
    )  # fmt: skip


def single_requests(joined: Request) -> list[Request]:
    """The requests of a joined one, in order. Whatever one of them forgets stands in no retain set."""
    return [
        Request(forget=data, retain=joined.retain, holdout=joined.holdout, evaluate=joined.evaluate,
                concepts=joined.concepts, scope=joined.scope)
        for data in split_joined(joined.forget)
    ]  # fmt: skip


def fit_sequence(
    method: Method, subject: Learner, joined: Request, config: FitConfig, *, work: Path, out: Path
) -> Fitted:
    """Fit every request on the model that the one before left; the subject comes back bit for bit.

    Args:
        joined: of `joined_request`.
        work: finished steps and the checkpoints of the one under way; the same call goes on from there.
        out: folder of the edit.

    Raises:
        ConfigError: the method's edits cannot be stacked.
    """
    check_stackable(method, config)
    requests = single_requests(joined)
    for request in requests:
        method.check(request, config)
    base, done, costs, log = subject.digest, list[Edit](), list[Cost](), list[dict[str, float]]()
    try:
        for number, request in enumerate(requests, 1):
            place = work / f"step-{number}"
            edit, own = _step(method, subject, request, config, place)
            if not isinstance(edit, WeightEdit):
                raise ConfigError(
                    f"{method.card.name} makes an edit of kind '{edit.kind}'", "an edit of weights, which can be stacked",
                    "give all rows in one --forget",
                )  # fmt: skip
            edit.apply(subject)
            done.append(edit)
            costs += [cost.model_copy(update={"phase": f"{cost.phase}, request {number}"}) for cost in own.costs]
            log += [{**row, "request": float(number)} for row in own.log]
        change = _change(subject, done)
        facts = _facts(method, config, done, requests, base, subject.digest, change)
    finally:
        for edit in reversed(done):
            edit.remove(subject)
    with whole_folder(out) as partial:
        for number, edit in enumerate(done, 1):
            shutil.copytree(edit.folder, partial / f"step-{number}")
        names = sorted(path.relative_to(partial).as_posix() for path in partial.rglob("*") if path.is_file())
        files = {name: digest_file(partial / name) for name in names}
        write_json(partial / "edit.json", facts.model_copy(update={"files": files}).model_dump(mode="json"))
    shutil.rmtree(work, ignore_errors=True)
    return Fitted(SequenceEdit(out), costs, log)


def _step(method: Method, subject: Any, request: Request, config: FitConfig, place: Path) -> tuple[Edit, Fitted]:
    """One request's edit: fitted, or read where an earlier, killed call finished it."""
    if (place / "costs.json").exists():
        costs = [Cost.model_validate(row) for row in read_json(place / "costs.json")]
        edit = Edit.load(place / "edit")
        return edit, Fitted(edit, costs)
    shutil.rmtree(place / "edit", ignore_errors=True)  # its costs were not written: fitted again, to the same bits
    make_folder(place)
    fitted = method.fit(subject, request, config, work=place / "work", out=place / "edit")
    write_json(place / "costs.json", [cost.model_dump() for cost in fitted.costs])
    return fitted.edit, fitted


def _change(subject: Any, steps: Sequence[Edit]) -> tuple[int, int, float]:
    """Tensors and scalars that differ between the first model and the last, and by how much; all steps are on.

    A step's file holds bits before exclusive-or bits after; that of all steps is theirs one after another.
    """
    paths = [step.folder / "delta.safetensors" for step in steps]
    names: dict[str, list[Path]] = {}
    for path in paths:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a dictionary
                names.setdefault(name, []).append(path)
    live, tensors, scalars, moved, size = subject.weights(), 0, 0, 0.0, 0.0
    with torch.no_grad():
        for name, sources in sorted(names.items()):
            after = live[name].detach()
            before = after.clone()
            for path in sources:
                with safe_open(path, framework="pt") as file:
                    delta = file.get_tensor(name).to(after.device)
                bits(before).bitwise_xor_(delta.view_as(bits(before)))
            if torch.equal(bits(before), bits(after)):
                continue
            tensors, scalars = tensors + 1, scalars + after.numel()
            moved += float((after.double() - before.double()).square().sum())
            size += float(before.double().square().sum())
    return tensors, scalars, (moved / size) ** 0.5 if size else 0.0


def _facts(
    method: Method, config: FitConfig, steps: Sequence[Edit], requests: Sequence[Request], base: str, edited: str,
    change: tuple[int, int, float],
) -> EditFacts:  # fmt: skip
    claim = max((step.facts.claim for step in steps), key=CLAIMS.index)
    made = [
        {"forget": data_digest(request.forget), "rows": len(request.forget), "edited": step.facts.edited_digest}
        for request, step in zip(requests, steps, strict=True)
    ]
    return EditFacts(
        kind=SequenceEdit.kind, method=method.card.name, claim=claim,
        config={**config.model_dump(mode="json"), "requests": made}, base_digest=base, edited_digest=edited,
        tensors=change[0], parameters=change[1], relative_change=change[2], files={},
        guarantee=list(dict.fromkeys(line for step in steps for line in step.facts.guarantee)),
    )  # fmt: skip


def forget_sequence(
    model: Learner | str | Path, requests: Sequence[Request], method: str = "npo", *, out: str | Path | None = None,
    **config: Any,
) -> SequenceEdit:  # fmt: skip
    """Forget several requests, one after another; nothing is changed until `edit.apply(model)`.

    Args:
        model: a subject, hub id or folder.
        requests: in the order in which they came; all with the same rows to keep.
        method: a card's name; the same for every request.
        out: a run folder; without one the edit lives in a temporary folder until saved.
        config: the method's keys.
    """
    from efface.forget.run import as_learner, forget_into

    chosen = find_method(method)
    parsed = chosen.configure(config)
    subject = as_learner(model)
    joined = joined_request(requests)
    if out is not None:
        edit = forget_into(subject, joined, chosen, parsed, Path(out), sequence=True)
    else:
        chosen.check_subject(subject)
        folder = Path(tempfile.mkdtemp(prefix="efface-edit-"))
        edit = fit_sequence(chosen, subject, joined, parsed, work=folder / "work", out=folder / "edit").edit
        edit.own_folder(folder)
    assert isinstance(edit, SequenceEdit)
    return edit
