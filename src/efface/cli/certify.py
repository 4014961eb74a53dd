"""efface certify RUN: a certificate that a stranger can verify offline."""

from __future__ import annotations

from pathlib import Path

import typer

from efface.cli import values as v


def certify(
    run: Path = typer.Argument(..., help="An audited run folder, or a folder of runs such as the demo's."),
    sign_with: Path | None = typer.Option(None, help="Private Ed25519 key (PEM); made there if it does not exist."),
    no_ledger: bool = typer.Option(
        False, help="Do not chain the certificate in the ledger (EFFACE_HOME/ledger.jsonl)."
    ),
    copy: list[str] | None = typer.Option(None, help="place=state of a further copy of the data or model; repeat."),
    json_output: bool = typer.Option(False, "--json", help="Print one JSON document."),
) -> int:
    """Write certificate.json (and certificate.dsse.json when signed)."""
    from efface.report.issue import issue

    copies = [{"place": name, "state": state} for name, state in v.named(copy, "copy").items()]
    issued = issue(run, signing_key=sign_with, chain=not no_ledger, copies=copies)
    if json_output:
        v.emit(
            {"certificate": str(issued.path), "claims": issued.claims, "digest": issued.digest, "signed": issued.signed}
        )
        return 0
    for line in issued.claims:
        v.tell(line)
    signed = (
        f"signed; public key {sign_with}.pub"
        if issued.signed
        else "not signed: shows accidents, not forgery (--sign-with KEY)"
    )
    v.tell(f"certificate: {issued.path} ({signed})    next: efface verify {run}")
    return 0
