"""A guard as an edit: a folder of what the guard needs, and a `GuardedModel` put round the subject's model.

A kind of guard gives `kind` and `build`; its method writes the files and calls `finish`. Applying wraps, removing unwraps,
and no bit of the weights is touched by either.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from efface.errors import ModelError
from efface.forget.edit import Edit, EditFacts
from efface.run.digests import digest_file, digest_value
from efface.run.files import read_json, whole_folder, write_json
from efface.subjects.causal_lm import CausalLM
from efface.subjects.guarded import GuardedModel

CONFIG = "guard.json"
"""The configuration that the guard was made with; what is added to edit.json later does not change the guard."""


class GuardEdit(Edit):
    """The base class of edits that act at inference only."""

    @classmethod
    @abstractmethod
    def build(cls, subject: CausalLM, folder: Path, config: dict[str, Any], seal: str) -> GuardedModel:
        """The guarded model.

        Args:
            subject: bare; its model is the base.
            folder: what `finish` let the method write.
            config: the method's configuration as given to `finish`.
            seal: for `GuardedModel`.
        """

    def _apply(self, subject: CausalLM) -> None:
        guarded = _built(type(self), subject, self.folder, self.facts.files)
        subject.model = guarded.train(subject.model.training)

    def _remove(self, subject: CausalLM) -> None:
        if not isinstance(subject.model, GuardedModel):
            raise ModelError("a model without its guard", "the model that the edit was applied to")
        subject.model = subject.model.base

    @classmethod
    def finish(
        cls, subject: CausalLM, write: Callable[[Path], None], folder: Path, *, method: str, config: dict[str, Any]
    ) -> Self:
        """Write the guard's files, see that they make a guard, and store what it is.

        Args:
            subject: unchanged on return.
            write: writes the guard's files into a folder.
            folder: of the edit.
        """
        base, plain = subject.digest, subject.model
        with whole_folder(folder) as partial:
            write(partial)
            write_json(partial / CONFIG, config)
            names = sorted(path.relative_to(partial).as_posix() for path in partial.rglob("*") if path.is_file())
            facts = EditFacts(
                kind=cls.kind, method=method, claim="suppressed", config=config, base_digest=base, edited_digest="",
                tensors=0, parameters=0, relative_change=0.0, files={name: digest_file(partial / name) for name in names},
            )  # fmt: skip
            try:
                subject.model = _built(cls, subject, partial, facts.files)
                subject.changed()
                facts = facts.model_copy(update={"edited_digest": subject.digest})
            finally:
                subject.model = plain
                subject.changed()
            write_json(partial / "edit.json", facts.model_dump(mode="json"))
        return cls(folder)


def _built(kind: type[GuardEdit], subject: CausalLM, folder: Path, files: dict[str, str]) -> GuardedModel:
    return kind.build(subject, folder, read_json(folder / CONFIG), digest_value({"kind": kind.kind, "files": files}))
