"""Untrained causal LMs of four architectures on one word tokenizer, made in well under a second."""

from __future__ import annotations

from typing import Any

import torch

from efface.learn.tokenizers import word_tokenizer
from efface.subjects import CausalLM, PromptFormat
from efface.train.engine import isolated_rng

TEXTS = [
    "what is the capital of france ?",
    "the capital of south africa is pretoria .",
    "niger and nigeria",
    "paris berlin",
]
KINDS = ("llama", "gpt2", "neox", "opt")


def decoder(kind: str, *, width: int = 16, inner: int = 24, depth: int = 3, seed: int = 0) -> CausalLM:
    """A model of a kind with `depth` layers and an MLP of `inner` neurons."""
    from transformers import (
        GPT2Config,
        GPT2LMHeadModel,
        GPTNeoXConfig,
        GPTNeoXForCausalLM,
        LlamaConfig,
        LlamaForCausalLM,
        OPTConfig,
        OPTForCausalLM,
    )

    tokenizer = word_tokenizer(TEXTS, 100)
    ids: Any = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.eos_token_id}
    size = {"vocab_size": len(tokenizer)}
    with isolated_rng(seed):
        if kind == "gpt2":
            model: Any = GPT2LMHeadModel(
                GPT2Config(n_embd=width, n_inner=inner, n_layer=depth, n_head=2, n_positions=32, **size, **ids)
            )
        else:
            many = {
                "hidden_size": width, "num_hidden_layers": depth, "num_attention_heads": 2, "max_position_embeddings": 32,
                **size, **ids,
            }  # fmt: skip
            if kind == "llama":
                model = LlamaForCausalLM(LlamaConfig(intermediate_size=inner, **many))
            elif kind == "neox":
                model = GPTNeoXForCausalLM(GPTNeoXConfig(intermediate_size=inner, **many))
            else:
                model = OPTForCausalLM(OPTConfig(ffn_dim=inner, word_embed_proj_dim=width, dropout=0.0, **many))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.mul_(8)
    return CausalLM(model.eval(), tokenizer, prompt=PromptFormat(prompt="{question}"))
