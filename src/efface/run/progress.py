"""One progress bar: rate and time left on a terminal, a line every half minute elsewhere. Always on stderr."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

SHOW: ContextVar[bool] = ContextVar("efface_progress", default=False)
"""Off in the library, switched on by the command line."""


class _Rate(TextColumn):
    def __init__(self) -> None:
        super().__init__("")

    def render(self, task):  # type: ignore[no-untyped-def]
        from rich.text import Text

        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.1f}/s" if speed else "", style="progress.data.speed")


@contextlib.contextmanager
def track(label: str, total: int, *, start: int = 0) -> Iterator[Callable[[int], None]]:
    """Yield `advance(n)`.

    Args:
        label: what is being done.
        total: number of units.
        start: units that an earlier, killed run did already.
    """
    if not SHOW.get():
        yield lambda _: None
        return
    console = Console(stderr=True)
    if console.is_terminal:
        columns = (
            TextColumn("{task.description}"), BarColumn(bar_width=28), MofNCompleteColumn(), _Rate(),
            TimeElapsedColumn(), TimeRemainingColumn(),
        )  # fmt: skip
        with Progress(*columns, console=console) as progress:
            task = progress.add_task(f"{label:<34}", total=total, completed=start)
            yield lambda n: progress.advance(task, n)
        return
    state = {"done": start, "told": time.monotonic(), "begun": time.monotonic()}

    def advance(n: int) -> None:
        state["done"] += n
        now = time.monotonic()
        if now - state["told"] >= 30:
            state["told"] = now
            rate = (state["done"] - start) / (now - state["begun"])
            left = (total - state["done"]) / rate if rate else 0
            sys.stderr.write(f"{label}: {state['done']:.0f}/{total}, {rate:.1f}/s, {left:.0f} s left\n")
            sys.stderr.flush()

    yield advance
    sys.stderr.write(f"{label}: done in {time.monotonic() - state['begun']:.1f} s\n")
    sys.stderr.flush()
