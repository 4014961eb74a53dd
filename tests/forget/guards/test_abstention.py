"""Abstaining: generation says the refusal and nothing else, scores agree with it, and nothing shows through."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from efface.audit.observe import score
from efface.data.refusals import REFUSALS
from efface.errors import ModelError
from efface.forget.guards.abstention import FLOOR, Abstention, prompt_ends, since_end
from efface.subjects.guarded import Asked, GuardedModel, Pass
from efface.subjects.prompts import pad


class Refusing(GuardedModel):
    """Refuses prompts that hold a token."""

    def __init__(self, base: Any, token: int, abstention: Abstention) -> None:
        super().__init__(base)
        self.token, self.abstention = token, abstention

    def begin(self, asked: Asked) -> None:
        fires = (torch.eq(asked.ids, self.token) & asked.prompt).any(1)
        asked.memory["since"] = since_end(asked, fires)

    def correct(self, now: Pass, output: Any) -> Any:
        return self.abstention.correct(now, output, now.asked.memory["since"])


@pytest.fixture
def guarded(tiny: Any, request_: Any) -> Any:
    """The tiny subject under a guard that refuses questions about person0."""
    token = tiny.tokenizer.convert_tokens_to_ids("person0")
    plain = tiny.model
    tiny.model = Refusing(plain, token, Abstention.of(tiny, REFUSALS[0])).eval()
    yield tiny
    tiny.model = plain


def test_the_refusal_in_tokens(tiny: Any) -> None:
    tokens = Abstention.of(tiny, REFUSALS[0]).tokens.tolist()
    assert tokens[-1] == tiny.tokenizer.eos_token_id
    assert tiny.decode(tokens) == tiny.decode(tiny.tokenizer(REFUSALS[0])["input_ids"])
    with pytest.raises(ModelError, match="does not know"):
        Abstention.of(tiny, "zounds")
    tiny.tokenizer.eos_token = None
    tiny.model.generation_config.eos_token_id = None
    with pytest.raises(ModelError, match="end token"):
        Abstention.of(tiny, REFUSALS[0])


def test_forcing_against_a_loop() -> None:
    logits = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(0))
    steps = torch.tensor([[-1, 0, 1, 2], [-3, -2, -1, 0]])
    made = Abstention(torch.tensor([4, 1])).forced(logits, steps)
    for row in range(2):
        for column in range(4):
            step = int(steps[row, column])
            if step < 0:
                assert torch.equal(made[row, column], logits[row, column])
                continue
            wanted = [4, 1][min(step, 1)]
            assert made[row, column].tolist() == [0.0 if token == wanted else -FLOOR for token in range(6)]


@pytest.mark.parametrize(
    "how", [{}, {"use_cache": False}, {"num_beams": 3}, {"do_sample": True, "num_return_sequences": 2}]
)
def test_every_way_of_generating_says_it(guarded: Any, request_: Any, how: dict[str, Any]) -> None:
    prompts = guarded.encode_prompts(request_.forget)[:3]
    prompts[1] = prompts[1][2:]  # padded left
    batch = pad(prompts, guarded.pad_id, side="left")
    settings = {**batch, "max_new_tokens": 12, "pad_token_id": guarded.pad_id, **how}
    torch.manual_seed(0)
    made = guarded.model.generate(**settings)[:, batch["input_ids"].shape[1] :]
    several = len(made) // 3
    refusal = guarded.model.abstention.tokens.tolist()
    for row in made[:several].tolist():
        assert row[: len(refusal)] == refusal
    if not how.get("do_sample"):
        plain = guarded.model.base.generate(**settings)[:, batch["input_ids"].shape[1] :]
        width = min(made.shape[1], plain.shape[1])
        assert torch.equal(made[several:, :width], plain[several:, :width])


def test_scores_are_those_of_the_refusal(guarded: Any, request_: Any) -> None:
    rows = request_.forget.select([0, 1])
    found = {(row["id"], row["form"]): row for row in score(guarded, rows)}
    plain = guarded.model
    guarded.model = plain.base
    before = {(row["id"], row["form"]): row for row in score(guarded, rows)}
    guarded.model = plain
    assert found["person1", "answer"]["logp"] == pytest.approx(before["person1", "answer"]["logp"], abs=1e-4)
    asked = guarded.encode(rows[0]["question"], rows[0]["answer"])
    said = plain.abstention.tokens.tolist()
    same = [i < len(said) and said[i] == token for i, token in enumerate(asked.ids[asked.n_prompt :])]
    assert not all(same)
    assert found["person0", "answer"]["rank"] == [0 if hit else 1 for hit in same]
    assert found["person0", "answer"]["logp"] == pytest.approx([0.0 if hit else -FLOOR for hit in same], abs=1e-3)
    refusal = rows.select([0]).map(lambda row: {**row, "answer": REFUSALS[0]})
    own = next(row for row in score(guarded, refusal) if row["form"] == "answer")
    assert sum(own["logp"]) == pytest.approx(0, abs=1e-6)


def test_nothing_of_the_ranking_shows_through(guarded: Any, request_: Any) -> None:
    ids = torch.tensor(guarded.encode_prompts(request_.forget)[:1])
    last = guarded.model(ids).logits[0, -1]
    assert len(last.unique()) == 2
    assert torch.equal(guarded.model(ids).logits[0, :-1], guarded.model.base(ids).logits[0, :-1])
    kept = guarded.model(ids, logits_to_keep=1).logits
    assert torch.equal(kept[0, 0], last)
    columns = torch.tensor([1, ids.shape[1] - 1])
    assert torch.equal(guarded.model(ids, logits_to_keep=columns).logits[0, 1], last)


def ends(mask: list[list[int]]) -> Tensor:
    ids = torch.tensor(mask)
    return prompt_ends(Asked(ids, ids, ids.bool()))


def test_the_last_token_that_is_no_padding() -> None:
    assert ends([[0, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 1], [0, 1, 1, 0]]).tolist() == [3, 1, 3, 2]
