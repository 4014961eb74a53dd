"""A suite: rows to put before every model, and pure functions of what the models said.

A suite's module stands in `audit/benchmarks` (or `attacks`) with a `CARD` and a `SUITE`, and is found there; nothing else
registers it. What its rows are comes from `sets`: a published benchmark by hub name or folder, or rows made from the user's
own request. They are scored and generated from by `observe`, which never puts the same rows before the same model twice, so
suites over one data set share one pass. What cannot be said in rows (training a prompt, reading layers) is an `attack`.
Findings are a function of the stored evidence alone: `efface verify` derives them again without a model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

from datasets import Dataset

from efface.catalog import entries
from efface.errors import ConfigError
from efface.run.settings import Settings

if TYPE_CHECKING:
    from efface.audit.evidence import Evidence
    from efface.audit.finding import Finding
    from efface.data.request import Request
    from efface.subjects.causal_lm import CausalLM
    from efface.subjects.prompts import PromptFormat


class NoSettings(Settings):
    """A suite without settings of its own."""


@dataclass(frozen=True)
class Rows:
    """Rows of a suite, in canonical columns; `answer_aliases` are other right answers.

    Attributes:
        data: the rows.
        generations: also let the models answer.
        max_new_tokens: limit of an answer; default the audit's.
        stop: texts that end an answer (the first that occurs cuts it).
        answers_only: score the answers, not their paraphrases and perturbed forms.
        prompt: how these rows are asked and joined; default the model's own format.
        fitted: (model, rows) -> the rows as this model is given them, for what only its tokenizer can say (a cut after so
            many tokens). Models of one tokenizer get the same rows.
    """

    data: Dataset
    generations: bool = True
    max_new_tokens: int | None = None
    stop: tuple[str, ...] = ()
    answers_only: bool = False
    prompt: PromptFormat | None = None
    fitted: Callable[[CausalLM, Dataset], Dataset] | None = None


@dataclass(frozen=True)
class Suite:
    """What a suite is.

    Attributes:
        name: as `--suite` takes it.
        sets: (request, settings) -> part -> rows. A part is stored as the table `NAME.PART`.
        findings: evidence -> findings, each named `NAME/...`.
        config: its settings, given as `NAME.key=value`.
        attack: (subject, request, settings, cost) -> JSON value, stored as the attack NAME of that model. It leaves the
            subject as it was. What must see the weights alone takes `efface.subjects.guarded.bare`.
        firing: metrics of its findings that speak for hidden knowledge where they do not hold.
        covers: entries of `verdict.UNTESTED` that it tests.
        needs: other suites that run with it.
    """

    name: str
    sets: Callable[[Request, Any], Mapping[str, Rows]]
    findings: Callable[[Evidence], list[Finding]]
    config: type[Settings] = NoSettings
    attack: Callable[[Any, Request, Any, Any], Any] | None = None
    firing: tuple[str, ...] = ()
    covers: tuple[str, ...] = ()
    needs: tuple[str, ...] = field(default=())

    def table(self, part: str) -> str:
        """Name of a part's score table."""
        return f"{self.name}.{part}"


@cache
def suites() -> dict[str, Suite]:
    """Every suite by name.

    Raises:
        ConfigError: two of one name.
    """
    found: dict[str, Suite] = {}
    for entry in entries().values():
        suite = getattr(entry.module, "SUITE", None)
        if isinstance(suite, Suite):
            if suite.name in found:
                raise ConfigError(
                    f"two suites are called '{suite.name}'", "one", f"rename that of {entry.module.__name__}"
                )
            found[suite.name] = suite
    return dict(sorted(found.items()))


def asked(names: tuple[str, ...]) -> list[Suite]:
    """The suites among some names, in that order."""
    known = suites()
    return [known[name] for name in names if name in known]


def with_needs(names: tuple[str, ...]) -> tuple[str, ...]:
    """The names and what they need, once each: what is needed comes first."""
    known, found = suites(), dict[str, None]()

    def add(name: str) -> None:
        for other in known[name].needs if name in known else ():
            add(other)
        found[name] = None

    for name in names:
        add(name)
    return tuple(found)


__all__ = ["NoSettings", "Rows", "Suite", "asked", "suites", "with_needs"]
