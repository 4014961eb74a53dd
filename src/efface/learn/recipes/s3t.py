"""Deletion-ready training: the slices of every shard one after another, each into its own group of LoRA layers.

S3T (Basu Roy Chowdhury et al., arXiv 2406.16257, ICLR 2025). Stage j of an order trains the LoRA adapters of layer group j,
counted from the output side, on the first j slices together (as the official code; the paper speaks of disjoint slices,
and both are exact). `efface forget s3t` then deletes by switching stages off.

Departures from the official code, and why: a fixed schedule instead of early stopping and best checkpoints on the test
set, which let deleted rows act on what is served; records are shuffled with a recorded seed and equal ones trained on
once; shared prefixes are trained once; ties between orders go to the first, not to the best on validation data. A
causal LM has no task head, so nothing but adapters is trained. The base is public: what it learnt before stays in it.
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
from efface.data.deletion_plan import DeletionPlan, record_content
from efface.errors import ModelError, RequestError
from efface.learn.folder import learn_into
from efface.numerics.slice_orders import matching_orders, rotations
from efface.run.cost import Cost, measure_cost
from efface.subjects import CausalLM, PromptFormat
from efface.subjects.sliced import SlicedConfig, SlicedLM
from efface.train.config import TrainConfig
from efface.train.slices import train_stages

CARD = Card(
    name="s3t-slices",
    system="s3t",
    title="Sliced LoRA ensemble",
    summary="Trains shards slice by slice into separate LoRA layers, so that a later deletion only switches layers off.",
    paper="Basu Roy Chowdhury et al., S3T, arXiv 2406.16257 (ICLR 2025)",
    verb="learn",
    mechanism="recipes",
    modalities=("text",),
    subjects=("causal-lm",),
    needs=("gradients",),
    defaults_source="S3T, Llama: rank 32, alpha 64 (rank-stabilised), dropout 0.05, all linear, 2e-5, 3 epochs, 4 slices",
)


class S3TSlicesConfig(TrainConfig):
    """Optimisation of a stage, the cut of the data, the orders and the adapters."""

    learning_rate: float = Field(2e-5, gt=0, description="S3T, Llama2-7B: 2e-5 (ViT 2e-4, RoBERTa 1e-4)")
    epochs: float = Field(3, gt=0, description="of every stage; S3T, Llama2-7B: 3 (ViT 15, RoBERTa 30)")
    shards: int = Field(1, ge=1, description="m; members of the ensemble")
    slices: int = Field(4, ge=1, description="L; S3T, Llama: 4 to 5, at most the layers")
    budget: int = Field(1, ge=1, description="B; orders of the slices trained in every shard")
    rates: str | None = Field(
        None,
        description="deletion probability of each slice, 'a,b,...': orders by matching (BMS), and rows have a 'slice'; none: "
        "rotations",
    )
    rank: int = Field(32, ge=1, description="S3T, Llama: 32")
    alpha: float = Field(64, gt=0, description="S3T, Llama: 64; the scale is alpha / sqrt(rank)")
    dropout: float = Field(0.05, ge=0, lt=1, description="S3T, Llama: 0.05")
    targets: str = Field("all-linear", description="module names, comma-separated; S3T, Llama: all linear")
    average: Literal["log-probabilities", "probabilities"] = Field(
        "log-probabilities", description="over shards; probabilities where prefixes differ in length"
    )


def plan_of(data: Dataset, config: S3TSlicesConfig) -> DeletionPlan:
    """The plan of a data set under a configuration.

    Raises:
        RequestError: an id that two rows share.
    """
    ids = list(data["id"])
    if len(set(ids)) != len(ids):
        twice = next(name for name in ids if ids.count(name) > 1)
        raise RequestError(f"id '{twice}' stands on several rows", "unique ids", "give every row its own id")
    if config.rates is None:
        orders = rotations(config.slices, config.budget)
    else:
        orders = matching_orders([float(rate) for rate in config.rates.split(",")], config.budget)
    records = {row["id"]: record_content(row) for row in data}
    given = "slice" in data.column_names
    if config.rates is not None and not given:
        raise RequestError(
            "rates without a column 'slice'", "the slice of every row: dealt out evenly, all slices are as likely to be hit",
            "give rows a 'slice', those that are likely to be deleted together, or leave rates out",
        )  # fmt: skip
    slice_of = dict(zip(data["id"], data["slice"], strict=True)) if given else None
    return DeletionPlan.make(
        records, [orders] * config.shards, slices=config.slices, seed=config.seed, slice_of=slice_of
    )


def new_ensemble(model: CausalLM, plan: DeletionPlan, config: S3TSlicesConfig) -> CausalLM:
    """The untrained ensemble around a copy of the base's weights."""
    known = SlicedConfig(
        base=model.model.config.to_dict(), orders=[[list(order) for order in shard] for shard in plan.orders],
        rank=config.rank, alpha=config.alpha, dropout=config.dropout, targets=config.targets, average=config.average,
    )  # fmt: skip
    sliced = SlicedLM(known).to(model.dtype)
    own = {name.replace(".base_layer.", "."): tensor for name, tensor in sliced.base.state_dict(keep_vars=True).items()}
    with torch.no_grad():
        for name, tensor in model.model.state_dict().items():
            own[name].copy_(tensor)
    sliced.plan = plan
    return CausalLM(sliced.to(model.device).eval(), model.tokenizer, prompt=model.prompt, source="from scratch")


def fit(
    model: CausalLM, data: Dataset, plan: DeletionPlan, config: S3TSlicesConfig, *, work: Path
) -> tuple[CausalLM, float, Cost]:
    """Train an ensemble by a plan; deletions in its ledger count, so this is also what exactness is measured against.

    Returns:
        the ensemble, the mean last loss of its stages, and the cost.
    """
    subject = new_ensemble(model, plan, config)
    encoded = dict(zip(data["id"], subject.encode_rows(data, name="train"), strict=True))
    with measure_cost("train stages") as cost:
        cost.items, cost.tokens, last = train_stages(subject.model, encoded, config, work=work, pad_id=subject.pad_id)
    shutil.rmtree(work, ignore_errors=True)
    subject.model.config.parts = subject.model.part_digests()
    subject.changed()
    return subject, last, cost


def learn(
    data: Sequence[Dataset], out: Path, config: S3TSlicesConfig, *, model: CausalLM | None = None,
    prompt: PromptFormat | None = None, tokenizer_data: Sequence[Dataset] = (), label: str = "train",
) -> CausalLM:  # fmt: skip
    """Train and save an ensemble; a killed run goes on with the next stage, a finished one is loaded.

    Raises:
        ModelError: no base, or an ensemble as the base.
        RunError: `out` holds a model that was trained with other settings or data.
    """
    from efface.data.request import data_digest
    from efface.subjects import load_causal_lm

    if model is None or isinstance(model.model, SlicedLM) or not isinstance(model, CausalLM):
        raise ModelError("s3t-slices without a plain causal LM to start from", "a public base", "give it with --model")
    columns = ["id", "question", "answer", *(["slice"] if all("slice" in p.column_names for p in data) else [])]
    joined = concatenate_datasets([part.select_columns(columns) for part in data])
    plan = plan_of(joined, config)
    settings = {
        "config": config.model_dump(), "data": [data_digest(part) for part in data], "start": model.digest,
        "prompt": model.prompt.model_dump(),
    }  # fmt: skip

    def load() -> CausalLM:
        return load_causal_lm(out, prompt=model.prompt, dtype="auto")

    def fit_into(work: Path) -> tuple[CausalLM, dict[str, Any], Cost]:
        subject, last, cost = fit(model, joined, plan, config, work=work)
        return subject, {"final_nll": last, "plan": plan.digest}, cost

    return learn_into(out, settings, load=load, fit=fit_into)


CONFIG = S3TSlicesConfig
