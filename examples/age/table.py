"""Print the tables of docs/results/in-context.md from a finished run of this example: python table.py OUT"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from efface.audit.benchmarks.in_context import harmonic
from efface.audit.finding import Estimate
from efface.audit.metrics.intervals import wilson
from efface.run.record import load_costs

COLUMNS = (
    ("forget", "matched", "exact", "forgot"),
    ("retain", "unmatched", "exact", "correct"),
    ("retain, normalised", "unmatched", "outcome", "correct"),
    ("leak", "matched", "leak", True),
    ("over-forget", "unmatched", "exact", "forgot"),
    ("no tag", "untagged", "exact", "correct"),
)
RULES = {"concept": "person", "answer": "answer"}


def cell(estimate: Estimate | None) -> str:
    """A share in per cent with its 95 % interval."""
    if estimate is None:
        return ""
    text = f"{100 * estimate.value:.1f}"
    if estimate.low is None or estimate.high is None:
        return text
    return f"{text} [{100 * estimate.low:.0f}, {100 * estimate.high:.0f}]"


def shares(entry: dict[str, Any]) -> list[str]:
    """The cells of one record."""
    found = []
    for _, kind, column, value in COLUMNS:
        own = entry["asked"].get(kind)
        found.append(cell(None if own is None else wilson(sum(v == value for v in own[column]), len(own[column]))))
    both = {"matched", "unmatched"} <= set(entry["asked"])
    return [*found, cell(harmonic(entry)) if both else ""]


def line(*cells: str) -> str:
    """One row of a table."""
    return "| " + " | ".join(cells) + " |"


def layers(entry: dict[str, Any]) -> list[str]:
    """Internal answer score, pretend rate, flip depth, skipped prompts."""
    read = entry["layers"]["matched"]
    own = read.get("shares")
    if own is None:
        return ["", "", "", "", str(read["skipped"])]
    inside = wilson(own["internal"], own["said"]) if own["said"] else None
    flip = "" if own["flip_depth"] is None else f"{own['flip_depth']:.2f}"
    mean = "" if own["mean_over_layers"] is None else f"{100 * own['mean_over_layers']:.1f}"
    return [cell(inside), mean, cell(wilson(own["pretend"], own["n"])), flip, str(read["skipped"])]


def main() -> None:
    """Three tables: accuracies, layers, costs."""
    out = Path(sys.argv[1])
    head = ["trained on", "style", "seed", "asked", "tag holds", "n", *(name for name, *_ in COLUMNS), "harmonic mean"]
    accuracies, inside, costs = [line(*head), "|" + "---|" * len(head)], [], []
    names = [*head[:4], "model", "internal answer", "mean over layers", "pretend", "flip depth", "skipped"]
    inside += [line(*names), "|" + "---|" * len(names)]
    costs += [line("run", "fit, s", "peak MiB", "audit, s"), "|---|---|---|---|"]
    seen: set[tuple[str, str]] = set()
    done = [path.parent.parent for path in (out / "runs").glob("*/attacks/in-context.json")]
    for folder in sorted(done):
        train, style, seed = folder.name.rsplit("-", 2)
        record = json.loads((folder / "attacks" / "in-context.json").read_text(encoding="utf-8"))
        for role in ("original", "unlearned"):
            for name, entry in record[role]["sets"].items():
                if "asked" not in entry or (role == "original" and (train, name) in seen):
                    continue
                seen |= {(train, name)} if role == "original" else set()
                label = "zero-shot" if role == "original" else style.upper()
                asked = "training rows" if name == "forget" else name.replace("_", " ")
                start = [train, label, "" if role == "original" else seed, asked]
                accuracies.append(line(*start, RULES[entry["rule"]], str(entry["n"]), *shares(entry)))
                inside.append(line(*start, "untuned" if role == "original" else "tuned", *layers(entry)))
        found = {cost.phase: cost for cost in load_costs(folder)}
        fit, audit = found["fit in-context"], found.get("tagged prompts and layers, unlearned")
        costs.append(
            line(folder.name, f"{fit.seconds:.0f}", f"{fit.peak_mb:,.0f}", f"{audit.seconds:.0f}" if audit else "")
        )
    path = out / "baselines.json"
    for name, rows in (json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}).items():
        train, asked = name.split(", ")
        for label in ("few-shot", "label flipping"):
            shown = rows[label].get("demonstrations")
            said = label if shown is None else f"{label}, {2 * shown if label == 'few-shot' else shown + 1} shown"
            accuracies.append(line(train, said, "", asked, "", str(rows[label]["n"]), *shares(rows[label])))
        gone, kept = (rows["gradient ascent"][part]["asked"]["untagged"] for part in ("forget", "retain"))
        cells = [
            cell(wilson(sum(v == "forgot" for v in gone["exact"]), len(gone["exact"]))),
            cell(wilson(sum(v == "correct" for v in kept["exact"]), len(kept["exact"]))),
            cell(wilson(sum(v == "correct" for v in kept["outcome"]), len(kept["outcome"]))),
            cell(wilson(sum(gone["leak"]), len(gone["leak"]))), "", "", "",
        ]  # fmt: skip
        accuracies.append(line(train, "gradient ascent", "", asked, "no tag", str(len(gone["exact"])), *cells))
    print("\n".join([*accuracies, "", *inside, "", *costs]))


if __name__ == "__main__":
    main()
