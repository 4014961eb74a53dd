"""The reference cache: what the model said before training, computed once and kept on the disk.

NPO-like losses need one number an example, KL terms the k largest log-probabilities a token. Neither needs the
reference model in memory while training. Entries are keyed by the digests of model, tokens and kind, so they are never
used for another model. They derive from the data to be forgotten: `efface purge` lists and removes them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from efface.run.digests import digest_value
from efface.run.files import write_with
from efface.run.progress import track
from efface.subjects.answers import answer_logits
from efface.subjects.learner import Learner
from efface.subjects.prompts import Encoded


def cache_folder() -> Path:
    """`EFFACE_CACHE`, or `~/.cache/efface`."""
    return Path(os.environ.get("EFFACE_CACHE") or Path.home() / ".cache" / "efface")


def batches(rows: Sequence[Any], size: int) -> list[list[int]]:
    """Indices in batches of like lengths, so that little is padded; every index once."""
    order = sorted(range(len(rows)), key=lambda i: (rows[i].n_tokens, i))
    return [order[i : i + size] for i in range(0, len(order), size)]


def rows_digest(rows: Sequence[Any]) -> str:
    """Digest of tokenised or labelled rows, answers included."""
    return digest_value([row.key if isinstance(row, Encoded) else [row.key, row.target] for row in rows])


def _key(subject: Learner, rows: Sequence[Any], kind: str) -> Path:
    tokens = rows_digest(rows)
    name = digest_value({"model": subject.digest, "rows": tokens, "kind": kind}).removeprefix("sha256:")
    return cache_folder() / "reference" / f"{name}.safetensors"


def _stored(path: Path) -> dict[str, torch.Tensor] | None:
    """A cache entry; a damaged one counts as absent and is made anew."""
    if not path.exists():
        return None
    try:
        found: dict[str, torch.Tensor] = load_file(path)
    except SafetensorError:
        path.unlink(missing_ok=True)
        return None
    return found


def reference_logp(subject: Learner, rows: Sequence[Any], *, batch_size: int = 16) -> torch.Tensor:
    """[N] float32: log p_ref(answer | question), the sum over answer tokens."""
    path = _key(subject, rows, "logp")
    stored = _stored(path)
    if stored is not None:
        return stored["logp"]
    found = torch.zeros(len(rows))
    with subject.evaluating() as model, track("reference log-probabilities", len(rows)) as advance:
        for part in batches(rows, batch_size):
            scores = answer_logits(model, subject.batch([rows[i] for i in part]))
            found[part] = scores.logp_sum.cpu()
            advance(len(part))
    write_with(path, lambda partial: save_file({"logp": found}, partial))
    return found


def reference_top_k(
    subject: Learner, rows: Sequence[Any], k: int, *, batch_size: int = 16
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The k largest log-probabilities under the reference at every answer position.

    Returns:
        token ids, N arrays [T_i, k] int64, and log-probabilities, N arrays [T_i, k] float32. With k at least the
        vocabulary's size nothing is lost; otherwise the rest is one tail mass, 1 - sum of exp.
    """
    path = _key(subject, rows, f"top{k}")
    lengths = [row.n_targets for row in rows]
    stored = _stored(path)
    if stored is None:
        ids: list[torch.Tensor] = [torch.empty(0)] * len(rows)
        logp: list[torch.Tensor] = [torch.empty(0)] * len(rows)
        with subject.evaluating() as model, track(f"reference top-{k}", len(rows)) as advance:
            for part in batches(rows, batch_size):
                scores = answer_logits(model, subject.batch([rows[i] for i in part]))
                top = scores.logits.log_softmax(-1).topk(min(k, scores.logits.shape[-1]), dim=-1)
                for index, values, tokens, mask in zip(part, top.values, top.indices, scores.mask, strict=True):
                    ids[index], logp[index] = tokens[mask].cpu().to(torch.int32), values[mask].cpu()
                advance(len(part))
        joined = {"ids": torch.cat(ids), "logp": torch.cat(logp)}
        write_with(path, lambda partial: save_file(joined, partial))
        stored = joined
    return list(torch.split(stored["ids"].long(), lengths)), list(torch.split(stored["logp"], lengths))


def reference_values(subject: Learner, rows: Sequence[Any], *, batch_size: int = 256) -> torch.Tensor:
    """[N] float32: the number that a regressor predicted before training."""
    found = torch.zeros(len(rows))
    with subject.evaluating() as model:
        for part in batches(rows, batch_size):
            found[part] = answer_logits(model, subject.batch([rows[i] for i in part])).values.squeeze(-1).cpu()
    return found


def answer_probabilities(subject: Learner, rows: Sequence[Any], *, batch_size: int = 32) -> list[float]:
    """[N] length-normalised probability exp(mean log p) of every answer; TOFU's metric 1, without a score table."""
    found = [0.0] * len(rows)
    with subject.evaluating() as model:
        for part in batches(rows, batch_size):
            scores = answer_logits(model, subject.batch([rows[i] for i in part]))
            values = (scores.logp_sum.double() / scores.mask.sum(-1)).exp()
            for index, value in zip(part, values.tolist(), strict=True):
                found[index] = value
    return found


def mean_probability(subject: Learner, rows: Sequence[Any], *, batch_size: int = 32) -> float:
    """Mean of `answer_probabilities`; a quick control score."""
    values = answer_probabilities(subject, rows, batch_size=batch_size)
    return sum(values) / len(values)
