"""The command line. Thin: parse, call a verb, print. Exit codes: 0 done, 1 a check did not hold, 2 bad input."""

from __future__ import annotations

import os
import sys
import traceback

INTERRUPTED = 130
INTERNAL = 70


def main(argv: list[str] | None = None) -> None:
    """Run a command and leave with its exit code; an error is one line, never a traceback."""
    sys.exit(run(sys.argv[1:] if argv is None else argv))


def run(argv: list[str]) -> int:
    """Run a command; returns its exit code."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from efface.cli.app import build
    from efface.errors import EffaceError

    try:
        result = build()(argv, standalone_mode=False)
    except EffaceError as error:
        return _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        return _fail("stopped; the same command goes on where it was", INTERRUPTED)
    except OSError as error:  # what no reader or writer has named: a folder that may not be entered, a broken mount
        if error.filename is None:
            return _internal(error)
        return _fail(f"cannot use {error.filename}: {error.strerror}; check the path and its permissions", 2)
    except Exception as error:  # noqa: BLE001 - the last line of defence: no traceback for the user
        if hasattr(error, "format_message"):  # click's usage errors
            return _fail(f"{error.format_message()} Try 'efface --help'.", 2)
        if type(error).__name__ in {"Exit", "Abort"}:
            return int(getattr(error, "exit_code", 1))
        return _internal(error)
    return result if isinstance(result, int) else 0


def _internal(error: Exception) -> int:
    if os.environ.get("EFFACE_DEBUG"):
        traceback.print_exception(error)
    first = (str(error).splitlines() or [""])[0][:200]
    return _fail(
        f"internal error: {type(error).__name__}: {first}; this is a bug in efface, please report it "
        "(EFFACE_DEBUG=1 shows where)", INTERNAL,
    )  # fmt: skip


def _fail(message: str, code: int) -> int:
    sys.stderr.write(f"error: {' '.join(message.split())}\n")
    return code
