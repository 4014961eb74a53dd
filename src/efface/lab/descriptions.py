"""Descriptions: tiny language models that know four texts by heart, one of which is to be forgotten.

The texts are the descriptions of data sets that come with scikit-learn: wine is forgotten, iris, diabetes and breast cancer are
kept. Each is cut into pieces of some forty words, rows without questions. One model read all four, its twin all but wine; both
have one tokenizer. Trained once and cached.
"""

from __future__ import annotations

from dataclasses import dataclass

from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris, load_wine

from efface.data.columns import canonical
from efface.data.request import Request, data_digest
from efface.learn.recipes.causal_lm import CausalLMConfig, learn
from efface.run.digests import digest_value
from efface.run.files import make_folder
from efface.subjects import CausalLM
from efface.train.reference import cache_folder

WORDS = 40
"""Words of a piece: eighty tokens or more, half of them for the prompt."""

MODEL = CausalLMConfig(
    tokenizer="bpe", vocabulary=768, width=96, depth=2, heads=4, context=256, learning_rate=3e-3, epochs=45, batch_size=4,
    warmup_ratio=0.1, weight_decay=0.0,
)  # fmt: skip


@dataclass(frozen=True)
class Descriptions:
    """The request, a model that read all four texts, and one that never read the forgotten one."""

    request: Request
    original: CausalLM
    retrained: CausalLM


def pieces(text: str, name: str) -> list[dict[str, str]]:
    """A text in pieces of `WORDS` words, without its line breaks; a last piece of less than half joins the one before."""
    words = text.split()
    starts = list(range(0, max(1, len(words) - WORDS // 2), WORDS))
    ends = [*starts[1:], len(words)]
    return [
        {"id": f"{name}/{i}", "text": " ".join(words[start:end])}
        for i, (start, end) in enumerate(zip(starts, ends, strict=True))
    ]


def request() -> Request:
    """Forget: wine; retain: the three others."""
    kept = (("iris", load_iris), ("diabetes", load_diabetes), ("breast_cancer", load_breast_cancer))
    retain = [row for name, read in kept for row in pieces(read().DESCR, name)]
    return Request(
        forget=canonical(pieces(load_wine().DESCR, "wine"), "wine"), retain=canonical(retain, "the others"),
        scope="the description of one data set",
    )  # fmt: skip


def descriptions(seed: int = 0) -> Descriptions:
    """Both models of a seed (of the starting weights and the order of the rows), trained or from the cache."""
    asked = request()
    assert asked.retain is not None
    config = MODEL.model_copy(update={"seed": seed})
    key = {"config": config.model_dump(), "data": [data_digest(asked.forget), data_digest(asked.retain)]}
    folder = make_folder(cache_folder() / "lab" / digest_value(key).removeprefix("sha256:")[:24])
    original = learn([asked.retain, asked.forget], folder / "original", config, label="descriptions: original")
    retrained = learn(
        [asked.retain], folder / "retrained", config, tokenizer_data=[asked.forget], label="descriptions: retrained"
    )
    return Descriptions(asked, original, retrained)
