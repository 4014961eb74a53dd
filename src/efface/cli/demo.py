"""efface demo: the whole story on embedded data."""

from __future__ import annotations

from pathlib import Path

import typer


def demo(out: Path = typer.Option(Path("efface-demo"), help="Where everything goes.")) -> int:
    """Learn, forget by several methods, audit each, report, certify."""
    return 0
