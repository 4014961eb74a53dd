"""Train a causal language model on questions and answers: fine-tune one, or a small one from scratch.

The loss is the mean negative log-probability of the answer tokens. From scratch, a byte-pair or word tokenizer is made
from the data and a Llama or GPT-2 of the asked size is initialised from the seed.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from datasets import Dataset, concatenate_datasets
from pydantic import Field

from efface.catalog import Card
from efface.learn.folder import learn_into
from efface.learn.tokenizers import bpe_tokenizer, word_tokenizer
from efface.run.cost import Cost, measure_cost
from efface.run.files import make_folder
from efface.subjects import CausalLM, PromptFormat
from efface.train.config import TrainConfig
from efface.train.engine import isolated_rng, train
from efface.train.supervised import answer_loss, supervised_schedule

CARD = Card(
    name="causal-lm",
    system="tofu",
    title="Causal language model on questions and answers",
    summary="Supervised training on answer tokens, from a checkpoint or from scratch.",
    paper="TOFU, arXiv 2401.06121 (fine-tuning set-up)",
    verb="learn",
    mechanism="recipes",
    modalities=("text",),
    subjects=("causal-lm",),
    needs=("gradients",),
    defaults_source="TOFU: learning rate 1e-5, weight decay 0.01, 5 epochs, batch 32, one epoch of linear warm-up",
)


class CausalLMConfig(TrainConfig):
    """Optimisation (TOFU's fine-tuning defaults) and, from scratch, the size of the model."""

    warmup_ratio: float = Field(0.2, ge=0, le=1, description="TOFU: one epoch of five")
    tokenizer: Literal["bpe", "words"] = Field("bpe", description="from scratch: byte-level BPE, or whole words")
    vocabulary: int = Field(4096, ge=64, description="from scratch: largest vocabulary")
    width: int = Field(256, ge=8, description="from scratch: hidden size")
    depth: int = Field(5, ge=1, description="from scratch: layers")
    heads: int = Field(8, ge=1, description="from scratch: attention heads")
    context: int = Field(512, ge=16, description="from scratch: longest sequence")
    architecture: Literal["llama", "gpt2"] = Field("llama", description="from scratch: Llama, or GPT-2")
    start: Literal["small", "unit"] = Field(
        "small",
        description="from scratch: the architecture's own small weights (0.02), or torch's defaults with unit embeddings, "
        "of which a training step changes a smaller part",
    )


def new_model(config: CausalLMConfig, texts: Sequence[str], prompt: PromptFormat | None = None) -> CausalLM:
    """A freshly initialised small model with a tokenizer made from `texts`."""
    from transformers import AutoModelForCausalLM, GenerationConfig

    make = word_tokenizer if config.tokenizer == "words" else bpe_tokenizer
    tokenizer = make(texts, config.vocabulary)
    eos = tokenizer.eos_token_id
    with isolated_rng(config.seed):
        model = AutoModelForCausalLM.from_config(_size(config, len(tokenizer), eos))
        if config.start == "unit":
            _unit_start(model)
    model.generation_config = GenerationConfig(eos_token_id=eos, pad_token_id=eos)
    return CausalLM(model.eval(), tokenizer, prompt=prompt, source="from scratch")


def _size(config: CausalLMConfig, vocabulary: int, eos: int) -> Any:
    """The architecture's configuration; embedding and head are tied."""
    from transformers import GPT2Config, LlamaConfig

    shared: dict[str, Any] = {
        "vocab_size": vocabulary, "max_position_embeddings": config.context, "tie_word_embeddings": True,
        "bos_token_id": None, "eos_token_id": eos, "pad_token_id": eos, "hidden_size": config.width,
        "num_hidden_layers": config.depth, "num_attention_heads": config.heads,
    }  # fmt: skip
    if config.architecture == "gpt2":
        return GPT2Config(**shared, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    inner = -(-config.width * 8 // 3 // 32) * 32
    return LlamaConfig(**shared, intermediate_size=inner, num_key_value_heads=config.heads)


def _unit_start(model: Any) -> None:
    """torch's own starting values: embeddings N(0, 1), linear maps uniform within 1 / sqrt(inputs); norms stay."""
    for module in model.modules():
        if isinstance(module, torch.nn.Embedding):
            torch.nn.init.normal_(module.weight)
        elif type(module).__name__ == "Conv1D":  # weight [in, out]
            bound = len(module.weight) ** -0.5
            for tensor in (module.weight, module.bias):
                torch.nn.init.uniform_(tensor, -bound, bound)
        elif isinstance(module, torch.nn.Linear) and module is not model.get_output_embeddings():
            module.reset_parameters()


def fit(
    subject: CausalLM, data: Dataset, config: CausalLMConfig, *, work: Path, label: str = "train"
) -> tuple[list[dict[str, float]], Cost]:
    """Train the subject's model in place on the answers of `data`; checkpoints live in `work` until done."""
    rows = subject.encode_rows(data, name="train")
    schedule = supervised_schedule(rows, config)
    with measure_cost(label) as cost:
        log = train(
            subject.model, schedule, answer_loss, config, folder=make_folder(work), pad_id=subject.pad_id, label=label
        )
        cost.items, cost.tokens = len(schedule), schedule.total_tokens
    shutil.rmtree(work, ignore_errors=True)
    subject.model.eval()
    subject.changed()
    return log.values, cost


def learn(
    data: Sequence[Dataset], out: Path, config: CausalLMConfig, *, model: CausalLM | None = None,
    prompt: PromptFormat | None = None, tokenizer_data: Sequence[Dataset] = (), label: str = "train",
) -> CausalLM:  # fmt: skip
    """Train and save a model; a killed run goes on where it was, a finished one is loaded.

    Args:
        data: canonical data sets, joined.
        out: the model folder; `learn.json` in it holds the configuration and the cost.
        model: what to fine-tune; None builds a model from scratch.
        tokenizer_data: further sets that the new tokenizer must know (so that several models can share one).

    Raises:
        RunError: `out` holds a model that was trained with other settings or data.
        StorageError: `out` holds anything else; nothing is replaced.
    """
    from efface.data.request import data_digest
    from efface.subjects import load_causal_lm

    joined = concatenate_datasets([part.select_columns(["id", "question", "answer"]) for part in data])
    settings = {
        "config": config.model_dump(), "data": [data_digest(part) for part in data],
        "tokenizer_data": [data_digest(part) for part in tokenizer_data],
        "start": None if model is None else model.digest, "prompt": (prompt or PromptFormat()).model_dump(),
    }  # fmt: skip

    def load() -> CausalLM:
        return load_causal_lm(out, prompt=prompt, dtype="float32" if model is None else "auto")

    def fit_into(work: Path) -> tuple[CausalLM, dict[str, Any], Cost]:
        subject = model
        if subject is None:
            form = prompt or PromptFormat()
            texts = sorted({
                form.prompt.replace("{question}", row["question"]) + form.separator + row["answer"]
                for part in [*data, *tokenizer_data] for row in part
            })  # sorted: the tokenizer depends on the texts alone, so models that share texts share it  # fmt: skip
            subject = new_model(config, texts, prompt)
        values, cost = fit(subject, joined, config, work=work, label=label)
        return subject, {"final_nll": values[-1]["nll"] if values else None}, cost

    return learn_into(out, settings, load=load, fit=fit_into)


CONFIG = CausalLMConfig
