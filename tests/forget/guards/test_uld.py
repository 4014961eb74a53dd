"""ULD: the filter by hand, the loss against loops, the data it is trained on, and the pair as an edit."""

from __future__ import annotations

import dataclasses
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import efface
from efface.data import Request
from efface.errors import ConfigError, ModelError
from efface.forget.edit import Edit
from efface.forget.guards.logit_ensemble import (
    Ensemble,
    LogitEnsemble,
    difference_logits,
    kept_tokens,
    offset_logits,
)
from efface.forget.guards.truncated_copy import first_layers
from efface.forget.guards.uld import (
    ULDConfig,
    after_leaving,
    assistant_loss,
    flatness,
    flattened,
    remembered,
    uniform_kl,
)
from efface.forget.method import find_method
from efface.subjects.answers import answer_logits
from efface.subjects.prompts import Encoded

FIVE = torch.tensor([0.5, 0.3, 0.15, 0.04, 0.01]).log()


@pytest.mark.parametrize(
    ("rho", "kept"),
    [
        (0.5, [1, 1, 0, 0, 0]),  # n = 2: log 0.3; 0.5 * 0.5 = 0.25 is smaller, and 0.3 is above it
        (0.2, [1, 1, 1, 0, 0]),  # n = 1: 0.5; 0.2 * 0.5 = 0.1 is smaller
        (0.8, [1, 1, 1, 1, 0]),  # n = 4: 0.04 is smaller than 0.8 * 0.5
        (1.0, [1, 1, 1, 1, 1]),
    ],
)
def test_the_filter_on_five_tokens(rho: float, kept: list[int]) -> None:
    assert kept_tokens(FIVE, rho).int().tolist() == kept
    assert kept_tokens(FIVE + 7, rho).int().tolist() == kept, "logits, not log-probabilities"


def test_trap_a_small_vocabulary_does_not_read_the_smallest_value() -> None:
    assert int(0.01 * 5) == 0, "the code would take position -1: every token kept"
    assert kept_tokens(FIVE, 0.1).int().tolist() == [1, 1, 1, 0, 0]
    flat = torch.zeros(3, 5)
    assert kept_tokens(flat, 0.01).all()


def test_trap_a_filtered_token_keeps_the_bases_logit() -> None:
    a = torch.tensor([4.0, -1.0, 2.0, 50.0, -50.0])
    made = difference_logits(FIVE, a, 0.5, 0.2)
    assert made[:3].tolist() == pytest.approx([float(FIVE[i]) - 0.5 * float(a[i]) for i in range(3)])
    assert torch.equal(made[3:], FIVE[3:]), "kept, not removed: relatively more likely than before"


def test_trap_raw_logits_are_the_one_convention() -> None:
    """A constant a row in the assistant changes nothing without the filter, and much with it."""
    generator = torch.Generator().manual_seed(0)
    z, a = torch.randn(4, 9, generator=generator) * 3, torch.randn(4, 9, generator=generator)
    for rho, same in ((None, True), (0.3, False)):
        raw, soft = (difference_logits(z, x, 0.8, rho).softmax(-1) for x in (a, a.log_softmax(-1)))
        assert torch.allclose(raw, soft, atol=1e-6) is same


def test_alpha_zero_is_the_base_bit_for_bit() -> None:
    z = torch.randn(6, 11, generator=torch.Generator().manual_seed(1)) * 10
    for rho in (None, 0.1):
        assert torch.equal(difference_logits(z, torch.randn(6, 11) * 100, 0.0, rho), z)
    assert torch.equal(offset_logits(z, z + 1, 2.0, z), z + 2)


def test_uniform_kl_against_a_loop_and_at_underflow() -> None:
    logits = torch.randn(3, 6, generator=torch.Generator().manual_seed(2))
    for row, value, even in zip(logits, uniform_kl(logits), flatness(logits), strict=True):
        p = [math.exp(float(x)) for x in row]
        p = [x / sum(p) for x in p]
        assert float(value) == pytest.approx(sum(math.log(1 / 6 / x) / 6 for x in p), abs=1e-5)
        assert float(even) == pytest.approx(-sum(x * math.log(x) for x in p) / math.log(6), abs=1e-5)
    assert float(uniform_kl(torch.zeros(7))) == pytest.approx(0.0, abs=1e-6)
    steep = torch.tensor([400.0, 0.0, 0.0])
    assert steep.softmax(-1).log().isinf().any()
    assert torch.isfinite(uniform_kl(steep))
    assert float(flatness(torch.zeros(7))) == pytest.approx(1.0)


def test_the_loss_against_loops(tiny: Any, request_: Any) -> None:
    """Answers of unequal length: means are over answer tokens, not over rows, prompts or padding."""
    forget = tiny.encode_rows(request_.forget)[:2]
    retain = [tiny.encode("Which colour ?", "red"), *tiny.encode_rows(request_.retain)[:2]]
    parts = {}
    for name, rows in (("forget", forget), ("retain", retain)):
        share = torch.full((len(rows),), 1.0 / sum(row.n_targets for row in rows))
        parts[name] = {**tiny.batch(rows), "token_share": share}
    tiny.model.eval()
    with torch.no_grad():
        found, numbers = assistant_loss(tiny.model, parts, 5.0)
        nll, kl = [], []
        for rows, values in ((forget, nll), (retain, kl)):
            for row in rows:
                logits = tiny.model(torch.tensor([row.ids])).logits[0].log_softmax(-1)
                for t in range(row.n_prompt, len(row.ids)):
                    uniform = -math.log(logits.shape[-1]) - float(logits[t - 1].mean())
                    values.append(-float(logits[t - 1, row.ids[t]]) if values is nll else uniform)
    assert float(found) == pytest.approx(sum(nll) / len(nll) + 5 * sum(kl) / len(kl), rel=1e-4)
    assert numbers["forget"] == pytest.approx(sum(nll) / len(nll), rel=1e-3)
    assert numbers["uniform"] == pytest.approx(sum(kl) / len(kl), rel=1e-4)


def test_a_wrong_answer_counts_from_where_it_left_the_right_one() -> None:
    right = Encoded([1, 2, 3, 4, 5, 9], 2)
    assert after_leaving(Encoded([1, 2, 3, 7, 5, 9], 2), right) == Encoded([1, 2, 3, 7, 5, 9], 4)
    assert after_leaving(Encoded([1, 2, 8, 9], 2), right) == Encoded([1, 2, 8, 9], 3)
    assert after_leaving(Encoded([1, 2, 8], 2), right) is None, (
        "its one token is predicted from the forget row's own prefix"
    )
    assert after_leaving(right, right) is None


def test_what_the_assistant_sees(tiny: Any, request_: Any) -> None:
    known = remembered(tiny, request_, 3)
    assert len(known) == 24
    assert known[0] == known[2] == tiny.encode(request_.forget["question"][0], request_.forget["answer"][0])
    assert known[1] == tiny.encode(request_.forget["question"][0], request_.forget["paraphrased_answer"][0])
    last = flattened(tiny, request_, ULDConfig(retain_rows=3, wrong_answers=0))
    assert last == tiny.encode_rows(request_.retain)[-3:], "the last rows, not the first, and no random ones"
    assert len(flattened(tiny, request_, ULDConfig(retain_rows="all", wrong_answers=0))) == 8
    matched = dataclasses.replace(request_, forget=request_.forget.select(range(2)), sources={})
    assert len(flattened(tiny, matched, ULDConfig(wrong_answers=0))) == 2
    with_wrong = flattened(tiny, matched, ULDConfig(wrong_answers=2))
    assert len(with_wrong) == 2 + 4
    whole = flattened(tiny, matched, ULDConfig(wrong_answers=0, uniform_on="all"))
    assert all(row.n_prompt == 1 for row in whole)


def test_trap_missing_augmentation_is_said(tiny: Any, sets: Any) -> None:
    bare = [{key: row[key] for key in ("id", "question", "answer")} for row in sets["forget"]]
    request = Request.from_rows(forget=bare, retain=sets["retain"])
    with pytest.warns(UserWarning, match="no paraphrased_answer"):
        assert len(remembered(tiny, request, 3)) == 24
    with pytest.warns(UserWarning, match="style of the questions"):
        flattened(tiny, request, ULDConfig())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        remembered(tiny, request, 1)
        flattened(tiny, request, ULDConfig(wrong_answers=0))


QUICK: dict[str, Any] = {
    "scope": "all",
    "learning_rate": 1e-2,
    "epochs": 12,
    "batch_size": 8,
    "warmup_ratio": 0.0,
    "alpha": 1.0,
}


@pytest.fixture(scope="module")
def fitted(tiny_folder: Path, request_: Any, tmp_path_factory: pytest.TempPathFactory) -> Edit:
    """One guard for the tests below."""
    folder = tmp_path_factory.mktemp("uld")
    method, subject = find_method("uld"), efface.load(tiny_folder)
    before = subject.digest
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        made = method.fit(subject, request_, method.configure(QUICK), work=folder / "work", out=folder / "edit").edit
    subject.changed()
    assert subject.digest == before
    return made


def test_the_pair_forgets_and_the_base_is_as_it_was(fitted: Edit, tiny: Any, request_: Any) -> None:
    def logp(data: Any) -> float:
        with tiny.evaluating() as model:
            return float(answer_logits(model, tiny.batch(tiny.encode_rows(data))).token_logp.mean())

    before = {name: tensor.clone() for name, tensor in tiny.weights().items()}
    start = logp(request_.forget), logp(request_.retain)
    fitted.apply(tiny)
    assert isinstance(tiny.model, LogitEnsemble)
    assert tiny.model.assistant.config.num_hidden_layers == 1, "a quarter of two layers, and at least one"
    end = logp(request_.forget), logp(request_.retain)
    assert end[0] < start[0] - 0.3
    assert end[1] > end[0] + 0.1
    fitted.remove(tiny)
    assert all(torch.equal(before[name], tensor) for name, tensor in tiny.weights().items())
    found = fitted.facts.config["assistant"]
    assert 0 < found["retain_flatness"] <= 1
    assert found["forget_nll"] < 0.7 * math.log(len(tiny.tokenizer)), "better than a flat guess"


def by_hand(tiny: Any, guarded: LogitEnsemble, prompt: list[int], steps: int, rho: float | None) -> list[int]:
    """Greedy search with both models over the whole text at every step."""
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(steps):
            z, a = (model(torch.tensor([ids])).logits[0, -1] for model in (guarded.base, guarded.assistant))
            ids.append(int(difference_logits(z, a, guarded.combine.alpha, rho).argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("rho", [None, 0.05])
def test_generation_cached_uncached_padded_and_by_hand(
    fitted: Edit, tiny: Any, request_: Any, rho: float | None
) -> None:
    fitted.apply(tiny)
    pair = tiny.model
    guarded = LogitEnsemble(
        pair.base, pair.assistant, Ensemble(combine="difference", alpha=0.7, rho=rho, layers=1)
    ).eval()  # fmt: skip
    prompts = [tiny.encode_prompts(request_.forget)[i][i:] for i in range(3)]
    tiny.model = guarded
    stop = set(tiny.stop_ids())
    together = tiny.generate(prompts, max_new_tokens=6)
    for prompt, ours in zip(prompts, together, strict=True):
        hand = by_hand(tiny, guarded, prompt, 6, rho)
        until = next((i for i, token in enumerate(hand) if token in stop), len(hand))
        assert ours == hand[:until] == tiny.generate([prompt], max_new_tokens=6)[0]
    ids = torch.tensor(prompts[:1])
    sampled = []
    for use_cache in (True, False):
        torch.manual_seed(3)
        sampled.append(
            guarded.generate(
                ids, do_sample=True, num_return_sequences=3, max_new_tokens=5, use_cache=use_cache,
                pad_token_id=tiny.pad_id, eos_token_id=None,
            ).tolist()
        )  # fmt: skip
    assert sampled[0] == sampled[1], "sampling takes the same logits as greedy search"
    tiny.model = pair


def test_beams_only_where_no_cache_is_left_behind(fitted: Edit, tiny: Any) -> None:
    fitted.apply(tiny)
    ids = torch.tensor([[3, 4, 5]])
    with pytest.raises(ConfigError, match="use_cache=False"):
        tiny.model.generate(ids, num_beams=2, max_new_tokens=3, pad_token_id=tiny.pad_id)
    out = tiny.model.generate(ids, num_beams=2, max_new_tokens=3, use_cache=False, pad_token_id=tiny.pad_id)
    assert out.shape[0] == 1


def test_the_filter_and_the_rule_are_part_of_the_digest(fitted: Edit, tiny: Any) -> None:
    """Score tables are cached by digest: two guards that differ in rho alone must not share one."""
    fitted.apply(tiny)
    pair, digests = tiny.model, set()
    for rho in (None, 0.01, 0.1):
        tiny.model = LogitEnsemble(pair.base, pair.assistant, Ensemble(combine="difference", alpha=1.0, rho=rho))
        tiny.changed()
        digests.add(tiny.digest)
    assert len(digests) == 3


def test_the_offset_baseline(tiny: Any, request_: Any, tmp_path: Path) -> None:
    method = find_method("uld")
    config = method.configure({**QUICK, "mode": "offset", "epochs": 3, "alpha": 0.6})
    edit = method.fit(tiny, request_, config, work=tmp_path / "work", out=tmp_path / "edit").edit
    digest = tiny.digest
    Edit.load(tmp_path / "edit").apply(tiny)
    guarded = tiny.model
    ids = torch.tensor(tiny.encode_prompts(request_.forget)[:2])
    with torch.no_grad():
        z, after = guarded.base(ids).logits, guarded.assistant(ids).logits
        before = first_layers(efface.load(tiny.source), 1).model(ids).logits
        torch.testing.assert_close(guarded(ids).logits, z + 0.6 * (after - before))
        assert not torch.allclose(after, before)
    cached, plain = (
        guarded.generate(ids, max_new_tokens=4, use_cache=use, pad_token_id=tiny.pad_id, eos_token_id=None)
        for use in (True, False)
    )
    assert torch.equal(cached, plain)
    edit.remove(tiny)
    assert tiny.digest == digest


def test_bad_input(tiny: Any, request_: Any, tmp_path: Path) -> None:
    method = find_method("uld")

    def fit(**values: Any) -> None:
        method.fit(tiny, request_, method.configure(values), work=tmp_path / "work", out=tmp_path / "edit")

    with pytest.raises(ConfigError, match="an assistant of 2 layers for a model of 2"):
        fit(assistant_layers=2)
    with pytest.raises(ConfigError, match="alpha"):
        method.configure({"alpha": -0.8})  # the code's weight is -alpha
    with pytest.raises(ConfigError, match="offset_objective=who-is-harry-potter"):
        fit(mode="offset", offset_objective="who-is-harry-potter")
    with pytest.raises(ConfigError, match="mask"):
        method.configure({"scope": "mask"})
    with pytest.raises(ValueError, match="rho belongs"):
        Ensemble(combine="offset", alpha=1.0, rho=0.1)
    with pytest.raises(ModelError, match="without a model from before"):
        LogitEnsemble(tiny.model, first_layers(tiny, 1).model, Ensemble(combine="offset", alpha=1.0, layers=1))
    assert not (tmp_path / "edit").exists()


def test_an_assistant_that_learnt_too_little_is_said(tiny: Any, request_: Any, tmp_path: Path) -> None:
    method = find_method("uld")
    config = method.configure({"epochs": 1, "learning_rate": 1e-6})
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        method.fit(tiny, request_, config, work=tmp_path / "work", out=tmp_path / "edit")
    texts = [str(each.message) for each in told]
    assert any("does not know the forget set" in text for text in texts)
    assert any("is not flat on the retain set" in text for text in texts)
