"""Small models to learn from scratch: encoders of pictures, texts and arrays, and a dual encoder, from sizes and a seed."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from efface.errors import ConfigError, MissingExtraError, nearest
from efface.learn.tokenizers import bpe_tokenizer, word_tokenizer
from efface.run.settings import Settings
from efface.subjects.dual_encoder import DualEncoder
from efface.subjects.encoder import Encoder
from efface.train.engine import isolated_rng


class StartConfig(Settings):
    """The size of a model that is built from scratch; of no use with `--model`."""

    architecture: str = Field(
        "auto", description="of pictures: vit (auto), conv, any model type of transformers, or timm:NAME; of texts bert "
        "(auto) or a model type; of arrays mlp (auto)",
    )  # fmt: skip
    arguments: dict[str, Any] = Field({}, description="of a model type or timm model: its configuration's own keys")
    channels: tuple[int, ...] = Field(
        (32, 64, 128), description="conv: channels of each layer; each but the first halves"
    )
    norm: Literal["batch", "group"] = Field("batch", description="conv: batch norm, or group norm (goes with `chunk`)")
    widths: tuple[int, ...] = Field((128, 64), description="mlp: width of each layer")
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


def new_encoder(
    size: StartConfig, modality: str, texts: Sequence[str], seed: int, *, arrays: Tensor | None = None
) -> Encoder:
    """An untrained encoder: of pictures a vision transformer, of texts a BERT, of arrays an MLP, or what is asked for.

    Args:
        size: architecture and sizes.
        modality: `image`, `text` or `features`.
        texts: what a new tokenizer is made from.
        seed: of the weights.
        arrays: [N, ...] of the data, for the MLP's standardisation.

    Raises:
        ConfigError: an architecture that this modality does not have.
        MissingExtraError: timm:NAME without timm.
    """
    _check(size)
    known = {"image": ("vit", "conv"), "text": ("bert",), "features": ("mlp",)}[modality]
    kind = known[0] if size.architecture == "auto" else size.architecture
    with isolated_rng(seed):
        if modality == "features":
            if kind != "mlp" or arrays is None:
                raise ConfigError(f"architecture '{kind}' for arrays", "mlp", "leave it out")
            return Encoder(_vectors(size, arrays).eval(), source="from scratch")
        if modality == "image":
            model, pooling = _picture_model(size, kind)
            return Encoder(model.eval(), image_processor(size.image_size), pooling=pooling, source="from scratch")
        tokenizer = text_tokenizer(size, texts)
        return Encoder(_text_model(size, kind, tokenizer).eval(), tokenizer, pooling="mean", source="from scratch")


def _vectors(size: StartConfig, arrays: Tensor) -> Any:
    from efface.subjects.small_encoders import VectorEncoder, VectorEncoderConfig

    model = VectorEncoder(VectorEncoderConfig(inputs=arrays[0].numel(), widths=size.widths))
    model.standardise(arrays)
    return model


def _picture_model(size: StartConfig, kind: str) -> tuple[Any, str]:
    """The module, and how it is pooled."""
    from transformers import ViTConfig, ViTModel

    if kind == "vit":
        config = ViTConfig(image_size=size.image_size, patch_size=size.patch, **_tower(size))
        return ViTModel(config, add_pooling_layer=False), "mean"
    if kind == "conv":
        from efface.subjects.small_encoders import ConvEncoder, ConvEncoderConfig

        own = ConvEncoderConfig(channels=size.channels, norm=size.norm, image_size=size.image_size)
        return ConvEncoder(own), "pooler"
    if kind.startswith("timm:"):
        if importlib.util.find_spec("timm") is None:
            raise MissingExtraError(f"'{kind}' needs timm, which is not installed", "timm", "pip install timm")
        from transformers import TimmWrapperConfig, TimmWrapperModel

        made = TimmWrapperModel(TimmWrapperConfig(architecture=kind.removeprefix("timm:"), model_args=size.arguments))
        return made, "pooler"
    return _by_type(kind, size.arguments), "mean"


def _text_model(size: StartConfig, kind: str, tokenizer: Any) -> Any:
    from transformers import BertConfig, BertModel

    sizes = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    if kind == "bert":
        config = BertConfig(max_position_embeddings=size.context, **sizes, **_tower(size))
        return BertModel(config, add_pooling_layer=False)
    return _by_type(kind, {**sizes, **size.arguments})


def _by_type(kind: str, arguments: dict[str, Any]) -> Any:
    """An untrained model of a type that transformers knows."""
    from transformers import AutoConfig, AutoModel
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    if kind not in CONFIG_MAPPING_NAMES:
        raise ConfigError(
            f"architecture '{kind}'", "vit, conv, bert, mlp, a model type of transformers, or timm:NAME",
            nearest(kind, [*CONFIG_MAPPING_NAMES, "conv", "mlp"]),
        )  # fmt: skip
    return AutoModel.from_config(AutoConfig.for_model(kind, **arguments))


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
