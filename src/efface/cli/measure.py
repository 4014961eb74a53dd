"""efface measure MEASURE --model M --images I --texts T --out DIR [key=value ...]"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import typer

from efface.cli import values as v

OPTIONS = (
    "measure", "model", "against", "images", "texts", "image_embeddings", "text_embeddings", "against_image_embeddings",
    "against_text_embeddings", "logit_scale", "logit_bias", "statistics", "shard", "batch_size", "out",
)  # fmt: skip
PATHS = ("image_embeddings", "text_embeddings", "against_image_embeddings", "against_text_embeddings")


def measure(
    name: str | None = typer.Argument(
        None, metavar="MEASURE", help="information-gain, geometry, modality-gap or similarity."
    ),
    settings: list[str] | None = typer.Argument(None, help="key=value settings of the measure and the model."),
    model: str | None = typer.Option(None, help="Encoder or dual encoder: hub id or folder."),
    against: str | None = typer.Option(None, help="For similarity: the other model or checkpoint."),
    images: str | None = typer.Option(None, help="Pictures: folder, file or hub name."),
    texts: str | None = typer.Option(None, help="Texts: file (also .txt, one a line) or hub name."),
    image_embeddings: Path | None = typer.Option(None, help="Ready embeddings [N, d] in place of a model: .npy, ..."),
    text_embeddings: Path | None = typer.Option(None, help="Ready embeddings [N, d]."),
    against_image_embeddings: Path | None = typer.Option(None, help="For similarity: the other's embeddings."),
    against_text_embeddings: Path | None = typer.Option(None, help="For similarity: the other's embeddings."),
    logit_scale: float | None = typer.Option(
        None, help="One over the temperature, for ready embeddings: CLIP's 100, not its logarithm."
    ),
    logit_bias: float | None = typer.Option(None, help="SigLIP's bias."),
    statistics: list[Path] | None = typer.Option(
        None, help="statistics.safetensors of the parts of a sample; repeat to merge. Then only norms are computed."
    ),
    shard: str | None = typer.Option(None, help="i/n: only every n-th row from the i-th on."),
    batch_size: int | None = typer.Option(None, min=1, help="Items in one pass of the model; default 64."),
    out: Path | None = typer.Option(None, help="Folder of the results; the same command goes on there after a stop."),
    config: Path | None = typer.Option(None, help="YAML file with the same keys."),
    json_output: bool = typer.Option(False, "--json", help="Print one JSON document."),
    dry_run: bool = typer.Option(False, help="Check the keys, print the configuration, do nothing."),
) -> int:
    """Put numbers on what a representation holds."""
    from efface.catalog import find
    from efface.measure.inputs import Given
    from efface.measure.run import measure as run_measure
    from efface.run.cost import measure_cost

    if name and "=" in name:
        settings, name = [name, *(settings or [])], None
    options: dict[str, Any] = {
        "measure": name, "model": model, "against": against, "images": images, "texts": texts,
        "image_embeddings": image_embeddings, "text_embeddings": text_embeddings,
        "against_image_embeddings": against_image_embeddings, "against_text_embeddings": against_text_embeddings,
        "logit_scale": logit_scale, "logit_bias": logit_bias, "statistics": statistics, "shard": shard,
        "batch_size": batch_size, "out": out,
    }  # fmt: skip
    values = v.merge(config, options, settings)
    given = v.take(values, OPTIONS)
    chosen = str(v.need(given, "measure", "a measure's name"))
    module = find(chosen, "measure").module
    model_keys = v.take(values, ("revision", "dtype", "trust_remote_code", "pooling"))
    parsed = module.CONFIG.parse(values, owner=chosen)
    v.show_config(
        f"efface measure {chosen}", {**given, **model_keys, **parsed.model_dump(mode="json")}, json_output=json_output
    )
    if dry_run:
        v.tell("dry run: nothing was read or written", json_output=json_output)
        return 0
    v.show_progress(json_output)
    paths = {key: Path(str(given[key])) for key in PATHS if key in given}
    pieces = given.get("statistics") or []
    source = Given(
        model=_load(given.get("model"), model_keys), images=given.get("images"), texts=given.get("texts"),
        image_embeddings=paths.pop("image_embeddings", None), text_embeddings=paths.pop("text_embeddings", None),
        logit_scale=given.get("logit_scale"), logit_bias=given.get("logit_bias"),
        statistics=[Path(str(path)) for path in ([pieces] if isinstance(pieces, (str, Path)) else pieces)],
        shard=_shard(given.get("shard")), batch_size=int(given.get("batch_size", 64)),
    )  # fmt: skip
    folder = Path(str(given["out"])) if given.get("out") else None
    with measure_cost(chosen) as cost:
        result = run_measure(
            chosen, out=folder, against=_load(given.get("against"), model_keys), given=source, finish=_page(chosen),
            **paths, **values,
        )  # fmt: skip
    told = _told(chosen, result)
    if json_output:
        v.emit({"measure": chosen, "out": None if folder is None else str(folder), **told, "cost": cost.model_dump()})
        return 0
    for line in _lines(told):
        v.tell(line)
    v.tell(f"{chosen} in {cost.seconds:.1f} s, peak {cost.peak_mb:,.0f} MiB")
    if folder is not None:
        page = folder / "gallery.html"
        v.tell(f"open {page}" if page.exists() else f"results: {folder}")
    return 0


def _load(source: Any, options: dict[str, Any]) -> Any:
    from efface.subjects.load import load

    return None if source is None else load(str(source), **options)


def _shard(text: Any) -> tuple[int, int] | None:
    from efface.errors import ConfigError

    if text is None:
        return None
    match = re.fullmatch(r"(\d+)/(\d+)", str(text))
    if not match:
        raise ConfigError(f"--shard {text}", "i/n", "for example --shard 1/4")
    return int(match[1]), int(match[2])


def _page(name: str) -> Any:
    """What adds a page to the folder."""
    if name != "information-gain":
        return None
    from efface.report.gallery import write_gallery

    return lambda folder, _: write_gallery(folder)


def _told(name: str, result: Any) -> dict[str, Any]:
    """The result as plain values."""
    if name != "information-gain":
        return {"reports": {key: report.model_dump(mode="json") for key, report in result.items()}}
    if isinstance(result, dict):
        return {"statistics": {key: {"rows": found.n, "digest": found.digest} for key, found in result.items()}}
    summary = result.summary.model_dump(mode="json", exclude={"sides": {"__all__": {"lowest", "highest", "scatter"}}})
    return {"summary": summary}


def _lines(told: dict[str, Any]) -> list[str]:
    """For people: every estimate with its interval, or the modes of each side."""
    lines: list[str] = []
    for key, found in told.get("statistics", {}).items():
        lines.append(f"  {key}: {found['rows']:,} rows, digest {found['digest'][:19]}")
    for key, report in told.get("reports", {}).items():
        lines.append(f"{key} (n = {report['n']:,})")
        lines += _estimates(report, "  ")
        lines += [f"  note: {text}" for text in report.get("warnings", [])]
    if "summary" in told:
        summary = told["summary"]
        lines += [f"note: {text}" for text in summary["warnings"]]
        for side in summary["sides"]:
            lines.append(
                f"{side['name']}: {side['n']:,} against {side['sample_size']:,} {side['sample']}, scale {side['scale']:.4g}, "
                f"log N {side['log_n']:.2f} nats, {100 * side['saturated_share']:.0f} % saturated"
            )
            for mode, found in side["modes"].items():
                lines.append(
                    f"  {mode:<16} mean {found['mean']:.4g}, sd {found['std']:.4g}, {found['low']:.4g} to {found['high']:.4g}"
                )
            for one in side["relations"]:
                if one["r2"] is not None:
                    lines.append(f"  R2({one['y']}, {one['x']}) = {one['r2']:.3f}, Spearman {one['spearman']:+.3f}")
    return lines


def _estimates(report: dict[str, Any], indent: str) -> list[str]:
    lines = []
    for name, value in report.items():
        if isinstance(value, dict) and {"value", "low", "high"} <= value.keys():
            lines.append(f"{indent}{name.replace('_', ' '):<24} {_figure(value)}")
        elif isinstance(value, dict) and any(isinstance(part, dict) for part in value.values()):
            lines += [f"{indent}{name}", *_estimates(value, indent + "  ")]
        elif (
            isinstance(value, list) and value and isinstance(value[0], dict) and ("k" in value[0] or "tau" in value[0])
        ):
            for row in value:
                head = f"k = {row['k']}" if "k" in row else f"tau = {row['tau']:g}"
                lines += [f"{indent}{name}, {head}", *_estimates(row, indent + "  ")]
    return lines


def _figure(value: dict[str, Any]) -> str:
    if value["value"] is None:
        return f"not measured: {value.get('reason') or 'no reason given'}"
    between = "" if value["low"] is None else f"  [{value['low']:.4g}, {value['high']:.4g}]"
    return f"{value['value']:.4g}{between}"
