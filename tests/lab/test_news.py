"""News: sections are disjoint, prompts stand apart from their continuations, and missing data is said."""

from __future__ import annotations

from pathlib import Path

import pytest

from efface.errors import InputError
from efface.lab import news
from efface.lab.emoji import data_folder


@pytest.fixture
def there() -> None:
    if not (data_folder() / "ag_news" / "test.csv.gz").is_file():
        pytest.skip(f"no AG News in {data_folder() / 'ag_news'}; set EFFACE_DATA")


@pytest.mark.usefixtures("there")
def test_pieces_are_drawn_by_the_seed_and_disjoint() -> None:
    model, classifier, unseen = news.parts(news.SPORTS, 0)
    assert (len(model), len(classifier), len(unseen)) == (news.TRAINED, news.CLASSIFIED, news.UNSEEN)
    assert news.parts(news.SPORTS, 0)[0] == model
    assert news.parts(news.SPORTS, 1)[0] != model
    assert len({*model} & {*classifier}) + len({*model} & {*unseen}) <= 3, "AG News itself repeats a few pieces"


@pytest.mark.usefixtures("there")
def test_a_row_is_the_first_words_and_the_rest() -> None:
    texts = news.pieces(news.BUSINESS)[:50]
    for text, row in zip(texts, news.news_rows(texts, "some"), strict=True):
        assert f"{row['question']} {row['answer']}" == text
        assert len(row["question"].split()) == news.PROMPT_WORDS
        assert len(text.split()) <= news.WORDS


def test_missing_data_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EFFACE_DATA", str(tmp_path))
    with pytest.raises(InputError, match=r"ag_news/test\.csv\.gz; expected AG News .*; set EFFACE_DATA"):
        news.pieces(news.SPORTS)
