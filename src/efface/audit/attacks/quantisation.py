"""The quantisation attack: round the weights to 8 and 4 bit and ask again.

Paper: Zhang et al., arXiv 2410.16454 (ICLR 2025): an update smaller than the rounding step is rounded away, and the
forgotten comes back. Symmetric round-to-nearest, one scale a row; see `subjects.quantise` for what is skipped.
Equal codes do not imply equal function, so only scores are compared, never codes.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from efface.audit.attacks.relearning import prompt_key
from efface.data.request import data_digest
from efface.run.cost import Cost
from efface.run.digests import digest_value
from efface.run.files import read_json, write_json
from efface.subjects.learner import Learner
from efface.subjects.quantise import linear_weights, round_trip
from efface.train.reference import answer_probabilities, cache_folder
from efface.train.snapshot import Snapshot

WIDTHS = (8, 4)


def quantise(
    subject: Learner, sets: dict[str, Dataset], *, widths: tuple[int, ...] = WIDTHS, cost: Cost | None = None,
    cache: Path | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Probabilities of every answer of `sets` after a round trip at each width; the subject comes back bit for bit.

    Returns:
        `widths`: width -> set -> [N] probabilities, and `skipped`: tensors that were not quantised.
    """
    key = digest_value({
        "attack": "quantisation", "model": subject.digest, "widths": widths, "prompt": prompt_key(subject),
        "data": {name: data_digest(data) for name, data in sets.items()},
    })  # fmt: skip
    path = (cache or cache_folder() / "attacks") / f"{key.removeprefix('sha256:')}.json"
    if path.exists():
        stored: dict[str, Any] = read_json(path)
        return stored
    weights, skipped = linear_weights(subject.model)
    rows = {name: subject.encode_rows(data, name=name) for name, data in sets.items()}
    found: dict[str, dict[str, list[float]]] = {}
    with (
        tempfile.TemporaryDirectory(prefix="efface-quantise-") as folder,
        Snapshot(weights, Path(folder) / "base.safetensors") as base,
    ):
        for width in widths:
            with torch.no_grad():
                for weight in weights.values():
                    weight.copy_(round_trip(weight, width))
            found[str(width)] = {name: answer_probabilities(subject, part) for name, part in rows.items()}
            base.restore()
            if cost is not None:
                cost.items += sum(map(len, rows.values()))
                cost.tokens += sum(row.n_tokens for part in rows.values() for row in part)
    result = {"widths": found, "skipped": skipped}
    write_json(path, result)
    return result
