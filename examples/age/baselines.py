"""Baselines of this example as JSON: python baselines.py OUT

Few-shot prompts, flipped labels in the context and gradient ascent, all on the small model without any tag rows. The
zero-shot baseline is in every audited run already (its original model).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import efface
from efface.audit.benchmarks.in_context import askable_items
from efface.audit.benchmarks.in_context_baselines import few_shot, icul, plain_outcomes
from efface.data.readers import read_dataset
from efface.data.tagged import TagProtocol
from efface.errors import InputError

TESTS = {
    "age, in domain": ("age_train", "age_valid"),
    "age, out of domain": ("age_train", "world_facts"),
    "authors_first_80, in domain": ("authors_first_80", "authors_last_20"),
    "authors, out of domain": ("authors", "world_facts"),
}
"""Name -> rows for demonstrations, rows that are asked."""


def longest(make: Callable[[int], dict[str, Any]], sizes: tuple[int, ...]) -> dict[str, Any]:
    """The baseline with as many demonstrations as fit into the small model's context; the record says how many."""
    for size in sizes:
        try:
            return {**make(size), "demonstrations": size}
        except InputError as error:
            if "demonstrations" not in str(error):
                raise
            last = error
    raise last


def main() -> None:
    """All baselines of all tests."""
    out = Path(sys.argv[1])
    protocol = TagProtocol()
    found: dict[str, Any] = {}
    for name, (train, test) in TESTS.items():
        subject = efface.load(out / "base")
        data = read_dataset(str(out / "data" / f"{test}.jsonl"))
        items, _ = askable_items(data, test, protocol.target)
        pool, _ = askable_items(read_dataset(str(out / "data" / f"{train}.jsonl")), train, protocol.target)
        shown = pool[:: max(1, len(pool) // 60)]
        found[name] = {
            "few-shot": longest(
                lambda n: few_shot(subject, items, shown, protocol, matched=n, unmatched=n),  # noqa: B023 - called at once
                (2, 1),
            ),
            "label flipping": longest(
                lambda n: icul(subject, items, shown, protocol.target, correct=n),  # noqa: B023 - called at once
                (4, 2, 1),
            ),
        }
        edit = efface.forget(
            subject, efface.Request(forget=data), "gradient-ascent", learning_rate=3e-4, epochs=5, batch_size=20
        )
        edit.apply(subject)
        found[name]["gradient ascent"] = {
            "forget": plain_outcomes(subject, items, protocol.target), "retain": plain_outcomes(subject, shown, protocol.target)
        }  # fmt: skip
    print(json.dumps(found))


if __name__ == "__main__":
    main()
