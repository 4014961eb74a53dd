"""Issue a certificate for a finished, audited folder: gather, chain, sign, write."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from efface.catalog import entries
from efface.errors import RunError
from efface.forget.run import now
from efface.report.certificate import build_statement, write_certificate
from efface.report.gather import read_result, statement_digest
from efface.report.ledger import append_entry, next_link
from efface.report.signing import make_key_pair
from efface.report.stored import run_places
from efface.run.digests import digest_value
from efface.run.home import home
from efface.run.manifest import MANIFEST


@dataclass(frozen=True)
class Issued:
    """What was written."""

    path: Path
    claims: list[str]
    digest: str | None
    signed: bool


def issue(
    folder: Path, *, signing_key: Path | None = None, chain: bool = True, copies: list[dict[str, Any]] | None = None
) -> Issued:
    """Certify a folder that holds one run or several (`runs/*`).

    Args:
        signing_key: private key; made with its public half where it does not exist.
        chain: append to the ledger in EFFACE_HOME.
        copies: further places where the data or its derivatives may still be.

    Raises:
        RunError: not finished, not audited, or changed.
    """
    places = run_places(folder) if folder.is_dir() else []
    if not places:
        raise RunError(f"'{folder}' holds no run", "an audited run folder", "check the path")
    if not (folder / MANIFEST).exists():
        raise RunError(
            f"'{folder}' is not finished (no manifest)", "an audited run", f"run 'efface audit {folder}' again"
        )
    results, not_tested = [], []
    for place in places:
        result, untested = read_result(folder / place, None if place == "." else Path(place).name)
        results.append(result)
        not_tested += [line for line in untested if line not in not_tested]
    if signing_key is not None and not signing_key.exists():
        make_key_pair(signing_key)
    ceilings = {name: str(entry.card.claims) for name, entry in entries().items() if entry.card.claims}
    arguments: dict[str, Any] = {
        "not_tested": not_tested, "copies": copies or [], "issued": now(), "ceilings": ceilings,
    }  # fmt: skip
    ledger = home() / "ledger.jsonl"
    link = next_link(ledger) if chain else None
    statement = build_statement(folder, results, chain=link, **arguments)
    path = write_certificate(folder, statement, signing_key=signing_key)
    if chain:
        append_entry(digest_value(statement), arguments["issued"], link=link, path=ledger)
    runs = statement["predicate"]["runs"]
    claims = [f"{entry['label']}: {entry['claim']['first_line']}" for entry in runs]
    return Issued(path, claims, statement_digest(folder), signing_key is not None)
