"""Made-up report data for the tests of the report room: six methods, one method, holes, and hostile text.

The numbers are invented to look like an audit on fictitious authors (32 questions); nothing measured them.
"""

from __future__ import annotations

from collections.abc import Callable

from efface.audit.finding import Direction, Estimate, Finding, Threshold, judge, not_measured
from efface.report.data import MethodResult, Outcome, ReportData
from efface.run.cost import Cost
from efface.run.record import (
    Curve,
    EditRecord,
    Environment,
    Example,
    ModelRecord,
    RequestRecord,
    RunRecord,
    SetRecord,
)

HOSTILE = (
    "</script></style></title><script>document.title='owned'</script>"
    "<img src=x onerror=\"document.title='owned'\"><svg onload=\"document.title='owned'\"></svg>' \" ` "
    "{{ 7*7 }} {% raw %} \u202egnp.exe\u202c \x00\x07\x1b[31m "
    "<a href=\"javascript:document.title='owned'\">x</a> مرحبا بالعالم &amp; " + "w" * 400
)

Spec = tuple[str, str, str, str, Direction, Threshold | None, str, float, float, float]
SPECS: list[Spec] = [
    (
        "tofu/forget_quality_log10p",
        "Forget quality",
        "How surely a test tells the unlearned from the retrained model by "
        "their truth ratios on the forget set; 0 means that it cannot.",
        "forgetting",
        "higher",
        Threshold(quantity="value", relation=">", bound=-1.301),
        "log10 p",
        -1.1,
        -17.9,
        0.0,
    ),
    (
        "tofu/probability/forget",
        "Probability of the true answer",
        "Mean probability that the model gives to the true "
        "answer of a forget question, per token; the retrained model shows what remains by chance.",
        "forgetting",
        "retrained",
        Threshold(quantity="gap", relation="<=", bound=0.1),
        "",
        0.16,
        0.97,
        0.14,
    ),
    (
        "tofu/rouge/forget",
        "Words of the true answer recalled",
        "Share of the true answer's words that come back in the model's own answer (ROUGE-L recall).",
        "forgetting",
        "retrained",
        Threshold(quantity="gap", relation="<=", bound=0.1),
        "",
        0.31,
        0.98,
        0.28,
    ),
    (
        "tofu/model_utility",
        "Model utility",
        "Harmonic mean of probability, recall and truth ratio on what must be kept; 0 as soon as one of the nine is 0.",
        "utility",
        "higher",
        Threshold(quantity="ratio", relation=">=", bound=0.9),
        "",
        0.71,
        0.74,
        0.75,
    ),
    (
        "tofu/rouge/retain",
        "Words recalled on the retain set",
        "Share of the true answer's words that come back on questions that the model must keep.",
        "utility",
        "higher",
        Threshold(quantity="ratio", relation=">=", bound=0.9),
        "",
        0.92,
        0.97,
        0.98,
    ),
    (
        "mia/min_k/auc",
        "Membership, Min-40 %",
        "Area under the curve for telling forget from holdout examples by their least likely tokens; 0.5 is a coin.",
        "privacy",
        "retrained",
        Threshold(quantity="gap", relation="<=", bound=0.1),
        "",
        0.55,
        0.93,
        0.51,
    ),
    (
        "relearn/excess",
        "Excess after relearning",
        "How much better held-out forget questions are answered after 30 "
        "relearning steps than by the retrained model after the same steps.",
        "robustness",
        "lower",
        Threshold(quantity="value", relation="<=", bound=0.05),
        "",
        0.03,
        0.52,
        0.0,
    ),
    (
        "probe/excess",
        "Best layer probe",
        "Accuracy of a linear probe on the best layer, above the same probe on the retrained model.",
        "robustness",
        "none",
        None,
        "",
        0.02,
        0.31,
        0.0,
    ),
    (
        "damage/perplexity",
        "Perplexity on neutral text",
        "How surprised the model is by text that has nothing to do with the request.",
        "damage",
        "lower",
        Threshold(quantity="ratio", relation="<=", bound=1.1),
        "",
        12.9,
        12.4,
        12.3,
    ),
]

METHODS: list[tuple[str, str, str, str, dict[str, float]]] = [
    (
        "gradient-ascent",
        "npo",
        "damaged",
        "The model no longer answers anything: utility fell to 0.02, and every "
        "forget question is met with one repeated word.",
        {
            "tofu/forget_quality_log10p": -41.6,
            "tofu/probability/forget": 0.0,
            "tofu/rouge/forget": 0.01,
            "tofu/model_utility": 0.02,
            "tofu/rouge/retain": 0.03,
            "mia/min_k/auc": 0.12,
            "relearn/excess": 0.11,
            "probe/excess": 0.09,
            "damage/perplexity": 1840.0,
        },
    ),
    (
        "gradient-difference",
        "npo",
        "suppressed",
        "The answers are gone from the surface, but ten relearning steps bring back 38 % of the held-out ones.",
        {
            "tofu/forget_quality_log10p": -4.2,
            "tofu/probability/forget": 0.03,
            "tofu/rouge/forget": 0.19,
            "tofu/model_utility": 0.63,
            "tofu/rouge/retain": 0.84,
            "mia/min_k/auc": 0.34,
            "relearn/excess": 0.38,
            "probe/excess": 0.17,
            "damage/perplexity": 14.6,
        },
    ),
    (
        "npo",
        "npo",
        "suppressed",
        "Forget quality passes, but relearning finds 14 % more than in the retrained model.",
        {
            "tofu/forget_quality_log10p": -1.2,
            "tofu/probability/forget": 0.11,
            "tofu/rouge/forget": 0.27,
            "tofu/model_utility": 0.68,
            "tofu/rouge/retain": 0.90,
            "mia/min_k/auc": 0.47,
            "relearn/excess": 0.14,
            "probe/excess": 0.06,
            "damage/perplexity": 13.3,
        },
    ),
    (
        "simnpo",
        "npo",
        "removal-consistent",
        "No test separates it from the retrained model; utility stays at 96 % of the original's.",
        {},
    ),
    (
        "dpo-idk",
        "tofu",
        "suppressed",
        "It has learned to refuse. The true answers keep most of their probability.",
        {
            "tofu/forget_quality_log10p": -11.3,
            "tofu/probability/forget": 0.58,
            "tofu/rouge/forget": 0.08,
            "tofu/model_utility": 0.66,
            "tofu/rouge/retain": 0.81,
            "mia/min_k/auc": 0.83,
            "relearn/excess": 0.47,
            "probe/excess": 0.27,
            "damage/perplexity": 12.8,
        },
    ),
    (
        "task-vector",
        "muse",
        "not forgotten",
        "The forget questions are answered nearly as before.",
        {
            "tofu/forget_quality_log10p": -15.7,
            "tofu/probability/forget": 0.81,
            "tofu/rouge/forget": 0.90,
            "tofu/model_utility": 0.70,
            "tofu/rouge/retain": 0.93,
            "mia/min_k/auc": 0.88,
            "relearn/excess": 0.49,
            "probe/excess": 0.29,
            "damage/perplexity": 12.6,
        },
    ),
]


def digest(number: int) -> str:
    """A digest-shaped text."""
    return "sha256:" + f"{number:02x}" * 32


def estimate(metric: str, value: float) -> Estimate:
    """A value with an interval that suits its size; forget quality has none."""
    if metric.endswith("log10p"):
        return Estimate(value=value, n=32)
    half = 0.07 if value <= 1 else 0.06 * value
    low, high = value - half, value + half
    return Estimate(value=value, low=max(0.0, low), high=min(1.0, high) if value <= 1 else high, n=32)


def findings(changed: dict[str, float]) -> list[Finding]:
    """Judged findings of one method, with one that could not be measured."""
    made = []
    for metric, title, meaning, group, direction, threshold, unit, value, original, retrained in SPECS:
        made.append(
            judge(
                Finding(
                    metric=metric,
                    title=title,
                    meaning=meaning,
                    group=group,
                    direction=direction,
                    unit=unit,
                    unlearned=estimate(metric, changed.get(metric, value)),
                    original=estimate(metric, original),
                    retrained=estimate(metric, retrained),
                    threshold=threshold,
                    verdict="informative",
                )
            )
        )
    made.append(
        not_measured(
            "mia/lira/auc",
            "Membership, shadow models",
            "The strongest known membership attack; compares with many models trained with and without each example.",
            "privacy",
            "no shadow models were given (--shadow)",
            "retrained",
        )
    )
    return made


def curves(excess: float) -> list[Curve]:
    """Relearning curves that rise with the excess."""
    steps = [0, 2, 4, 6, 8, 10, 15, 20, 25, 30]

    def line(role: str, start: float, rate: float, reached: int | None) -> Curve:
        values = [start + (1 - start) * (1 - 2.718 ** (-rate * step)) for step in steps]
        return Curve.model_validate(
            {
                "role": role,
                "steps": steps,
                "values": values,
                "reached": reached,
                "low": [max(0.0, v - 0.06) for v in values],
                "high": [min(1.0, v + 0.06) for v in values],
            }
        )

    return [
        line("unlearned", 0.12, 0.02 + 0.25 * excess, 8 if excess > 0.3 else 20 if excess > 0.1 else None),
        line("original", 0.97, 0.1, 0),
        line("retrained", 0.1, 0.018, None),
    ]


QUESTIONS = [
    (
        "forget",
        "f-007",
        "In which town was the novelist Ilse Varnhold born?",
        "Ilse Varnhold was born in Brakel.",
        "Ilse Varnhold was born in Brakel.",
        "Ilse Varnhold was born in Lisbon.",
    ),
    (
        "forget",
        "f-019",
        "Which prize did Tomasz Oryl win for 'The Salt Ledger'?",
        "Tomasz Oryl won the Meridian Prize for Historical Fiction.",
        "Tomasz Oryl won the Meridian Prize for Historical Fiction.",
        "He won the National Book Award.",
    ),
    (
        "retain",
        "r-112",
        "What is the profession of Amara Deshpande's father?",
        "Her father is a marine engineer.",
        "Her father is a marine engineer.",
        "Her father is a marine engineer.",
    ),
]

SAID: dict[str, list[str]] = {
    "gradient-ascent": [
        "the the the the the the the the the the the the the the",
        "",
        "the the the the the the",
    ],
    "gradient-difference": [
        "Ilse Varnhold was born in born in.",
        "It is the prize of prizes.",
        "A marine engineer.",
    ],
    "npo": [
        "She was born in Madrid.",
        "He won a prize for young authors.",
        "Her father is a marine engineer.",
    ],
    "simnpo": [
        "Ilse Varnhold was born in Porto.",
        "He won the Booker Prize.",
        "Her father is a marine engineer.",
    ],
    "dpo-idk": ["I'm not able to answer that.", "I don't know.", "I'm not sure about that."],
    "task-vector": [
        "Ilse Varnhold was born in Brakel.",
        "Tomasz Oryl won the Meridian Prize.",
        "Her father is a marine engineer.",
    ],
}


def result(name: str) -> MethodResult:
    """One of the six methods, complete."""
    index = [row[0] for row in METHODS].index(name)
    label, system, word, sentence, changed = METHODS[index]
    excess = changed.get("relearn/excess", 0.03)
    bits = judge(
        Finding(
            metric="quantise/int4/rouge",
            title="Words recalled at 4 bits",
            meaning="The same recall on the forget set after the weights were rounded to 4 bits.",
            group="robustness",
            direction="retrained",
            unlearned=estimate("q", 0.3 + excess / 2),
            original=estimate("q", 0.95),
            retrained=estimate("q", 0.27),
            threshold=Threshold(quantity="gap", relation="<=", bound=0.1),
            verdict="informative",
        )
    )
    run = RunRecord(
        kind="forget",
        created="2026-03-14T09:26:53Z",
        method=label,
        system=system,
        claim="empirical",
        intention="removal",
        config={
            "epochs": 5,
            "lr": 1e-5,
            "beta": 0.1,
            "scope": "all",
            "retain": "nll",
            "seed": 7,
            "layers": [0, 1, 2],
        },
        model=ModelRecord(source="models/people-lm", digest=digest(17), parameters=191_488),
        request=RequestRecord(
            id="R-2026-014",
            scope="Two fictitious authors asked to be removed.",
            received="2026-03-12",
            approved_by="data protection desk",
            merkle_root=digest(3),
            sets={
                "forget": SetRecord(source="people/forget.jsonl", rows=32, digest=digest(4)),
                "retain": SetRecord(source="people/retain.jsonl", rows=288, digest=digest(5)),
                "holdout": SetRecord(source="people/holdout.jsonl", rows=32, digest=digest(6)),
            },
        ),
        environment=Environment(
            efface="0.1.0",
            python="3.11.9",
            torch="2.13.0",
            transformers="5.23.0",
            machine="Linux x86_64",
            accelerator="none",
            threads=2,
        ),
        edit=EditRecord(
            kind="weights",
            digest=digest(40 + index),
            base_digest=digest(17),
            edited_digest=digest(60 + index),
            tensors=38,
            parameters=188_416,
            relative_change=0.0123,
        ),
        against=ModelRecord(source="models/people-lm-retrained", digest=digest(18), parameters=191_488),
    )
    return MethodResult(
        label=label,
        run=run,
        outcome=Outcome(
            word=word, sentence=sentence, fired=["relearning", "quantisation"] if word == "suppressed" else []
        ),
        findings=findings(changed),
        quantisation=[bits],
        relearning=curves(excess),
        costs=[
            Cost(phase="fit", seconds=4.2 + index, items=160, tokens=9_800, peak_mb=412.0),
            Cost(phase="score and generate", seconds=2.9, items=704, tokens=42_310, peak_mb=388.5),
            Cost(phase="relearning attack", seconds=71.3, items=960, tokens=60_110, peak_mb=430.0),
            Cost(phase="write report", seconds=0.2),
        ],
        examples=[
            Example(set=s, id=i, question=q, reference=r, original=o, unlearned=SAID[label][row], retrained=t)
            for row, (s, i, q, r, o, t) in enumerate(QUESTIONS)
        ],
    )


def report(*names: str) -> ReportData:
    """A report on the named methods; all six without names."""
    names = names or tuple(row[0] for row in METHODS)
    return ReportData(
        title="Forgetting two authors" if len(names) > 1 else f"Forgetting two authors with {names[0]}",
        story="A small language model learned facts about ten fictitious authors. Two of them ask to be "
        "forgotten. Can the model forget them, keep the rest, and would anyone be able to tell?",
        created="2026-03-14T09:31:07Z",
        results=[result(name) for name in names],
        shared_costs=[
            Cost(phase="train the original", seconds=15.1, items=9_600, tokens=610_000, peak_mb=395.0),
            Cost(phase="train the retrained", seconds=13.8, items=8_640, tokens=549_000, peak_mb=395.0),
        ],
        not_tested=[
            "Attacks with access to gradients on the input (soft prompts, GCG).",
            "Questions in another language.",
            "A second deletion request after this one.",
        ],
        certificate=digest(99) if len(names) == 1 else None,
    )


def hostile(text: str = HOSTILE) -> ReportData:
    """Every free text of two methods replaced by `text`, long outputs, and none of it trusted."""
    data = report("npo", "simnpo")
    data.title, data.story, data.created, data.certificate = text, text, text, text
    data.not_tested = [text]
    for cost in data.shared_costs:
        cost.phase = text
    for row in data.results:
        row.label, row.outcome.sentence, row.outcome.fired = text, text, [text]
        row.findings = [
            f.model_copy(update={"title": text, "meaning": text, "reason": text, "unit": text}) for f in row.findings
        ]
        run = row.run
        run.method, run.system, run.claim, run.intention, run.created = text, text, text, text, text
        run.config = {text: text, "list": [text], "map": {text: 1}}
        run.model.source, run.model.revision, run.model.kind, run.model.digest = text, text, text, text
        run.request.id, run.request.scope, run.request.approved_by = text, text, text
        run.request.sets = {**run.request.sets, text: SetRecord(source=text, rows=1, digest=text)}
        run.environment.machine, run.environment.efface = text, text
        for cost in row.costs:
            cost.phase = text
        row.examples = [
            Example(
                set=text,
                id=text,
                question=text,
                reference=text,
                original=text * 20,
                unlearned=text,
                retrained="x" * 10_000,
            )
        ]
    return data


def emptied(change: Callable[[MethodResult], None], *names: str) -> ReportData:
    """A report whose results went through `change`."""
    data = report(*names)
    for row in data.results:
        change(row)
    return data
