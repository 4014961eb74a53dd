"""Reading published TOFU logs of both layouts: small synthetic ones, and real ones where they are at hand."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from efface.audit.metrics.published_logs import PublishedLog, parse_published_log, read_published_log
from efface.errors import RunError

SETS = {"forget": (12, 5), "retain": (9, 5), "real_authors": (7, 3), "world_facts": (11, 3)}
FILES = {
    "forget": "eval_log_forget.json",
    "retain": "eval_log.json",
    "real_authors": "eval_real_author_wo_options.json",
    "world_facts": "eval_real_world_wo_options.json",
}
SHORT = {"forget": "forget", "retain": "retain", "real_authors": "ra", "world_facts": "wf"}
METRICS = {
    "answer": "avg_gt_loss",
    "para": "avg_paraphrased_loss",
    "wrong": "average_perturb_loss",
    "rouge": "rougeL_recall",
}


def losses(seed: int) -> dict[str, dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    sets = {}
    for name, (n, k) in SETS.items():
        answer = rng.uniform(0, 2, n)
        para = answer if k == 3 else rng.uniform(0.5, 2.5, n)
        sets[name] = {
            "answer": answer,
            "para": para,
            "wrong": rng.uniform(1, 5, (n, k)),
            "rouge": rng.random(n),
        }
    return sets


def official(sets: dict[str, dict[str, np.ndarray]]) -> dict[str, Any]:
    return {
        FILES[name]: {
            **{METRICS[key]: {str(i): v for i, v in enumerate(values.tolist())} for key, values in data.items()},
            "truth_ratio": {str(i): 99.0 for i in range(len(data["rouge"]))},
        }
        for name, data in sets.items()
    }


def open_unlearning(sets: dict[str, dict[str, np.ndarray]]) -> dict[str, Any]:
    document: dict[str, Any] = {"forget_quality": {"agg_value": None}}
    for name, data in sets.items():
        short = SHORT[name]
        for metric, key in (("Prob", "answer"), ("PARA_Prob", "para"), ("PERT_Prob", "wrong")):
            if metric == "PARA_Prob" and short in ("ra", "wf"):
                continue
            records = {str(i): {"prob": 0.0, "avg_loss": v} for i, v in enumerate(data[key].tolist())}
            document[f"{short}_Q_A_{metric}"] = {"agg_value": 0.0, "value_by_index": records}
        records = {str(i): {"rougeL_recall": v, "generation": "x"} for i, v in enumerate(data["rouge"].tolist())}
        document[f"{short}_Q_A_ROUGE"] = {"agg_value": 0.0, "value_by_index": records}
    return document


def plain_utility(sets: dict[str, dict[str, np.ndarray]]) -> list[float]:
    """The nine parts as the official script computes them, from losses."""
    parts = []
    for name in ("retain", "real_authors", "world_facts"):
        data = sets[name]
        true, wrong = np.exp(-data["answer"]), np.exp(-data["wrong"])
        parts.append(np.mean(true if name == "retain" else true / (true + wrong.sum(1))))
        parts.append(data["rouge"].mean())
        inverse = np.exp(data["wrong"].mean(1) - data["para"])  # 1/R
        parts.append(np.mean(np.maximum(0, 1 - 1 / inverse)))
    return parts


def plain_quality(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> Any:
    return stats.ks_2samp(*(np.exp(data["wrong"].mean(1) - data["para"]) for data in (first, second)))


@pytest.mark.parametrize("write", [official, open_unlearning])
def test_both_layouts_give_the_official_numbers(write: Any, tmp_path: Path) -> None:
    sets, retrained = losses(0), losses(1)
    for name, data in (("a", sets), ("b", retrained)):
        (tmp_path / f"{name}.json").write_text(json.dumps(write(data)), encoding="utf-8")
    log, other = read_published_log(tmp_path / "a.json"), read_published_log(tmp_path / "b.json")
    assert log.layout == ("tofu" if write is official else "open-unlearning")
    utility = log.model_utility()
    assert [part.value for part in utility.parts.values()] == pytest.approx(plain_utility(sets), abs=1e-9)
    assert utility.value.value == pytest.approx(stats.hmean(plain_utility(sets)), abs=1e-9)
    quality, expected = log.forget_quality(other), plain_quality(sets["forget"], retrained["forget"])
    assert quality.p == pytest.approx(expected.pvalue, rel=1e-9)
    assert quality.statistic == expected.statistic
    assert quality.n_unlearned == 12


def test_the_two_layouts_agree_to_the_bit() -> None:
    first = parse_published_log(official(losses(3)), source="a")
    second = parse_published_log(open_unlearning(losses(3)), source="b")
    for name, rows in first.sets.items():
        assert rows.wrong_logp.tolist() == second.sets[name].wrong_logp.tolist()
        assert rows.ids == second.sets[name].ids == tuple(str(i) for i in range(SETS[name][0]))


def test_the_order_of_the_file_does_not_matter() -> None:
    document = official(losses(4))
    shuffled = copy.deepcopy(document)
    metric = shuffled[FILES["forget"]]["avg_paraphrased_loss"]
    shuffled[FILES["forget"]]["avg_paraphrased_loss"] = dict(reversed(list(metric.items())))
    before, after = (parse_published_log(d, source="x").select("forget").truth_ratio() for d in (document, shuffled))
    assert before.ids == after.ids
    assert before.log_ratio.tolist() == after.log_ratio.tolist()


def test_a_row_without_tokens_is_dropped_and_recorded() -> None:
    document = open_unlearning(losses(5))
    document["retain_Q_A_Prob"]["value_by_index"]["3"] = {"prob": float("nan"), "avg_loss": float("nan")}
    document["retain_Q_A_ROUGE"]["value_by_index"]["5"] = None
    rows = parse_published_log(document, source="x").select("retain")
    assert rows.dropped == ("3", "5")
    assert len(rows.ids) == len(rows.rouge_recall) == 7


def test_a_log_with_the_forget_set_alone_serves_as_reference() -> None:
    whole, part = losses(6), official(losses(7))
    only = {FILES["forget"]: part[FILES["forget"]]}
    del only[FILES["forget"]]["rougeL_recall"]
    log, reference = parse_published_log(official(whole), source="a"), parse_published_log(only, source="b")
    assert 0 <= log.forget_quality(reference).p <= 1
    with pytest.raises(RunError, match="retain"):
        reference.model_utility()
    with pytest.raises(RunError, match="rouge_recall"):
        reference.select("forget").utility_rows()


def test_other_rows_are_refused() -> None:
    short = official(losses(8))
    for metric in short[FILES["forget"]].values():
        del metric["11"]
    log, other = parse_published_log(official(losses(8)), source="a"), parse_published_log(short, source="b")
    with pytest.raises(RunError, match="same forget set"):
        log.forget_quality(other)


def broken(change: Any) -> dict[str, Any]:
    document = official(losses(9))
    change(document[FILES["retain"]])
    return document


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m["avg_gt_loss"].pop("2"), "row 2"),
        (lambda m: m["avg_gt_loss"].update({"2": -0.4}), "signs"),
        (lambda m: m["avg_gt_loss"].update({"2": "0.4"}), "finite number"),
        (lambda m: m["avg_gt_loss"].update({"2": True}), "finite number"),
        (lambda m: m["rougeL_recall"].update({"2": 40.0}), "recall"),
        (lambda m: m["average_perturb_loss"].update({"2": [1.0]}), "differ in length"),
        (lambda m: m["average_perturb_loss"].update({"2": []}), "empty"),
        (lambda m: m["avg_gt_loss"].clear(), "empty"),
        (lambda m: m.update({"avg_gt_loss": [1.0]}), "list"),
        (lambda m: m["avg_gt_loss"].update(dict.fromkeys(m["avg_gt_loss"])), "complete row"),
    ],
)
def test_broken_values_raise_with_their_place(change: Any, words: str) -> None:
    with pytest.raises(RunError, match=words):
        parse_published_log(broken(change), source="log.json")


@pytest.mark.parametrize("document", [[], {}, {"model_utility": 0.5}, "x", {"mia": {"value_by_index": {}}}])
def test_unknown_layouts_raise(document: object) -> None:
    with pytest.raises(RunError, match="expected"):
        parse_published_log(document, source="x")


def test_unreadable_files_raise(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="check the path"):
        read_published_log(tmp_path / "none.json")
    (tmp_path / "half.json").write_text('{"eval_log.json": {', encoding="utf-8")
    with pytest.raises(RunError, match="not JSON"):
        read_published_log(tmp_path / "half.json")
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RunError, match="not JSON"):
        read_published_log(tmp_path / "bytes.json")


@pytest.mark.data
def test_the_published_logs_give_the_official_numbers() -> None:
    folder = os.environ.get("EFFACE_TOFU_LOGS")
    if not folder:
        pytest.skip("set EFFACE_TOFU_LOGS to a checkout of locuslab/tofu (it holds data/*/eval_log_aggregated.json)")
    paths = sorted(Path(folder).rglob("eval_log_aggregated.json"))
    assert paths, f"no eval_log_aggregated.json under {folder}"
    read: list[tuple[PublishedLog, dict[str, dict[str, np.ndarray]]]] = []
    for path in paths:
        raw = json.loads(path.read_text(encoding="utf-8"))
        sets = {
            name: {key: np.array([raw[file][metric][i] for i in raw[file][metric]]) for key, metric in METRICS.items()}
            for name, file in FILES.items()
        }
        log = read_published_log(path)
        utility = log.model_utility()
        assert [p.value for p in utility.parts.values()] == pytest.approx(plain_utility(sets), abs=1e-9)
        assert utility.value.value == pytest.approx(stats.hmean(plain_utility(sets)), abs=1e-9)
        forget = raw[FILES["forget"]]
        stored = [forget["truth_ratio"][i] for i in log.select("forget").ids]
        assert np.exp(log.select("forget").truth_ratio().log_ratio) == pytest.approx(stored, rel=1e-4)
        read.append((log, sets))
    for log, sets in read:
        reference, others = read[0]
        if log.select("forget").ids != reference.select("forget").ids:
            with pytest.raises(RunError, match="same forget set"):
                log.forget_quality(reference)
            continue
        quality, expected = log.forget_quality(reference), plain_quality(sets["forget"], others["forget"])
        assert quality.p == pytest.approx(expected.pvalue, rel=1e-9)
