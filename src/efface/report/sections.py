"""What stands in each section of the page: results sorted, grouped and put into words for the templates.

Nothing is measured here. Verdicts and sentences come from the audit; this module ranks, counts and arranges
them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from markupsafe import Markup

from efface.audit.finding import Estimate, Finding
from efface.report.data import MethodResult, ReportData
from efface.report.figures import Point, Row, interval_plot, relearning_plot, threshold_lines, tradeoff
from efface.report.words import DIRECTIONS, GROUPS, OUTCOMES, listing, number, plural, relations, short_label
from efface.run.record import Example, SetRecord

UTILITY = "tofu/model_utility"
QUALITY = "tofu/forget_quality_log10p"
VERDICTS = ("holds", "does not hold", "not measured", "informative")


def predictors(results: Iterable[MethodResult]) -> bool:
    """Whether the page is about classifiers or regressors, which give no answers in words."""
    return all(result.run.model.kind in ("classifier", "regressor") for result in results)


@dataclass(frozen=True)
class Axes:
    """The two figures by which results are ranked and placed: what is kept, and what is forgotten."""

    utility: str
    quality: str
    sign: float
    across: str
    up: str
    utility_name: str
    quality_name: str
    lead: str


TEXT_AXES = Axes(
    UTILITY, QUALITY, 1.0, "model utility → more useful", "log10 p of forget quality → less to tell apart", "Model utility",
    "Forget quality, log10 p",
    "To the right: the model is still useful. Up: a statistical test finds less difference from a model that never saw the "
    "data. A good result lies in the upper right, beside the retrained model. Each log10 step down is ten times stronger "
    "evidence that a trace remains, or that too much was removed.",
)  # fmt: skip
CLASS_AXES = Axes(
    "classifier/ta", "classifier/average_gap", -1.0, "accuracy on the test set → more useful",
    "minus the average gap, points → nearer to retraining", "Test accuracy", "Average gap, points",
    "To the right: the model is still useful. Up: error on the forget set, membership attack, and accuracy on what is kept are "
    "nearer to those of a model that never saw the data. A good result lies in the upper right, beside the retrained model.",
)  # fmt: skip
NUMBER_AXES = Axes(
    "regressor/fit/holdout", "regressor/paired", -1.0, "fit of unseen rows → more useful",
    "minus the distance to the retrained predictions → nearer", "Fit of unseen rows", "Distance to retraining",
    "To the right: the model is still useful. Up: its predictions on the forget set are nearer to those of a model that never "
    "saw them. A good result lies in the upper right.",
)  # fmt: skip


def axes(results: Iterable[MethodResult]) -> Axes:
    """The axes of this page's kind of model."""
    kinds = {result.run.model.kind for result in results}
    return CLASS_AXES if kinds == {"classifier"} else NUMBER_AXES if kinds == {"regressor"} else TEXT_AXES


def rank(results: Iterable[MethodResult]) -> list[MethodResult]:
    """Best first: by outcome (removal-consistent before all), then by utility, then by forget quality."""
    order, results = list(OUTCOMES), list(results)
    chosen = axes(results)

    def place(result: MethodResult) -> tuple[float, ...]:
        word = result.outcome.word
        use, quality = value_of(result, chosen.utility), value_of(result, chosen.quality)
        values = [use, None if quality is None else chosen.sign * quality]
        return (
            order.index(word) if word in order else len(order),
            *(-(v if v is not None else -1e9) for v in values),
        )

    return sorted(results, key=place)


def value_of(result: MethodResult, metric: str) -> float | None:
    """The unlearned model's value of a metric, where it was measured."""
    found = result.finding(metric)
    return found.unlearned.value if found and found.unlearned else None


def checks(result: MethodResult) -> str:
    """How many thresholds were met: `9 of 12 hold, 2 not measured`."""
    count = Counter(finding.verdict for finding in [*result.findings, *result.quantisation])
    judged = count["holds"] + count["does not hold"]
    text = f"{count['holds']} of {judged} hold" if judged else "none judged"
    return text + (f", {count['not measured']} not measured" if count["not measured"] else "")


def headline(results: list[MethodResult]) -> str:
    """The verdict in one line: the word for one method, the count for several."""
    if len(results) == 1:
        word = results[0].outcome.word
        return word[:1].upper() + word[1:]
    good = [result for result in results if result.outcome.word == "removal-consistent"]
    if not good:
        return f"None of the {len(results)} methods is removal-consistent"
    verb = "is" if len(good) == 1 else "are"
    return f"{len(good)} of {len(results)} methods {verb} removal-consistent"


def evidence(results: list[MethodResult]) -> str:
    """What the evidence says: the audit's sentence on the first of `results`, the others by verdict."""
    if len(results) == 1:
        return results[0].outcome.sentence
    best, rest = results[0], results[1:]
    parts = [f"{short_label(best.label, 60)} comes first: {best.outcome.sentence}"]
    for word in dict.fromkeys([*OUTCOMES, *(result.outcome.word for result in rest)]):
        names = [short_label(result.label, 60) for result in rest if result.outcome.word == word]
        if names:
            parts.append(f"{word[:1].upper()}{word[1:]}: {listing(names)}.")
    return " ".join(parts)


def asked(data: ReportData) -> str:
    """What was asked, from the request's record."""
    request = data.results[0].run.request
    if any(result.run.request.sets != request.sets for result in data.results):
        return "The methods were given different requests; each stands in the technical record."
    sets = request.sets

    def rows(name: str) -> str:
        found = sets.get(name)
        return plural(found.rows, "example") if isinstance(found, SetRecord) else ""

    text = f"Forget {rows('forget')}" if rows("forget") else "Forget what the request names"
    if rows("retain"):
        text += f" and keep {rows('retain')}"
    if rows("holdout"):
        text += f"; {rows('holdout')} that no model has seen serve for comparison"
    scope = f" {request.scope.strip()}" if request.scope.strip() else ""
    return f"{text}.{scope}"


def done(results: list[MethodResult]) -> str:
    """What was done, from the edits' records."""
    if len(results) > 1:
        reference = all(result.outcome.reference for result in results)
        close = " and with a model retrained without the data" if reference else "; not all had a retrained model"
        return (
            f"{len(results)} methods were applied, each to its own copy of the model. Every result was "
            f"put through the same tests and compared with the original{close}."
        )
    run, edit = results[0].run, results[0].run.edit
    if edit is None:
        return "The model was audited as it is; efface changed nothing in it."
    amount = (
        f"{plural(edit.parameters, 'number')} in {plural(edit.tensors, 'tensor')}" if edit.tensors else "no weights"
    )
    change = f", by {number(100 * edit.relative_change)} % of their size" if edit.tensors else ""
    share = f" (the model has {run.model.parameters:,})" if run.model.parameters else ""
    return f"The method {run.method} changed {amount}{change}{share}."


@dataclass(frozen=True)
class Line:
    """Methods that share a verdict on one metric, with the reason where it is one and the same."""

    verdict: str
    names: list[tuple[str, str]]  # method, and the judged number where the threshold needs one
    reason: str


@dataclass(frozen=True)
class Metric:
    """One metric of all methods, ready to print."""

    title: str
    meaning: str
    direction: str
    thresholds: list[str]
    size: str
    measured: bool
    figure: Markup | None
    lines: list[Line]
    single: bool


@dataclass(frozen=True)
class Group:
    """Metrics that answer one question."""

    name: str
    question: str
    metrics: list[Metric] = field(default_factory=list)


def _distinct(estimates: Iterable[Estimate | None]) -> list[Estimate]:
    found: list[Estimate] = []
    for estimate in estimates:
        if estimate is not None and estimate not in found:
            found.append(estimate)
    return found


def _references(owned: list[tuple[str, Finding]], many: bool) -> list[Row]:
    """The original's and the retrained model's rows; one each, or one a method where they differ."""
    rows = []
    for role in ("original", "retrained"):
        every = [(label, finding.original if role == "original" else finding.retrained) for label, finding in owned]
        distinct = _distinct(estimate for _, estimate in every)
        if len(distinct) < 2:
            rows.append(Row(role, role, distinct[0] if distinct else None))
        else:
            rows += [Row(f"{role}, {label}" if many else role, role, estimate) for label, estimate in every]
    return rows


def _metric(key: str, owned: list[tuple[str, Finding]], many: bool) -> Metric:
    first = owned[0][1]
    words = list(dict.fromkeys(relations(f.threshold.words()) for _, f in owned if f.threshold is not None))
    references = _references(owned, many)
    rows = [Row(label if many else "unlearned", "unlearned", finding.unlearned) for label, finding in owned]
    figure = None
    if any(row.estimate for row in rows):
        same = len(words) == 1 and len(references) == 2
        threshold = next((f.threshold for _, f in owned if f.threshold), None) if same else None
        lines = threshold_lines(threshold, references[0].estimate, references[1].estimate) if same else []
        figure = interval_plot(
            key,
            first.title,
            rows + references,
            first.unit,
            threshold,
            lines,
            labels=138 if many else 74,
            ranges=not many,
        )
    lines_said = []
    for verdict in VERDICTS:
        reasons: dict[str, list[tuple[str, str]]] = {}
        for label, finding in owned:
            if finding.verdict == verdict:
                reason, detail = _split_reason(finding, many)
                reasons.setdefault(relations(reason), []).append((label, relations(detail)))
        lines_said += [Line(verdict, names, reason) for reason, names in reasons.items()]
    counts = sorted({finding.unlearned.n for _, finding in owned if finding.unlearned and finding.unlearned.n})
    size = " to ".join(f"{count:,}" for count in dict.fromkeys([*counts[:1], *counts[-1:]]))
    return Metric(
        first.title,
        first.meaning,
        DIRECTIONS[first.direction],
        words,
        size,
        figure is not None,
        figure,
        lines_said,
        not many,
    )


def _split_reason(finding: Finding, many: bool) -> tuple[str, str]:
    """A finding's reason, and the judged number apart where several methods share one threshold in words."""
    if many and finding.threshold is not None:
        start = f"{finding.threshold.words()}: "
        if finding.reason.startswith(start):
            number_said = finding.reason.removeprefix(start)
            return "", "" if finding.threshold.quantity == "value" else number_said
    return finding.reason, ""


def groups(results: list[MethodResult]) -> list[Group]:
    """All findings by group and metric, in the order of first appearance."""
    many, made, counter = len(results) > 1, [], 0
    for key, (name, question) in GROUPS.items():
        owned: dict[str, list[tuple[str, Finding]]] = {}
        for result in results:
            rows = result.quantisation if key == "quantisation" else result.findings
            for finding in rows:
                if key in ("quantisation", finding.group):
                    owned.setdefault(finding.metric, []).append((result.label, finding))
        group = Group(name, question)
        for pairs in owned.values():
            counter += 1
            group.metrics.append(_metric(f"m{counter}", pairs, many))
        if group.metrics or key != "quantisation":
            made.append(group)
    return made


def scatter(results: list[MethodResult]) -> tuple[list[Markup], list[str]]:
    """The trade-off figure (wide and narrow) and the methods that could not be placed, with the reason."""
    points, missing, bounds, chosen = [], [], set(), axes(results)
    sides: dict[str, list[tuple[str, float, float]]] = {"original": [], "retrained": []}
    for result in results:
        utility, quality = result.finding(chosen.utility), result.finding(chosen.quality)
        if utility and utility.unlearned and quality and quality.unlearned:
            points.append(Point(result.label, result.outcome.word, utility.unlearned.value,
                                chosen.sign * quality.unlearned.value))  # fmt: skip
        else:
            why = [f.reason for f in (utility, quality) if f is not None and f.unlearned is None and f.reason]
            missing.append(f"{result.label}: {'; '.join(why) or 'forget quality or model utility was not measured'}")
        if quality and quality.threshold and quality.threshold.quantity == "value":
            bounds.add(quality.threshold.bound)
        for role, spots in sides.items():
            x, y = (getattr(finding, role) if finding else None for finding in (utility, quality))
            if x is not None and y is not None and (x.value, chosen.sign * y.value) not in [spot[1:] for spot in spots]:
                spots.append((result.label, x.value, chosen.sign * y.value))
    if not points:
        return [], missing
    for role, spots in sides.items():
        for label, across, up in spots:
            points.append(Point(role if len(spots) == 1 else f"{role}, {label}", role, across, up))
    bound = bounds.pop() if len(bounds) == 1 else None
    words = (chosen.across, chosen.up)
    return [
        tradeoff("tw", points, bound, words=words), tradeoff("tn", points, bound, width=350, height=400, words=words)
    ], missing  # fmt: skip


@dataclass(frozen=True)
class Panel:
    """The relearning curves of one method."""

    label: str
    figures: list[Markup]
    reached: dict[str, str]


def relearning(results: list[MethodResult]) -> list[Panel]:
    """One panel a method that has curves; several share one scale."""
    owners = [result for result in results if result.relearning]
    top = max((v for r in owners for c in r.relearning for v in [*c.values, *(c.high or [])]), default=None)
    panels = []
    for index, result in enumerate(owners):
        title = f"Relearning after {result.label}"
        curves = result.relearning
        if len(results) == 1:
            figures = [
                relearning_plot(f"r{index}w", title, curves, 820, 380, "figure only-wide", top),
                relearning_plot(f"r{index}n", title, curves, 350, 290, "figure only-narrow", top),
            ]
        else:
            figures = [relearning_plot(f"r{index}", title, curves, 400, 250, "figure", top)]
        reached: dict[str, str] = {
            c.role: "not reached" if c.reached is None else plural(c.reached, "step") for c in curves
        }
        panels.append(Panel(result.label, figures, reached))
    return panels


@dataclass(frozen=True)
class Question:
    """One question with every answer that was kept: who answered, in which role, what."""

    set: str
    id: str
    question: str
    reference: str
    answers: list[tuple[str, str, str | None]]


def questions(results: list[MethodResult]) -> list[Question]:
    """Examples side by side: one entry a question, with the answers of all models."""
    found: dict[tuple[str, str, str], list[tuple[str, Example]]] = {}
    for result in results:
        for example in result.examples:
            found.setdefault((example.set, example.id, example.question), []).append((result.label, example))
    made = []
    for (set_name, identifier, question), owned in found.items():
        answers: list[tuple[str, str, str | None]] = []
        for role in ("original", "retrained"):
            said = dict.fromkeys(getattr(example, role) for _, example in owned)
            answers += [(role, role, text) for text in said if text is not None]
        after = [("unlearned" if len(results) == 1 else label, "unlearned", e.unlearned) for label, e in owned]
        position = 1 if answers and answers[0][1] == "original" else 0
        answers[position:position] = after
        made.append(Question(set_name, identifier, question, owned[0][1].reference, answers))
    return made
