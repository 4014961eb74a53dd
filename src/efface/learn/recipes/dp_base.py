"""The private base of DP2Unlearning: DP-SGD on all data, with the accountant's report beside the weights.

arXiv 2504.13774, mechanism a. What is deployed is a fine-tune of this base (`efface learn causal-lm --model BASE`); a
request goes back to it (`efface forget dp2unlearning base_model=BASE`). Start from a public checkpoint, or from scratch
with a tokenizer of public texts (`--tokenizer-data`): a tokenizer made from the protected rows is not covered by the bound,
and this recipe refuses to make one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, concatenate_datasets
from pydantic import Field

from efface.catalog import Card
from efface.errors import ConfigError
from efface.learn.folder import learn_into
from efface.learn.recipes.causal_lm import CausalLMConfig, new_model
from efface.run.cost import Cost, measure_cost
from efface.run.keys import keyed_digest
from efface.subjects import CausalLM, PromptFormat
from efface.train.private import PrivateConfig, report
from efface.train.private_lm import Protection, train_privately

CARD = Card(
    name="dp-base",
    system="dp2unlearning",
    title="Private base",
    summary="Trains a causal LM by DP-SGD and writes down what that guarantees, for later deletions.",
    paper="DP2Unlearning, arXiv 2504.13774 (mechanism a); DP-SGD, arXiv 1607.00133",
    verb="learn",
    mechanism="recipes",
    modalities=("text",),
    subjects=("causal-lm",),
    needs=("gradients",),
    defaults_source="DP2Unlearning, TOFU: 5e-5, SGD, batch 16, C 1.0, delta 1e-12, 10 epochs, weight decay 0.01",
)


class DPBaseConfig(PrivateConfig):
    """DP-SGD and, from scratch, the size of the model."""

    vocabulary: int = Field(4096, ge=64, description="from scratch: largest vocabulary")
    width: int = Field(256, ge=8, description="from scratch: hidden size")
    depth: int = Field(5, ge=1, description="from scratch: layers")
    heads: int = Field(8, ge=1, description="from scratch: attention heads")
    context: int = Field(512, ge=16, description="from scratch: longest sequence")


def learn(
    data: Sequence[Dataset], out: Path, config: DPBaseConfig, *, model: CausalLM | None = None,
    prompt: PromptFormat | None = None, tokenizer_data: Sequence[Dataset] = (), label: str = "private base",
) -> CausalLM:  # fmt: skip
    """Train and save a private base; its `learn.json` holds the report under `protection`.

    Raises:
        ConfigError: neither a starting model nor public texts for a tokenizer.
        RunError: `out` holds a model that was trained with other settings or data.
    """
    from efface.data.request import data_digest
    from efface.subjects import load_causal_lm

    if model is None and not tokenizer_data:
        raise ConfigError(
            "dp-base without a starting model and without texts for a tokenizer", "one of them",
            "give --model, or public texts with --tokenizer-data: a tokenizer of the protected rows would leak them",
        )  # fmt: skip
    joined = concatenate_datasets([part.select_columns(["id", "question", "answer"]) for part in data])
    settings = {
        "config": config.model_dump(), "data": [keyed_digest(data_digest(part)) for part in data],
        "tokenizer_data": [data_digest(part) for part in tokenizer_data],
        "start": None if model is None else model.digest, "prompt": (prompt or PromptFormat()).model_dump(),
    }  # fmt: skip

    def load() -> CausalLM:
        return load_causal_lm(out, prompt=prompt, dtype="auto")

    def fit_into(work: Path) -> tuple[CausalLM, dict[str, Any], Cost]:
        found = report(config, len(joined))
        subject = model
        if subject is None:
            texts = sorted({f"{row['question']} {row['answer']}" for part in tokenizer_data for row in part})
            size = CausalLMConfig(
                vocabulary=config.vocabulary, width=config.width, depth=config.depth, heads=config.heads,
                context=config.context, seed=config.seed,
            )  # fmt: skip
            subject = new_model(size, texts, prompt)
        start = None if model is None else model.digest
        rows = subject.encode_rows(joined, name="train")
        with measure_cost(label) as cost:
            moved = train_privately(subject, rows, config, found)
            cost.items = found.steps * config.batch_size
        protection = Protection(digest=subject.digest, start=start, moved=moved, report=found)
        # no loss of the protected rows is written down: it is not covered by the bound
        return subject, {"protection": protection.model_dump(mode="json"), "guarantee": found.lines()}, cost

    return learn_into(out, settings, load=load, fit=fit_into)


CONFIG = DPBaseConfig
