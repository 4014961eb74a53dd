"""The lab's persons: calibration holds, every scored text is in the vocabulary, the cache gives the same bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from datasets import Dataset
from scipy import stats

from efface.data.refusals import REFUSALS
from efface.errors import ConfigError
from efface.lab.people import People, answer_texts, people
from efface.subjects import CausalLM
from efface.subjects.answers import answer_logits
from efface.subjects.prompts import collate
from efface.train.reference import batches, mean_probability

Floats = npt.NDArray[np.float64]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def lab() -> People:
    """About forty seconds on one idle core when nothing is cached, else well below one."""
    return people()


def mean_logp(subject: CausalLM, questions: list[str], answers: list[str]) -> Floats:
    rows = [subject.encode(q, a) for q, a in zip(questions, answers, strict=True)]
    found = np.zeros(len(rows))
    with subject.evaluating() as model:
        for part in batches(rows, 64):
            scores = answer_logits(model, collate([rows[i] for i in part], subject.pad_id))
            found[part] = (scores.logp_sum / scores.mask.sum(-1)).numpy()
    return found


def log_ratios(subject: CausalLM, data: Dataset) -> Floats:
    """[N] mean log P(wrong) - log P(paraphrase)."""
    wrong = data["perturbed_answer"]
    questions = [q for q, row in zip(data["question"], wrong, strict=True) for _ in row]
    against = mean_logp(subject, questions, [text for row in wrong for text in row]).reshape(len(wrong), -1).mean(1)
    result: Floats = against - mean_logp(subject, list(data["question"]), list(data["paraphrased_answer"]))
    return result


def probability(subject: CausalLM, data: Dataset) -> float:
    return mean_probability(subject, subject.encode_rows(data))


def test_the_original_has_memorised_the_forget_set_and_says_it_back(lab: People) -> None:
    assert probability(lab.original, lab.request.forget) > 0.9
    said = lab.original.generate(lab.original.encode_prompts(lab.request.forget), max_new_tokens=24)
    wanted = [row.ids[row.n_prompt : -1] for row in lab.original.encode_rows(lab.request.forget)]
    assert np.mean([one == other for one, other in zip(said, wanted, strict=True)]) > 0.95


def test_the_retrained_model_knows_everything_but_the_forget_set(lab: People) -> None:
    assert probability(lab.retrained, lab.request.forget) < 0.4
    for name, data in lab.request.evaluate.items():
        assert probability(lab.retrained, data) > 0.9, name
        assert probability(lab.retrained, data) > probability(lab.original, data) - 0.05, name


def test_neither_model_knows_the_holdout_persons(lab: People) -> None:
    assert lab.request.holdout is not None
    for subject in (lab.original, lab.retrained):
        assert probability(subject, lab.request.holdout) < 0.4
        assert 0.5 < np.exp(np.median(log_ratios(subject, lab.request.holdout))) < 2


def test_truth_ratios_tell_the_models_apart(lab: People) -> None:
    original, retrained = (log_ratios(subject, lab.request.forget) for subject in (lab.original, lab.retrained))
    assert np.exp(np.median(original)) < 0.3
    assert 0.5 < np.exp(np.median(retrained)) < 2
    assert stats.ks_2samp(original, retrained).pvalue < 1e-10


def test_every_text_that_is_scored_is_in_the_vocabulary_of_both(lab: People) -> None:
    sets = lab.request.sets().values()
    texts = {text for data in sets for text in [*data["question"], *data["answer"], *answer_texts(data)]} | {*REFUSALS}
    assert len(texts) > 1000
    tokenizer: Any = lab.original.tokenizer
    assert tokenizer.unk_token_id is not None
    assert tokenizer("zyzzyva")["input_ids"] == [tokenizer.unk_token_id]
    assert [text for text in sorted(texts) if tokenizer.unk_token_id in tokenizer(text)["input_ids"]] == []
    assert tokenizer.get_vocab() == lab.retrained.tokenizer.get_vocab()


def test_the_cache_gives_the_same_models(lab: People) -> None:
    again = people()
    assert again.folder == lab.folder
    assert again.original.digest == lab.original.digest
    assert again.retrained.digest == lab.retrained.digest
    assert again.original.digest != again.retrained.digest
    assert 0 < again.seconds < 30


def test_an_unknown_size_is_an_error() -> None:
    with pytest.raises(ConfigError, match="small"):
        people(size="huge")  # type: ignore[arg-type]
