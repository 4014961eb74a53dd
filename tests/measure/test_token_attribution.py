"""Integrated gradients: against a plain loop, completeness, the published rule's bias, precision, words, what is refused."""

from __future__ import annotations

import copy
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from efface.errors import InputError, MissingExtraError, ModelError, RequestError
from efface.measure import token_attribution
from efface.measure.token_attribution import (
    TokenAttribution,
    WordAttribution,
    answer_words,
    integrated_gradients,
    top_words,
)
from efface.subjects import CausalLM
from efface.subjects.answers import answer_logits

STEPS = 24


def row_of(tiny: Any, request_: Any, index: int = 0) -> Any:
    return tiny.encode(request_.forget["question"][index], request_.forget["answer"][index])


def value_and_gradient(subject: Any, row: Any, e: Tensor) -> tuple[float, Tensor]:
    """F and dF/de at embeddings [T, d], token by token."""
    point = e.clone().requires_grad_(True)
    logits = subject.model(inputs_embeds=point[None]).logits[0]
    total = sum(logits[t - 1].log_softmax(-1)[row.ids[t]] for t in range(row.n_prompt, len(row.ids)))
    assert isinstance(total, Tensor)
    (gradient,) = torch.autograd.grad(total, point)
    return float(total.detach()), gradient


def by_loop(subject: Any, row: Any, alphas: list[float]) -> Tensor:
    """[T] attribution with the padding token's embedding as the baseline of the answer."""
    table = subject.model.get_input_embeddings().weight.detach()
    e = table[torch.tensor(row.ids)]
    start = e.clone()
    start[row.n_prompt :] = table[subject.tokenizer.pad_token_id]
    mean = torch.zeros_like(e)
    for alpha in alphas:
        mean += value_and_gradient(subject, row, start + alpha * (e - start))[1] / len(alphas)
    return ((e - start) * mean).sum(-1)


def test_midpoints_of_a_plain_loop(tiny: Any, request_: Any) -> None:
    row = row_of(tiny, request_)
    found = integrated_gradients(tiny, row, steps=STEPS, chunk=7)
    expected = by_loop(tiny, row, [(s + 0.5) / STEPS for s in range(STEPS)])
    torch.testing.assert_close(found.scores, expected, rtol=1e-3, atol=2e-4)
    assert not found.scores[: row.n_prompt].any(), "the baseline differs on the answer alone"
    assert found.scores[-1] == 0, "no token comes after the last"
    with tiny.evaluating() as model:
        logp = float(answer_logits(model, tiny.batch([row])).logp_sum[0])
    assert found.reached == pytest.approx(logp, abs=1e-4)


def test_completeness_and_the_bias_of_the_published_rule(tiny: Any, request_: Any) -> None:
    row, steps = row_of(tiny, request_, 1), 128
    found = integrated_gradients(tiny, row, steps=steps)
    change = found.reached - found.start
    assert found.error == pytest.approx(float(found.scores.sum()) - change, abs=1e-4)
    assert abs(found.error) < 0.01 * abs(change)
    ends = [s / (steps - 1) for s in range(steps)]  # both endpoints, with equal weight
    assert abs(float(by_loop(tiny, row, ends).sum()) - change) > 5 * abs(found.error)


def test_the_chunk_changes_nothing_and_other_positions_do(tiny: Any, request_: Any) -> None:
    row = row_of(tiny, request_)
    one, other = (integrated_gradients(tiny, row, steps=STEPS, chunk=chunk) for chunk in (1, STEPS))
    torch.testing.assert_close(one.scores, other.scores, rtol=1e-4, atol=1e-5)
    prompt = integrated_gradients(tiny, row, steps=STEPS, positions=[0, 2])
    assert set(prompt.scores.nonzero().flatten().tolist()) <= {0, 2}
    assert prompt.reached == one.reached
    assert prompt.start != one.start


def test_zero_is_where_rms_norms_have_their_kink(tiny: Any, request_: Any) -> None:
    """The direction of alpha e is the same for every alpha > 0: F is a step at the start, which no even grid sees."""
    row = row_of(tiny, request_)
    zero, pad = (integrated_gradients(tiny, row, steps=256, baseline=kind) for kind in ("zero", "pad"))
    assert zero.relative_error > 0.05
    assert pad.relative_error < 0.01


def test_the_model_is_left_alone(tiny: Any, request_: Any) -> None:
    digest, mode = tiny.digest, tiny.model.training
    integrated_gradients(tiny, row_of(tiny, request_), steps=2)
    tiny.changed()
    assert tiny.digest == digest
    assert tiny.model.training == mode
    assert all(p.grad is None and p.requires_grad for p in tiny.model.parameters())


def test_words_get_what_their_tokens_have(tiny: Any, request_: Any) -> None:
    question, answer = request_.forget["question"][0], request_.forget["answer"][0]
    found = answer_words(tiny, question, answer, steps=STEPS)
    assert [word for word, _ in found.words] == answer.rstrip(" .").split()
    row = tiny.encode(question, answer)
    tokens = found.tokens.scores[row.n_prompt :].tolist()  # one token a word, then the full stop and the end
    assert [score for _, score in found.words] == pytest.approx(tokens[:-2])


def test_a_word_of_several_tokens_is_one_word(tiny: Any, request_: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte-level tokenizer; the scores are made up, one for each token, so that sums can be told."""
    from efface.learn.tokenizers import bpe_tokenizer

    tokenizer = bpe_tokenizer(["ab ab cd"], 300)
    subject = CausalLM(copy.deepcopy(tiny.model), tiny.tokenizer, prompt=tiny.prompt)
    subject.tokenizer = tokenizer

    def made(_: Any, row: Any, **__: Any) -> TokenAttribution:
        return TokenAttribution(torch.arange(1.0, row.n_tokens + 1), 0.0, 0.0)

    monkeypatch.setattr(token_attribution, "integrated_gradients", made)
    found = answer_words(subject, "who ?", "Ann's xylophone, wow")
    assert [word for word, _ in found.words] == ["Ann's", "xylophone", "wow"]
    row = subject.encode("who ?", "Ann's xylophone, wow")
    text = [tokenizer.decode([i]) for i in row.ids]
    at = "".join(text).index("xylophone")
    inside = [i + 1 for i in range(len(text)) if at <= len("".join(text[:i])) < at + 9]
    space = [i + 1 for i in range(len(text)) if len("".join(text[: i + 1])) == at and len(text[i]) > 1]
    assert dict(found.words)["xylophone"] == pytest.approx(sum(inside) + sum(space))


def test_top_words_are_summed_over_answers_whatever_their_case() -> None:
    nothing = TokenAttribution(torch.zeros(1), 0.0, 0.0)
    rows = [
        WordAttribution((("Rome", 1.0), ("is", 0.9), ("old", 0.5)), nothing),
        WordAttribution((("rome", 1.0), ("is", -0.5), ("new", 0.5)), nothing),
    ]
    assert top_words(rows, 2) == ("rome", "old"), "the first seen of equals"
    assert top_words(rows, 9) == ("rome", "old", "new", "is")


def test_relative_error_of_nothing() -> None:
    assert TokenAttribution(torch.zeros(2), -1.0, -1.0).relative_error == 0.0
    assert TokenAttribution(torch.ones(2), -1.0, -1.0).relative_error == float("inf")


def test_what_is_refused(tiny: Any, request_: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    row = row_of(tiny, request_)
    with pytest.raises(InputError, match="two steps or more"):
        integrated_gradients(tiny, row, steps=1)
    with pytest.raises(InputError, match="inside the row"):
        integrated_gradients(tiny, row, positions=[len(row.ids)])
    with pytest.raises(RequestError, match="row 3: the answer has no word"):
        answer_words(tiny, "who ?", "...", place="row 3")
    half = CausalLM(copy.deepcopy(tiny.model).to(torch.bfloat16), tiny.tokenizer, prompt=tiny.prompt)
    with pytest.raises(ModelError, match=r"bfloat16.*half precision breaks completeness"):
        integrated_gradients(half, row)
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(MissingExtraError, match=r"efface\[attribution\]"):
        integrated_gradients(tiny, row)


def test_captum_brings_no_torchvision(tiny: Any, request_: Any) -> None:
    integrated_gradients(tiny, row_of(tiny, request_), steps=2)
    assert "captum.attr" in sys.modules
    assert "torchvision" not in sys.modules
