"""efface systems [NAME]: the catalog, or one card with its parameters, defaults and sources."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from efface.cli import values as v


def systems(
    name: str | None = typer.Argument(None, help="A name; without one, the whole catalog."),
    json_output: bool = typer.Option(False, "--json", help="Print one JSON document."),
    markdown: bool = typer.Option(False, help="Print the catalog as the page docs/systems.md."),
    pages: Path | None = typer.Option(None, help="Write systems.md and one page a system into this docs folder."),
) -> int:
    """List the catalog, or show one card."""
    from efface.catalog import entries, find

    if pages is not None:
        from efface.cli.pages import write_pages
        from efface.run.files import write_text

        write_text(pages / "systems.md", page() + "\n")
        v.tell(f"{len(write_pages(pages))} pages below {pages / 'systems'}")
        return 0
    if markdown:
        v.tell(page())
        return 0
    if name is None:
        cards = [entry.card for entry in entries().values()]
        if json_output:
            v.emit([card.model_dump(mode="json") for card in cards])
            return 0
        for verb in ("learn", "measure", "forget", "audit", "lab"):
            chosen = [card for card in cards if card.verb == verb]
            if chosen:
                v.tell(f"{verb}")
                for card in chosen:
                    v.tell(f"  {card.name:<24} {card.title}: {card.summary}")
        return 0
    entry = find(name)
    parameters = parameters_of(entry.module)
    if json_output:
        v.emit({**entry.card.model_dump(mode="json"), "parameters": parameters})
        return 0
    card = entry.card
    v.tell(f"{card.title} ({card.name})\n{card.summary}\n")
    facts = {
        "paper": card.paper, "verb": f"{card.verb}/{card.mechanism}", "system": card.system, "needs": ", ".join(card.needs),
        "claims at most": card.claims or "", "defaults from": card.defaults_source,
    }  # fmt: skip
    if card.taxonomy:
        facts |= {
            "intention": card.taxonomy.intention,
            "level": card.taxonomy.level,
            "threat model": card.taxonomy.threat_model,
        }
    for key, value in facts.items():
        if value:
            v.tell(f"  {key}: {value}")
    if parameters:
        v.tell("\nparameters")
        for row in parameters:
            v.tell(f"  {row['name']}={row['default']}  ({row['type']}) {row['description']}")
    return 0


def parameters_of(module: Any) -> list[dict[str, str]]:
    """Name, type, default and description of every key of a system's configuration."""
    method = getattr(module, "METHOD", None)
    settings = getattr(module, "CONFIG", None) or getattr(method, "config_class", None)
    return [] if settings is None else _rows(settings, "")


def _rows(settings: Any, prefix: str) -> list[dict[str, str]]:
    """The keys of a configuration; those of settings within it as `outer.inner`."""
    from efface.run.settings import Settings

    rows = []
    for name, field in settings.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Settings):
            rows += _rows(field.annotation, f"{prefix}{name}.")
            continue
        kind = str(field.annotation).replace("typing.", "").removeprefix("<class '").removesuffix("'>")
        rows.append({"name": prefix + name, "type": kind, "default": str(field.get_default(call_default_factory=True)),
                     "description": field.description or ""})  # fmt: skip
    return rows


def page() -> str:
    """The catalog as Markdown, made from the cards; docs/systems.md is this text and a test keeps it so."""
    from efface.catalog import entries

    lines = [
        "# Systems",
        "",
        "Made from the cards by `efface systems --markdown`. `efface systems NAME` shows a card with its parameters, defaults",
        "and their sources. What an audit finds is never written on a card.",
    ]
    for verb in ("learn", "measure", "forget", "audit", "lab"):
        chosen = [entry for entry in entries().values() if entry.card.verb == verb]
        if not chosen:
            continue
        lines += ["", f"## {verb}", ""]
        if verb == "forget":
            lines += [
                "| name | what it does | declares | claims at most | needs | paper |",
                "|---|---|---|---|---|---|",
            ]
        else:
            lines += ["| name | what it does | needs | paper |", "|---|---|---|---|"]
        for entry in chosen:
            card = entry.card
            cells = [f"[`{card.name}`](systems/{card.system}.md)", card.summary]
            if card.taxonomy is not None:
                cells += [card.taxonomy.intention, str(card.claims)]
            cells += [", ".join(card.needs), card.paper]
            lines.append("| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |")
    return "\n".join(lines)
