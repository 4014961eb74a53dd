"""The soft prompt: a prefix of real words is the same as those words, training helps, and the model is left alone."""

from __future__ import annotations

from typing import Any

import torch

from efface.audit.attacks.soft_prompt import _answers, _probabilities, soft_prompt
from efface.subjects.prompts import Encoded


def test_a_prefix_of_real_tokens_is_those_tokens(tiny: Any, request_: Any) -> None:
    rows = tiny.encode_rows(request_.forget)[:3]
    chosen = [5, 9]
    prefix = tiny.model.get_input_embeddings().weight[chosen].detach()
    with torch.no_grad():
        soft = _answers(tiny, prefix, rows).logp_sum
        real = []
        for row in rows:
            ids = [*chosen, *row.ids]
            logp = tiny.model(torch.tensor([ids])).logits[0].log_softmax(-1)
            start = len(chosen) + row.n_prompt
            real.append(sum(float(logp[at - 1, ids[at]]) for at in range(start, len(ids))))
    torch.testing.assert_close(soft, torch.tensor(real), rtol=1e-4, atol=1e-3)
    batched = _probabilities(tiny, prefix, rows, 3)
    assert torch.allclose(torch.tensor(batched), torch.tensor(_probabilities(tiny, prefix, rows, 1)), atol=1e-5)
    assert isinstance(rows[0], Encoded)


def test_training_helps_and_the_model_is_left_alone(tiny: Any, request_: Any) -> None:
    digest = tiny.digest
    flags = [p.requires_grad for p in tiny.model.parameters()]
    how = {"tokens": 4, "learning_rate": 0.3, "batch_size": 4, "seed": 0}
    none = soft_prompt(tiny, request_.forget, steps=0, **how)
    some = soft_prompt(tiny, request_.forget, steps=40, **how)
    assert some["trained"] > none["trained"]
    assert none["before"] == none["after"] == some["before"]
    assert len(some["after"]) == len(request_.forget) // 2
    assert soft_prompt(tiny, request_.forget, steps=40, **how) == some
    tiny.changed()
    assert tiny.digest == digest
    assert [p.requires_grad for p in tiny.model.parameters()] == flags
