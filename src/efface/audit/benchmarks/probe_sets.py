"""The probes of RWKU and ORT for a request: from the published data, or made of the request's own rows.

Both suites ask the same things (blank, question, attacks) and judge them otherwise: RWKU by what is generated, ORT by the
probability of the right answer. How a prompt is worded for a model with a chat template is RWKU's: an instruction, a label, and
"Answer:" behind it. In a chat template that opener stands at the end of the user's turn, not after the assistant's header, and a
plain prompt format brings label and opener itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from datasets import Dataset
from pydantic import Field

from efface.audit.finding import Estimate
from efface.audit.metrics.intervals import bootstrap_mean
from efface.audit.suite import Rows
from efface.data.attack_prompts import ATTACKS, SPELLED, attack
from efface.data.columns import canonical
from efface.data.probe_forms import HOLDS, Probe, Probes, form_of, neighbours, probes, spelled
from efface.data.request import Request
from efface.data.rwku import attack_type, read_config
from efface.data.wording import says
from efface.errors import RequestError
from efface.run.settings import Settings
from efface.subjects.causal_lm import CausalLM
from efface.subjects.text_index import TextIndex

POOL = 2000
"""Retain rows that neighbours, options and examples are looked for in, evenly spaced."""

BLANK_INSTRUCTION = "Please complete the blank in the following question."
QUESTION_INSTRUCTION = "Please briefly answer the following question."
TOO_LONG = "longer than the model's context"


class ProbeSettings(Settings):
    """What is asked; the same for every model."""

    data: str | None = Field(
        None,
        description="RWKU's data by folder or hub name (jinzhuoran/RWKU); default: probes of the request's own rows",
    )
    subjects: tuple[str, ...] = Field(
        (), description="targets in the published data; default: the request's concepts, or all"
    )
    types: tuple[str, ...] = Field(tuple(ATTACKS), description="attack types, of the request's own rows")
    neighbours: int = Field(2, ge=1, description="nearest retain rows to each forget row that are asked too")
    rows: int | None = Field(None, ge=1, description="most forget rows to ask about, evenly spaced; default: all")
    prompts: Literal["rwku", "bare"] | None = Field(
        None, description="RWKU's instructions, or the probe alone; default: rwku with published data, else bare"
    )
    seed: int = Field(0, ge=0, description="of the order of options and examples")


@dataclass(frozen=True)
class ProbeSets:
    """What is asked about the forgotten, and about what lies near it and is kept (None: there is nothing)."""

    forget: Probes
    kept: Probes | None


def nearest(texts: Sequence[str], queries: Sequence[str], count: int) -> Any:
    """[q, k] indices of the nearest texts by their words."""
    return TextIndex(texts).nearest(queries, count)


def evenly(data: Dataset, most: int | None) -> Dataset:
    """At most `most` rows, evenly spaced."""
    if most is None or len(data) <= most:
        return data
    return data.select(np.unique(np.linspace(0, len(data) - 1, most).round().astype(int)).tolist())


def probe_sets(request: Request, settings: ProbeSettings) -> ProbeSets:
    """The probes of a request.

    Raises:
        RequestError: published probes that are in the request's rows (they would be trained on), or none of its targets.
        ConfigError: an unknown attack type.
    """
    for name in settings.types:
        attack(name)
    if settings.data is not None:
        return _published(request, settings, settings.data)
    rows = evenly(request.forget, settings.rows)
    pool = None if request.retain is None else evenly(request.retain, POOL)
    found = probes(rows, pool, nearest=nearest, types=settings.types, seed=settings.seed)
    if pool is None:
        return ProbeSets(found, None)
    near = neighbours(rows, pool, nearest=nearest, count=settings.neighbours)
    kept = probes(near, pool, nearest=nearest, types=settings.types, seed=settings.seed) if len(near) else None
    return ProbeSets(found, kept)


# -- published data ------------------------------------------------------------------------------------------------------


def targets(request: Request, settings: ProbeSettings) -> tuple[str, ...]:
    """Whom the published probes are to be about: as set, or the request's concepts; none: all."""
    if settings.subjects:
        return settings.subjects
    column = list(request.forget["concept"]) if "concept" in request.forget.column_names else []
    return tuple(dict.fromkeys([*request.concepts, *column]))


def _published(request: Request, settings: ProbeSettings, source: str) -> ProbeSets:
    names = targets(request, settings)
    found = [
        _of_levels(source, names, ("forget_level1", "forget_level2", "forget_level3"), settings),
        _of_levels(source, names, ("neighbor_level1", "neighbor_level2"), settings),
    ]
    for made in found:
        refuse_trained(made, request, source)
    return ProbeSets(found[0], found[1])


def refuse_trained(made: Probes, request: Request, source: str) -> None:
    """Refuse published probes that stand in the request's forget or retain set: their score would say nothing.

    Raises:
        RequestError: names set and row.
    """
    asked = {" ".join(one.question.split()) for rows in made.forms.values() for one in rows}
    for name, data in (("forget", request.forget), ("retain", request.retain)):
        for index, row in enumerate(data if data is not None else ()):
            if row["question"].strip() and " ".join(row["question"].split()) in asked:
                raise RequestError(
                    f"{name} row {index} is a probe of {source}", "a forget and retain set without the benchmark's probes",
                    "remove it: a model that was trained on its probes cannot be judged by them",
                )  # fmt: skip


def _of_levels(source: str, names: Sequence[str], configs: Sequence[str], settings: ProbeSettings) -> Probes:
    """Published rows as probes; the forms by letter and spelled are made of levels 1 and 2."""
    found = Probes()
    groups: dict[str, int] = {}
    for config in configs:
        rows = read_config(source, config, names)
        if settings.rows is not None and len(rows) > settings.rows:
            picked = np.unique(np.linspace(0, len(rows) - 1, settings.rows).round().astype(int))
            rows = [rows[int(i)] for i in picked]
        for index, row in enumerate(rows):
            group = groups.setdefault(str(row["subject"]), len(groups))
            level = config[-1]
            form = {"1": "fb", "2": "qa"}.get(level) or f"aa.{attack_type(str(row.get('type', '')))}"
            one = Probe(f"{form}/{index}", str(row["query"]), str(row["answer"]), (), group)
            found.forms[form].append(one)
            if form not in ("fb", "qa"):
                continue
            if says(one.question, [one.answer]):
                found.left_out[f"spelled_{form}"][HOLDS] += 1
                continue
            text = SPELLED.fill({"question": one.question})
            assert text is not None
            found.forms[f"spelled_{form}"].append(
                Probe(f"spelled_{form}/{index}", text, spelled(one.answer), (), group)
            )
    plain = [{"id": one.id, "question": one.question, "answer": one.answer} for one in found.forms["qa"]]
    made = probes(canonical(plain, "questions"), None, nearest=nearest, types=(), seed=settings.seed)
    back = {one.id: one.group for one in found.forms["qa"]}
    found.forms["mc"] = [
        Probe(one.id, one.question, one.answer, (), back[one.id.removeprefix("mc/")], one.letter)
        for one in made.forms["mc"]
    ]
    found.left_out["mc"] = made.left_out["mc"]
    return found


# -- wording -------------------------------------------------------------------------------------------------------------


def worded(form: str, settings: ProbeSettings) -> Callable[[CausalLM, Dataset], Dataset]:
    """How a form is put to a model: worded as asked, without the rows that its context does not hold (see `described`)."""
    bare = (settings.prompts or ("rwku" if settings.data is not None else "bare")) == "bare"
    kind = form_of(form)
    instruction = BLANK_INSTRUCTION if form in ("fb", "spelled_fb") else QUESTION_INSTRUCTION
    label = "Question: " if kind is None or kind.label else ""
    opener = "" if kind is not None and not kind.opener else "\nAnswer:"

    def fit(subject: CausalLM, data: Dataset) -> Dataset:
        """Instruction, label, probe and opener; of a plain format only what it does not bring itself."""
        before, behind = (label, opener) if subject.prompt.style == "chat" else ("", "")
        rows = [dict(row) for row in data]
        for row in rows if not bare else ():
            row["question"] = f"{instruction}\n{before}{row['question']}{behind}"
        kept = [row for row in rows if fits(subject, row["question"], row["answer"])]
        return Dataset.from_list(kept) if kept else data.select([])

    return fit


def fits(subject: CausalLM, question: str, answer: str) -> bool:
    """Whether a model's context holds prompt and answer, with a place left to generate in."""
    prompt = subject.prompt
    limit = min(prompt.max_length or 10**9, subject.context or 10**9)
    whole = prompt.whole_text(subject.tokenizer, question, answer)
    return len(subject.tokenizer(whole, add_special_tokens=prompt.style == "plain")["input_ids"]) + 1 < limit


def described(subject: CausalLM, parts: Mapping[str, Rows], sources: Mapping[str, Probes]) -> dict[str, Any]:
    """Of the rows that are put to a model: the number of each one's concept, and how many were left out and why, by part.

    Args:
        parts: the suite's rows.
        sources: part -> the probes that it was made of.
    """
    groups: dict[str, list[int]] = {}
    left_out: dict[str, dict[str, int]] = {}
    for part, rows in parts.items():
        if part not in sources:
            continue
        back = {one.id: one.group for made in sources[part].forms.values() for one in made}
        asked = rows.data if rows.fitted is None else rows.fitted(subject, rows.data)
        groups[part] = [back[identity] for identity in asked["id"]]
        if len(asked) < len(rows.data):
            left_out[part] = {TOO_LONG: len(rows.data) - len(asked)}
    for made in {
        id(made): made for part, made in sources.items() if not part.startswith(("kept_", "neighbour_"))
    }.values():
        for form, counts in made.left_out.items():
            for why, count in counts.items():
                left_out.setdefault(form.replace(".", "_"), {})[why] = count
    return {"groups": groups, "left_out": left_out}


def grouped_mean(values: Sequence[float], groups: Sequence[int] | None, seed: int) -> Estimate:
    """The mean with an interval over concepts where there are two or more that have rows, else over rows."""
    whole = groups is not None and len(groups) == len(values) and len(set(groups)) > 1
    return bootstrap_mean(np.asarray(values, dtype=np.float64), seed=seed, groups=groups if whole else None)


__all__ = [
    "TOO_LONG", "ProbeSets", "ProbeSettings", "described", "evenly", "fits", "grouped_mean", "nearest", "probe_sets",
    "refuse_trained", "targets", "worded",
]  # fmt: skip
