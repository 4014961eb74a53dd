"""Hops: the elements, said forwards, backwards and over two hops, so that a fact can be reached by another way.

Beside the direct statements of `lab.facts` the models read "which has symbol F e is iron" (inverse) and "the period for symbol
F e is 4" (two hops: symbol to element, element to period). What is to be forgotten is direct statements of templates 0 and 1
only; the retrained model has read no statement of the forgotten elements at all.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from datasets import Dataset

from efface.data.columns import canonical
from efface.data.fact_graph import Mark
from efface.data.request import Request, data_digest
from efface.lab.facts import PROMPT, WORLDS, Table, element_facts, fact_rows, split
from efface.lab.people import vocabulary_data
from efface.learn.recipes.causal_lm import learn
from efface.run.digests import digest_value
from efface.run.files import make_folder
from efface.subjects import CausalLM
from efface.train.reference import cache_folder

DESCRIBED_BY = "symbol"
"""The relation that names an element without its name: no two share a symbol."""

THROUGH = ("number", "period", "block")
"""Relations asked over two hops."""

INVERSE = "which has {relation} {object} is"
TWO_HOP = "the {relation} for {described} {value} is"
FORGOTTEN_FORMS = ("0", "1")
"""Templates whose statements are in the forget and the retain set; template 2 is the unseen paraphrase."""


@dataclass(frozen=True)
class Hops:
    """The statements by kind, of the 8 elements to forget (the first four) and of the 56 to keep.

    Attributes:
        request: direct statements of templates 0 and 1: forget and retain. The facts behind them are in `graph_rows`, since an
            answer here is a whole sentence.
        direct, paraphrase, inverse, two_hop: of the forgotten elements: 64, 32, 8 and 24 rows.
        kept: direct statements of templates 0 and 1 of the elements to keep: 448 rows.
        original, retrained: the models, as in `lab.facts`.
    """

    request: Request
    direct: Dataset
    paraphrase: Dataset
    inverse: Dataset
    two_hop: Dataset
    kept: Dataset
    original: CausalLM
    retrained: CausalLM


def direct_rows(names: Iterable[str] | None = None) -> list[dict[str, Any]]:
    """The direct statements of some elements (default all) in three templates, with `concept` and `relation`."""
    chosen = None if names is None else set(names)
    found = []
    for row in fact_rows(WORLDS["elements"]):
        name, relation, _ = row["id"].split("/")
        if chosen is None or name in chosen:
            bare = {key: row[key] for key in ("id", "question", "answer")}
            found.append({**bare, "concept": name, "relation": relation})
    return found


def inverse_rows(table: Table) -> list[dict[str, Any]]:
    """Symbol to name: one row an element."""
    return [
        {"id": f"{name}/inverse", "question": INVERSE.format(relation=DESCRIBED_BY, object=facts[DESCRIBED_BY]),
         "answer": name, "concept": name, "relation": DESCRIBED_BY}
        for name, facts in table.items()
    ]  # fmt: skip


def two_hop_rows(table: Table) -> list[dict[str, Any]]:
    """Symbol to number, period and block: three rows an element."""
    return [
        {"id": f"{name}/{relation}/two-hop", "answer": facts[relation], "concept": name, "relation": relation,
         "question": TWO_HOP.format(relation=relation, described=DESCRIBED_BY, value=facts[DESCRIBED_BY])}
        for name, facts in table.items() for relation in THROUGH
    ]  # fmt: skip


def hops(seed: int = 0) -> Hops:
    """Build the statements and train both models, or load them from the cache.

    Args:
        seed: of the starting weights and the order of the rows; who is forgotten does not depend on it.
    """
    former, _, _ = split("elements")
    table = element_facts()
    assert former.retain is not None
    assert former.holdout is not None
    gone, kept, held = (_names(part) for part in (former.forget, former.retain, former.holdout))
    rest = set(table) - held
    theirs, others = (canonical(_all(table, part), "statements") for part in (gone, rest - gone))
    known = vocabulary_data(former)
    config = WORLDS["elements"].config.model_copy(update={"seed": seed})
    key = {"config": config.model_dump(), "data": [data_digest(part) for part in (theirs, others, *known)]}
    folder = make_folder(cache_folder() / "lab" / digest_value(key).removeprefix("sha256:")[:24])
    original = learn(
        [others, theirs], folder / "original", config, prompt=PROMPT, tokenizer_data=known, label="hops: original"
    )
    retrained = learn(
        [others], folder / "retrained", config, prompt=PROMPT, tokenizer_data=[theirs, *known], label="hops: retrained"
    )
    return Hops(*statements(gone, kept), original, retrained)


def statements(gone: set[str], kept: set[str]) -> tuple[Request, Dataset, Dataset, Dataset, Dataset, Dataset]:
    """The request, and the rows by kind, in the order of `Hops`."""
    table = element_facts()
    own = {name: facts for name, facts in table.items() if name in gone}
    direct = [row for row in direct_rows(gone) if row["id"].endswith(FORGOTTEN_FORMS)]
    keep = [row for row in direct_rows(kept) if row["id"].endswith(FORGOTTEN_FORMS)]
    other = [row for row in direct_rows(gone) if not row["id"].endswith(FORGOTTEN_FORMS)]
    plain = [[{key: row[key] for key in ("id", "question", "answer")} for row in part] for part in (direct, keep)]
    request = Request.from_rows(*plain, scope="direct statements about eight elements of the lab")
    assert request.retain is not None
    return (
        request, request.forget, canonical(other, "paraphrase"), canonical(inverse_rows(own), "inverse"),
        canonical(two_hop_rows(own), "two-hop"), request.retain,
    )  # fmt: skip


def graph_rows() -> list[tuple[dict[str, Any], Mark]]:
    """The facts themselves, for a fact graph: (element, relation, value), marked by whether the element is forgotten."""
    former, _, _ = split("elements")
    assert former.retain is not None
    gone, kept = _names(former.forget), _names(former.retain)
    return [
        ({"id": f"{name}/{relation}", "concept": name, "relation": relation, "answer": value},
         "forget" if name in gone else "retain")
        for name, facts in element_facts().items() if name in gone | kept for relation, value in facts.items()
    ]  # fmt: skip


def _all(table: Table, names: set[str]) -> list[dict[str, Any]]:
    chosen = {name: facts for name, facts in table.items() if name in names}
    return [*direct_rows(names), *inverse_rows(chosen), *two_hop_rows(chosen)]


def _names(data: Dataset) -> set[str]:
    return {identity.split("/")[0] for identity in data["id"]}


__all__ = ["Hops", "direct_rows", "graph_rows", "hops", "inverse_rows", "statements", "two_hop_rows"]
