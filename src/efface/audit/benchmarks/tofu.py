"""The TOFU suite: forget quality and model utility with all their parts, over any data in TOFU's columns.

Paper: Maini et al., arXiv 2401.06121 (COLM 2024). Departures: geometric mean over perturbed answers, as the official
leaderboard script does; all rows are used, not the first 300; sets without perturbed answers contribute the parts
that they have; log10 p stands beside p, which underflows.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from efface.audit.evidence import Evidence, compare
from efface.audit.finding import Estimate, Finding, Threshold
from efface.audit.metrics import tofu
from efface.audit.metrics.distances import entropy_difference, jensen_shannon, wasserstein
from efface.audit.metrics.intervals import bootstrap, bootstrap_mean
from efface.audit.metrics.ks import ks_two_sample
from efface.catalog import Card

CARD = Card(
    name="tofu",
    system="tofu",
    title="TOFU",
    summary="Forget quality (is it like a model that never saw the data?) and model utility (what else broke?).",
    paper="Maini et al., TOFU: a task of fictitious unlearning for LLMs, arXiv 2401.06121 (COLM 2024)",
    verb="audit",
    mechanism="benchmarks",
    modalities=("text",),
    subjects=("causal-lm",),
    needs=("forget", "retain", "utility", "retrained"),
    defaults_source="locuslab/tofu aggregate_eval_stat.py and open-unlearning (200 new tokens, all rows)",
)

NO_RETRAINED = "no retrained model was given (--against)"
NO_PERTURBED = "the forget set has no perturbed_answer column"


def _truth_ratio(evidence: Evidence, role: str, name: str = "forget") -> tofu.TruthRatio | None:
    table = evidence.table(role, name)
    return tofu.truth_ratio(table) if table is not None and "perturbed_answer" in table.forms() else None


def _ks_interval(first: tofu.TruthRatio, second: tofu.TruthRatio, seed: int) -> Estimate:
    """KS statistic with a bootstrap interval (rows of both models resampled independently)."""
    pooled = np.sort(np.concatenate([first.log_ratio, second.log_ratio]))

    def statistic(a: tofu.Floats, b: tofu.Floats) -> tofu.Floats:
        return np.array([
            np.abs(
                np.searchsorted(np.sort(x), pooled, side="right") / x.size
                - np.searchsorted(np.sort(y), pooled, side="right") / y.size
            ).max()
            for x, y in zip(a, b, strict=True)
        ])  # fmt: skip

    return bootstrap(statistic, first.log_ratio, second.log_ratio, seed=seed, resamples=500)


def _log10_p(statistic: float, n: int) -> float:
    """log10 p of two samples of n with that KS statistic, by building two samples that have it."""
    k = round(statistic * n)
    first = np.arange(n, dtype=np.float64)
    return ks_two_sample(first, first + k - 0.5 if k else first).log10_p


def forgetting(evidence: Evidence) -> list[Finding]:
    """Forget quality and the forget set's own numbers."""
    seed = evidence.config.seed
    retrained = _truth_ratio(evidence, "retrained")

    def statistic(role: str) -> Estimate | None:
        own = _truth_ratio(evidence, role)
        if own is None or retrained is None:
            return None
        if role == "retrained":  # against itself: 0 by definition, and a bootstrap of it would only show its own bias
            return Estimate(value=0.0, n=2 * len(own.ids))
        return _ks_interval(own, retrained, seed)

    def log10_p(role: str) -> Estimate | None:
        own = _truth_ratio(evidence, role)
        if own is None or retrained is None:
            return None
        found, spread = tofu.forget_quality(own, retrained), statistic(role)
        n = found.n_unlearned
        low = min(found.log10_p, _log10_p(spread.high, n)) if spread and spread.high is not None else None
        high = max(found.log10_p, _log10_p(spread.low, n)) if spread and spread.low is not None else None
        return Estimate(value=found.log10_p, low=low, high=high, n=n)

    def distance(measure: Callable[[tofu.Floats, tofu.Floats], float]) -> Callable[[str], Estimate | None]:
        def value(role: str) -> Estimate | None:
            own = _truth_ratio(evidence, role)
            if own is None or retrained is None:
                return None
            return Estimate(value=measure(own.log_ratio, retrained.log_ratio), n=len(own.ids) + len(retrained.ids))

        return value

    def median(role: str) -> Estimate | None:
        own = _truth_ratio(evidence, role)
        if own is None:
            return None
        return bootstrap(lambda x: np.exp(np.median(x, axis=1)), own.log_ratio, seed=seed)

    def closer(role: str) -> Estimate | None:
        own = _truth_ratio(evidence, role)
        return None if own is None else tofu.closer_to_one(own.log_ratio, seed=seed)

    def probability(role: str) -> Estimate | None:
        table = evidence.table(role, "forget")
        return None if table is None else bootstrap_mean(tofu.probability(table.select("answer").mean_logp), seed=seed)

    def rouge(role: str) -> Estimate | None:
        table = evidence.table(role, "forget")
        if table is None or table.generations is None:
            return None
        return bootstrap_mean(table.generated("rougeL_recall"), seed=seed)

    why = NO_PERTURBED if _truth_ratio(evidence, "unlearned") is None else NO_RETRAINED
    bound = math.log10(evidence.config.thresholds.forget_quality_p)
    no_generation = "the forget set was not generated from (no question, or the pass was left out)"
    return [
        compare(evidence, "tofu/forget_quality_log10p", "Forget quality (log10 p)",
                "log10 of the p-value of a Kolmogorov-Smirnov test between the truth ratios of this model and of the "
                "retrained one. 0 is identical, -1.3 is p = 0.05; compare only at equal n.",
                "forgetting", "higher", log10_p, threshold=Threshold(quantity="value", relation=">=", bound=bound), reason=why),
        compare(evidence, "tofu/ks_statistic", "Distance to the retrained model (KS)",
                "Largest gap between the two distributions of truth ratios: 0 identical, 1 fully separate.",
                "forgetting", "lower", statistic, reason=why),
        compare(evidence, "tofu/truth_ratio_js", "Distance to the retrained model (Jensen-Shannon)",
                "Divergence of the two histograms of log truth ratios over shared bins, in bits: 0 identical, 1 apart.",
                "forgetting", "lower", distance(jensen_shannon), reason=why),
        compare(evidence, "tofu/truth_ratio_w1", "Distance to the retrained model (Wasserstein-1)",
                "Mean distance, in nats, by which log truth ratios must move to become the retrained model's.",
                "forgetting", "lower", distance(wasserstein), reason=why),
        compare(evidence, "tofu/truth_ratio_entropy", "Spread beside the retrained model's (entropy)",
                "Entropy of the histogram of log truth ratios minus the retrained model's, in bits.",
                "forgetting", "none", distance(entropy_difference), reason=why),
        compare(evidence, "tofu/truth_ratio_median", "Truth ratio, median",
                "How likely wrong answers are relative to the right one in other words. Below 1 the model knows it; "
                "the retrained model's value is the aim, and far above it is over-unlearning.",
                "forgetting", "retrained", median, reason=why),
        compare(evidence, "tofu/forget_truth_ratio", "Truth ratio score on the forget set",
                "Mean of min(R, 1/R): 1 when right and wrong answers are equally likely.",
                "forgetting", "retrained", closer, reason=why),
        compare(evidence, "tofu/forget_probability", "Probability of the forgotten answers",
                "Mean probability per token, exp(mean log p), of the true answers of the forget set.",
                "forgetting", "retrained", probability),
        compare(evidence, "tofu/forget_rouge", "Forgotten answers still produced (ROUGE-L recall)",
                "Share of the true answer's words that the model's own answer contains, in order.",
                "forgetting", "retrained", rouge, reason=no_generation),
    ]  # fmt: skip


def _rows(evidence: Evidence, role: str) -> dict[str, tofu.UtilityRows]:
    """Utility rows of every set but forget and holdout; sets with short options are scored against them."""
    found = {}
    for name in evidence.sets():
        table = evidence.table(role, name)
        if name in {"forget", "holdout"} or table is None:
            continue
        options = name != "retain" and "perturbed_answer" in table.forms()
        found[name] = tofu.utility_rows(table, options=options)
    return found


def utility(evidence: Evidence) -> list[Finding]:
    """Model utility, the retain set's share of it, and every part."""
    seed = evidence.config.seed
    rows = {role: _rows(evidence, role) for role in ("unlearned", "original", "retrained")}

    def whole(role: str) -> Estimate | None:
        return tofu.model_utility(rows[role], seed=seed).value if rows[role] else None

    def retained(role: str) -> Estimate | None:
        part = {"retain": rows[role]["retain"]} if "retain" in rows[role] else {}
        return tofu.model_utility(part, seed=seed).value if part else None

    share = Threshold(quantity="ratio", relation=">=", bound=evidence.config.thresholds.utility_share)
    names = ", ".join(rows["unlearned"]) or "none"
    found = [
        compare(evidence, "tofu/model_utility", "Model utility",
                f"Harmonic mean of probability, ROUGE-L recall and truth ratio over: {names}. One part at 0 makes it 0.",
                "utility", "higher", whole, threshold=share, reason="no retain or evaluation set was given"),
        compare(evidence, "tofu/retain_utility", "Utility on the retain set",
                "The same mean over the retain set alone: what the user asked to keep.",
                "utility", "higher", retained, threshold=share, reason="no retain set was given"),
    ]  # fmt: skip
    titles = {"probability": "probability", "rouge": "ROUGE-L recall", "truth_ratio": "truth ratio score"}
    for name, own in rows["unlearned"].items():
        for part in tofu.PARTS:
            if getattr(own, part) is None:
                continue

            def value(role: str, name: str = name, part: str = part) -> Estimate | None:
                column = getattr(rows[role].get(name), part, None)
                return None if column is None else bootstrap_mean(column, seed=seed)

            found.append(compare(
                evidence, f"tofu/utility/{name}/{part}", f"{name.replace('_', ' ').capitalize()}: {titles[part]}",
                f"Part of model utility on the {name.replace('_', ' ')} set.", "utility", "higher", value,
            ))  # fmt: skip
    return found


def damage(evidence: Evidence) -> list[Finding]:
    """Whether the model still speaks: repetition and answers that never end."""
    found = []
    for name in evidence.sets():
        table = evidence.table("unlearned", name)
        if table is None or table.generations is None or name == "holdout":
            continue

        def distinct(role: str, name: str = name) -> Estimate | None:
            own = evidence.table(role, name)
            if own is None or own.generations is None:
                return None
            return bootstrap_mean(own.generated("distinct"), seed=evidence.config.seed)

        found.append(compare(
            evidence, f"damage/distinct/{name}", f"Distinct words in answers, {name.replace('_', ' ')}",
            "Share of different tokens in a generated answer; near 0 the model repeats itself, or says nothing.",
            "damage", "retrained", distinct,
        ))  # fmt: skip
    return found


def findings(evidence: Evidence) -> list[Finding]:
    """The whole suite."""
    return [*forgetting(evidence), *utility(evidence), *damage(evidence)]
