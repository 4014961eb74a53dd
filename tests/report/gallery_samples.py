"""Made-up summaries of information gain for the tests of the gallery: both sides, one, few items, holes, hostile text.

The numbers are invented; nothing measured them.
"""

from __future__ import annotations

import base64
import io
import math
from typing import Any

from PIL import Image, ImageDraw
from report_samples import HOSTILE

from efface.measure.gain_summary import GainSummary, Histogram, Item, Side

LOG_N = math.log(2000)


def png(size: int = 32, colour: int = 0) -> str:
    """A small picture: a disc on white."""
    image = Image.new("RGB", (size, size), "white")
    ImageDraw.Draw(image).ellipse((4, 4, size - 4, size - 4), fill=((37 * colour) % 256, 90, 160))
    held = io.BytesIO()
    image.save(held, "PNG")
    return base64.b64encode(held.getvalue()).decode("ascii")


def item(index: int, kl: float, picture: bool, **changes: Any) -> dict[str, Any]:
    made = {
        "id": f"item-{index}", "text": f"thing number {index}", "thumbnail": png(32, index) if picture else None,
        "kl": kl, "klr": 1.3 * kl, "cov_norm": 0.8 * kl, "ess": 2000 * math.exp(-kl), "saturated": kl > 4,
    }  # fmt: skip
    return made | changes


def side(name: str = "images", n: int = 400, **changes: Any) -> dict[str, Any]:
    """A side whose gains run evenly from 0.4 to 6.1 nats; invented, nothing measured them."""
    picture = name == "images"
    gains = [0.4 + 5.7 * i / max(n - 1, 1) for i in range(n)]
    items = [item(i, gains[i], picture) for i in [*range(min(n, 30)), *range(max(0, n - 30), n)]] if n else []
    kept = min(n, 30)

    def of(values: list[float]) -> dict[str, float]:
        ordered = sorted(values)
        mean = sum(ordered) / len(ordered)
        deviation = math.sqrt(sum((v - mean) ** 2 for v in ordered) / len(ordered))
        middle = ordered[len(ordered) // 2]
        return {"mean": mean, "std": deviation, "low": ordered[0], "median": middle, "high": ordered[-1]}

    edges = [0.4 + 5.7 * i / 20 for i in range(21)]
    modes = {"kl": gains, "klr": [1.3 * v for v in gains], "cov_norm_zero": [0.9 * v for v in gains]}
    modes |= {"cov_norm": [0.8 * v for v in gains], "centered_norm": [1000.0 + v for v in gains]}
    made: dict[str, Any] = {
        "name": name, "sample": "texts" if picture else "images", "n": n, "sample_size": 2000,
        "sample_digest": "c0ffee" * 10 + "abcd", "dimension": 512, "scale": 100.0, "log_n": LOG_N,
        "modes": {key: of(values) for key, values in modes.items()} if n else {},
        "histogram": {"edges": edges, "counts": [n // 20] * 20},
        "deciles": [gains[(n * k) // 10] for k in range(1, 10)] if n >= 10 else [],
        "relations": [
            {"x": "cov_norm_zero", "y": "kl", "r2": 0.551, "pearson": -0.742, "spearman": -0.735, "n": n},
            {"x": "cov_norm", "y": "kl", "r2": 0.41, "pearson": 0.64, "spearman": 0.6, "n": n},
        ],
        "scatter": [(0.9 * v, v, v > 4) for v in gains],
        "k2_half_mean": 8.25, "skewness_mean": 1.4, "ess_median": 61.0, "saturated_share": 0.37, "centre_share": 0.012,
        "lowest": items[:kept], "highest": items[kept:][::-1],
    }  # fmt: skip
    return made | changes


def summary(*sides: dict[str, Any], **changes: Any) -> GainSummary:
    made: dict[str, Any] = {
        "created": "2026-11-20T09:31:00Z", "headline": "kl", "unit": "nats", "scale": 100.0, "bias": None,
        "model": {"source": "lab/tiny-clip", "kind": "dual-encoder", "digest": "ab" * 32, "parameters": 4_321_000},
        "sides": list(sides) or [side(), side("texts")], "warnings": [], "seconds": 93.0,
        "config": {"center": "own_mean", "texts": "captions.jsonl"},
    }  # fmt: skip
    return GainSummary.model_validate(made | changes)


def one(**changes: Any) -> Side:
    return summary(side(**changes)).sides[0]


def hostile(text: str = HOSTILE) -> GainSummary:
    """The text in every place that data can reach."""
    rows = [item(i, 0.4 + i, True, id=text, text=text) for i in range(3)]
    bad = side(
        name=text, sample=text, sample_digest=text, lowest=rows, highest=[item(9, 6.0, False, id=text, text=None)],
        relations=[{"x": text, "y": text, "r2": None, "pearson": None, "spearman": None, "n": 3}],
        modes=side()["modes"] | {text: side()["modes"]["kl"]},
    )  # fmt: skip
    words = side("texts", lowest=[item(i, 1.0, False, id=text, text=text) for i in range(3)])
    model = {"source": text, "revision": text, "kind": text, "digest": text, "dtype": text}
    return summary(bad, words, created=text, headline=text, model=model, warnings=[text], config={text: text})


def not_numbers() -> GainSummary:
    """What validation refuses, in case a summary is made in memory without it."""
    nan = math.nan
    first = Item.model_validate(item(1, 0.5, True)).model_copy(update={"kl": nan, "ess": math.inf})
    broken = one().model_copy(
        update={
            "log_n": math.inf, "k2_half_mean": nan, "skewness_mean": nan, "ess_median": nan, "saturated_share": nan,
            "centre_share": nan, "scatter": [(nan, 1.0, False), (math.inf, 2.0, True)], "scale": nan,
            "histogram": Histogram(edges=[0.0, 2.0], counts=[3]).model_copy(update={"edges": [0.0, nan]}),
            "deciles": [nan] * 11, "lowest": [first], "ngram_coverage": [nan, 0.5],
        }
    )  # fmt: skip
    return summary().model_copy(update={"sides": [broken]})


CASES: dict[str, GainSummary] = {
    "both": summary(),
    "images only": summary(side()),
    "texts only": summary(side("texts")),
    "no side": GainSummary.model_validate(summary().model_dump() | {"sides": []}),
    "no thumbnails": summary(side(lowest=[item(1, 0.5, False)], highest=[item(2, 6.0, False)])),
    "some thumbnails": summary(side(lowest=[item(1, 0.5, True), item(2, 0.6, False)])),
    "no texts": summary(side(lowest=[item(1, 0.5, True, text=None)], highest=[item(2, 6.0, False, text="", id="")])),
    "empty text": summary(side("texts", lowest=[item(1, 0.5, False, text="")])),
    "seven": summary(side(n=7)),
    "two": summary(side(n=2), side("texts", n=2)),
    "single": summary(side(n=1)),
    "none measured": summary(side(n=0, scatter=[], relations=[], histogram={"edges": [], "counts": []})),
    "equal": summary(
        side(
            modes={"kl": {"mean": 1.0, "std": 0.0, "low": 1.0, "median": 1.0, "high": 1.0}},
            histogram={"edges": [1.0, 1.0, 1.0], "counts": [0, 400]}, scatter=[(0.0, 1.0, False)] * 9,
            deciles=[1.0] * 9, relations=[],
        )
    ),
    "bits": summary(unit="bits"),
    "reverse": summary(headline="klr"),
    "norm": summary(headline="cov_norm_zero"),
    "no unit": summary(headline="centered_norm", unit="bits"),
    "fixed Z": summary(headline="kl_fixed_z"),
    "unknown mode": summary(headline="something else"),
    "not numbers": not_numbers(),
    "not computed": summary(
        side(lowest=[item(1, 0.5, True) | {"kl": None, "klr": None, "ess": None}], skewness_mean=None, ess_median=None)
    ),
    "negative": summary(side(lowest=[item(1, -0.7, True)], scatter=[(0.5, -0.7, False), (0.7, 1.0, False)])),
    "broken histogram": summary(side(histogram={"edges": [0.0], "counts": [1, 2, 3]})),
    "no model": summary(model=None, config={}),
    "hostile": hostile(),
}  # fmt: skip
