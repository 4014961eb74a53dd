"""Folders of the sentence-transformers library: its own modules (pooling, dense, normalise) run as they are.

An extra: `pip install 'efface[sentence-transformers]'`.
"""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from efface.errors import MissingExtraError, ModelError
from efface.subjects.loading import (
    DUAL,
    PICKLED,
    Glance,
    check_dtype,
    look_at_place,
    pil_backend,
    place_of,
    reading_weights,
    refuse_incomplete,
    refuse_unreadable,
)
from efface.subjects.tower import Modality, Tower, check_pictures, check_texts


def need_sentence_transformers(source: str) -> None:
    """Raise where the library is not installed.

    Raises:
        MissingExtraError: names the extra.
    """
    if importlib.util.find_spec("sentence_transformers") is None:
        raise MissingExtraError(
            f"'{source}' is a sentence-transformers model and that library is not installed",
            "the extra sentence-transformers", "pip install 'efface[sentence-transformers]'",
        )  # fmt: skip


def _look(source: str, revision: str | None, modules: Sequence[dict[str, Any]], trust_remote_code: bool) -> None:
    """Refuse foreign code and pickled weights before the library sees the folder."""
    for module in modules:
        kind = str(module.get("type", ""))
        if not kind.startswith("sentence_transformers.") and not trust_remote_code:
            raise ModelError(
                f"modules.json of '{source}' names the class {kind!r}", "classes of sentence_transformers",
                "read that code, then load with trust_remote_code",
            )  # fmt: skip
    root = look_at_place(source, revision)
    if root is None:
        return
    base = root.resolve()
    for module in modules:
        folder = (root / str(module.get("path", ""))).resolve()
        if not folder.is_relative_to(base):
            raise ModelError(f"modules.json of '{source}' points to {module.get('path')!r}", "folders within it",
                             "use a sound copy")  # fmt: skip
        pickled = [name for name in PICKLED if (folder / name).exists()]
        if pickled and not list(folder.glob("*.safetensors")):
            raise ModelError(f"'{source}' has only pickled weights ({', '.join(pickled)})", "safetensors",
                             "convert it with SentenceTransformer.save_pretrained")  # fmt: skip
        refuse_unreadable(folder)


def _refuse_random_weights(source: str, inner: Path, what: str) -> bool:
    """The library fills tensors that a file lacks with random numbers; ask transformers on the meta device for them.

    Returns:
        whether the pooler's are missing, which no pooling of ours reads.
    """
    from transformers import AutoModel

    if not (inner / "config.json").exists() or not list(inner.glob("*.safetensors")):
        return False
    with reading_weights(source, what):
        _, info = AutoModel.from_pretrained(
            inner, device_map="meta", output_loading_info=True, use_safetensors=True, ignore_mismatched_sizes=True
        )
    return refuse_incomplete(source, info, optional="pooler.")


def load_sentence_transformer(
    source: str, seen: Glance, what: str, *, revision: str | None, dtype: str, trust_remote_code: bool
) -> Any:
    """The library's `SentenceTransformer`, from safetensors only, in evaluation mode.

    Raises:
        MissingExtraError: the library is not installed.
        ModelError: one line that says what is wrong with the folder or id.
    """
    need_sentence_transformers(source)
    check_dtype(dtype)
    _look(source, revision, seen.modules or (), trust_remote_code)
    place = place_of(source)
    inner = Path(place) / str((seen.modules or ({},))[0].get("path", ""))
    no_pooler = not trust_remote_code and _refuse_random_weights(source, inner, what)
    from sentence_transformers import SentenceTransformer

    pictures = seen.model_type in DUAL or seen.kind == "dual-encoder" or seen.modality == "image"
    with reading_weights(source, what):
        model = SentenceTransformer(
            place, revision=revision, trust_remote_code=trust_remote_code,
            device="cuda" if torch.cuda.is_available() else "cpu",
            model_kwargs={"dtype": dtype, "use_safetensors": True},
            processor_kwargs=pil_backend() if pictures else None,
        )  # fmt: skip
    if no_pooler:
        first: Any = model[0]
        first.auto_model.pooler = None
    return model.eval()


class SentenceTower(Tower):
    """One modality of a `SentenceTransformer`; prompt, pooling and normalisation are the model's own.

    Args:
        model: the library's object, callable on what its `preprocess` gives.
    """

    def __init__(self, model: Any, modality: Modality, source: str) -> None:
        super().__init__(model, modality, source)
        name = getattr(model, "default_prompt_name", None)
        self._prompt: str | None = (model.prompts.get(name) or None) if name and modality == "text" else None
        self._extras: dict[str, Any] = {"modality": modality}

    @property
    def image_processor(self) -> Any:
        """The PIL image processor of an image tower."""
        processor = getattr(self.module, "processor", None)
        return getattr(processor, "image_processor", processor) if self.modality == "image" else None

    def prepare(self, items: Sequence[Any]) -> dict[str, Tensor]:
        """The tensors that the model's first module makes, each with B rows; longer texts are cut at its limit."""
        values = check_texts(items) if self.modality == "text" else check_pictures(items)
        if hasattr(self.module, "preprocess"):
            options = {} if self._prompt is None else {"prompt": self._prompt}
            batch = self.module.preprocess(values, **options)
        else:  # before version 5.4
            batch = self.module.tokenize([(self._prompt or "") + v for v in values] if self._prompt else values)
        for name, value in batch.items():  # the same for every batch: the modality, the length of the prompt
            if not isinstance(value, Tensor):
                self._extras[name] = value
        return {name: value for name, value in batch.items() if isinstance(value, Tensor)}

    def features(self, inputs: dict[str, Tensor]) -> Tensor:
        """[B, D] with gradient; unit rows already where the model ends in a normalising module."""
        if "image_text_info" in self._extras:  # before version 5.4: which rows are pictures
            rows = next(iter(inputs.values())).shape[0]
            self._extras["image_text_info"] = [0 if self.modality == "image" else 1] * rows
        moved: dict[str, Any] = {name: tensor.to(self.device) for name, tensor in inputs.items()}
        found: Tensor = self.module({**self._extras, **moved})["sentence_embedding"]
        keep = getattr(self.module, "truncate_dim", None)
        return found if keep is None else found[:, :keep]


def save_sentence_transformer(model: Any, folder: Path) -> None:
    """Write the library's own layout, safetensors, without a model card."""
    options = {"create_model_card": False} if "create_model_card" in inspect.signature(model.save).parameters else {}
    model.save_pretrained(str(folder), **options)
