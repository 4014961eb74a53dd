"""Observe a model on a data set: one scoring pass, one generation pass, and never the same sequence twice.

Every answer form of every row is one sequence of the scoring pass. Sequences are sorted by length, only answer positions
meet the vocabulary, and everything is taken in float32. Tables are cached by the digests of model, data and prompt
format, so another metric, another suite, or another audit over the same data runs the model no further.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from torch import Tensor

from efface.audit.metrics.fluency import ngram_entropy
from efface.audit.metrics.text import (
    contains_answer,
    cut,
    distinct,
    exact_match,
    is_refusal,
    rouge,
    rouge_l_plain,
    rouge_l_unstemmed,
)
from efface.audit.table import ScoreTable, build_generations, build_scores
from efface.data.request import data_digest
from efface.errors import ModelError
from efface.run.cost import Cost
from efface.run.digests import digest_value
from efface.run.progress import track
from efface.subjects.answers import answer_logits
from efface.subjects.causal_lm import CausalLM
from efface.subjects.prompts import Encoded, collate
from efface.train.reference import cache_folder

LOGIT_BUDGET = 24_000_000
"""Logits in one scoring batch (answer positions x vocabulary); 24 M float32 are 96 MB."""

MAX_BATCH = 64

GENERATION_COLUMNS = 3
"""The form of the generation table; a cached one of another form is not read."""


class Form(NamedTuple):
    """One sequence to score."""

    id: str
    form: str
    variant: int
    text: str
    row: Encoded


class TokenStatistics(NamedTuple):
    """Per answer token, each [n]."""

    logp: Tensor
    rank: Tensor
    mean: Tensor
    var: Tensor


def token_statistics(logits: Tensor, targets: Tensor) -> TokenStatistics:
    """Log-probability, rank, and mean and variance of log p under the whole distribution.

    Args:
        logits: [n, V]; -inf marks suppressed tokens.
        targets: [n].

    Raises:
        ModelError: a logit is NaN or +inf (every comparison would be false and the token would look memorised).
    """
    if bool(torch.isnan(logits).any()) or bool(torch.isposinf(logits).any()):
        raise ModelError(
            "the model returns logits that are NaN or infinite", "numbers", "it is damaged; do not audit it further"
        )
    logits = logits.float()
    logp = logits - logits.logsumexp(-1, keepdim=True)
    p = logp.exp()
    finite = torch.where(p > 0, logp, torch.zeros_like(logp))  # 0 log 0 = 0
    mean = (p * finite).sum(-1)
    var = (p * (finite - mean.unsqueeze(-1)).square()).sum(-1)  # centred: never negative
    own = logits.gather(-1, targets.unsqueeze(-1))
    rank = (logits > own).sum(-1)
    return TokenStatistics(logp.gather(-1, targets.unsqueeze(-1)).squeeze(-1), rank, mean, var)


def forms_of(subject: CausalLM, data: Dataset, name: str, *, answers_only: bool = False) -> list[Form]:
    """Every answer form of every row: the answer, its paraphrase, and the perturbed answers."""
    found = []
    for index, row in enumerate(data):
        texts = [("answer", 0, row["answer"])]
        if not answers_only and row.get("paraphrased_answer") is not None:
            texts.append(("paraphrased_answer", 0, row["paraphrased_answer"]))
        wrong = [] if answers_only else row.get("perturbed_answer") or []
        texts += [("perturbed_answer", i, text) for i, text in enumerate(wrong)]
        for form, variant, text in texts:
            place = f"{name} row {index} ({form})"
            found.append(Form(row["id"], form, variant, text, subject.encode(row["question"], text, place=place)))
    return found


def _batches(forms: Sequence[Form], vocabulary: int) -> Iterator[list[int]]:
    """Indices in batches of like prompt and answer lengths within the logit budget; every index once."""
    order = sorted(range(len(forms)), key=lambda i: (len(forms[i].row.ids), forms[i].row.n_targets, i))
    batch: list[int] = []
    for index in order:
        grown = [*batch, index]
        widest = max(len(forms[i].row.ids) for i in grown) - min(forms[i].row.n_prompt for i in grown) + 1
        if batch and (len(grown) > MAX_BATCH or widest * len(grown) * vocabulary > LOGIT_BUDGET):
            yield batch
            grown = [index]
        batch = grown
    if batch:
        yield batch


def score(
    subject: CausalLM, data: Dataset, *, name: str = "data", answers_only: bool = False, cost: Cost | None = None
) -> list[dict[str, Any]]:
    """The scoring pass: one row of the score table for every answer form, in the order of the data."""
    forms = forms_of(subject, data, name, answers_only=answers_only)
    rows: list[dict[str, Any]] = [{} for _ in forms]
    vocabulary = int(subject.model.get_input_embeddings().weight.shape[0])
    with subject.evaluating() as model, track(f"score {name}", len(forms)) as advance:
        for part in _batches(forms, vocabulary):
            batch = collate([forms[i].row for i in part], subject.pad_id)
            answer = answer_logits(model, {key: value.to(subject.device) for key, value in batch.items()})
            found = token_statistics(answer.logits[answer.mask], answer.targets[answer.mask])  # [n]
            lengths = [forms[i].row.n_targets for i in part]
            columns = {key: values.cpu().split(lengths) for key, values in found._asdict().items()}
            for place, index in enumerate(part):
                form = forms[index]
                raw = form.text.encode("utf-8")
                rows[index] = {
                    "id": form.id, "form": form.form, "variant": form.variant, "n_bytes": len(raw),
                    "zlib_bytes": len(zlib.compress(raw)),
                    **{key: values[place].tolist() for key, values in columns.items()},
                }  # fmt: skip
            advance(len(part))
    if cost is not None:
        cost.items += len(forms)
        cost.tokens += sum(len(form.row.ids) for form in forms)
    return rows


def generate(
    subject: CausalLM, data: Dataset, *, name: str = "data", max_new_tokens: int = 200, keep_texts: bool = False,
    batch_size: int = 32, cost: Cost | None = None, stop: tuple[str, ...] = (),
) -> list[dict[str, Any]]:  # fmt: skip
    """The generation pass: greedy answers compared with the reference answers, in the order of the data."""
    prompts = subject.encode_prompts(data, name=name)
    outputs = subject.generate_all(
        prompts, max_new_tokens=max_new_tokens, batch_size=batch_size, label=f"generate {name}"
    )
    rows = []
    others = data["answer_aliases"] if "answer_aliases" in data.column_names else [[]] * len(data)
    for identity, reference, aliases, tokens in zip(data["id"], data["answer"], others, outputs, strict=True):
        text = cut(subject.decode(tokens), stop)
        scores = rouge(text, reference)
        rows.append({
            "id": identity, "n_tokens": len(tokens), "stopped": len(tokens) < max_new_tokens,
            "rouge1_recall": scores.rouge1_recall, "rougeL_recall": scores.rougeL_recall, "rougeL_f1": scores.rougeL_f1,
            "exact": exact_match(text, reference), "distinct": distinct(tokens),
            "rougeL_f1_unstemmed": rouge_l_unstemmed(text, reference), "contains": contains_answer(text, [reference, *aliases]),
            "refused": is_refusal(text), "rougeL_recall_plain": rouge_l_plain(text, reference),
            "ngram_entropy": ngram_entropy(text), "text": text if keep_texts else None,
        })  # fmt: skip
    if cost is not None:
        cost.items += len(prompts)
        cost.tokens += sum(map(len, prompts)) + sum(map(len, outputs))
    return rows


def table_key(
    subject: CausalLM, data: Dataset, *, generations: bool, max_new_tokens: int, keep_texts: bool, stop: tuple[str, ...] = (),
) -> dict[str, Any]:  # fmt: skip
    """What a table depends on; also its name in the cache."""
    key: dict[str, Any] = {
        "model": subject.digest,
        "data": data_digest(data),
        "prompt": digest_value(subject.prompt.model_dump()),
        "rows": len(data),
    }
    if generations:
        key |= {"max_new_tokens": max_new_tokens, "texts": keep_texts, "columns": GENERATION_COLUMNS}
        if stop:
            key["stop"] = list(stop)
    return key


def observe(
    subject: CausalLM, data: Dataset, *, name: str = "data", generations: bool = True, max_new_tokens: int = 200,
    keep_texts: bool = False, answers_only: bool = False, stop: tuple[str, ...] = (), cost: Cost | None = None,
    cache: Path | None = None,
) -> ScoreTable:  # fmt: skip
    """The score table of a model on a data set, from the cache or by one pass of each kind.

    Args:
        subject: the model.
        data: canonical rows; rows without a question are scored but not generated from.
        name: of the data set, for progress and errors.
        generations: also generate greedily.
        max_new_tokens: limit of a generation (open-unlearning: 200).
        keep_texts: store the generated texts; otherwise only their scores against the reference.
        answers_only: score the answers, not their paraphrases and perturbed forms (all that a holdout set is for).
        stop: texts that end an answer, besides the end token; the first that occurs cuts it.
        cost: record to add items and tokens to; nothing is added where the cache serves.
        cache: folder of tables; default the cache folder.
    """
    generations = generations and all(data["question"])
    key = table_key(
        subject, data, generations=generations, max_new_tokens=max_new_tokens, keep_texts=keep_texts, stop=stop
    )
    if answers_only:
        key["forms"] = "answer"
    folder = cache or cache_folder() / "tables"
    stem = digest_value(key).removeprefix("sha256:")
    if (folder / f"{stem}.arrow").exists() and (not generations or (folder / f"{stem}.generations.arrow").exists()):
        table = ScoreTable.load(folder, stem)
        if table.key == key:
            return table
    rows = score(subject, data, name=name, answers_only=answers_only, cost=cost)
    made = None
    if generations:
        made = build_generations(
            generate(
                subject, data, name=name, max_new_tokens=max_new_tokens, keep_texts=keep_texts, cost=cost, stop=stop
            )
        )
    table = ScoreTable(build_scores(rows), made, key)
    table.save(folder, stem)
    return table
