"""The encoder as a subject: one tower, for texts, for pictures or for arrays.

Behind it stands a text encoder of transformers (BERT-like, or a decoder read at its last token), an image encoder of
transformers (ViT, ConvNeXt, DINOv2, timm's, ...), a sentence-transformers folder with its own pooling, or one of
`small_encoders`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from efface.errors import InputError, ModelError, nearest
from efface.subjects.loading import (
    Glance,
    check_dtype,
    glance,
    load_image_processor,
    load_tokenizer,
    look_at_place,
    look_before_loading,
    one_device,
    place_of,
    reading_weights,
    refuse_incomplete,
)
from efface.subjects.sentence import SentenceTower, load_sentence_transformer, save_sentence_transformer
from efface.subjects.subject import Subject, refuse_bad_values
from efface.subjects.tower import FeatureTower, ImageTower, Modality, TextTower, Tower, longest

WHAT = "an encoder"
TextPooling = Literal["mean", "cls", "last", "end"]
ImagePooling = Literal["pooler", "cls", "mean"]


def pool(
    hidden: Tensor, mask: Tensor, how: str, ids: Tensor | None = None, end_id: int | None = None
) -> Tensor:  # fmt: skip
    """One vector a text from the last hidden states; padding takes no part.

    Args:
        hidden: [B, L, D].
        mask: [B, L], 1 on tokens and 0 on padding, wherever the padding is.
        how: `mean` over the tokens, the first token (`cls`), the `last` token, or the first `end` token (as CLIP).
        ids: [B, L] token ids, for `end`.
        end_id: the end token's id, for `end`.

    Returns:
        [B, D] float32.

    Raises:
        ModelError: `end`, and a row without the end token.
    """
    hidden, mask = hidden.float(), mask.to(hidden.device)
    if how == "mean":
        weight = mask.to(hidden.dtype)[:, :, None]
        return (hidden * weight).sum(1) / weight.sum(1)
    if how == "cls":
        place = mask.argmax(1)
    elif how == "last":
        place = mask.shape[1] - 1 - mask.flip(1).argmax(1)
    else:
        assert ids is not None
        found = (ids.to(hidden.device) == end_id) & mask.bool()
        if not bool(found.any(1).all()):
            raise ModelError(
                f"pooling=end and a text without the end token (id {end_id})", "a tokenizer that appends it",
                "choose pooling=last",
            )  # fmt: skip
        place = found.int().argmax(1)
    return hidden[torch.arange(len(hidden), device=hidden.device), place]


def pool_picture(output: Any, how: str) -> Tensor:
    """[B, D] float32 from an image encoder's output.

    Args:
        output: with `last_hidden_state` [B, L, D] (first row: the class token) or [B, C, H, W], and `pooler_output`.
        how: the model's own `pooler`, the class token (`cls`), or the `mean` over patches or pixels.
    """
    if how == "pooler":
        pooled: Tensor = output.pooler_output
        return pooled.float().flatten(1)
    hidden: Tensor = output.last_hidden_state.float()
    if hidden.ndim == 4:
        if how == "cls":
            raise ModelError("pooling=cls for a convolutional model, which has no class token", "pooler or mean",
                             "choose one of them")  # fmt: skip
        return hidden.mean((2, 3))
    return hidden[:, 0] if how == "cls" else hidden[:, 1:].mean(1)


class Encoder(Subject):
    """One tower with its tokenizer or image processor; itself a tower (`prepare`, `features`, `width`, `embed`).

    It runs whatever `model` is at the moment, so a shallow copy with another module (a moving average) is a tower too.

    Args:
        model: a module of transformers, or a `SentenceTransformer`.
        part: its tokenizer or image processor; None for a `SentenceTransformer`, which brings its own.
        modality: `image` or `text`; default: what the module's main input is.
        pooling: how a vector is made of the hidden states. Texts: `mean`, `cls`, `last`, `end`; default `last` for a
            model with causal attention, `end` for CLIP's text model, else `mean`. Pictures: `pooler`, `cls`, `mean`;
            default the model's own `pooler`, or `cls` where it has none. A `SentenceTransformer`: `own`. It is saved in
            config.json as `efface_pooling`.

    Raises:
        ModelError: a pooling that this model does not have, or a tokenizer of another model.
    """

    kind = "encoder"

    def __init__(
        self, model: Any, part: Any = None, *, modality: str | None = None, pooling: str | None = None,
        source: str = "in memory", revision: str | None = None, trust_remote_code: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(model, source=source, revision=revision, trust_remote_code=trust_remote_code)
        self.part = part
        mains: dict[str, Modality] = {"pixel_values": "image", "features": "features"}
        main = mains.get(getattr(model, "main_input_name", "input_ids"), "text")
        self.modality: Modality = main if modality not in get_args(Modality) else modality  # type: ignore[assignment]
        self._width: int | None = None
        if part is None:
            self.pooling = _choose(pooling, ("own",), "own")
        elif self.modality == "image":
            bare = hasattr(model, "pooler") and model.pooler is None
            self.pooling = _choose(pooling, get_args(ImagePooling), "cls" if bare else "pooler")
            if self.pooling == "pooler" and bare:
                raise ModelError(f"pooling=pooler, and the weights of '{source}' hold no pooler", "cls or mean",
                                 "choose one of them")  # fmt: skip
        else:
            self.pooling = _choose(pooling, get_args(TextPooling), _default_pooling(model.config))
            self._check_tokenizer()
        if part is not None:
            model.config.efface_pooling = self.pooling

    def _check_tokenizer(self) -> None:
        rows = self.model.get_input_embeddings().weight.shape[0]
        if len(self.part) > rows:
            raise ModelError(
                f"the tokenizer has {len(self.part)} tokens, the model's embedding {rows} rows",
                "a tokenizer that belongs to this model", "load model and tokenizer from one source",
            )  # fmt: skip
        if self.pooling == "end" and self._end is None:
            raise ModelError(f"pooling=end, and the tokenizer of '{self.source}' has no end token",
                             "mean, cls or last", "choose one of them")  # fmt: skip

    @property
    def _end(self) -> int | None:
        end: int | None = self.part.eos_token_id
        return end if end is not None else self.part.sep_token_id

    @property
    def tower(self) -> Tower:
        """What runs the present module."""
        if self.modality == "features":
            width = int(self.model.config.widths[-1])
            return FeatureTower(self.model, self._array_features, source=self.source, width=width)
        if self.part is None:
            return SentenceTower(self.model, self.modality, self.source)
        if self.modality == "image":
            return ImageTower(self.model, self.part, self._picture_features, source=self.source)
        limit = longest(self.part, self.model.config)
        return TextTower(self.model, self.part, self._text_features, source=self.source, max_length=limit)

    def _text_features(self, inputs: dict[str, Tensor]) -> Tensor:
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        hidden = self.model(input_ids=ids, attention_mask=mask, return_dict=True).last_hidden_state
        return pool(hidden, mask, self.pooling, ids, self._end)

    def _picture_features(self, inputs: dict[str, Tensor]) -> Tensor:
        return pool_picture(self.model(**inputs, return_dict=True), self.pooling)

    def _array_features(self, features: Tensor) -> Tensor:
        found: Tensor = self.model(features=features).pooler_output
        return found.float()

    def maps(self, inputs: dict[str, Tensor]) -> Tensor:
        """[B, D, h, w] with gradient: the last feature map of an encoder of pictures, not pooled.

        Raises:
            ModelError: an encoder of texts or arrays, or one whose last hidden state is no square map.
        """
        if self.modality != "image" or self.part is None:
            raise ModelError(
                f"'{self.source}' has no map of the picture", "an encoder of pictures", "give another model"
            )
        found: Tensor = self.model(**self.tower.moved(inputs), return_dict=True).last_hidden_state.float()
        if found.ndim == 4:
            return found
        side = math.isqrt(found.shape[1])  # of a vision transformer: the class token stands before the patches
        extra = found.shape[1] - side * side
        if extra == 0 and getattr(self.model.config, "model_type", "") in ("vit", "deit", "dinov2"):
            side, extra = side - 1, found.shape[1] - (side - 1) ** 2
        if side < 1 or extra > 2:
            raise ModelError(f"'{self.source}': {found.shape[1]} hidden states", "a square map of patches",
                             "give square pictures, or a convolutional encoder")  # fmt: skip
        rows = found[:, extra:].transpose(1, 2)
        return rows.reshape(*rows.shape[:2], side, side)

    @property
    def width(self) -> int:
        """D; found by embedding one item."""
        if self._width is None:
            self._width = self.tower.width
        return self._width

    @property
    def normalisation(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation a channel, of an encoder of pictures (see `Tower.normalisation`)."""
        return self.tower.normalisation

    def prepare(self, items: Sequence[Any]) -> dict[str, Tensor]:
        """See `Tower.prepare`."""
        return self.tower.prepare(items)

    def features(self, inputs: dict[str, Tensor]) -> Tensor:
        """See `Tower.features`."""
        return self.tower.features(inputs)

    def embed(self, items: Sequence[Any], batch_size: int = 64, *, label: str = "embed") -> Tensor:
        """See `Tower.embed`."""
        return self.tower.embed(items, batch_size, label=label)

    def beside(self) -> list[Any]:
        """Tokenizer or image processor."""
        return [] if self.part is None else [self.part]

    def save_into(self, folder: Path) -> None:
        """Write weights, config and tokenizer or image processor in the library's own layout."""
        if self.pooling == "own" and self.modality != "features":
            save_sentence_transformer(self.model, folder)
        else:
            super().save_into(folder)


def _choose(given: str | None, known: Sequence[str], default: str) -> str:
    if given is not None and given not in known:
        raise ModelError(f"pooling '{given}'", f"one of {', '.join(known)}", nearest(given, known))
    return given or default


def _default_pooling(config: Any) -> str:
    from transformers.models.auto import modeling_auto as auto

    stored = getattr(config, "efface_pooling", None)
    if stored is not None:
        return str(stored)
    if config.model_type == "clip_text_model":
        return "end"
    causal = config.model_type in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    return "last" if causal and config.model_type not in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES else "mean"


def _sentence_encoder(text: str, seen: Glance, modality: str | None, pooling: str | None, **options: Any) -> Encoder:
    if pooling is not None:
        raise ModelError(f"pooling '{pooling}' for '{text}', which has a pooling module of its own", "no pooling",
                         "leave pooling out")  # fmt: skip
    model = load_sentence_transformer(text, seen, WHAT, **options)
    known = [name for name in getattr(model, "modalities", ["text"]) if name in get_args(Modality)]
    chosen = modality or ("text" if "text" in known else known[0] if known else "none")
    if chosen not in known:
        raise ModelError(f"'{text}' takes {' and '.join(known) or 'neither texts nor images'}, not {chosen}",
                         "a modality of the model", "choose another modality or model")  # fmt: skip
    facts = {name: options[name] for name in ("revision", "trust_remote_code")}
    return Encoder(model, modality=chosen, source=text, **facts)


def load_encoder(
    source: str | Path, *, modality: str | None = None, pooling: str | None = None, revision: str | None = None,
    dtype: str = "float32", trust_remote_code: bool = False, check_values: bool = True,
) -> Encoder:  # fmt: skip
    """Load an encoder of texts or pictures from a hub id or folder, safetensors only.

    Args:
        source: hub id or folder; with modules.json it is loaded by the sentence-transformers library.
        modality: `image` or `text`; default: what config.json says.
        pooling: texts: `mean`, `cls`, `last`, `end`; pictures: `pooler`, `cls`, `mean`. Default: what was saved, else
            see `Encoder`.
        revision: commit, tag or branch on the hub.
        dtype: `float32`, `bfloat16`, `float16` or `auto`.
        trust_remote_code: run code from the repository; off unless asked for, and recorded.
        check_values: refuse weights with NaN or infinity.

    Raises:
        ModelError: one line that says what is wrong with the folder or id.
        MissingExtraError: sentence-transformers is needed and not installed.
    """
    from transformers import AutoModel

    import efface.subjects.small_encoders  # noqa: F401  (registers them)

    text = str(source)
    check_dtype(dtype)
    if modality not in (None, *get_args(Modality)):
        raise InputError(
            f"modality '{modality}'", "image, text or features", nearest(str(modality), get_args(Modality))
        )
    seen = glance(text, revision)
    if seen.kind == "dual-encoder":
        raise seen.refuse(text, "an encoder of texts or images")
    facts: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    if seen.model_type == "ensemble":
        from efface.subjects.ensemble import load_ensemble

        look_at_place(text, revision)
        return load_ensemble(text, pooling=pooling, modality=modality, dtype=dtype, check_values=check_values,
                             trust_remote_code=trust_remote_code)  # fmt: skip
    if seen.modules is not None:
        encoder = _sentence_encoder(text, seen, modality, pooling, dtype=dtype, **facts)
    else:
        chosen = modality or seen.modality or "text"
        pictures, arrays = chosen == "image", chosen == "features"
        look_before_loading(text, revision, tokenizer=not (pictures or arrays), image_processor=pictures)
        place = place_of(text)
        part = None if arrays else (load_image_processor if pictures else load_tokenizer)(text, place, facts, WHAT)
        with reading_weights(text, WHAT):
            model, info = AutoModel.from_pretrained(
                place, dtype=dtype, device_map=one_device(), use_safetensors=True, output_loading_info=True,
                ignore_mismatched_sizes=True, **facts
            )  # fmt: skip
        if refuse_incomplete(text, info, optional="pooler."):  # of a checkpoint with another head: never random weights
            model.pooler = None
        wanted = {"image": "pixel_values", "features": "features"}.get(chosen, "input_ids")
        if model.main_input_name != wanted or getattr(model.config, "is_encoder_decoder", False):
            what = f"a model of type '{seen.model_type}' ({type(model).__name__})"
            raise ModelError(f"'{text}' is {what}", f"an encoder of {'arrays' if arrays else 'images' if pictures else 'texts'}",
                             "use another model, or the other modality")  # fmt: skip
        encoder = Encoder(
            model.eval(), part, modality=chosen, pooling=pooling or seen.pooling, source=text,
            **facts,
        )  # fmt: skip
    if check_values:
        refuse_bad_values(encoder)
    return encoder
