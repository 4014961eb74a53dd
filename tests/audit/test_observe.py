"""Observation: the score table against a slow plain model pass, and how often the model runs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from efface.audit.evidence import AuditConfig
from efface.audit.observe import forms_of, observe, token_statistics
from efface.audit.run import opened, run_audit
from efface.audit.table import ScoreTable
from efface.errors import ModelError, RunError


def slow_row(subject: Any, question: str, answer: str) -> tuple[list[float], list[int], list[float], list[float]]:
    """One sequence at a time, token by token, with plain arithmetic in float64."""
    row = subject.encode(question, answer)
    with torch.no_grad():
        logits = subject.model(input_ids=torch.tensor([row.ids])).logits[0].double()
    logp, rank, mean, var = [], [], [], []
    for t in range(row.n_prompt, len(row.ids)):
        scores = logits[t - 1]
        top = float(scores.max())
        total = top + math.log(sum(math.exp(float(x) - top) for x in scores))
        every = [float(x) - total for x in scores]
        own = row.ids[t]
        logp.append(every[own])
        rank.append(sum(float(x) > float(scores[own]) for x in scores))
        mean.append(sum(math.exp(x) * x for x in every))
        var.append(sum(math.exp(x) * x * x for x in every) - mean[-1] ** 2)
    return logp, rank, mean, var


def test_the_table_equals_a_slow_pass(tiny: Any, request_: Any, tmp_path: Path) -> None:
    table = observe(tiny, request_.forget, generations=False, cache=tmp_path)
    for form in ("answer", "paraphrased_answer", "perturbed_answer"):
        scores = table.select(form)
        for i in range(0, len(scores), 3):
            data = next(row for row in request_.forget if row["id"] == scores.ids[i])
            text = data[form][scores.variants[i]] if form == "perturbed_answer" else data[form]
            logp, rank, mean, var = slow_row(tiny, data["question"], text)
            np.testing.assert_allclose(scores.logp[i], logp, atol=2e-5)
            assert scores.rank[i].tolist() == rank
            np.testing.assert_allclose(scores.mean[i], mean, atol=2e-5)
            np.testing.assert_allclose(scores.var[i], var, atol=2e-4)
            assert scores.n_bytes[i] == len(text.encode())


def test_suppressed_tokens_and_broken_logits() -> None:
    logits = torch.tensor([[0.0, 1.0, -torch.inf, 2.0]])
    found = token_statistics(logits, torch.tensor([3]))
    p = torch.tensor([1.0, math.e, math.e**2]) / (1 + math.e + math.e**2)
    assert math.isclose(float(found.mean), float((p * p.log()).sum()), rel_tol=1e-5)
    assert int(found.rank) == 0
    assert torch.isfinite(found.var).all()
    for bad in (torch.nan, torch.inf):
        with pytest.raises(ModelError, match="NaN or infinite"):
            token_statistics(torch.tensor([[0.0, bad]]), torch.tensor([0]))


def test_ties_count_as_first_choice() -> None:
    assert int(token_statistics(torch.zeros(1, 5), torch.tensor([4])).rank) == 0


class Counter:
    """Counts sequences that are scored and calls of generate."""

    def __init__(self, subject: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.scored: list[tuple[int, ...]] = []
        self.generated: list[tuple[int, ...]] = []
        model = type(subject.model)
        forward, generate = model.forward, subject.generate
        self.generating = False

        def counting_forward(own: Any, *args: Any, **kwargs: Any) -> Any:
            if not self.generating and not own.training:
                for ids, mask in zip(kwargs["input_ids"], kwargs["attention_mask"], strict=True):
                    self.scored.append(tuple(ids[mask.bool()].tolist()))
            return forward(own, *args, **kwargs)

        def counting_generate(prompts: Any, **kwargs: Any) -> Any:
            self.generated += [tuple(prompt) for prompt in prompts]
            self.generating = True
            try:
                return generate(prompts, **kwargs)
            finally:
                self.generating = False

        monkeypatch.setattr(model, "forward", counting_forward)
        monkeypatch.setattr(subject, "generate", counting_generate)


def test_every_metric_costs_one_pass_of_each_kind(
    tiny: Any, request_: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """All suites that need no training of the model: each sequence is scored once, each prompt generated from once."""
    monkeypatch.setenv("EFFACE_CACHE", str(tmp_path))
    counter = Counter(tiny, monkeypatch)
    config = AuditConfig(suite=("tofu", "membership", "memorisation"), max_new_tokens=6)
    audited = run_audit(request_, {"unlearned": opened(tiny)}, config)
    sets = request_.evaluation_sets()
    expected = sorted(
        tuple(form.row.ids)
        for name, data in sets.items()
        for form in forms_of(tiny, data, name, answers_only=name == "holdout")
    )
    assert sorted(counter.scored) == expected
    prompts = sorted(
        tuple(ids) for name, data in sets.items() if name != "holdout" for ids in tiny.encode_prompts(data)
    )
    assert sorted(counter.generated) == prompts
    assert len(audited.conclusion.findings) > 15

    run_audit(request_, {"unlearned": opened(tiny)}, AuditConfig(suite=("memorisation",), max_new_tokens=6))
    assert len(counter.scored) == len(expected), "another suite over the same data runs the model no further"


def test_tables_of_another_model_are_never_reused(tiny: Any, request_: Any, tmp_path: Path) -> None:
    first = observe(tiny, request_.forget, generations=False, cache=tmp_path)
    with torch.no_grad():
        next(iter(tiny.weights().values())).add_(0.1)
    tiny.changed()
    second = observe(tiny, request_.forget, generations=False, cache=tmp_path)
    assert first.key["model"] != second.key["model"]
    assert not np.allclose(first.select("answer").sum_logp, second.select("answer").sum_logp)


def test_save_and_load_keep_everything(tiny: Any, request_: Any, tmp_path: Path) -> None:
    table = observe(tiny, request_.forget, max_new_tokens=5, keep_texts=True, cache=tmp_path / "cache")
    table.save(tmp_path / "out", "forget")
    again = ScoreTable.load(tmp_path / "out", "forget")
    assert again.key == table.key
    assert again.scores.equals(table.scores.replace_schema_metadata(again.scores.schema.metadata))
    assert again.generated("text") == table.generated("text")
    with pytest.raises(RunError, match="has no 'summary'"):
        again.select("summary")


def test_texts_stay_out_unless_asked_for(tiny: Any, request_: Any, tmp_path: Path) -> None:
    table = observe(tiny, request_.forget, max_new_tokens=5, cache=tmp_path)
    assert set(table.generated("text")) == {None}
    assert any(value > 0 for value in table.generated("rougeL_recall"))


def test_batch_composition_does_not_change_scores(
    tiny: Any, request_: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = observe(tiny, request_.forget, generations=False, cache=tmp_path / "a").select("answer")
    monkeypatch.setattr("efface.audit.observe.MAX_BATCH", 1)
    single = observe(tiny, request_.forget, generations=False, cache=tmp_path / "b").select("answer")
    np.testing.assert_allclose(whole.sum_logp, single.sum_logp, atol=1e-5)
