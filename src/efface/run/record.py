"""The records of a run folder, one JSON file each.

    run.json        what was asked and with what: method, resolved config, model, request, environment
    costs.json      seconds, throughput and peak memory of every phase
    examples.json   a few answers before and after (only where texts were asked for)
    findings.json   written by the audit (see efface.audit)
    attacks/*.json  curves and tables of the attacks, from which the findings are derived

Seconds never stand in `findings.json`: a resumed run must give the same bytes there.
"""

from __future__ import annotations

import platform
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field

from efface.run.cost import Cost
from efface.run.files import read_json, write_json


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ModelRecord(_Record):
    """Which model a run started from."""

    source: str = Field(description="hub id or folder, as given")
    revision: str | None = None
    kind: str = "causal-lm"
    digest: str = Field(description="digest of the weights before the edit")
    parameters: int = 0
    dtype: str = "float32"
    trust_remote_code: bool = False


class SetRecord(_Record):
    """One data set of the request: never its text."""

    source: str
    rows: int
    digest: str = Field(description="digest of ids and contents")


class RequestRecord(_Record):
    """The request: sizes, digests, and a sentence that names no person."""

    id: str
    scope: str = ""
    received: str | None = None
    approved_by: str | None = None
    sets: dict[str, SetRecord]
    concepts: str | None = Field(
        None, description="keyed digest of the names that were to be forgotten, where there are any"
    )
    merkle_root: str | None = Field(None, description="root over keyed hashes of the forget rows")


class EditRecord(_Record):
    """What was changed."""

    kind: str
    digest: str
    base_digest: str
    edited_digest: str
    tensors: int = Field(description="number of tensors that changed")
    parameters: int = Field(description="number of scalars in those tensors")
    relative_change: float = Field(description="||edited - base|| / ||base|| over the changed tensors")


class Environment(_Record):
    """Software and hardware of the run."""

    efface: str
    python: str
    torch: str
    transformers: str
    machine: str
    accelerator: str
    threads: int
    determinism: Literal["seeded", "deterministic"] = "seeded"


class RunRecord(_Record):
    """run.json."""

    kind: Literal["forget", "audit"]
    created: str = Field(description="UTC, ISO 8601")
    method: str
    system: str
    claim: str
    intention: str
    config: dict[str, Any]
    model: ModelRecord
    request: RequestRecord
    environment: Environment
    edit: EditRecord | None = None
    against: ModelRecord | None = None
    guarantee: list[str] = Field(
        default_factory=list, description="what an exact or certified claim rests on, and its assumptions, in sentences"
    )


class Example(_Record):
    """One question with the answers of the models."""

    set: str
    id: str
    question: str
    reference: str
    original: str | None = None
    unlearned: str | None = None
    retrained: str | None = None


class Curve(_Record):
    """One line of a figure: for example score on the forget set against relearning steps."""

    role: Literal["original", "unlearned", "retrained"]
    steps: list[int]
    values: list[float]
    low: list[float] | None = None
    high: list[float] | None = None
    reached: int | None = Field(None, description="first step at the target, None where not reached")


def environment() -> Environment:
    """The present environment."""
    try:
        version = metadata.version("efface")
    except metadata.PackageNotFoundError:
        version = "unknown"
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none"
    return Environment(
        efface=version, python=platform.python_version(), torch=torch.__version__,
        transformers=metadata.version("transformers"), machine=f"{platform.system()} {platform.machine()}",
        accelerator=gpu, threads=torch.get_num_threads(),
    )  # fmt: skip


def save_costs(folder: Path, costs: list[Cost]) -> None:
    """Write costs.json."""
    write_json(folder / "costs.json", [cost.model_dump() for cost in costs])


def load_costs(folder: Path) -> list[Cost]:
    """Read costs.json; an absent file is an empty list."""
    path = folder / "costs.json"
    return [Cost.model_validate(row) for row in read_json(path)] if path.exists() else []
