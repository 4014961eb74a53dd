"""The model card: a `README.md` with YAML front matter in the form that the Hugging Face hub reads.

A card travels with the weights and is public, so it holds sizes and digests of what was forgotten and never
its text. Everything from data is written so that neither Markdown nor HTML nor YAML can give it a meaning.
"""

from __future__ import annotations

import math
import re
from typing import Any

import yaml

from efface.audit.finding import Finding
from efface.report.data import MethodResult
from efface.report.words import CLAIMS, OUTCOMES, clean, clip, interval, number, relations

_PLAIN = set(",;%-?= .−–×≥≤·’")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def plain(text: str, limit: int = 400) -> str:
    """Text as Markdown that shows exactly this text, on one line.

    Letters and digits stay; every character that Markdown or HTML could read is written as a numeric entity,
    which neither reads as markup. `www.` is broken too, because the hub turns it into a link.
    """
    line = " ".join(clean(clip(text, limit, lines=1_000).text).split())
    safe = "".join(char if char.isalnum() or char in _PLAIN else f"&#{ord(char)};" for char in line)
    return re.sub(r"(?i)www\.", lambda match: match.group()[:3] + "&#46;", safe)


def _code(text: str) -> str:
    """A digest as code; anything that is not one as plain text."""
    return f"`{text}`" if _DIGEST.fullmatch(text) else plain(text, 120)


def _line(text: str, limit: int = 200) -> str:
    """One line of cleaned text for a YAML value."""
    return " ".join(clean(clip(text, limit).text).split())


def _results(findings: list[Finding]) -> list[dict[str, Any]]:
    """The model-index entries: one a suite, with the measured and finite values."""
    suites: dict[str, list[dict[str, Any]]] = {}
    for finding in findings:
        if finding.unlearned is None or not math.isfinite(finding.unlearned.value):
            continue
        metric = {
            "type": _line(finding.metric),
            "name": _line(finding.title),
            "value": finding.unlearned.value,
        }
        suites.setdefault(_line(finding.metric.split("/")[0]), []).append(metric)
    return [
        {
            "task": {"type": "text-generation"},
            "dataset": {"type": suite, "name": f"{suite} (audited by efface)"},
            "metrics": metrics,
        }
        for suite, metrics in suites.items()
    ]


def front_matter(
    result: MethodResult, base_model: str, licence: str | None = None, library_name: str = "transformers"
) -> str:
    """The YAML block, with its two rulers.

    A base model that is no hub id (a folder on somebody's disk) is left out: the hub refuses it and the path
    would be published. An unknown licence is left out too, never guessed.
    """
    head: dict[str, Any] = {}
    if _HUB_ID.fullmatch(base_model):
        head["base_model"] = base_model
    if licence is not None:
        head["license"] = _line(licence)
    head["library_name"] = _line(library_name)
    head["tags"] = ["unlearning", "efface"]
    entries = _results([*result.findings, *result.quantisation])
    if entries:
        head["model-index"] = [{"name": _line(result.label), "results": entries}]
    return "---\n" + yaml.safe_dump(head, sort_keys=False, allow_unicode=True, width=10_000) + "---\n"


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def _forgotten(result: MethodResult) -> str:
    request = result.run.request
    rows = [[plain(name, 60), f"{part.rows:,}", _code(part.digest)] for name, part in request.sets.items()]
    text = [
        f"Request {plain(request.id, 120)}. " + (plain(request.scope) if request.scope else "No scope was stated."),
        _table(["set", "rows", "digest"], rows),
        "The texts themselves are not part of this card.",
    ]
    if request.merkle_root:
        text.insert(2, f"Root over keyed hashes of the forget rows: {_code(request.merkle_root)}.")
    return "\n\n".join(text)


def _how(result: MethodResult, base_model: str) -> str:
    run = result.run
    base = plain(base_model, 120) if _HUB_ID.fullmatch(base_model) else "a local model"
    lines = [
        f"- Method: {plain(run.method, 80)} (system {plain(run.system, 80)}), "
        f"efface {plain(run.environment.efface, 40)}",
        f"- Applied to: {base}, weights {_code(run.model.digest)}",
    ]
    if run.edit is None:
        lines.append("- Change: none; the model was audited as it is")
    else:
        lines.append(
            f"- Change: {run.edit.parameters:,} numbers in {run.edit.tensors:,} tensors, "
            f"relative size {number(run.edit.relative_change)}"
        )
        lines.append(f"- Result: weights {_code(run.edit.edited_digest)}")
    meaning = CLAIMS.get(run.claim, "")
    lines.append(f"- Claim level: {plain(run.claim, 40)}. {meaning}".rstrip())
    lines += [f"  - {plain(line, 400)}" for line in run.guarantee]
    return "\n".join(lines)


def _evidence(result: MethodResult) -> str:
    outcome = result.outcome
    rows = []
    for finding in [*result.findings, *result.quantisation]:
        values = [
            "not measured" if estimate is None else plain(interval(estimate), 80)
            for estimate in (finding.unlearned, finding.original, finding.retrained)
        ]
        if finding.verdict == "not measured":
            verdict = f"not measured: {plain(finding.reason, 200)}" if finding.reason else "not measured"
        else:
            verdict = finding.verdict
        bound = plain(relations(finding.threshold.words())) if finding.threshold else "none"
        rows.append([plain(finding.title, 120), *values, bound, verdict])
    text = [f"**Verdict: {plain(outcome.word, 60)}.** {plain(outcome.sentence, 600)}"]
    if outcome.word in OUTCOMES:
        text.append(OUTCOMES[outcome.word])
    if outcome.fired:
        text.append("Tests that speak for suppression: " + ", ".join(plain(test, 80) for test in outcome.fired) + ".")
    head = ["metric", "unlearned", "original", "retrained", "threshold, fixed before the run", "verdict"]
    text += [_table(head, rows), "In brackets: 95 % intervals."]
    return "\n\n".join(text)


def model_card(
    result: MethodResult,
    base_model: str,
    *,
    licence: str | None = None,
    library_name: str = "transformers",
    not_tested: list[str] | None = None,
    certificate: str | None = None,
) -> str:
    """`README.md` of an unlearned model.

    Args:
        result: the audited run.
        base_model: hub id of the model that the run started from; a local path is not published.
        licence: the licence's identifier, left out when unknown.
        library_name: the library that loads the weights.
        not_tested: what the audit did not test, one sentence each.
        certificate: digest of the certificate's statement, where there is one.

    Returns:
        Markdown with YAML front matter (`base_model`, `license`, `library_name`, `tags`, `model-index`).
    """
    limits = [f"- {plain(row, 600)}" for row in not_tested or []]
    if not result.outcome.reference:
        limits.append("- There was no retrained model to compare with.")
    limits.append("- The verdict reaches as far as the tests above. A stronger attack may find what they did not.")
    if result.run.intention == "suppression" or result.run.claim == "suppressed":
        limits.append("- The method keeps knowledge from being said; whoever holds the weights can bring it back.")
    if certificate:
        limits.append(f"- The certificate's statement has the digest {_code(certificate)}.")
    return (
        "\n\n".join(
            [
                front_matter(result, base_model, licence, library_name) + f"\n# {plain(result.label, 120)}",
                "This model was made to forget a part of its training data with efface.",
                "## What was forgotten",
                _forgotten(result),
                "## How",
                _how(result, base_model),
                "## Evidence",
                _evidence(result),
                "## Limits",
                "\n".join(limits),
            ]
        )
        + "\n"
    )
