"""What every kind of subject shares: where it came from, its weights and their digest, modes, saving."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from efface.errors import ModelError
from efface.run.digests import digest_tensors
from efface.run.files import whole_folder
from efface.run.record import ModelRecord
from efface.subjects.quiet import quiet_transformers


class Subject:
    """A trained model of one kind: a thin frame around the library's own object, which stays reachable as `model`.

    Args:
        model: the torch module that holds the weights.
        source: hub id or folder it was loaded from.
        revision: commit, tag or branch on the hub.
        trust_remote_code: whether code of the repository was run.
    """

    kind = "subject"

    def __init__(
        self, model: Any, *, source: str = "in memory", revision: str | None = None, trust_remote_code: bool = False
    ) -> None:
        self.model = model
        self.source = source
        self.revision = revision
        self.trust_remote_code = trust_remote_code
        self._digest: str | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.source!r}, {self.n_parameters / 1e6:.2f} M parameters, {self.dtype})"

    # -- facts ----------------------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Where the inputs go."""
        device: torch.device = next(self.model.parameters()).device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weights."""
        dtype: torch.dtype = next(self.model.parameters()).dtype
        return dtype

    @property
    def n_parameters(self) -> int:
        """Number of scalars, tied tensors counted once."""
        return sum(tensor.numel() for tensor in self.weights().values())

    def weights(self) -> dict[str, torch.Tensor]:
        """Every parameter and persistent buffer by name; tensors that share storage appear once."""
        seen: dict[int, str] = {}
        found: dict[str, torch.Tensor] = {}
        for name, tensor in self.model.state_dict(keep_vars=True).items():
            if id(tensor) not in seen:
                seen[id(tensor)] = name
                found[name] = tensor
        return found

    @property
    def digest(self) -> str:
        """Digest of the weights (cached; `changed()` drops the cache)."""
        if self._digest is None:
            self._digest = digest_tensors(self.weights())
        return self._digest

    def changed(self) -> None:
        """Say that the weights are other ones now."""
        self._digest = None

    def record(self) -> ModelRecord:
        """The facts that a run stores about its model."""
        return ModelRecord(
            source=self.source, revision=self.revision, kind=self.kind, digest=self.digest,
            parameters=self.n_parameters, dtype=str(self.dtype).removeprefix("torch."),
            trust_remote_code=self.trust_remote_code,
        )  # fmt: skip

    # -- running --------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[Any]:
        """The model in evaluation mode without gradients; its former mode comes back."""
        mode = self.model.training
        self.model.eval()
        try:
            with torch.no_grad():
                yield self.model
        finally:
            self.model.train(mode)

    # -- saving ---------------------------------------------------------------------------------------------------

    def beside(self) -> list[Any]:
        """What is saved beside the model: tokenizer, image processor."""
        return []

    def save(self, folder: Path) -> None:
        """Write safetensors, config and what belongs beside them; the folder is whole or absent.

        Raises:
            StorageError: the folder exists and is not empty (nothing is replaced), or cannot be written.
        """
        with whole_folder(Path(folder)) as partial:
            self.save_into(partial)

    def save_options(self) -> dict[str, Any]:
        """What this kind of model needs said when it is written."""
        return {}

    def save_into(self, folder: Path) -> None:
        """Write the same files into a folder that the caller makes whole."""
        with quiet_transformers():
            self.model.save_pretrained(folder, **self.save_options())
            for part in self.beside():
                part.save_pretrained(folder)


def refuse_bad_values(subject: Subject) -> None:
    """Raise where a weight is NaN or infinite (safetensors does not check values)."""
    for name, tensor in subject.weights().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ModelError(
                f"'{subject.source}': tensor {name} holds NaN or infinity", "finite weights", "use a sound checkpoint"
            )
