"""efface report RUN [RUN ...] [--out FOLDER]; of a folder that `efface learn` made, its curves and its map"""

from __future__ import annotations

from pathlib import Path

import typer

from efface.cli import values as v


def report(
    runs: list[Path] | None = typer.Argument(None, help="Audited run folders; several make one comparison."),
    out: Path | None = typer.Option(None, help="Folder for a comparison of several runs."),
    title: str = typer.Option("", help="Heading of the page."),
    json_output: bool = typer.Option(False, "--json", help="Print one JSON document."),
) -> int:
    """Write report.html (and, for one run, a model card) into the run folder."""
    from efface.errors import ConfigError
    from efface.forget.run import now
    from efface.report.card import model_card
    from efface.report.gather import gather
    from efface.report.page import write_report
    from efface.run.files import make_folder, write_text
    from efface.run.manifest import write_manifest

    if not runs:
        raise ConfigError("no run folder", "one or more audited runs", "name them: efface report RUN")
    if len(runs) > 1 and out is None:
        raise ConfigError("several runs without --out", "a folder for the comparison", "give --out FOLDER")
    folder = out or runs[0]
    if len(runs) == 1:
        from efface.report.learning import is_learning, write_learning

        if is_learning(folder) and not (folder / "run.json").exists():
            page = write_learning(folder)
            if json_output:
                v.emit({"report": str(page)})
            else:
                v.tell(f"report: {page}")
            return 0
    labels = None if len(runs) == 1 else _labels(runs)
    data = gather(
        runs, title=title or ("What was forgotten, and how sure we are" if len(runs) == 1 else "Methods side by side"), story="",
        created=now(), labels=labels, certified=folder if folder.exists() else None,
    )  # fmt: skip
    if out is not None:
        make_folder(out)
    path = write_report(folder, data)
    if len(runs) == 1:
        result = data.results[0]
        write_text(folder / "README.md", model_card(result, result.run.model.source, not_tested=data.not_tested))
        if out is None:
            write_manifest(folder, kind="run")
    if json_output:
        v.emit({"report": str(path)})
    else:
        v.tell(f"report: {path}    next: efface certify {folder}" if len(runs) == 1 else f"report: {path}")
    return 0


def _labels(runs: list[Path]) -> list[str]:
    names = [run.resolve().name for run in runs]
    return names if len(set(names)) == len(names) else [str(run) for run in runs]
