"""S3T: a deletion switches off every stage that was trained on the record's slice or after it; nothing is trained.

Basu Roy Chowdhury et al., arXiv 2406.16257 (ICLR 2025), section 3. For every order pi of the record's shard with its slice
at place p, the live prefix becomes min(live, p - 1). Stages in no live prefix are set to zero; each shard serves its
longest live prefix. What is served is, bit for bit, what training without those rows gives.

Works on ensembles made by `efface learn s3t-slices`. Departures from the official code, and why: an unknown id, or an id
with another content, is an error; every copy of a record goes with it; a second request for a record changes no stage but
is counted. A deletion that leaves no shard alive is refused: then the ensemble must be trained again without the rows.
The claim covers the adapters: the base is public, and may have seen the record before. The edit can be removed, so it and
the old ensemble folder are copies of what was deleted until they are destroyed.
"""

from __future__ import annotations

import copy
import dataclasses
import shutil
from pathlib import Path
from typing import Any

import torch
from pydantic import model_validator

from efface.catalog import Card, Taxonomy
from efface.data.deletion_plan import Deletion, DeletionPlan, record_content
from efface.data.request import Request
from efface.errors import ModelError
from efface.forget.edit import WeightEdit
from efface.forget.method import FitConfig, Fitted, Method
from efface.run.cost import measure_cost
from efface.run.digests import digest_value
from efface.run.files import make_folder, read_json, write_json
from efface.subjects.causal_lm import CausalLM
from efface.subjects.sliced import SlicedLM
from efface.train.snapshot import Snapshot

CARD = Card(
    name="s3t",
    system="s3t",
    title="Sliced exact deletion",
    summary="Switches off the LoRA stages of a sliced ensemble that have seen the rows: exact, at once, without training.",
    paper="Basu Roy Chowdhury et al., S3T, arXiv 2406.16257 (ICLR 2025)",
    verb="forget",
    mechanism="exact",
    modalities=("text",),
    subjects=("causal-lm",),
    needs=("forget",),
    claims="exact",
    taxonomy=Taxonomy(
        intention="removal", mechanism="retraining_exact", survey_class="parameter_optimisation", level="adapter",
        threat_model="weight holder",
    ),
    defaults_source="S3T has no setting at deletion",
)  # fmt: skip


GUARANTEE = (
    "every stage that is served is, bit for bit, the stage of a training run without the rows: its rows, order, seeds and "
    "starting point do not depend on them",
    "base and stages have the digests that training wrote down; which rows share a slice was fixed with the rows present, "
    "and is public",
    "not covered: what the public base had learnt, copies of a row that are written otherwise, settings chosen by looking at "
    "the rows",
)
"""What the exact claim rests on."""


class S3TConfig(FitConfig):
    """Nothing is trained, so nothing may be set."""

    @model_validator(mode="after")
    def _nothing(self) -> S3TConfig:
        for name, field in type(self).model_fields.items():
            if getattr(self, name) != field.default:
                raise ValueError(f"s3t trains nothing at deletion: leave {name} out")
        return self


def enter(plan: DeletionPlan, request: Request) -> list[Deletion]:
    """Enter every row of the forget set into the plan's ledger.

    Raises:
        RequestError: a row that the plan does not know; the ledger is then unchanged.
    """
    before = list(plan.ledger)
    try:
        return [plan.delete(row["id"], record_content(row)) for row in request.forget]
    except BaseException:
        plan.ledger[:] = before
        raise


class SlicedEdit(WeightEdit):
    """Stages switched off, and the plan without the digests of what was deleted.

    `ids.json` holds the deleted ids with their digests, so that the edit can be taken off again: like the differences beside
    it, it is a copy of what was deleted until the edit's folder is destroyed.
    """

    kind = "sliced"

    def _gone(self) -> dict[str, str]:
        return {str(name): str(digest) for name, digest in read_json(self.folder / "ids.json").items()}

    def _apply(self, subject: CausalLM) -> None:
        super()._apply(subject)
        model: Any = subject.model
        if model.plan is not None:
            model.plan = model.plan.without(tuple(self._gone()), model.requests.tolist())

    def _remove(self, subject: CausalLM) -> None:
        super()._remove(subject)
        model: Any = subject.model
        if model.plan is not None:
            model.plan = model.plan.having(self._gone(), model.requests.tolist())


def refuse_changed(model: SlicedLM) -> None:
    """Only what `s3t-slices` trained can be deleted from exactly.

    Raises:
        ModelError: base or a live stage has other bits than training left.
    """
    for name, digest in model.part_digests().items():
        if model.config.parts.get(name) != digest:
            raise ModelError(
                f"{name} of this ensemble was changed after its training", "the ensemble as 'efface learn s3t-slices' left it",
                "what was trained on all rows at once has nothing to switch off",
            )  # fmt: skip


class S3T(Method):
    """See the module."""

    card = CARD
    config_class = S3TConfig

    def fit(self, subject: CausalLM, request: Request, config: FitConfig, *, work: Path, out: Path) -> Fitted:
        """See `Method.fit`."""
        self.check(request, config)
        model = subject.model
        if not isinstance(model, SlicedLM) or model.plan is None:
            raise ModelError(
                "a model that is no sliced ensemble", "a folder made by 'efface learn s3t-slices'",
                "train one; a model trained at once has nothing to switch off",
            )  # fmt: skip
        refuse_changed(model)
        plan = dataclasses.replace(copy.deepcopy(model.plan), ledger=[], earlier=[])  # earlier ones are in the buffer
        entries = enter(plan, request)
        base, earlier = subject.digest, model.requests.tolist()
        before = set(model.live_nodes())
        make_folder(work)
        names = {name for node in before for name in model.tensors_of(node)} | {"requests"}
        movable = {name: tensor for name, tensor in subject.weights().items() if name in names}
        with measure_cost("fit s3t") as cost, Snapshot(movable, work / "base.safetensors") as snapshot:
            model.requests.add_(torch.from_numpy(plan.requests()).to(model.requests.device))
            if not model.serving():
                raise ModelError(
                    "this deletion leaves no shard of the ensemble alive", "a live prefix in some shard",
                    "train the ensemble again without these rows",
                )  # fmt: skip
            dead = sorted(before - set(model.live_nodes()))
            with torch.no_grad():
                for node in dead:
                    for tensor in model.tensors_of(node).values():
                        tensor.zero_()
            ledger: dict[str, Any] = {  # places, and no digest of a record: that of a person's data is personal data too
                "entries": [
                    {"place": list(entry.place), "copies": entry.copies,
                     "requests_before": earlier[entry.place[0]][entry.place[1]]}
                    for entry in entries
                ],
                "stages_off": [[shard, list(prefix)] for shard, prefix in dead],
                "serving": [[shard, list(prefix)] for shard, prefix in model.serving()],
            }  # fmt: skip
            facts = {**config.model_dump(), "ledger": {**ledger, "digest": digest_value(ledger)}}
            digests = {entry.record for entry in entries}
            gone = {name: digest for name, digest in plan.contents.items() if digest in digests}
            write_json(work / "ids.json", gone)
            edit = SlicedEdit.harvest(
                subject,
                snapshot,
                out,
                base_digest=base,
                method=self.card.name,
                claim=str(self.card.claims),
                config=facts,
                guarantee=GUARANTEE,
                beside=[work / "ids.json"],
            )
            cost.items = len(request.forget)
        subject.changed()
        shutil.rmtree(work, ignore_errors=True)
        return Fitted(edit, [cost])


METHOD = S3T()
