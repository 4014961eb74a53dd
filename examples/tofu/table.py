"""Print the table of docs/results/tofu-small.md from audited run folders: python table.py OUT/runs/*"""

from __future__ import annotations

import sys
from pathlib import Path

from efface.audit.finding import Estimate
from efface.audit.folder import AUDIT_PHASES
from efface.report.data import MethodResult
from efface.report.gather import read_result

COLUMNS = {
    "forget quality, log10 p": "tofu/forget_quality_log10p",
    "KS": "tofu/ks_statistic",
    "median R": "tofu/truth_ratio_median",
    "P(forget)": "tofu/forget_probability",
    "ROUGE forget": "tofu/forget_rouge",
    "utility (9 parts)": "tofu/model_utility",
    "retain utility": "tofu/retain_utility",
    "extraction": "memorisation/extraction_strength",
    "relearning speed": "robustness/relearning_speed",
    "relearning transfer": "robustness/relearning_transfer",
    "probe": "removal/probe",
    "truth probe": "removal/truth_probe",
    "new head": "removal/new_head",
    "soft prompt": "removal/soft_prompt",
}


def cell(estimate: Estimate | None) -> str:
    """Value with its 95 % interval."""
    if estimate is None:
        return "not measured"
    digits = 3 if abs(estimate.value) < 10 else 1
    value = f"{estimate.value:.{digits}f}"
    if estimate.low is None or estimate.high is None:
        return value
    return f"{value} [{estimate.low:.{digits}f}, {estimate.high:.{digits}f}]"


def row(label: str, role: str, result: MethodResult) -> list[str]:
    """One model's cells."""
    found = {finding.metric: finding for finding in result.findings}
    return [
        label,
        *(cell(getattr(found[name], role)) if name in found else "not measured" for name in COLUMNS.values()),
    ]


def main() -> None:
    """Both tables: figures with intervals, then cost."""
    results = [read_result(Path(folder), Path(folder).name)[0] for folder in sys.argv[1:]]
    head = ["model", *COLUMNS, "verdict"]
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    for role in ("original", "retrained"):
        print("| " + " | ".join([*row(role, role, results[0]), ""]) + " |")
    for result in results:
        print("| " + " | ".join([*row(f"`{result.label}`", "unlearned", result), result.outcome.word]) + " |")
    print(
        "\n| method | fit, s | tokens/s | peak MiB | scores and answers, s | relearning attack, s |\n|---|---|---|---|---|---|"
    )
    for result in results:
        costs = {cost.phase: cost for cost in result.costs}
        fitting = [
            cost for name, cost in costs.items() if not name.startswith(AUDIT_PHASES)
        ]  # labels, a reinforced model, ...
        scored, attacked = (costs.get(f"{name}, unlearned") for name in ("score and generate", "relearning attack"))
        rates = [cost.tokens_per_second for cost in fitting if cost.tokens_per_second]
        rate = f"{rates[-1]:,.0f}" if rates else ""
        print(
            f"| `{result.label}` | {sum(cost.seconds for cost in fitting):.0f} | {rate} | "
            f"{max(cost.peak_mb for cost in fitting):,.0f} | "
            f"{scored.seconds if scored else 0:.0f} | {attacked.seconds if attacked else 0:.0f} |"
        )


if __name__ == "__main__":
    main()
