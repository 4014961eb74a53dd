"""DP-MLM on a data set: each word at its own place, the report, what may not leak, determinism, and the traps by name."""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset

from efface.data.columns import canonical
from efface.data.text_privacy import TextPrivacyWarning, probabilities
from efface.errors import ConfigError, InputError, RequestError
from efface.lab.masked_words import (
    chance_kept,
    masked_words,
    new_masked_words,
    nouns,
    sentences,
    share_kept,
)
from efface.learn.private_text import ROBERTA_BASE, PrivateTextConfig, is_roberta_base, privatise, public_clip
from efface.subjects.masked_lm import Gap, MaskedLM

CLIP = (-8.0, 12.0)


@pytest.fixture(scope="module")
def model() -> MaskedLM:
    return new_masked_words(0)


def config(epsilon: float = 0.5, **more: Any) -> PrivateTextConfig:
    return PrivateTextConfig(epsilon=epsilon, clip=CLIP, **more)


def data(*answers: str, question: str = "where is the Cat ?") -> Dataset:
    return canonical([{"id": f"r{i}", "question": question, "answer": a} for i, a in enumerate(answers)], "rows")


class Certain:
    """Stands for a model that is sure of one word a gap: the words in turn."""

    def __init__(self, model: MaskedLM, words: list[str]) -> None:
        self.model, self.words = model, iter(words)

    def __call__(self, gaps: list[Gap], *, batch_size: int = 16) -> torch.Tensor:
        rows = torch.full((len(gaps), self.model.width), -8.0)
        for row in rows:
            row[self.model.words.index(next(self.words))] = 12.0
        return rows


def test_each_word_at_its_own_place(model: MaskedLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "logits", Certain(model, ["dog", "hen", "fox", "owl"]))
    rows = data("the cat saw the cat , the cat.", "my cat,")
    with pytest.warns(TextPrivacyWarning):
        new, _ = privatise(rows, model, config(500.0, protect="listed", words=("cat",)))
    assert new["answer"] == ["the dog saw the hen , the fox.", "my owl,"]


def test_the_report_and_the_untouched(model: MaskedLM) -> None:
    rows = data("the Cat and the Dog .", "nothing of it .", "Mouse !")
    new, found = privatise(rows, model, config(protect="capitalised"))
    assert (found.most, found.replaced, found.rows, found.untouched) == (2, 3, 3, 1)
    assert found.row_epsilon == 1.0
    assert found.candidates == len(model.tokenizer) - 5
    assert found.columns == ("answer",)
    assert found.rule == "words with a capital letter"
    assert new["answer"][1] == "nothing of it ."
    assert new["question"] == rows["question"]
    assert new["answer"][0].startswith("the ")
    assert new["answer"][0].split()[1] != "Cat", "no token of the vocabulary has a capital"


def test_both_columns_compose(model: MaskedLM) -> None:
    rows = data("the Cat and the Dog .")
    new, found = privatise(rows, model, config(protect="capitalised", questions=True))
    assert found.most == 3
    assert "Cat" not in new["question"][0]


def test_a_callable_is_a_rule(model: MaskedLM) -> None:
    def every_dog(text: str) -> list[tuple[int, int]]:
        return [(text.index("dog"), text.index("dog") + 3)]

    _, found = privatise(data("a dog and a cat"), model, config(), protect=every_dog)
    assert (found.most, found.rule) == (1, "every_dog")
    with pytest.raises(RequestError, match="row 0, column 'answer': span"):
        privatise(data("a dog"), model, config(), protect=lambda text: [(0, 99)])


def test_columns_that_hold_the_raw_text_are_left_out(model: MaskedLM) -> None:
    row = {
        "question": "q",
        "answer": "a Cat",
        "paraphrased_answer": "Cat",
        "perturbed_answer": ["Dog"],
        "concept": "Cat",
    }
    new, _ = privatise(canonical([row], "rows"), model, config())
    assert new.column_names == ["id", "question", "answer"]


def test_determinism_by_seed_and_row(model: MaskedLM) -> None:
    texts = sentences(0)[1][:12]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TextPrivacyWarning)

        def run(rows: Dataset, **more: Any) -> list[str]:
            return list(privatise(rows, model, config(2.0, **more))[0]["answer"])

        rows = data(*texts)
        once = run(rows)
        assert run(rows) == once
        assert run(rows, batch_size=3) == once
        assert run(rows.select(range(11, -1, -1))) == once[::-1], "a row's draws do not depend on the others"
        assert run(rows, seed=1) != once
        same = run(data(texts[0], texts[0]))
        assert same[0] != same[1], "rows do not share their noise"
        assert run(rows, noise_from="system") != run(rows, noise_from="system")


def test_traps(model: MaskedLM, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"clip range of RoBERTa-base for 'lab.*public_clip"):
        privatise(data("a cat"), model)
    assert PrivateTextConfig().clip == ROBERTA_BASE == (-5.2093, 20.3048)
    with pytest.warns(TextPrivacyWarning, match="2 words a row compose to 200"):
        privatise(data("a cat"), model, config(100.0))
    with pytest.raises(RequestError, match="no protected word in 1 rows"):
        privatise(data("a cat"), model, config(protect="capitalised"))
    with pytest.raises(RequestError, match="row 1: id 'x' comes twice"):
        privatise(Dataset.from_list([{"id": "x", "question": "", "answer": "a"}] * 2), model, config())
    with pytest.raises(RequestError, match="row 0, column 'answer': empty"):
        privatise(Dataset.from_list([{"id": "x", "question": "", "answer": " "}]), model, config())
    with pytest.raises(RequestError, match="rows with id, question and answer"):
        privatise(Dataset.from_list([{"text": "a"}]), model, config())
    with pytest.raises(RequestError, match=r"row 1, column 'answer': too long.*48 tokens"):
        privatise(data("a cat", "a cat " * 20), model, config())
    for bad in ({"epsilon": 0}, {"epsilon": -1.0}, {"clip": (1.0, 1.0)}, {"protect": "verbs"}, {"top": 10}):
        with pytest.raises(ConfigError):
            PrivateTextConfig.parse(bad)
    monkeypatch.setattr(model, "logits", lambda gaps, batch_size: torch.full((len(gaps), model.width), float("nan")))
    with pytest.raises(InputError, match="NaN"):
        privatise(data("a cat"), model, config())


@pytest.mark.parametrize(("kind", "layers", "width", "base"), [
    ("roberta", 12, 768, True), ("roberta", 6, 768, False), ("roberta", 24, 1024, False), ("bert", 12, 768, False),
])  # fmt: skip
def test_only_roberta_base_has_its_clip_range(kind: str, layers: int, width: int, base: bool) -> None:
    facts = SimpleNamespace(model_type=kind, num_hidden_layers=layers, hidden_size=width)
    assert is_roberta_base(SimpleNamespace(model=SimpleNamespace(config=facts))) is base  # type: ignore[arg-type]


def test_public_clip_is_the_range_over_every_word(model: MaskedLM) -> None:
    texts = ["the cat likes bread .", "my dog ."]
    gaps = [Gap(texts[0], 0, 3), Gap(texts[0], 4, 7), Gap(texts[0], 8, 13), Gap(texts[0], 14, 19)]
    gaps += [Gap(texts[1], 0, 2), Gap(texts[1], 3, 6)]
    logits = torch.cat([model.logits([gap]) for gap in gaps])
    assert public_clip(model, texts, batch_size=2) == pytest.approx(
        (float(logits.min()), float(logits.max())), abs=1e-5
    )
    with pytest.raises(InputError, match="no logits"):
        public_clip(model, ["...", ""])


def test_the_sentences_are_apart_and_every_word_is_known() -> None:
    public, private = sentences(0)
    assert (len(public), len(private)) == (300, 200)
    assert not set(public) & set(private)
    assert sentences(0) == (public, private) != sentences(1)
    made = new_masked_words(0)
    assert not any(1 in made.tokenizer(text)["input_ids"] for text in public + private)


@pytest.mark.slow
def test_a_trained_model_keeps_what_its_chances_say() -> None:
    """Draws of the whole path against exact probabilities: the mask stands where the word was, for every word."""
    world = masked_words(0)
    clip = public_clip(world.model, world.public, batch_size=64)
    gaps = [Gap(text, *span) for text in world.private["answer"] for span in nouns()(text)]
    logits = world.model.logits(gaps, batch_size=64)
    first = [world.model.words[int(i)] for i in logits.argmax(1)]
    right = [a == gap.text[gap.start : gap.end] for a, gap in zip(first, gaps, strict=True)]
    assert sum(right) / len(right) > 0.95, "the model has learnt to look at the original"
    assert float(probabilities(logits, clip, 0.001).std()) < 1e-4, "at so small an epsilon every token is alike"
    with pytest.warns(TextPrivacyWarning):
        new, _ = privatise(world.private, world.model, PrivateTextConfig(epsilon=25.0, clip=clip), protect=nouns())
    chance = chance_kept(world.model, world.private, clip, 25.0)
    error = (chance * (1 - chance) / len(gaps)) ** 0.5
    assert abs(share_kept(world.private, new) - chance) < 4 * error
