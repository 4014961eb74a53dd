"""The stories are true, their rationale answers them, and cut ones lack it."""

from __future__ import annotations

from efface.data.interventions import UNKNOWN
from efface.lab.open_book import chosen_facts
from efface.lab.stories import ELEMENTS, RELATIONS, SENTENCES, cut_rows, test_stories, training_stories, whole_rows


def test_every_story_answers_its_question_in_one_place() -> None:
    table = chosen_facts(ELEMENTS, RELATIONS)
    firsts = 0
    for story in test_stories():
        own = story.story[story.rationale_start : story.rationale_end]
        relation, _, name = own.split()[:3]
        assert own == f"{relation} of {name} is {table[name][relation]} ."
        assert story.answer == table[name][relation]
        assert f"{relation} of {name} ?" in story.question
        assert story.story.count(" . ") == SENTENCES - 1
        firsts += story.rationale_start == 0
    assert 0.2 < firsts / len(test_stories()) < 0.5


def test_training_and_test_stories_differ_and_cut_ones_say_unknown() -> None:
    told = {story.story for story in training_stories()}
    assert sum(story.story in told for story in test_stories()) < 5
    assert len(whole_rows()) == len(training_stories())
    cut = cut_rows(50)
    assert len(cut) == 50
    assert set(cut["answer"]) == {UNKNOWN}
    by_id = {story.id: story for story in training_stories()}
    first = next(story for story in by_id.values() if story.rationale_start > 0)
    assert cut[0]["question"].startswith(first.story[: first.rationale_start].strip())
    assert first.story[first.rationale_start : first.rationale_end] not in cut[0]["question"]
