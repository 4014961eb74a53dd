"""Attribution against plain loops, word scores, and the refusals of places and words."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from efface.errors import ConfigError, RequestError
from efface.measure.value_vectors import (
    Place,
    attribution,
    parse_places,
    ranked,
    value_vector,
    vectors_at,
    word_scores,
    word_tokens,
)
from efface.subjects.lens import final_norm


def test_attribution_by_plain_loops(tiny: Any, request_: Any) -> None:
    rows = tiny.encode_rows(request_.forget)[:3]
    found = attribution(tiny, rows, batch_size=2)
    gain, head = final_norm(tiny.model).weight.detach(), tiny.model.get_output_embeddings().weight.detach()
    for layer, block in enumerate(tiny.model.model.layers):
        total = torch.zeros(len(found[layer]))
        for row in rows:
            keys: list[torch.Tensor] = []
            hook = block.mlp.down_proj.register_forward_pre_hook(lambda _, args, keys=keys: keys.append(args[0]))
            with torch.no_grad():
                tiny.model(input_ids=torch.tensor([row.ids[: row.n_prompt]]))
            hook.remove()
            for j in range(len(total)):
                v = block.mlp.down_proj.weight.detach()[:, j]
                total[j] += keys[0][0, -1, j] * float((gain * v) @ head[row.ids[row.n_prompt]])
        torch.testing.assert_close(found[layer], total / 3, rtol=1e-3, atol=1e-5)


def test_ranking() -> None:
    scores = [torch.tensor([0.5, 2.0, -1.0]), torch.tensor([2.0, 3.0, 0.0])]
    assert ranked(scores)[:3] == [Place(1, 1), Place(0, 1), Place(1, 0)]
    assert ranked(scores, [0]) == [Place(0, 1), Place(0, 0), Place(0, 2)]


def test_a_value_vector_is_live(tiny: Any) -> None:
    before = vectors_at(tiny, [Place(1, 4), Place(0, 2)])
    with torch.no_grad():
        value_vector(tiny, Place(1, 4)).add_(1.0)
    after = vectors_at(tiny, [Place(1, 4), Place(0, 2)])
    torch.testing.assert_close(after[0], before[0] + 1)
    torch.testing.assert_close(after[1], before[1])


def test_word_scores_find_a_vector_that_writes_the_words(tiny: Any) -> None:
    words = ["red", "green", "blue"]
    tokens = word_tokens(tiny, words)
    head, gain = tiny.model.get_output_embeddings().weight.detach(), final_norm(tiny.model).weight.detach()
    direction = head[tokens].mean(0) - head.mean(0)
    with torch.no_grad():
        value_vector(tiny, Place(0, 7)).copy_(5 * direction / direction.norm() / gain)
        value_vector(tiny, Place(0, 9)).copy_(-5 * direction / direction.norm() / gain)
    scores = word_scores(tiny, 0, words, k=10)
    assert int(scores.top.argmax()) == 7
    assert int(scores.bottom.argmax()) == 9  # a concept may be written negatively
    assert 0.6 < float(scores.strong.double().mean()) < 0.8


def test_bad_input(tiny: Any) -> None:
    with pytest.raises(ConfigError, match="value vector 999 of layer 0; expected 0 to 95"):
        value_vector(tiny, Place(0, 999))
    with pytest.raises(ConfigError, match="layer 2; expected 0 to 1"):
        value_vector(tiny, Place(2, 0))
    for bad in ("3", "1:a", "1:2,1:2", ""):
        with pytest.raises(ConfigError, match="vectors="):
            parse_places(bad)
    assert parse_places(" 3:17, 4:2") == [Place(3, 17), Place(4, 2)]
    with pytest.raises(RequestError, match="the concept word 'red green' is 2 tokens or unknown"):
        word_tokens(tiny, ["red green"])
    with pytest.raises(RequestError, match="the concept word 'zzz'"):
        word_tokens(tiny, ["zzz"])
    with pytest.raises(RequestError, match="no concept words"):
        word_tokens(tiny, [])
    with pytest.raises(RequestError, match="no prompt to attribute"):
        attribution(tiny, [])
