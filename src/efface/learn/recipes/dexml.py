"""DEXML: queries and label texts through one encoder, with every label in the loss.

Paper: Dual-encoders for extreme multi-label classification, arXiv 2310.10636 (ICLR 2024); code nilesh2797/DEXML (Apache-2.0).
Losses: softmax over labels (and averaged over a query's positives), decoupled softmax (a positive is not compared with the
other positives), one-vs-all BCE, soft top-k: numerics/multi_label.py. Labels are encoded in chunks by gradient caching and cut
into shards over the processes; each process has its queries' rows of everybody and its own labels.

Departures from the official code: positives are not lost at the end of a shard (its `<` for `<=`); what is masked has no part
in any sum (it writes -100 into the scores); the learning rate is not multiplied by the number of processes; duplicate label
texts are merged; dropout is off unless asked for. Queries without labels are dropped and counted. In the soft top-k without
sampling, a query with more positives than k gets k = n_q. Shortlist mode draws from each query's hardest negatives.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from pydantic import Field
from torch import Tensor

from efface.catalog import Card
from efface.data.items import open_picture
from efface.data.multi_label import LabelledQueries, label_queries, read_labels, read_multi_label
from efface.errors import ConfigError, ModelError, RequestError
from efface.learn.folder import learn_into
from efface.learn.label_training import LabelledConfig, fit_labels, towers_of
from efface.learn.retrieval_scores import propensities, retrieval_scores, search
from efface.learn.starts import StartConfig, new_dual_encoder, new_encoder
from efface.run.cost import Cost
from efface.run.digests import digest_value
from efface.run.files import write_json
from efface.subjects.dual_encoder import DualEncoder
from efface.subjects.encoder import Encoder
from efface.subjects.load import load

CARD = Card(
    name="dexml",
    system="dexml",
    title="DEXML",
    summary="Finds the right ones among very many label texts with one encoder for queries and labels, trained with every label "
    "in the loss. Soft top-k holds the scores of all queries of a batch with the process's labels.",
    paper="Dual-encoders for extreme multi-label classification, arXiv 2310.10636 (ICLR 2024)",
    verb="learn",
    mechanism="recipes",
    modalities=("text", "image"),
    subjects=("encoder", "dual-encoder"),
    needs=("labels",),
    defaults_source="DEXML's base configuration: temperature 0.05, batch 1000, 1e-4, 100 epochs, one sampled positive",
)
LABELS = "labels.json"


class DEXMLConfig(LabelledConfig):
    """The training's settings (see `LabelledConfig`), the labels' texts, and a model from scratch."""

    label_file: str | None = Field(
        None, description="label texts by id: a JSON object, or JSONL with id and text; default: labels are their texts"
    )
    start: StartConfig = Field(StartConfig(), description="size of a model that is trained from scratch")


def learn(
    data: Sequence[Dataset], out: Path, config: DEXMLConfig, *, model: Encoder | DualEncoder | None = None,
    prompt: Any = None, tokenizer_data: Sequence[Dataset] = (), label: str = "dexml",
) -> Encoder | DualEncoder:  # fmt: skip
    """Train and save; a killed run goes on where it was, a finished one is loaded.

    Args:
        data: rows with `text` (or `image`, for a dual encoder) and `labels`, joined.
        out: the model folder; `labels.json` in it holds the label texts in their order.
        model: an encoder of texts, or a dual encoder for pictures as queries; None trains a small one from scratch.

    Raises:
        RequestError: missing columns, a label without a text, no labels.
        ModelError: an encoder of pictures or arrays.
        RunError, StorageError: see `learn_into`.
    """
    if prompt is not None or tokenizer_data:
        raise ConfigError("a prompt or tokenizer data for 'dexml'", "neither", "they belong to causal-lm")
    parts = [read_multi_label(part) for part in data]
    pictures = isinstance(model, DualEncoder) or (model is None and "text" not in parts[0].column_names)
    column = "image" if pictures else "text"
    if any(column not in part.column_names for part in parts):
        raise RequestError(f"no column '{column}' in every source", f"'{column}' and 'labels'", "rename a column")
    if isinstance(model, Encoder) and model.modality != "text":
        raise ModelError(
            f"'{model.source}' is an encoder of {model.modality}s, and labels are texts",
            "an encoder of texts, or a dual one",
        )
    columns = [value for part in parts for value in part["labels"]]
    task = label_queries(columns, None if config.label_file is None else read_labels(config.label_file))
    items = [value for part in parts for value in part[column]]
    queries = [items[row] for row in task.rows]
    settings = {
        "recipe": CARD.name, "config": config.model_dump(mode="json"), "start": None if model is None else model.digest,
        "data": digest_value({"relevant": task.relevant, "texts": task.texts, "queries": [_key(one) for one in queries]}),
    }  # fmt: skip

    def fit_into(work: Path) -> tuple[Encoder | DualEncoder, dict[str, Any], Cost]:
        subject = model if model is not None else _new(config, queries, task, pictures)
        towers = towers_of(subject)

        def inputs(rows: Sequence[int]) -> dict[str, Tensor]:
            chosen = [queries[row] for row in rows]
            found: dict[str, Tensor] = towers[0].prepare([open_picture(one) for one in chosen] if pictures else chosen)
            return found

        done = fit_labels(
            subject.model, towers, inputs, towers[1].prepare(task.texts), task.relevant, config, work=work, label=label
        )
        shutil.rmtree(work, ignore_errors=True)
        subject.model.eval()
        subject.changed()
        facts = {
            "rows": len(queries), "labels": len(task.texts), "queries_without_labels": task.dropped,
            "merged_labels": task.merged, "steps": len(done.values), "final_loss": done.values[-1]["loss"],
        }  # fmt: skip
        return subject, facts, done.cost

    def beside(folder: Path) -> None:
        write_json(folder / LABELS, {"texts": task.texts})

    def reload() -> Encoder | DualEncoder:
        found: Encoder | DualEncoder = load(out)
        return found

    return learn_into(out, settings, load=reload, fit=fit_into, beside=beside)


def _new(config: DEXMLConfig, queries: Sequence[Any], task: LabelledQueries, pictures: bool) -> Encoder | DualEncoder:
    if pictures:
        return new_dual_encoder(config.start, task.texts, config.seed)
    return new_encoder(config.start, "text", [*queries, *task.texts], config.seed)


def _key(item: Any) -> str:
    from efface.data.pictures import picture_key, text_key

    return text_key(item) if isinstance(item, str) else picture_key(item)


def evaluate(
    subject: Encoder | DualEncoder, queries: Sequence[Any], relevant: Sequence[Sequence[int]], texts: Sequence[str], *,
    at: Sequence[int] = (1, 3, 5), counts: Tensor | None = None, rows: int = 0,
) -> dict[str, float]:  # fmt: skip
    """Scores of unseen queries by exact search over all labels.

    Args:
        queries: texts or pictures.
        relevant: places in `texts` of each query's right labels.
        texts: as `labels.json` holds them.
        at: the k of P@k and the others.
        counts, rows: [L] training rows of each label and their number, for propensity-scored precision.
    """
    towers = towers_of(subject)
    q, labels = towers[0].embed(list(queries), 256, label="queries"), towers[1].embed(list(texts), 256, label="labels")
    most = max([*at, *(len(line) for line in relevant)])
    found = search(q, labels, min(most, len(texts)))[1]
    return retrieval_scores(
        found, relevant, at=[k for k in at if k <= len(texts)],
        propensity=None if counts is None else propensities(counts, rows),
    )  # fmt: skip


CONFIG = DEXMLConfig
READ = read_multi_label
