"""The pages `docs/systems/NAME.md`, made from cards, configurations, module texts and recorded proofs."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from efface.catalog import entries
from efface.catalog.discovery import Entry
from efface.cli.systems import parameters_of
from efface.proofs.proof import proofs
from efface.run.files import read_json, write_text


def systems_with_pages() -> dict[str, list[Entry]]:
    """The entries of the catalog by system; a system that is only a proof (a test world) has none."""
    found: dict[str, list[Entry]] = {name: [] for name in proofs()}
    for entry in entries().values():
        found.setdefault(entry.card.system, []).append(entry)
    return dict(sorted(found.items()))


def system_page(system: str, members: list[Entry], record: Mapping[str, Any] | None) -> str:
    """One system as Markdown.

    Args:
        system: its name.
        members: what it offers.
        record: its outcome in docs/results/proofs.json, or None.
    """
    lines = [
        f"# {system}", "", "Made by `make docs` from the cards, the modules' own texts and the recorded proof. "
        "[All systems](../systems.md).",
    ]  # fmt: skip
    for entry in members:
        card = entry.card
        lines += ["", f"## {card.title} (`{card.name}`)", "", card.summary, ""]
        facts = {
            "paper": card.paper, "verb": card.verb, "takes": ", ".join(card.subjects), "modalities": ", ".join(card.modalities),
            "needs": ", ".join(card.needs), "claims at most": card.claims or "", "defaults from": card.defaults_source,
            "source": f"[{entry.module.__name__}](../../src/{entry.module.__name__.replace('.', '/')}.py)",
        }  # fmt: skip
        lines += [f"- {name}: {value}" for name, value in facts.items() if value]
        text = inspect.getdoc(entry.module) or ""
        lines += ["", "```text", text, "```"]
        parameters = parameters_of(entry.module)
        if parameters:
            lines += ["", "| key | default | what |", "|---|---|---|"]
            lines += [
                "| "
                + " | ".join([f"`{row['name']}`", f"`{row['default']}`", row["description"].replace("|", "/")])
                + " |"
                for row in parameters
            ]
    proof = proofs().get(system)
    if proof is not None:
        lines += ["", "## Proof", "", f"`efface prove {system}`: {proof.claim}."]
        if proof.note:
            lines += ["", proof.note]
        if record is not None and "checks" in record:
            lines += ["", f"As recorded, it **{'holds' if record['holds'] else 'does not hold'}**.", ""]
            lines += ["| check | figure | threshold | baseline | holds |", "|---|---|---|---|---|"]
            for check, holds in zip(record["checks"], record["holding"], strict=True):
                beside = "" if check["baseline"] is None else f"{check['baseline']:.4g}"
                told = check["threshold"] is None
                bound = "reported" if told else f"{check['relation']} {check['threshold']:g}"
                cells = [
                    check["name"].replace("|", "/"),
                    f"{check['figure']:.4g}",
                    bound,
                    beside,
                    "" if told else "yes" if holds else "**no**",
                ]
                lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def write_pages(docs: Path) -> list[Path]:
    """Write every page below `docs/systems`; pages of systems that are gone are removed."""
    recorded = read_json(docs / "results" / "proofs.json")
    wanted = []
    for system, members in systems_with_pages().items():
        path = docs / "systems" / f"{system}.md"
        write_text(path, system_page(system, members, recorded.get(system)))
        wanted.append(path)
    for path in (docs / "systems").glob("*.md"):
        if path not in wanted:
            path.unlink()
    return wanted
