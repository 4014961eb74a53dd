"""The MUSE suite: every figure against a slow plain recomputation, PrivLeak's sign, and what must be refused."""

from __future__ import annotations

import json
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import efface
from efface.audit.benchmarks.muse import SUITE, auc_difference, checkpoint, findings, member_scores
from efface.audit.benchmarks.muse_sets import RAW, STOP, MuseConfig, gradient_norms, sets, token_ends
from efface.audit.evidence import AuditConfig, Evidence
from efface.audit.folder import rederive, store
from efface.audit.run import Audited, asked_as, opened, run_audit
from efface.data import Request
from efface.data.columns import canonical
from efface.data.muse import few_shot
from efface.errors import InputError, RequestError, RunError
from efface.forget.method import find_method


def audited(models: dict[str, Any], request: Request, **muse: Any) -> Audited:
    """The suite alone on models in memory."""
    config = AuditConfig.parse({"suite": ["muse"], "muse": muse})
    return run_audit(request, {role: opened(model) for role, model in models.items()}, config)


def values(result: Audited, role: str = "unlearned") -> dict[str, float]:
    """Metric -> value of one model, where measured."""
    rows = {row.metric: getattr(row, role) for row in result.conclusion.findings}
    return {name: row.value for name, row in rows.items() if row is not None}


@pytest.fixture
def corpus(tmp_path: Path, sets: dict[str, list[dict[str, Any]]]) -> Path:
    """The tiny world in the published layout: its statements are the texts."""
    folder = tmp_path / "corpus"

    def write(name: str, rows: list[Any]) -> None:
        path = folder / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(rows), encoding="utf-8")

    pairs = {name: [{"question": r["question"], "answer": r["answer"]} for r in rows] for name, rows in sets.items()}
    texts = {name: [f"Question: {r['question']}\nAnswer: {r['answer']}" for r in rows] for name, rows in pairs.items()}
    write("verbmem/forget", [{"prompt": text[:40], "gt": text[40:]} for text in texts["forget"]])
    for name in ("forget", "retain"):
        write(f"knowmem/{name}_qa", pairs[name][2:])
        write(f"knowmem/{name}_qa_icl", pairs[name][:2])
    for name in ("forget", "retain", "holdout"):
        write(f"privleak/{name}", texts[name])
    return folder


def lcs_f1(said: str, truth: str) -> float:
    """ROUGE-L F1 by the textbook table, on lower-case runs of letters and digits."""
    import re

    a, b = (re.findall(r"[a-z0-9]+", text.lower()) for text in (said, truth))
    best = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            best[i + 1][j + 1] = best[i][j] + 1 if x == y else max(best[i][j + 1], best[i + 1][j])
    common = best[-1][-1]
    if not common:
        return 0.0
    precision, recall = common / len(a), common / len(b)
    return 2 * precision * recall / (precision + recall)


def greedy(subject: Any, prompt: str, count: int) -> str:
    """One token after the other, without a cache, from the raw prompt."""
    ids = subject.tokenizer(prompt)["input_ids"]
    while len(ids) > 1 and ids[-1] == subject.tokenizer.eos_token_id:
        ids = ids[:-1]
    count, made = min(count, subject.context - len(ids)), []
    with torch.no_grad():
        for _ in range(count):
            token = int(subject.model(torch.tensor([ids + made])).logits[0, -1].argmax())
            if token == subject.tokenizer.eos_token_id:
                break
            made.append(token)
    return str(subject.tokenizer.decode(made, skip_special_tokens=True)).strip()


def raw_logp(subject: Any, text: str) -> tuple[list[float], list[float]]:
    """Token log-probabilities of a raw text after its first token, and the same standardised (Min-K %++)."""
    ids = subject.tokenizer(text)["input_ids"]
    while ids[-1] == subject.tokenizer.eos_token_id:
        ids = ids[:-1]
    plain, standard = [], []
    with torch.no_grad():
        logits = subject.model(torch.tensor([ids])).logits[0].double()
    for place in range(1, len(ids)):
        row = logits[place - 1].log_softmax(-1)
        mean = float((row.exp() * row).sum())
        variance = max(float((row.exp() * (row - mean) ** 2).sum()), 0.0)
        plain.append(float(row[ids[place]]))
        standard.append((plain[-1] - mean) / max(math.sqrt(variance), 1e-6))
    return plain, standard


def lowest(row: list[float], k: float) -> float:
    chosen = sorted(row)[: max(1, math.floor(k * len(row)))]
    return sum(chosen) / len(chosen)


def pairs_auc(members: list[float], others: list[float]) -> float:
    return sum((m > o) + 0.5 * (m == o) for m in members for o in others) / (len(members) * len(others))


@pytest.fixture
def both(tiny: Any, retrained_folder: Path) -> dict[str, Any]:
    return {"unlearned": tiny, "retrained": efface.load(retrained_folder)}


def test_verbmem_and_knowmem_against_a_slow_recomputation(
    both: dict[str, Any], corpus: Path, request_: Request, sets: dict[str, list[dict[str, Any]]]
) -> None:
    result = audited(both, request_, data=str(corpus), continuation_tokens=5, answer_tokens=8, shots=1)
    for role, model in both.items():
        own = values(result, role)
        slow = []
        for row in json.loads((corpus / "verbmem" / "forget.json").read_text()):
            truth = row["gt"]
            found = model.tokenizer(truth, return_offsets_mapping=True, add_special_tokens=False)["offset_mapping"]
            slow.append(lcs_f1(greedy(model, row["prompt"], 5), truth[: found[:5][-1][1]]))
        assert own["muse/verbmem"] == pytest.approx(100 * np.mean(slow))
        for part, name in (("knowmem_f", "forget"), ("knowmem_r", "retain")):
            first, slow = sets[name][0], []
            for row in sets[name][2:]:
                prompt = (
                    f"Question: {first['question']}\nAnswer: {first['answer']}\n\nQuestion: {row['question']}\nAnswer: "
                )
                said = greedy(model, prompt, 8)
                for mark in ("\n\n", "\nQuestion", "Question:"):
                    said = said.split(mark)[0]
                slow.append(lcs_f1(said, row["answer"]))
            assert own[f"muse/{part}"] == pytest.approx(100 * np.mean(slow))


def test_every_attack_and_privleak_against_a_slow_recomputation(
    both: dict[str, Any], corpus: Path, request_: Request
) -> None:
    result = audited(both, request_, data=str(corpus), continuation_tokens=2, answer_tokens=2, gradnorm=True)
    own = values(result)
    texts = {s: json.loads((corpus / "privleak" / f"{s}.json").read_text()) for s in ("forget", "holdout")}
    tiny, retrained = both["unlearned"], both["retrained"]
    logp = {s: [raw_logp(tiny, text) for text in rows] for s, rows in texts.items()}
    other = {s: [raw_logp(retrained, text)[0] for text in rows] for s, rows in texts.items()}
    lower = {s: [raw_logp(tiny, text.lower())[0] for text in rows] for s, rows in texts.items()}

    def area(score: Any) -> float:
        sides = {s: [score(s, i) for i in range(len(rows))] for s, rows in texts.items()}
        return pairs_auc(sides["forget"], sides["holdout"])

    mean = lambda row: sum(row) / len(row)  # noqa: E731
    expected = {
        "loss": area(lambda s, i: mean(logp[s][i][0])),
        "zlib": area(lambda s, i: mean(logp[s][i][0]) / len(zlib.compress(texts[s][i].encode()))),
        "min_k": area(lambda s, i: lowest(logp[s][i][0], 0.4)),
        "min_k_05": area(lambda s, i: lowest(logp[s][i][0], 0.05)),
        "min_k_60": area(lambda s, i: lowest(logp[s][i][0], 0.6)),
        "min_k_plus_plus": area(lambda s, i: lowest(logp[s][i][1], 0.4)),
        "lower": area(lambda s, i: mean(lower[s][i]) / mean(logp[s][i][0])),
        "reference": area(lambda s, i: mean(logp[s][i][0]) - mean(other[s][i])),
    }
    for name, value in expected.items():
        assert own[f"muse/{name}/auc"] == pytest.approx(value, abs=0.02), name  # float32 against float64: near ties
    clean = 1 - area(lambda s, i: lowest(other[s][i], 0.4))
    share = 1 - expected["min_k"]
    assert own["muse/privleak"] == pytest.approx(100 * (share - clean) / clean, abs=2.0)
    assert own["muse/auc_difference"] == pytest.approx(share - clean, abs=0.02)
    assert values(result, "retrained")["muse/privleak"] == 0
    assert values(result, "retrained")["muse/auc_difference"] == 0
    assert "muse/gradnorm/auc" in own


def test_the_gradient_norm_is_a_mean_over_tensors(tiny: Any, corpus: Path, request_: Request) -> None:
    data = sets(request_, MuseConfig(data=str(corpus)))["privleak_forget"].data.select(range(2))
    fast = gradient_norms(tiny, data, RAW)
    for value, text in zip(fast, data["answer"], strict=True):
        tiny.model.zero_grad()
        ids = torch.tensor([[i for i in tiny.tokenizer(text)["input_ids"] if i != tiny.tokenizer.eos_token_id]])
        logp = tiny.model(ids).logits[0, :-1].log_softmax(-1)
        (-logp.gather(1, ids[0, 1:, None]).mean()).backward()
        norms = [float(p.grad.norm()) for p in tiny.model.parameters() if p.grad is not None]
        assert value == pytest.approx(sum(norms) / len(norms), rel=1e-4)
        assert value != pytest.approx(math.sqrt(sum(n * n for n in norms)), rel=1e-2)
    tiny.model.zero_grad()
    assert tiny.prompt != RAW


def table_of(rows: list[list[float]]) -> Any:
    from efface.audit.table import ScoreTable, build_scores

    return ScoreTable(build_scores([
        {"id": str(i), "form": "answer", "variant": 0, "n_bytes": 1, "zlib_bytes": 9, "logp": row, "rank": [0] * len(row),
         "mean": [-1.0] * len(row), "var": [1.0] * len(row)} for i, row in enumerate(rows)
    ]), None)  # fmt: skip


def evidence_of(own: tuple[list[Any], list[Any]], clean: tuple[list[Any], list[Any]] | None) -> Evidence:
    """Evidence from token log-probabilities of forget and holdout texts."""
    evidence = Evidence(AuditConfig.parse({"suite": ["muse"]}))
    for role, sides in (("unlearned", own), ("retrained", clean)):
        for side, rows in zip(("forget", "holdout"), sides or (), strict=False):
            evidence.tables.setdefault(role, {})[f"muse.privleak_{side}"] = table_of(rows)
    return evidence


def test_a_memorised_forget_set_gives_minus_100_and_an_overdone_one_is_positive() -> None:
    """The sign: the official README has members and non-members the wrong way round."""
    rng = np.random.default_rng(0)
    unknown = [list(-2 - rng.random(10)) for _ in range(40)]
    clean = (unknown[:20], unknown[20:])
    known, wrecked = [[-0.01] * 10] * 20, [[-30.0] * 10] * 20

    def leak(rows: list[Any]) -> float:
        found = {row.metric: row for row in findings(evidence_of((rows, unknown[20:]), clean))}
        assert found["muse/privleak"].unlearned is not None
        return found["muse/privleak"].unlearned.value

    assert leak(known) == -100
    assert leak(clean[0]) == 0
    assert leak(wrecked) > 50


def test_texts_of_one_token_do_not_end_in_nan() -> None:
    found = {row.metric: row for row in findings(evidence_of(([[-1.0]], [[-2.0]]), ([[-3.0]], [[-2.0]])))}
    estimate = found["muse/privleak"].unlearned
    assert estimate is not None
    assert estimate.value == -100


def test_a_ratio_that_is_not_defined_leaves_the_difference() -> None:
    """AUC(f_retrain) = 0: PrivLeak explodes, and is said to; the difference stands."""
    evidence = evidence_of(([[-1.0, -1.0]], [[-2.0, -2.0]]), ([[-1.0, -1.0]], [[-2.0, -2.0]]))
    found = {row.metric: row for row in findings(evidence)}
    assert found["muse/privleak"].verdict == "not measured"
    assert "not defined" in found["muse/privleak"].reason
    difference = found["muse/auc_difference"].unlearned
    assert difference is not None
    assert difference.value == 0


def test_without_a_retrained_model_privleak_is_not_measured() -> None:
    found = {row.metric: row for row in findings(evidence_of(([[-1.0, -1.0]], [[-2.0, -2.0]]), None))}
    assert found["muse/privleak"].verdict == "not measured"
    assert "--against" in found["muse/privleak"].reason
    assert found["muse/min_k/auc"].unlearned is not None


def test_auc_difference_wants_the_same_texts() -> None:
    one = np.array([1.0, 2.0])
    with pytest.raises(InputError, match="same texts"):
        auc_difference((one, one), (one[:1], one))


def test_the_checkpoint_rule() -> None:
    assert checkpoint([0.9, 0.8, 0.5, 0.7], 0.6) == 2
    assert checkpoint([0.9, 0.8], 0.6) == 1
    assert checkpoint([0.5, 0.8], 0.6) == 0
    with pytest.raises(InputError):
        checkpoint([], 0.6)


def test_own_documents_are_cut_at_tokens(tiny: Any) -> None:
    text = "person1 likes the colour red . person2 likes the colour blue . person3 likes green"
    request = Request(forget=canonical([{"id": "a", "text": text}], "f"), holdout=canonical([{"text": "red ."}], "h"))
    parts = sets(request, MuseConfig(prompt_tokens=4, continuation_tokens=3))
    assert set(parts) == {"verbmem", "privleak_forget", "lower_forget", "privleak_holdout", "lower_holdout"}
    verbmem = parts["verbmem"]
    assert verbmem.fitted is not None
    row = verbmem.fitted(tiny, verbmem.data)[0]
    assert row["question"] == "person1 likes the colour"
    assert row["answer"] == " red . person2"
    assert parts["privleak_forget"].prompt == RAW
    wide = sets(request, MuseConfig())["verbmem"]
    assert wide.fitted is not None
    row = wide.fitted(tiny, wide.data)[0]
    assert len(token_ends(tiny, row["question"])) == len(token_ends(tiny, text)) // 2
    assert row["question"] + row["answer"] == text
    short = Request(forget=canonical([{"text": "red"}], "f"))
    only = sets(short, MuseConfig())["verbmem"]
    assert only.fitted is not None
    with pytest.raises(RequestError, match="two or more"):
        only.fitted(tiny, only.data)


def test_long_texts_are_cut_at_the_context_and_no_end_token_is_scored(tiny: Any) -> None:
    long = " ".join(["person1 likes red ."] * 30)
    request = Request(forget=canonical([{"text": long}], "f"), holdout=canonical([{"text": "red . red"}], "h"))
    rows = sets(request, MuseConfig())["privleak_forget"]
    assert rows.fitted is not None
    assert rows.prompt is not None
    cut = rows.fitted(tiny, rows.data)
    with asked_as(tiny, rows.prompt):
        [encoded] = tiny.encode_rows(cut)
    assert len(encoded.ids) == tiny.context - 1
    assert encoded.ids[-1] != tiny.tokenizer.eos_token_id
    assert encoded.n_prompt == 1
    assert tiny.prompt != RAW


def test_own_questions_are_asked_in_the_models_own_form(both: dict[str, Any], request_: Request) -> None:
    result = audited(both, request_, continuation_tokens=12, answer_tokens=12)
    own, clean = values(result), values(result, "retrained")
    assert own["muse/knowmem_f"] > 95 > clean["muse/knowmem_f"]
    assert own["muse/knowmem_r"] > 95
    assert own["muse/privleak"] < -80
    assert sets(request_, MuseConfig())["knowmem_f"].prompt is None


def test_an_answer_ends_at_the_next_question() -> None:
    from efface.audit.metrics.text import cut

    assert cut("red .\n\nQuestion: next", STOP) == "red ."
    assert cut("red Question: next", STOP) == "red "
    assert few_shot("q", [("a", "b")]).endswith("Answer: ")


def test_a_reference_of_another_run_serves_or_is_refused(
    tmp_path: Path, both: dict[str, Any], request_: Request, corpus: Path
) -> None:
    given = {"continuation_tokens": 2, "answer_tokens": 2}
    first = audited(both, request_, **given)
    store(tmp_path / "first", first)
    alone = {"unlearned": both["unlearned"]}
    again = audited(alone, request_, **given, reference=str(tmp_path / "first"))
    assert values(again)["muse/privleak"] == values(first)["muse/privleak"]
    with pytest.raises(RunError, match="another k"):
        audited(alone, request_, **given, k=0.2, reference=str(tmp_path / "first"))
    with pytest.raises(RunError, match="another corpus"):
        audited(alone, request_, **given, data=str(corpus), reference=str(tmp_path / "first"))
    store(tmp_path / "second", again)
    with pytest.raises(RunError, match="no retrained model"):
        audited(alone, request_, **given, reference=str(tmp_path / "second"))


def test_findings_come_from_the_stored_evidence_alone(tmp_path: Path, both: dict[str, Any], request_: Request) -> None:
    result = audited(both, request_, continuation_tokens=2, answer_tokens=2, gradnorm=True)
    store(tmp_path, result)
    assert rederive(tmp_path) == []
    loaded = findings(Evidence.load(tmp_path))
    assert loaded == [row for row in result.conclusion.findings if row.metric.startswith("muse/")]
    assert member_scores(Evidence.load(tmp_path), "original", "loss") is None
    assert SUITE.config is MuseConfig


@pytest.mark.parametrize(
    ("method", "given"),
    [
        ("gradient-ascent", {"epochs": 1}),
        ("gradient-difference", {"epochs": 7}),
        ("gradient-ascent", {"epochs": 10, "retain_term": "kl"}),
        ("npo", {"beta": 0.1, "retain_term": "none", "epochs": 1}),
        ("npo", {"beta": 0.1, "retain_term": "nll", "epochs": 10}),
        ("npo", {"beta": 0.1, "retain_term": "kl", "epochs": 10}),
        ("task-vector", {"alpha": 5.0, "epochs": 10, "schedule": "cosine"}),
        ("who-is-harry-potter", {"mode": "decode", "alpha": 1.0}),
    ],
)
def test_the_eight_baselines_are_there(method: str, given: dict[str, Any]) -> None:
    config = find_method(method).configure({"learning_rate": 1e-5, "schedule": "constant", "warmup_ratio": 0, **given})
    assert {name: getattr(config, name) for name in given} == given
