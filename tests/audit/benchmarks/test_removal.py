"""The suite `removal` ranks known cases rightly, and its findings are what a plain computation over the evidence gives."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from efface.audit.benchmarks.probe_sets import evenly
from efface.audit.benchmarks.removal import EXCESS, best_layer, findings
from efface.audit.evidence import AuditConfig, Evidence
from efface.audit.folder import audit
from efface.audit.run import opened, run_audit
from efface.audit.verdict import conclude
from efface.errors import RequestError
from efface.lab.facts import fact_model, split
from efface.lab.unlearn import forgotten
from efface.subjects import CausalLM

ATTACKER = {"learning_rate": 3e-4, "max_steps": 100}
PLAIN: dict[str, Any] = {"warmup_ratio": 0.0, "weight_decay": 0.0, "batch_size": 16, "schedule": "constant"}


def twin(model: CausalLM) -> CausalLM:
    return CausalLM(copy.deepcopy(model.model), model.tokenizer, prompt=model.prompt)


def untied(model: CausalLM) -> CausalLM:
    """A copy whose output head is a matrix of its own, with the same numbers."""
    found = twin(model)
    found.model.config.tie_word_embeddings = False
    found.model.lm_head.weight = torch.nn.Parameter(found.model.lm_head.weight.detach().clone())
    found.changed()
    return found


@contextlib.contextmanager
def case(name: str, original: CausalLM) -> Iterator[tuple[CausalLM, CausalLM]]:
    """(unlearned, original) of a known case."""
    request, _, _ = split("elements")
    if name == "retrained":
        yield fact_model("elements", 1, retrained=True), original
        return
    base = untied(original) if name == "head-only" else original
    method, values = {
        "guard": ("eco", {"gate": "words", "sigma": 100.0, "n": 64}),
        "gradient-difference": ("gradient-difference", {"learning_rate": 3e-4, "epochs": 40 * 16 / 96, **PLAIN}),
        "head-only": ("gradient-difference", {
            "learning_rate": 3e-3, "epochs": 60 * 16 / 96, "retain_weight": 2.0, "scope": "mask", "mask": "random",
            "density": 1.0, "mask_modules": "lm_head", **PLAIN,
        }),
    }[name]  # fmt: skip
    with forgotten(method, twin(base) if name != "head-only" else untied(original), request, **values) as edited:
        yield edited, base


@pytest.mark.parametrize(
    ("name", "word", "fires"),
    [
        ("retrained", "removal-consistent", ()),
        ("guard", "suppressed", ("robustness/relearning_speed", "removal/probe", "removal/soft_prompt")),
        ("gradient-difference", "suppressed", ("robustness/relearning_speed",)),
        ("head-only", "suppressed", ("removal/probe",)),
    ],
)
def test_known_cases(name: str, word: str, fires: tuple[str, ...]) -> None:
    request, _, _ = split("elements")
    with case(name, fact_model("elements")) as (unlearned, original):
        found = audit(
            unlearned, request, original=original, against=fact_model("elements", retrained=True), suite=("removal",),
            relearning=ATTACKER,
            max_new_tokens=8, rwku={"rows": 8, "types": ["role-playing"]}, reintroduction={"rows": 8},
        )  # fmt: skip
    assert found.outcome.word == word, found.outcome
    assert set(fires) <= set(found.outcome.fired)
    suites_heard = {row.metric.split("/")[0] for row in found.findings}
    assert {"tofu", "robustness", "reintroduction", "rwku", "removal"} <= suites_heard
    changed = next(row for row in found.findings if row.metric == "removal/weight_change").unlearned
    assert changed is not None
    assert (changed.value == 0) == (name == "guard")


@pytest.fixture(scope="module")
def evidence(tiny_folder: Path, retrained_folder: Path, request_: Any) -> Evidence:
    import efface

    models = {role: opened(efface.load(folder)) for role, folder in
              (("original", tiny_folder), ("unlearned", tiny_folder), ("retrained", retrained_folder))}  # fmt: skip
    config = AuditConfig.parse({"suite": ("removal",), "removal": {"prompt_steps": 5}, "relearning": {"max_steps": 5}})
    return run_audit(request_, models, config).evidence


def test_excesses_are_plain_differences(evidence: Evidence, tmp_path: Path) -> None:
    by_name = {row.metric: row for row in findings(evidence)}
    soft = {role: evidence.attack("removal", role)["soft_prompt"] for role in ("unlearned", "retrained")}
    plain = [
        float(np.mean([a - b for a, b in zip(soft[role]["after"], soft[role]["before"], strict=True)])) for role in soft
    ]
    assert by_name["removal/soft_prompt"].unlearned.value == pytest.approx(plain[0] - plain[1])
    shares = [np.mean(evidence.attack("removal", role)["head"]["shares"]) for role in ("unlearned", "retrained")]
    assert by_name["removal/new_head"].unlearned.value == pytest.approx(shares[0] - shares[1])
    assert by_name["removal/new_head"].original.value == pytest.approx(shares[0] - shares[1])
    assert by_name["removal/weight_change"].unlearned.value == 0
    evidence.save(tmp_path)
    assert conclude(Evidence.load(tmp_path)) == conclude(evidence)


def test_without_a_reference_nothing_is_judged(evidence: Evidence) -> None:
    lone = Evidence(evidence.config, attacks={"removal": {"unlearned": evidence.attack("removal", "unlearned")}})
    for row in findings(lone):
        if row.metric.removeprefix("removal/") in EXCESS:
            assert row.verdict == "not measured"
            assert "--against" in row.reason or "first token" in row.reason or "rows begin" in row.reason


def test_a_suite_that_came_along_says_why_it_could_not_run(tiny: Any, request_: Any) -> None:
    long = {"distractors": 7}  # too many facts for this model's context
    found = audit(
        tiny,
        request_,
        suite=("removal",),
        removal={"prompt_steps": 2},
        relearning={"max_steps": 2},
        reintroduction=long,
    )
    row = next(row for row in found.findings if row.metric.startswith("reintroduction/"))
    assert (row.metric, row.verdict) == ("reintroduction/all", "not measured")
    assert "the model's context" in row.reason
    with pytest.raises(RequestError, match="the model's context"):
        audit(tiny, request_, suite=("reintroduction",), reintroduction=long)


def test_the_best_layer_is_the_first_of_equals() -> None:
    assert best_layer([[0, 0], [1, 0], [0, 1]])[0] == 1


def test_rows_are_spread_evenly(request_: Any) -> None:
    assert evenly(request_.forget, 3)["id"] == [request_.forget["id"][i] for i in (0, 4, 7)]
    assert len(evenly(request_.forget, 100)) == len(request_.forget)
