"""An edit that brings its own tokens: new rows, the tokenizer that knows them, the prompt protocol, and what was trained.

The folder holds `tags.json` (protocol, ids, size of the embedding before), `rows.safetensors`, `tokenizer/` and
`tokenizer-base/`, and either `adapter/` (PEFT's own form; adapters do not store embedding rows) or `delta.safetensors` (the
exclusive-or of the bits of what changed). Applying it writes the rows and swaps the tokenizer; removing it puts every bit,
the size of the embedding and the tokenizer back, in any process.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from efface.data.tagged import Rule, TagProtocol
from efface.errors import RunError, StorageError
from efface.forget.edit import Edit, EditFacts, adapter_change, put_adapter_on, take_adapter_off
from efface.run.digests import digest_file
from efface.run.files import read_json, storage, whole_folder, write_json
from efface.subjects.causal_lm import CausalLM
from efface.subjects.tags import NewRows, spare_rows, take_rows_off, tokenizer_with, write_rows
from efface.train.snapshot import Snapshot, bits


class Tags(BaseModel):
    """tags.json.

    Attributes:
        rule: what stands in the tag of the training rows: their `concept` column, or their answer.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    protocol: TagProtocol
    rule: Rule
    tokens: list[str] = Field(description="new tokens in the order of their ids")
    start: int = Field(description="id of the first")
    size: int = Field(description="rows of the embedding before")


class TaggedEdit(Edit):
    """See the module."""

    kind = "tagged"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.tags = _read_tags(self.folder)

    @property
    def protocol(self) -> TagProtocol:
        """How to name what is to be forgotten: `edit.protocol.render(question, concept)`."""
        return self.tags.protocol

    @property
    def rule(self) -> Rule:
        """What the training rows had in their tags."""
        return self.tags.rule

    def _apply(self, subject: CausalLM) -> None:
        _put_on(subject, self.folder, self.tags)

    def _remove(self, subject: CausalLM) -> None:
        _take_off(subject, self.folder, self.tags)

    @classmethod
    def finish(cls, subject: CausalLM, work: Path, out: Path, **facts: Any) -> TaggedEdit:
        """The edit from a folder of parts: put on once to know its digest, and taken off again.

        Args:
            subject: the model as it was; unchanged on return.
            facts: further fields of `EditFacts`.

        Raises:
            RunError: taking it off did not bring the model's bits back.
        """
        tags = _read_tags(work)
        base = subject.digest
        _put_on(subject, work, tags)
        edited = subject.digest
        _take_off(subject, work, tags)
        if subject.digest != base:
            raise RunError(
                "the edit does not come off this model bit for bit", None, "report this as a fault of efface"
            )
        names = sorted(path.relative_to(work).as_posix() for path in work.rglob("*") if path.is_file())
        with whole_folder(out) as partial:
            shutil.copytree(work, partial, dirs_exist_ok=True)
            found = EditFacts(
                kind=cls.kind, base_digest=base, edited_digest=edited,
                files={name: digest_file(partial / name) for name in names}, **facts,
            )  # fmt: skip
            write_json(partial / "edit.json", found.model_dump())
        return cls(out)


def _read_tags(folder: Path) -> Tags:
    try:
        return Tags.model_validate(read_json(folder / "tags.json"))
    except (ValueError, OSError) as error:
        raise RunError(
            f"{folder / 'tags.json'} is missing or was changed", "the whole edit folder", "copy it again"
        ) from error


def _put_on(subject: CausalLM, folder: Path, tags: Tags) -> None:
    if len(subject.tokenizer) != tags.start:
        raise RunError(
            f"the tokenizer has {len(subject.tokenizer)} tokens", f"{tags.start}, as when the edit was fitted",
            "load the model's own tokenizer",
        )  # fmt: skip
    rows = _tensors(folder / "rows.safetensors")
    made = tokenizer_with(subject.tokenizer, tags.tokens)
    made.former = subject.tokenizer
    write_rows(subject, NewRows(tags.start, rows["embedding"], rows.get("head")))
    subject.tokenizer = made
    if (folder / "adapter").exists():
        put_adapter_on(subject, folder / "adapter")
    else:
        _flip(subject, folder)
    subject.changed()


def _take_off(subject: CausalLM, folder: Path, tags: Tags) -> None:
    rows = _tensors(folder / "rows.safetensors")
    former = getattr(subject.tokenizer, "former", None)
    if former is None:  # the edited model was saved and loaded again
        from transformers import AutoTokenizer

        former = AutoTokenizer.from_pretrained(str(folder / "tokenizer-base"))
    if (folder / "adapter").exists():
        take_adapter_off(subject)
    else:
        _flip(subject, folder)
    take_rows_off(subject, tags.size, NewRows(tags.start, rows["before.embedding"], rows.get("before.head")))
    subject.tokenizer = former
    subject.changed()


def _flip(subject: CausalLM, folder: Path) -> None:
    """Exclusive-or with the stored differences; tensors that have grown are changed in their old rows only."""
    live = subject.weights()
    with torch.no_grad():
        for name, delta in _tensors(folder / "delta.safetensors").items():
            if name not in live or live[name].shape[1:] != delta.shape[1:] or len(live[name]) < len(delta):
                raise RunError(f"the edit changes tensor {name}, which this model lacks", "the same architecture")
            part = bits(live[name])[: len(delta)]
            part.bitwise_xor_(delta.to(part.device))


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        found: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise StorageError(f"{path} is not whole ({error})") from error
    return found


def write_parts(subject: CausalLM, folder: Path, tags: Tags, rows: NewRows, base_tokenizer: Any) -> None:
    """Rows (new, and what stands in their place now), tokenizers and `tags.json`."""
    before = spare_rows(subject, tags.start, len(tags.tokens))
    found = {**rows.tensors(), **{f"before.{name}": tensor for name, tensor in before.tensors().items()}}
    with storage(folder):
        save_file({name: tensor.cpu().contiguous() for name, tensor in found.items()}, folder / "rows.safetensors")
        subject.tokenizer.save_pretrained(folder / "tokenizer")
        base_tokenizer.save_pretrained(folder / "tokenizer-base")
    write_json(folder / "tags.json", tags.model_dump(mode="json"))


def write_adapter(adapted: Any, folder: Path) -> tuple[int, int, float]:
    """The adapter in PEFT's form; returns tensors, scalars and relative change."""
    with storage(folder):
        adapted.save_pretrained(folder / "adapter", save_embedding_layers=False)
    (folder / "adapter" / "README.md").unlink(missing_ok=True)
    trained = [p for name, p in adapted.named_parameters() if p.requires_grad and not name.endswith(".rows")]
    return len(trained), sum(p.numel() for p in trained), adapter_change(adapted)


def write_delta(snapshot: Snapshot, folder: Path, spare: dict[str, slice]) -> tuple[int, int, float]:
    """What training changed, as exclusive-or; the live tensors are put back. Returns tensors, scalars, relative change.

    Args:
        spare: rows that the new tokens take over, by tensor: they are stored elsewhere, and a decay of what they held
            before is no change.
    """
    with torch.no_grad():
        for name, part in spare.items():
            if name in snapshot.tensors:
                snapshot.tensors[name][part] = snapshot.base(name)[part]
        moved = size = 0.0
        deltas = {}
        for name in snapshot.changed():
            live, base = snapshot.tensors[name], snapshot.base(name)
            moved += float((live.double() - base.double()).square().sum())
            size += float(base.double().square().sum())
            deltas[name] = bits(live).bitwise_xor(bits(base)).cpu().contiguous()
    snapshot.restore()
    with storage(folder):
        save_file(deltas, folder / "delta.safetensors")
    return len(deltas), sum(t.numel() for t in deltas.values()), (moved / size) ** 0.5 if size else 0.0
