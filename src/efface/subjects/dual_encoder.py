"""The dual encoder as a subject: an image tower, a text tower, and the scale (and bias) of their scores.

CLIP, SigLIP and SigLIP 2 of transformers, and CLIP models of sentence-transformers. A pair's score is
`scale * <u, v> + bias` with unit rows u and v, and `scale = 1 / temperature` is already exponentiated here.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from efface.errors import ModelError
from efface.subjects.loading import (
    DUAL,
    check_dtype,
    glance,
    load_image_processor,
    load_tokenizer,
    look_before_loading,
    one_device,
    place_of,
    reading_weights,
    refuse_incomplete,
)
from efface.subjects.sentence import SentenceTower, load_sentence_transformer, save_sentence_transformer
from efface.subjects.subject import Subject, refuse_bad_values
from efface.subjects.tower import ImageTower, TextTower, Tower, longest

WHAT = "a dual encoder"
Family = Literal["clip", "siglip", "sentence-transformers"]
SCALES = (0.5, 500.0)


def _vector(output: Any) -> Tensor:
    """[B, D] of what `get_*_features` returns: an output object since transformers 5, a tensor before."""
    found: Tensor = output if isinstance(output, Tensor) else output.pooler_output
    return found


class DualEncoder(Subject):
    """Two towers in one model.

    Args:
        model: a CLIP, SigLIP or SigLIP 2 module of transformers, or a `SentenceTransformer` around one.
        tokenizer, image_processor: of a transformers model; a `SentenceTransformer` brings its own.

    Raises:
        ModelError: no scale, a scale outside 0.5 to 500, or a tokenizer whose end token the model does not find.
    """

    kind = "dual-encoder"

    def __init__(
        self, model: Any, tokenizer: Any = None, image_processor: Any = None, *, source: str = "in memory",
        revision: str | None = None, trust_remote_code: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(model, source=source, revision=revision, trust_remote_code=trust_remote_code)
        self.tokenizer, self.image_processor = tokenizer, image_processor
        self.image: Tower
        self.text: Tower
        if hasattr(model, "get_image_features"):
            self.inner = model
            self.family: Family = "siglip" if model.config.model_type.startswith("siglip") else "clip"
            self.image, self.text = self._image_tower(), self._text_tower()
        else:
            self.inner = _inside(model)
            self.family = "sentence-transformers"
            self.tokenizer = model.tokenizer
            if self.inner.config.model_type == "clip":
                self._check_end(int(self.inner.config.text_config.eos_token_id))
            self.image, self.text = SentenceTower(model, "image", source), SentenceTower(model, "text", source)
        self._check_scale()

    def _image_tower(self) -> Tower:
        def run(inputs: dict[str, Tensor]) -> Tensor:
            return _vector(self.model.get_image_features(**inputs))

        return ImageTower(self.model, self.image_processor, run, source=self.source)

    def _text_tower(self) -> Tower:
        def run(inputs: dict[str, Tensor]) -> Tensor:
            return _vector(self.model.get_text_features(**inputs))

        config = self.model.config.text_config
        rows = self.model.text_model.get_input_embeddings().weight.shape[0]
        if len(self.tokenizer) > rows:
            raise ModelError(
                f"the tokenizer has {len(self.tokenizer)} tokens, the text tower's embedding {rows} rows",
                "a tokenizer that belongs to this model", "load model and tokenizer from one source",
            )  # fmt: skip
        limit = longest(self.tokenizer, config)
        if self.family == "siglip":  # trained on texts padded to the full length, without a mask
            full = int(config.max_position_embeddings)
            return TextTower(self.model, self.tokenizer, run, source=self.source, max_length=full,
                             padding="max_length", mask=False)  # fmt: skip
        self._check_end(int(config.eos_token_id))
        return TextTower(self.model, self.tokenizer, run, source=self.source, max_length=limit)

    def _check_end(self, end: int) -> None:
        """CLIP reads the text at its end token; a tokenizer that appends another one would be read at a wrong place.

        Configurations from before 2023 say 2 for any end token, and the model then takes the largest id.
        """
        ids = self.tokenizer("a")["input_ids"]
        largest = max(self.tokenizer.get_vocab().values())
        wanted = largest if end == 2 else end
        if not ids or ids[-1] != wanted:
            raise ModelError(
                f"the tokenizer of '{self.source}' ends a text with id {ids[-1] if ids else None}, the model looks for "
                f"{wanted}", "one end token for both", "set text_config.eos_token_id to the tokenizer's end token"
                + (" (2 means the largest id)" if end == 2 else ""),
            )  # fmt: skip

    # -- scale ----------------------------------------------------------------------------------------------------

    @property
    def log_scale(self) -> torch.nn.Parameter:
        """[] the parameter that is trained: log(1 / T)."""
        parameter: torch.nn.Parameter = self.inner.logit_scale
        return parameter

    @property
    def logit_bias(self) -> torch.nn.Parameter | None:
        """[] SigLIP's bias, None elsewhere."""
        return getattr(self.inner, "logit_bias", None)

    @property
    def scale(self) -> float:
        """1 / T: the stored logarithm, exponentiated once."""
        stored = float(self.log_scale.detach())
        return math.exp(stored) if stored < 700 else math.inf

    @property
    def bias(self) -> float | None:
        """b, None without one."""
        return None if self.logit_bias is None else float(self.logit_bias.detach())

    def _check_scale(self) -> None:
        if getattr(self.inner, "logit_scale", None) is None:
            raise ModelError(f"'{self.source}' has no logit_scale", "a dual encoder with its scale",
                             "give its embeddings and the scale instead of the model")  # fmt: skip
        stored = float(self.log_scale.detach())
        low, high = SCALES
        if not low <= self.scale <= high:
            raise ModelError(
                f"logit_scale {stored:.6g} of '{self.source}' is the scale exp({stored:.6g}) = {self.scale:.4g}",
                f"a scale between {low:g} and {high:g}; the weights hold its logarithm",
                "store log(scale) where the file holds the scale itself",
            )  # fmt: skip

    # -- saving ---------------------------------------------------------------------------------------------------

    def beside(self) -> list[Any]:
        """Tokenizer and image processor."""
        return [part for part in (self.tokenizer, self.image_processor) if part is not None]

    def save_into(self, folder: Path) -> None:
        """Write weights, config, tokenizer and image processor in the library's own layout."""
        if self.family == "sentence-transformers":
            save_sentence_transformer(self.model, folder)
        else:
            super().save_into(folder)


def _inside(model: Any) -> Any:
    """The transformers module in a `SentenceTransformer`."""
    for module in model.modules():
        if hasattr(module, "get_image_features") and hasattr(module, "get_text_features"):
            return module
    raise ModelError("a sentence-transformers model without an image tower", "a CLIP model of sentence-transformers",
                     "load it with load_encoder")  # fmt: skip


def load_dual_encoder(
    source: str | Path, *, revision: str | None = None, dtype: str = "float32", trust_remote_code: bool = False,
    check_values: bool = True,
) -> DualEncoder:  # fmt: skip
    """Load a dual encoder from a hub id or folder, safetensors only; pictures go through PIL, never torchvision.

    Args:
        source: hub id or folder of CLIP, SigLIP or SigLIP 2, or of a sentence-transformers CLIP (modules.json).
        revision: commit, tag or branch on the hub.
        dtype: `float32`, `bfloat16`, `float16` or `auto`.
        trust_remote_code: run code from the repository; off unless asked for, and recorded.
        check_values: refuse weights with NaN or infinity.

    Raises:
        ModelError: one line that says what is wrong, or what kind of model it is and which command takes it.
        MissingExtraError: sentence-transformers is needed and not installed.
    """
    from transformers import AutoModel

    text = str(source)
    check_dtype(dtype)
    seen = glance(text, revision)
    if seen.kind in ("causal-lm", "encoder") or (seen.kind is None and seen.model_type != "unknown"):
        raise seen.refuse(text, f"a dual encoder ({', '.join(DUAL)}, or CLIP of sentence-transformers)")
    facts: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    if seen.modules is not None:
        subject = DualEncoder(load_sentence_transformer(text, seen, WHAT, dtype=dtype, **facts), source=text, **facts)
    else:
        look_before_loading(text, revision, image_processor=True)
        place = place_of(text)
        tokenizer = load_tokenizer(text, place, facts, WHAT)
        processor = load_image_processor(text, place, facts, WHAT)
        with reading_weights(text, WHAT):
            model, info = AutoModel.from_pretrained(
                place, dtype=dtype, device_map=one_device(), use_safetensors=True, output_loading_info=True,
                ignore_mismatched_sizes=True, **facts
            )  # fmt: skip
        refuse_incomplete(text, info)
        subject = DualEncoder(model.eval(), tokenizer, processor, source=text, **facts)
    if check_values:
        refuse_bad_values(subject)
    return subject
