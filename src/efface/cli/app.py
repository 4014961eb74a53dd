"""All commands on one application."""

from __future__ import annotations

from typing import Any

import typer
from typer.main import get_command

from efface.cli import audit, certify, demo, forget, learn, measure, prove, purge, report, systems, verify

HELP = "Make a model forget, and prove it."


def build() -> Any:
    """The application as a callable that takes argv."""
    app = typer.Typer(
        help=HELP, no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False
    )
    app.command("demo")(demo.demo)
    app.command("learn")(learn.learn)
    app.command("measure")(measure.measure)
    app.command("forget")(forget.forget)
    app.command("audit")(audit.audit)
    app.command("report")(report.report)
    app.command("certify")(certify.certify)
    app.command("verify")(verify.verify)
    app.command("systems")(systems.systems)
    app.command("prove")(prove.prove)
    app.command("purge")(purge.purge)
    app.callback()(_version)
    return get_command(app)


def _version(
    version: bool = typer.Option(False, "--version", help="Print the version and stop.", is_eager=True),
) -> None:
    """Make a model forget, and prove it."""
    if version:
        from efface import __version__

        typer.echo(__version__)
        raise typer.Exit
