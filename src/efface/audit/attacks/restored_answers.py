"""Ask for the facts that false documents took, and judge the answers; with a repair fine-tune where one is wanted.

The running half of RESTOR (arXiv 2411.00204): a question stands behind examples of the same relation about other entities, the
first line of a greedy answer counts, and no text is kept.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from datasets import Dataset
from pydantic import Field

from efface.audit.attacks.step_by_step import say
from efface.audit.metrics.restored import Judged
from efface.audit.metrics.text import is_refusal
from efface.data.tagged import normalise
from efface.data.value_match import asserts
from efface.run.cost import Cost
from efface.subjects.causal_lm import CausalLM
from efface.subjects.guarded import bare
from efface.train.config import TrainConfig
from efface.train.engine import train
from efface.train.scopes import ScopeConfig, scoped
from efface.train.streams import collator_of
from efface.train.supervised import answer_loss, supervised_schedule


class RepairConfig(TrainConfig, ScopeConfig):
    """The light fine-tuning that lets a distorted model answer again (LIMA in the paper)."""

    learning_rate: float = Field(2e-5, gt=0, description="RESTOR: 2e-5")
    epochs: float = Field(2, gt=0, description="RESTOR: 2")
    batch_size: int = Field(16, ge=1, description="RESTOR: 2 x 8")
    scope: Literal["lora"] = Field("lora", description="RESTOR: LoRA on all linear layers; taken off without a trace")


def with_examples(facts: Dataset, pool: Dataset | None, shots: int) -> Dataset:
    """The facts with lines "question answer" of the same relation about other entities before each question.

    Args:
        facts: with question, answer, concept, relation.
        pool: where the examples come from; an entity is never its own example (that would tell the answer).
        shots: most examples of a question; fewer where the pool has fewer.
    """
    if pool is None or not shots:
        return facts
    by_relation: dict[str, list[Mapping[str, Any]]] = {}
    for row in pool:
        by_relation.setdefault(normalise(row["relation"]), []).append(row)
    questions = []
    for row in facts:
        own = normalise(row["concept"])
        usable = [
            other for other in by_relation.get(normalise(row["relation"]), []) if normalise(other["concept"]) != own
        ]
        lines = [f"{other['question']} {other['answer']}" for other in usable[:shots]]
        questions.append("\n".join([*lines, row["question"]]))
    return facts.remove_columns(["question"]).add_column("question", questions)


def judged(subject: CausalLM, data: Dataset, *, others: Dataset | None = None, max_new_tokens: int = 200,
           cost: Cost | None = None) -> Judged:  # fmt: skip
    """What the model answers, one row a fact: true or false value, refusal, and what a majority guess would hit.

    Args:
        data: facts; the first `perturbed_answer`, where there is one, is the false value.
        others: more facts, for the values that a relation has.

    Returns:
        rows of id, entity (a number: names are not stored), relation, majority (1 where the true value is the relation's
        commonest), right, false, refused.
    """
    values: dict[str, Counter[str]] = {}
    spelled: dict[str, dict[str, str]] = {}
    for part in (data, others) if others is not None else (data,):
        for row in part:
            relation, own = normalise(row["relation"]), row["answer"]
            values.setdefault(relation, Counter())[normalise(own)] += 1
            for text in (own, *(row.get("perturbed_answer") or ())):
                spelled.setdefault(relation, {})[normalise(text)] = text
    common = {relation: counts.most_common(1)[0][0] for relation, counts in values.items()}
    entities: dict[str, int] = {}
    said = say(subject, data["question"], max_new_tokens, cost, "facts")
    found = []
    for row, tokens in zip(data, said, strict=True):
        text = subject.decode(tokens).strip().split("\n")[0]
        relation = normalise(row["relation"])
        true, wrong = (row["answer"], *(row.get("answer_aliases") or ())), (row.get("perturbed_answer") or ())[:1]
        taken = {normalise(value) for value in true}
        rivals = [spelling for key, spelling in spelled[relation].items() if key not in taken]
        found.append({
            "id": row["id"], "entity": entities.setdefault(normalise(row["concept"]), len(entities)), "relation": relation,
            "majority": common[relation] == normalise(row["answer"]), "right": asserts(text, true, rivals),
            "false": bool(wrong) and asserts(text, wrong, [*true, *(other for other in rivals if other not in wrong)]),
            "refused": bool(text) and is_refusal(text),
        })  # fmt: skip
    return found


def repaired(subject: CausalLM, rows: Dataset, config: RepairConfig, look: Callable[[CausalLM], Any]) -> Any:
    """What `look` sees of the model after a light fine-tune; the model comes back bit for bit.

    Args:
        rows: instructions with answers, none of them about the facts.
    """
    schedule = supervised_schedule(subject.encode_rows(rows, name="repair"), config)
    with (
        tempfile.TemporaryDirectory(prefix="efface-repair-") as folder,
        bare(subject),
        scoped(subject.model, config) as model,
    ):
        train(
            model,
            schedule,
            answer_loss,
            config,
            folder=Path(folder) / "work",
            collator=collator_of(subject),
            label="repair",
        )
        model.eval()
        return look(subject)


__all__ = ["RepairConfig", "judged", "repaired", "with_examples"]
