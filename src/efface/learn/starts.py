"""Small models to learn from scratch: a picture encoder, a text encoder, a dual encoder, from sizes and a seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import Field

from efface.errors import ConfigError
from efface.learn.tokenizers import bpe_tokenizer, word_tokenizer
from efface.run.settings import Settings
from efface.subjects.dual_encoder import DualEncoder
from efface.subjects.encoder import Encoder
from efface.train.engine import isolated_rng


class StartConfig(Settings):
    """The size of a model that is built from scratch; of no use with `--model`."""

    width: int = Field(64, ge=8, description="hidden size")
    depth: int = Field(2, ge=1, description="layers of each tower")
    heads: int = Field(4, ge=1, description="attention heads")
    image_size: int = Field(32, ge=4, description="side of the pictures in pixels")
    patch: int = Field(8, ge=1, description="side of a patch in pixels")
    tokenizer: Literal["words", "bpe"] = Field("words", description="whole words, or byte-level BPE")
    vocabulary: int = Field(4096, ge=64, description="largest vocabulary")
    context: int = Field(32, ge=4, description="longest text in tokens")


def _check(size: StartConfig) -> None:
    if size.image_size % size.patch:
        raise ConfigError(f"image_size={size.image_size} with patch={size.patch}", "a whole number of patches")
    if size.width % size.heads:
        raise ConfigError(f"width={size.width} with heads={size.heads}", "a width that the heads divide")


def image_processor(side: int, *, siglip: bool = False) -> Any:
    """The processor without torchvision: RGB, `side` x `side` (a picture of that size is left alone), then 2 x - 1."""
    from transformers import CLIPImageProcessorPil, SiglipImageProcessorPil

    square = {"height": side, "width": side}
    mean_std: dict[str, Any] = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    if siglip:
        return SiglipImageProcessorPil(size=square, **mean_std)
    return CLIPImageProcessorPil(size=square, crop_size=square, do_center_crop=False, **mean_std)


def text_tokenizer(size: StartConfig, texts: Sequence[str]) -> Any:
    """A tokenizer made from the texts, which wraps each in a first and a last token; the last has the largest id.

    CLIP's text tower pools at the end token; with the largest id both of transformers' rules for finding it agree.
    """
    from tokenizers.processors import TemplateProcessing

    make = word_tokenizer if size.tokenizer == "words" else bpe_tokenizer
    tokenizer = make(sorted(set(texts)), size.vocabulary)
    tokenizer.add_special_tokens({"pad_token": "[PAD]", "bos_token": "[BOS]"})
    tokenizer.add_special_tokens({"eos_token": "[END]"})
    first, last = tokenizer.bos_token_id, tokenizer.eos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="[BOS] $A [END]", special_tokens=[("[BOS]", first), ("[END]", last)]
    )
    tokenizer.model_max_length = size.context
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    return tokenizer


def new_encoder(size: StartConfig, modality: str, texts: Sequence[str], seed: int) -> Encoder:
    """A vision transformer, or a BERT; both with mean pooling."""
    _check(size)
    if modality == "image":
        from transformers import ViTConfig, ViTModel

        with isolated_rng(seed):
            config = ViTConfig(image_size=size.image_size, patch_size=size.patch, **_tower(size))
            model = ViTModel(config, add_pooling_layer=False)
        return Encoder(model.eval(), image_processor(size.image_size), pooling="mean", source="from scratch")
    from transformers import BertConfig, BertModel

    tokenizer = text_tokenizer(size, texts)
    settings = BertConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=size.context,
        pad_token_id=tokenizer.pad_token_id,
        **_tower(size),
    )
    with isolated_rng(seed):
        bert = BertModel(settings, add_pooling_layer=False)
    return Encoder(bert.eval(), tokenizer, pooling="mean", source="from scratch")


def new_dual_encoder(
    size: StartConfig, texts: Sequence[str], seed: int, *, sigmoid: bool = False, tokenizer: Any = None
) -> DualEncoder:
    """A small CLIP, or with `sigmoid` a small SigLIP.

    Args:
        size: of both towers; feed-forward layers are twice as wide, the joint space is `width` wide.
        texts: what a new tokenizer is made from.
        seed: of the weights.
        sigmoid: SigLIP, starting at scale 10 and bias -10 (Zhai et al., arXiv 2303.15343, section 3.2).
        tokenizer: in place of a new one.
    """
    from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

    _check(size)
    tokenizer = text_tokenizer(size, texts) if tokenizer is None else tokenizer
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    text = {"vocab_size": len(tokenizer), "max_position_embeddings": size.context, **special, **_tower(size)}
    vision = {"image_size": size.image_size, "patch_size": size.patch, **_tower(size)}
    with isolated_rng(seed):
        if sigmoid:
            model: Any = SiglipModel(
                SiglipConfig(text_config=text | {"projection_size": size.width}, vision_config=vision)
            )
        else:
            model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=size.width))
    if sigmoid:
        with torch.no_grad():
            model.logit_scale.fill_(math.log(10.0))
            model.logit_bias.fill_(-10.0)
    return DualEncoder(model.eval(), tokenizer, image_processor(size.image_size, siglip=sigmoid), source="from scratch")


def _tower(size: StartConfig) -> dict[str, int]:
    return {
        "hidden_size": size.width, "intermediate_size": 2 * size.width, "num_hidden_layers": size.depth,
        "num_attention_heads": size.heads,
    }  # fmt: skip
