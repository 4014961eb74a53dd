"""Edits: what every forgetting method returns. Frozen, saved, reversible, bound to one model.

A `WeightEdit` holds the exclusive-or of the bits before and after, for the tensors that changed. Applying it and
removing it are the same exact operation, so the model that comes back has the bits that it had, in any process and
without a copy of the original kept anywhere. An `AdapterEdit` is a PEFT adapter.

An edit that can be removed is no deletion by itself: whoever holds the edited model and the edit holds the original.
The certificate lists both among the copies to be dealt with.
"""

from __future__ import annotations

import shutil
import weakref
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from pydantic import BaseModel, ConfigDict
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from efface.catalog import entries
from efface.errors import RunError, StorageError, nearest
from efface.run.digests import digest_file, digest_value
from efface.run.files import read_json, storage, whole_folder, write_json
from efface.run.record import EditRecord
from efface.subjects.learner import Learner
from efface.train.lora_init import refuse_residual
from efface.train.snapshot import Snapshot, bits


class EditFacts(BaseModel):
    """edit.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    method: str
    claim: str
    config: dict[str, Any]
    base_digest: str
    edited_digest: str
    tensors: int
    parameters: int
    relative_change: float
    files: dict[str, str]
    guarantee: list[str] = []


class Edit(ABC):
    """A change to a subject; lives in a folder.

    Args:
        folder: holds `edit.json` and the tensors.
    """

    kind: ClassVar[str]

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        try:
            self.facts = EditFacts.model_validate(read_json(self.folder / "edit.json"))
        except ValueError as error:
            raise RunError(f"{self.folder / 'edit.json'} is not an edit", "an edit saved by efface") from error

    def own_folder(self, root: Path) -> None:
        """Delete `root`, which holds the folder, when this object goes: an edit that was never saved."""
        weakref.finalize(self, shutil.rmtree, root, ignore_errors=True)

    @property
    def record(self) -> EditRecord:
        """The facts that a run stores about its edit."""
        facts = self.facts
        return EditRecord(
            kind=facts.kind, digest=digest_value(facts.model_dump()), base_digest=facts.base_digest,
            edited_digest=facts.edited_digest, tensors=facts.tensors, parameters=facts.parameters,
            relative_change=facts.relative_change,
        )  # fmt: skip

    def _check_files(self) -> None:
        for name, digest in self.facts.files.items():
            if not (self.folder / name).exists():
                raise RunError(f"{self.folder / name} is missing", "the whole edit folder", "copy it again")
            if digest_file(self.folder / name) != digest:
                raise RunError(f"{self.folder / name} was changed after it was written", None, "copy or fit it again")

    def apply(self, subject: Learner) -> Any:
        """Change the subject. Refuses any subject but the one the edit was fitted on.

        Raises:
            RunError: other weights (by digest), or the edit's files were changed.
        """
        if subject.digest != self.facts.base_digest:
            again = " (it is applied already)" if subject.digest == self.facts.edited_digest else ""
            raise RunError(
                f"the model has digest {subject.digest[:19]}{again}",
                f"{self.facts.base_digest[:19]}, which the edit was fitted on",
                "load the model that the edit was fitted on, in the same precision",
            )  # fmt: skip
        self._check_files()
        self._apply(subject)
        subject.changed()
        return subject

    def remove(self, subject: Learner) -> Any:
        """Take the edit off again; the subject has the bits that it had before.

        Raises:
            RunError: the subject is not one that carries this edit unchanged.
        """
        if subject.digest != self.facts.edited_digest:
            raise RunError(
                f"the model has digest {subject.digest[:19]}", f"{self.facts.edited_digest[:19]}, the edited model",
                "remove later edits first",
            )  # fmt: skip
        self._check_files()
        self._remove(subject)
        subject.changed()
        return subject

    def with_findings(self, name: str, found: dict[str, Any]) -> Self:
        """The edit with what was found while it was made beside its configuration, as `config[name]`; written to its folder."""
        facts = self.facts.model_copy(update={"config": {**self.facts.config, name: found}})
        write_json(self.folder / "edit.json", facts.model_dump(mode="json"))
        return type(self)(self.folder)

    def save(self, folder: Path) -> None:
        """Copy the edit; the folder is whole or absent, and an occupied one is refused (StorageError)."""
        with whole_folder(Path(folder)) as partial:
            shutil.copytree(self.folder, partial, dirs_exist_ok=True)

    @staticmethod
    def load(folder: str | Path) -> Edit:
        """Read a saved edit of any kind.

        Raises:
            RunError: no edit there, or of an unknown kind.
        """
        path = Path(folder)
        if (path / "edit" / "edit.json").exists():
            path = path / "edit"
        if not (path / "edit.json").exists():
            raise RunError(f"no edit in '{folder}'", "a folder with edit.json, or a finished run", "check the path")
        facts = read_json(path / "edit.json")
        if not isinstance(facts, dict):
            raise RunError(f"{path / 'edit.json'} is not an edit", "an edit saved by efface", "copy or fit it again")
        kind = facts.get("kind")
        kinds = _kinds()
        if kind not in kinds:
            entries()  # a method's own kind of edit stands in its own module
            kinds = _kinds()
        if kind not in kinds:
            raise RunError(f"'{path}' holds an edit of kind '{kind}'", None, nearest(str(kind), kinds))
        return kinds[kind](path)

    @abstractmethod
    def _apply(self, subject: Any) -> None: ...

    @abstractmethod
    def _remove(self, subject: Any) -> None: ...


class WeightEdit(Edit):
    """New weights, stored as the exclusive-or with the old ones."""

    kind = "weights"

    def _apply(self, subject: Any) -> None:
        live = subject.weights()
        try:
            with safe_open(self.folder / "delta.safetensors", framework="pt") as file, torch.no_grad():
                names = list(file.keys())
                for name in names:
                    if name not in live or list(live[name].shape) != file.get_slice(name).get_shape():
                        raise RunError(
                            f"the edit changes tensor {name}, which this model lacks", "the same architecture"
                        )
                for name in names:
                    delta = file.get_tensor(name).to(live[name].device)
                    bits(live[name]).bitwise_xor_(delta.view_as(bits(live[name])))
        except SafetensorError as error:
            raise StorageError(f"{self.folder / 'delta.safetensors'} is not whole ({error})") from error

    _remove = _apply

    @classmethod
    def harvest(
        cls, subject: Learner, snapshot: Snapshot, folder: Path, *, base_digest: str, method: str, claim: str,
        config: dict[str, Any], beside: Sequence[Path] = (), guarantee: Sequence[str] = (),
    ) -> WeightEdit:  # fmt: skip
        """Store what training changed and put the subject back, without a second copy of the weights.

        The live tensors are turned into differences in place, written, and then restored from the snapshot. Files
        `beside` them (the mask that was used) are copied into the edit and checked with it. The `guarantee` says what an
        exact or certified claim rests on, with its assumptions.
        """
        subject.changed()
        edited = subject.digest
        try:
            changed = snapshot.changed()
            if not changed:
                raise RunError("the method changed no weight", "a change", "raise learning_rate or epochs")
            moved = size = 0.0
            deltas = {}
            with torch.no_grad():
                for name in changed:
                    live, base = snapshot.tensors[name], snapshot.base(name)
                    moved += float((live.double() - base.double()).square().sum())
                    size += float(base.double().square().sum())
                    bits(live).bitwise_xor_(bits(base))
                    deltas[name] = bits(live)
            with whole_folder(folder) as partial:
                path = partial / "delta.safetensors"
                with storage(path):
                    save_file(deltas, path)
                    for other in beside:
                        shutil.copyfile(other, partial / other.name)
                files = {name: digest_file(partial / name) for name in [path.name, *(other.name for other in beside)]}
                facts = EditFacts(
                    kind=cls.kind, method=method, claim=claim, config=config, base_digest=base_digest, edited_digest=edited,
                    tensors=len(changed), parameters=sum(t.numel() for t in deltas.values()),
                    relative_change=(moved / size) ** 0.5 if size else 0.0, files=files, guarantee=list(guarantee),
                )  # fmt: skip
                write_json(partial / "edit.json", facts.model_dump())
        except BaseException:
            subject.changed()  # the caller puts the bits back; what was computed from these is no longer true
            raise
        snapshot.restore(changed)
        subject.changed()
        return cls(folder)


def put_adapter_on(subject: Learner, folder: Path) -> None:
    """The adapter of a folder around the subject's model; it remembers which parameters required gradients."""
    from peft import PeftModel

    flags = {name: p.requires_grad for name, p in subject.model.named_parameters()}
    subject.model = PeftModel.from_pretrained(subject.model, str(folder)).eval()
    subject.model.efface_flags = flags


def take_adapter_off(subject: Learner) -> None:
    """The model as it was before `put_adapter_on`, flags included."""
    flags = getattr(subject.model, "efface_flags", {})
    subject.model = subject.model.unload()
    if hasattr(subject.model, "peft_config"):
        del subject.model.peft_config
    for name, parameter in subject.model.named_parameters():
        parameter.requires_grad_(flags.get(name, True))


class AdapterEdit(Edit):
    """A PEFT adapter; the folder `adapter/` is in PEFT's own form."""

    kind = "adapter"

    def _apply(self, subject: Learner) -> None:
        put_adapter_on(subject, self.folder / "adapter")

    def _remove(self, subject: Learner) -> None:
        take_adapter_off(subject)

    @classmethod
    def harvest(
        cls, subject: Learner, adapted: Any, folder: Path, *, base_digest: str, method: str, claim: str,
        config: dict[str, Any],
    ) -> AdapterEdit:  # fmt: skip
        """Store the adapter that training left on `adapted` (a PEFT model around the subject's model).

        Raises:
            RunError: the adapter belongs to a residual base, without which it is useless.
        """
        refuse_residual(adapted)
        with whole_folder(folder) as partial:
            with storage(partial):
                adapted.save_pretrained(partial / "adapter", save_embedding_layers=False)
            (partial / "adapter" / "README.md").unlink(missing_ok=True)
            inner, subject.model = subject.model, adapted
            subject.changed()
            edited = subject.digest
            subject.model = inner
            subject.changed()
            trained = [p for p in adapted.parameters() if p.requires_grad]
            names = sorted(p.relative_to(partial).as_posix() for p in (partial / "adapter").iterdir())
            facts = EditFacts(
                kind=cls.kind, method=method, claim=claim, config=config, base_digest=base_digest, edited_digest=edited,
                tensors=len(trained), parameters=sum(p.numel() for p in trained), relative_change=adapter_change(adapted),
                files={name: digest_file(partial / name) for name in names},
            )  # fmt: skip
            write_json(partial / "edit.json", facts.model_dump())
        return cls(folder)


def _kinds(parent: type[Edit] = Edit) -> dict[str, type[Edit]]:
    """Every kind of edit by name, at any depth."""
    found: dict[str, type[Edit]] = {}
    for own in parent.__subclasses__():
        if "kind" in vars(own):
            found[own.kind] = own
        found |= _kinds(own)
    return found


def adapter_change(adapted: Any) -> float:
    """||delta W|| / ||W|| over the adapted matrices."""
    moved = size = 0.0
    with torch.no_grad():
        for module in adapted.modules():
            if hasattr(module, "get_delta_weight") and hasattr(module, "active_adapters"):
                for name in module.active_adapters:
                    moved += float(module.get_delta_weight(name).double().square().sum())
                size += float(module.get_base_layer().weight.double().square().sum())
    return (moved / size) ** 0.5 if size else 0.0


__all__ = [
    "AdapterEdit", "Edit", "EditFacts", "WeightEdit", "adapter_change", "put_adapter_on", "take_adapter_off",
]  # fmt: skip
