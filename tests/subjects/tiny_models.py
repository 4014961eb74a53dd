"""Untrained models of every family, made from configurations in well under a second."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from efface.train.engine import isolated_rng

WORDS = "a red blue green square circle photo of the picture two one big small".split()
TEXTS = ["a red square", "the picture of two big blue circle", "one", "a photo of a small green square a red circle"]
SIDE = 32


def tokenizer(limit: int = 16) -> Any:
    """Words; [BOS] text [END]; the end token has the largest id."""
    names = ["[PAD]", "[BOS]", "[UNK]", *WORDS, "[END]"]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(names)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="[BOS] $A [END]", special_tokens=[("[BOS]", 1), ("[END]", len(names) - 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", bos_token="[BOS]", eos_token="[END]", unk_token="[UNK]",
        model_max_length=limit, model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip


def letters() -> Any:
    """SigLIP 2 is always loaded with its own class of tokenizer: here with one token a letter."""
    from transformers import Siglip2Tokenizer

    names = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *"abcdefghijklmnopqrstuvwxyz"]
    return Siglip2Tokenizer(vocab={name: i for i, name in enumerate(names)}, merges=[], model_max_length=16)


def pictures(n: int = 4, seed: int = 0) -> list[Image.Image]:
    """Noise of several sizes and modes."""
    draw = np.random.default_rng(seed)
    found = []
    for i in range(n):
        height, width = draw.integers(20, 60, 2)
        picture = Image.fromarray(draw.integers(0, 256, (height, width, 3), dtype=np.uint8))
        found.append(picture.convert("L") if i == 2 else picture.convert("RGBA") if i == 3 else picture)
    return found


def size(width: int = 32) -> dict[str, int]:
    return {"hidden_size": width, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}


def special(made: Any) -> dict[str, int]:
    return {f"{name}_token_id": getattr(made, f"{name}_token_id") for name in ("pad", "bos", "eos")}


def spread(model: Any, seed: int) -> Any:
    """Larger weights than at the start, so that items differ clearly."""
    with torch.no_grad(), isolated_rng(seed):
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "embedding" not in name:
                parameter.mul_(4)
    return model.eval()


def new_bert(made: Any, *, pooler: bool = False, seed: int = 0) -> Any:
    from transformers import BertConfig, BertModel

    config = BertConfig(vocab_size=len(made), max_position_embeddings=24, pad_token_id=0, **size())
    with isolated_rng(seed):
        return spread(BertModel(config, add_pooling_layer=pooler), seed)


def new_llama(made: Any, seed: int = 0) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(vocab_size=len(made), max_position_embeddings=24, **special(made), **size())
    with isolated_rng(seed):
        return spread(LlamaForCausalLM(config), seed)


def new_vit(*, pooler: bool = True, seed: int = 0) -> Any:
    from transformers import ViTConfig, ViTModel

    with isolated_rng(seed):
        model = ViTModel(ViTConfig(image_size=SIDE, patch_size=8, **size()), add_pooling_layer=pooler)
    return spread(model, seed)


def new_convnext(seed: int = 0) -> Any:
    from transformers import ConvNextConfig, ConvNextModel

    with isolated_rng(seed):
        config = ConvNextConfig(hidden_sizes=[8, 12, 16, 20], depths=[1, 1, 1, 1], image_size=SIDE)
        return spread(ConvNextModel(config), seed)


def new_clip(made: Any, *, seed: int = 0, scale: float | None = None, width: int = 32) -> Any:
    from transformers import CLIPConfig, CLIPModel

    text = {"vocab_size": len(made), "max_position_embeddings": 16, **special(made), **size(width)}
    vision = {"image_size": SIDE, "patch_size": 8, **size(width)}
    with isolated_rng(seed):
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24))
    if scale is not None:
        model.logit_scale.data.fill_(scale)
    return spread(model, seed)


def new_siglip(made: Any, *, seed: int = 0) -> Any:
    from transformers import SiglipConfig, SiglipModel

    text = {"vocab_size": len(made), "max_position_embeddings": 16, "projection_size": 32, **special(made), **size()}
    vision = {"image_size": SIDE, "patch_size": 8, **size()}
    with isolated_rng(seed):
        model = SiglipModel(SiglipConfig(text_config=text, vision_config=vision))
    model.logit_scale.data.fill_(2.302585092994046)
    model.logit_bias.data.fill_(-10.0)
    return spread(model, seed)


def new_siglip2(made: Any, *, seed: int = 0) -> Any:
    from transformers import Siglip2Config, Siglip2Model

    text = {"vocab_size": len(made), "max_position_embeddings": 16, "projection_size": 32, **special(made), **size()}
    vision = {"num_patches": 16, "patch_size": 8, **size()}
    with isolated_rng(seed):
        model = Siglip2Model(Siglip2Config(text_config=text, vision_config=vision))
    model.logit_scale.data.fill_(2.302585092994046)
    model.logit_bias.data.fill_(-10.0)
    return spread(model, seed)


def square(kind: str) -> Any:
    """A PIL image processor to SIDE x SIDE."""
    import transformers

    side = {"height": SIDE, "width": SIDE}
    if kind == "clip":
        return transformers.CLIPImageProcessorPil(size=side, crop_size=side, do_center_crop=False)
    if kind == "siglip":
        return transformers.SiglipImageProcessorPil(size=side)
    if kind == "siglip2":
        return transformers.Siglip2ImageProcessorPil(patch_size=8, max_num_patches=16)
    if kind == "convnext":
        return transformers.ConvNextImageProcessorPil(size={"shortest_edge": SIDE})
    return transformers.ViTImageProcessorPil(size=side)


def alone_and_together(tower: Any, items: Sequence[Any]) -> float:
    """Largest difference between embeddings made in one batch and one by one."""
    together = tower.embed(items)
    alone = torch.cat([tower.embed([item]) for item in items])
    assert together.shape == (len(items), tower.width)
    assert together.dtype == torch.float32
    torch.testing.assert_close(together.norm(dim=1), torch.ones(len(items)))
    gaps = torch.cdist(together, together) + 9 * torch.eye(len(items))
    assert float(gaps.min()) > 1e-3  # the items are told apart
    return float((together - alone).abs().max())
