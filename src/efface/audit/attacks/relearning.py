"""The relearning attack: how few steps of ordinary training bring the forgotten back, and does half bring the rest?

Papers: relearn time (arXiv 2201.05629), eight methods (2402.16835), held-out-facts relearning (2410.08827). Two curves a model:
`speed` trains on the whole forget set and watches it; `transfer` trains on one half (D_fa) and watches the other (D_fb).
The retrained model under the same attack is the honest control: what it learns, anybody could have learnt.
The attack trains the model in place and puts it back; nothing is changed for good.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from datasets import Dataset
from pydantic import Field
from transformers import TrainerCallback

from efface.catalog import Card
from efface.data.request import data_digest
from efface.errors import RequestError
from efface.run.cost import Cost
from efface.run.digests import digest_value
from efface.run.files import read_json, write_json
from efface.run.settings import Settings
from efface.subjects.learner import Learner
from efface.train.config import TrainConfig
from efface.train.engine import train
from efface.train.reference import answer_probabilities, cache_folder
from efface.train.snapshot import Snapshot
from efface.train.streams import collator_of
from efface.train.supervised import answer_loss, supervised_schedule

CARD = Card(
    name="relearning-and-probing",
    system="relearning-and-probing",
    title="Relearning attack",
    summary="Trains a copy on the forgotten facts, or on half of them, and counts the steps until they are back.",
    paper="arXiv 2201.05629, 2402.16835, 2410.08827 (2022 to 2024)",
    verb="audit",
    mechanism="attacks",
    modalities=("any",),
    subjects=("causal-lm", "classifier", "regressor"),
    needs=("forget", "gradients", "retrained"),
    defaults_source="the suite's table in arXiv 2506.09227: same rate and batches for both models, a look every few steps",
)


class RelearningConfig(Settings):
    """The attacker's budget; fixed before the run and the same for every model."""

    learning_rate: float = Field(1e-4, gt=0, description="AdamW, constant")
    batch_size: int = Field(16, ge=1, description="rows in a step")
    max_steps: int = Field(60, ge=1, description="give up after this many steps")
    every: int = Field(5, ge=1, description="look at the forget set every so many steps")
    seed: int = Field(0, ge=0, description="order of the rows")


class _Look(TrainerCallback):  # type: ignore[misc]
    """Score the watched rows every few steps."""

    def __init__(self, subject: Learner, watched: list[Any], every: int) -> None:
        self.subject, self.watched, self.every = subject, watched, every
        self.steps = [0]
        self.rows = [answer_probabilities(subject, watched)]

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step % self.every == 0 or state.global_step == state.max_steps:
            self.steps.append(int(state.global_step))
            self.rows.append(answer_probabilities(self.subject, self.watched))


def _curve(
    subject: Learner,
    train_rows: list[Any],
    watched: list[Any],
    config: RelearningConfig,
    label: str,
    cost: Cost | None,
) -> dict[str, Any]:
    settings = TrainConfig(
        learning_rate=config.learning_rate, batch_size=min(config.batch_size, len(train_rows)), weight_decay=0.0,
        schedule="constant", seed=config.seed,
        epochs=config.max_steps * min(config.batch_size, len(train_rows)) / len(train_rows),
        checkpoint_seconds=1e9,
    )  # fmt: skip
    folder = Path(tempfile.mkdtemp(prefix="efface-relearn-"))
    live = subject.weights()
    flags = {name: tensor.requires_grad for name, tensor in live.items()}
    try:
        with Snapshot(live, folder / "base.safetensors"):
            for tensor in live.values():
                tensor.requires_grad_(tensor.is_floating_point())
            look = _Look(subject, watched, config.every)
            schedule = supervised_schedule(train_rows, settings)
            train(
                subject.model, schedule, answer_loss, settings, folder=folder / "work", collator=collator_of(subject),
                label=label, callbacks=(look,),
            )  # fmt: skip
    finally:
        for name, tensor in live.items():
            tensor.requires_grad_(flags[name])
            tensor.grad = None
        subject.model.eval()
        shutil.rmtree(folder, ignore_errors=True)
    if cost is not None:
        cost.items += len(schedule) + len(look.steps) * len(watched)
        cost.tokens += schedule.total_tokens + len(look.steps) * sum(row.n_tokens for row in watched)
    return {"steps": look.steps, "rows": look.rows}


def prompt_key(subject: Learner) -> dict[str, Any] | None:
    """The prompt format of a language model, on which its scores depend; None for other kinds."""
    prompt = getattr(subject, "prompt", None)
    return None if prompt is None else dict(prompt.model_dump())


def halves(data: Dataset) -> tuple[list[int], list[int]]:
    """Two halves without common facts: the first and the second in the order of the data.

    Forget sets list a person's or an author's rows together, so contiguous halves keep their facts apart.
    """
    middle = len(data) // 2
    return list(range(middle)), list(range(middle, len(data)))


def relearn(
    subject: Learner, forget: Dataset, config: RelearningConfig, *, cost: Cost | None = None, cache: Path | None = None
) -> dict[str, Any]:
    """Both curves of one model, from the cache or by the attack; the subject comes back bit for bit.

    Returns:
        `speed` and `transfer`, each with `steps` [S] and `rows` [S][N]: the probability of every watched answer.

    Raises:
        RequestError: fewer than four rows, so that there is no held-out half.
    """
    if len(forget) < 4:
        raise RequestError(
            f"a forget set of {len(forget)} rows for the relearning attack", "at least 4", "skip this attack"
        )
    key = digest_value({
        "attack": "relearning", "model": subject.digest, "data": data_digest(forget), "config": config.model_dump(),
        "prompt": prompt_key(subject),
    })  # fmt: skip
    path = (cache or cache_folder() / "attacks") / f"{key.removeprefix('sha256:')}.json"
    if path.exists():
        stored: dict[str, Any] = read_json(path)
        return stored
    before = subject.digest
    rows = subject.encode_rows(forget, name="forget")
    first, second = halves(forget)
    found = {
        "speed": _curve(subject, rows, rows, config, "relearn all", cost),
        "transfer": _curve(subject, [rows[i] for i in first], [rows[i] for i in second], config, "relearn half", cost),
    }
    subject.changed()
    assert subject.digest == before, "the relearning attack must leave the model as it was"
    write_json(path, found)
    return found
