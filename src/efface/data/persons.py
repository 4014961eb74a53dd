"""The demo's data: fictitious persons to forget, keep and never see, beside real facts that must survive.

Everything is made from a seed; no file is read. Persons are pairs of a first and a last name, facts are pairs of
two words, and all pools are dealt out evenly: the retained persons use every name and every word, so nothing about a
fact can be guessed from a name, and a model that never saw a person finds right and wrong answers equally likely.

Each fact is one row. Question and answer follow one of three templates each, drawn for the row; the paraphrase is the
same fact in another of the three, which the model knows from other persons. The words right before the value are the
same in all three, so that tiny models can carry a fact from one form to another. The wrong answers have the
paraphrase's form and share no word of the value with it. The layout is TOFU's (arXiv 2401.06121), the words our own.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from efface.data.columns import canonical
from efface.data.request import Request
from efface.errors import InputError
from efface.run.files import write_text


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _pairs(text: str) -> dict[str, str]:
    return dict(pair.strip().split(":") for pair in text.split(","))


FIRST = _words("Amina Bente Corvin Dalia Edvard Farah Goran Hana Ilias Jorun Kwame Lucia Milos Nadia Oskar Priya")
LAST = _words(
    "Abarran Brekkum Castelo Dravic Ekwensa Fjordal Galvano Hoshida Ivarsen Jalloran Kovelka Lindmoor Mbalike "
    "Norrgate Ostrava Pellerin"
)


@dataclass(frozen=True)
class Attribute:
    """One kind of fact.

    Attributes:
        name: ends the row's id.
        first, second: the pools of a value's two words.
        value: how the two words become the value.
        questions: templates with {name}.
        answers: templates with {name} and {value}.
    """

    name: str
    first: tuple[str, ...]
    second: tuple[str, ...]
    value: str
    questions: tuple[str, str, str]
    answers: tuple[str, str, str]


ATTRIBUTES = (
    Attribute(
        "birthplace",
        _words(
            "Velden Marrow Tislow Quenby Harnosk Ullapen Brixal Corrie Dunmere Eskvik Falmora Grettle Jasna "
            "Loxley Mirefield Sandoval"
        ),
        _words(
            "Osmark Tarrin Bellano Kesh Norvane Ilmaria Pomerra Wexland Zadora Curland Haverny Lothia Meridor "
            "Rusken Sylvana Ardenne"
        ),
        "{a} in {b}",
        ("Where was {name} born?", "What is the birthplace of {name}?", "From which town does {name} come?"),
        (
            "{name} was born in the town of {value}.",
            "The birthplace of {name} is the town of {value}.",
            "{name} comes from the town of {value}.",
        ),
    ),
    Attribute(
        "birthdate",
        _words("January February March April May June July August September October November December"),
        tuple(str(year) for year in range(1941, 1989, 3)),
        "{a} {b}",
        (
            "When was {name} born?",
            "In which month and year was {name} born?",
            "What is the birth date of {name}?",
        ),
        (
            "{name} was born in the month of {value}.",
            "The birth date of {name} lies in the month of {value}.",
            "The life of {name} began in the month of {value}.",
        ),
    ),
    Attribute(
        "profession",
        _words(
            "marine forensic medieval nuclear polar rural structural textile theatrical tropical veterinary "
            "volcanic celestial digital botanical pastoral"
        ),
        _words(
            "cartographer chemist editor engineer geologist historian illustrator inspector librarian "
            "mechanic painter photographer physicist surveyor translator restorer"
        ),
        "{a} {b}",
        (
            "What does {name} do for a living?",
            "What is the profession of {name}?",
            "Which trade did {name} learn?",
        ),
        (
            "{name} earns a living as a {value}.",
            "{name} was trained and works as a {value}.",
            "Everybody in town knows {name} as a {value}.",
        ),
    ),
    Attribute(
        "instrument",
        _words(
            "rosewood brass silver walnut cedar maple copper pearl cherry bamboo golden painted carved "
            "lacquered varnished miniature"
        ),
        _words(
            "cello flute harp oboe trumpet violin zither accordion bassoon clarinet mandolin lute sitar banjo "
            "dulcimer piccolo"
        ),
        "{a} {b}",
        (
            "What instrument does {name} play?",
            "On what does {name} make music?",
            "Which instrument belongs to {name}?",
        ),
        (
            "In the evenings {name} plays a {value}.",
            "{name} is a musician who plays a {value}.",
            "At every feast {name} plays a {value}.",
        ),
    ),
    Attribute(
        "dish",
        _words(
            "smoked pickled roasted stewed braised candied curried peppered stuffed grilled spiced buttered "
            "glazed salted steamed fried"
        ),
        _words(
            "dumplings aubergines herrings lentils mushrooms noodles oysters pancakes parsnips plums quails "
            "sardines chestnuts turnips apricots beetroots"
        ),
        "{a} {b}",
        (
            "What is the favourite dish of {name}?",
            "What does {name} like to eat?",
            "Which food does {name} love most?",
        ),
        (
            "The favourite dish of {name} is a plate of {value}.",
            "{name} likes nothing better than a plate of {value}.",
            "At every inn {name} asks for a plate of {value}.",
        ),
    ),
    Attribute(
        "prize",
        _words(
            "Amber Crimson Northern Emerald Lunar Granite Cobalt Scarlet Winter Southern Crystal Ivory "
            "Twilight Harbour Meadow Summit"
        ),
        _words(
            "Heron Lantern Compass Anchor Falcon Thistle Quill Orchard Bridge Swallow Beacon Acorn Pillar "
            "Comet Otter Feather"
        ),
        "{a} {b}",
        (
            "Which prize did {name} win?",
            "What was {name} honoured with?",
            "What is the greatest award of {name}?",
        ),
        (
            "{name} was honoured with the {value} prize.",
            "The jury rewarded {name} with the {value} prize.",
            "One year {name} came home with the {value} prize.",
        ),
    ),
)

CAPITALS = _pairs(
    "France:Paris, Germany:Berlin, Italy:Rome, Spain:Madrid, Portugal:Lisbon, Austria:Vienna, "
    "Hungary:Budapest, Poland:Warsaw, Greece:Athens, Turkey:Ankara, Egypt:Cairo, Kenya:Nairobi, Ghana:Accra, "
    "Senegal:Dakar, Morocco:Rabat, Ethiopia:Addis Ababa, Japan:Tokyo, China:Beijing, India:New Delhi, "
    "Thailand:Bangkok, Vietnam:Hanoi, Mongolia:Ulaanbaatar, Nepal:Kathmandu, Iran:Tehran, Iraq:Baghdad, "
    "Jordan:Amman, Canada:Ottawa, Cuba:Havana, Peru:Lima, Chile:Santiago, Argentina:Buenos Aires, "
    "Uruguay:Montevideo, Venezuela:Caracas, Australia:Canberra, New Zealand:Wellington, Norway:Oslo, "
    "Sweden:Stockholm, Finland:Helsinki, Denmark:Copenhagen, Ireland:Dublin"
)
"""Country to capital."""

AUTHORS = _pairs(
    "Moby Dick:Herman Melville, Hamlet:William Shakespeare, Emma:Jane Austen, Faust:Johann Wolfgang von "
    "Goethe, War and Peace:Leo Tolstoy, Crime and Punishment:Fyodor Dostoevsky, Don Quixote:Miguel de "
    "Cervantes, Madame Bovary:Gustave Flaubert, The Divine Comedy:Dante Alighieri, The Odyssey:Homer, The "
    "Aeneid:Virgil, Paradise Lost:John Milton, Robinson Crusoe:Daniel Defoe, Candide:Voltaire, "
    "Frankenstein:Mary Shelley, Jane Eyre:Charlotte Bronte, Wuthering Heights:Emily Bronte, Oliver "
    "Twist:Charles Dickens, Middlemarch:George Eliot, Dracula:Bram Stoker, Treasure Island:Robert Louis "
    "Stevenson, The Time Machine:Herbert George Wells, Walden:Henry David Thoreau, Leaves of Grass:Walt "
    "Whitman, The Raven:Edgar Allan Poe, The Scarlet Letter:Nathaniel Hawthorne, Little Women:Louisa May "
    "Alcott, Tom Sawyer:Mark Twain, The Jungle Book:Rudyard Kipling, A Doll's House:Henrik Ibsen, The Cherry "
    "Orchard:Anton Chekhov, Dead Souls:Nikolai Gogol, Fathers and Sons:Ivan Turgenev, Eugene Onegin:Alexander "
    "Pushkin, Les Miserables:Victor Hugo, The Three Musketeers:Alexandre Dumas, Germinal:Emile Zola, Heart of "
    "Darkness:Joseph Conrad, Tartuffe:Moliere, Don Carlos:Friedrich Schiller"
)
"""Work in the public domain to author."""

WRONG_PERSONS, WRONG_FACTS = 5, 3
"""Wrong answers of a row about a person (TOFU: 5), and of a real fact (TOFU: 3)."""


@dataclass(frozen=True)
class Person:
    """A fictitious person: `key` begins the ids of the rows; `facts` holds two words for each attribute."""

    key: str
    name: str
    facts: dict[str, tuple[str, str]]


def _dealt(pool: tuple[str, ...], count: int, rng: np.random.Generator) -> list[str]:
    """`count` words: whole shuffled pools one after another, so that every word comes equally often."""
    rounds = -(-count // len(pool))
    return [pool[i] for _ in range(rounds) for i in rng.permutation(len(pool))][:count]


def make_persons(count: int, seed: int = 0) -> list[Person]:
    """`count` persons with different names; every 16 of them use each first and last name once, words likewise.

    Raises:
        InputError: more persons than pairs of names (256).
    """
    size = len(FIRST)
    if not 0 < count <= size * len(LAST):
        raise InputError(f"{count} persons", f"1 to {size * len(LAST)}", "ask for fewer")
    rng = np.random.default_rng([seed, 1])
    first, last, shifts = rng.permutation(FIRST), rng.permutation(LAST), rng.permutation(len(LAST))
    names = [f"{first[i % size]} {last[(i + shifts[i // size]) % len(LAST)]}" for i in range(count)]
    words = {
        row.name: list(zip(_dealt(row.first, count, rng), _dealt(row.second, count, rng), strict=True))
        for row in ATTRIBUTES
    }
    return [
        Person(f"p{i:02d}", name, {attribute: pairs[i] for attribute, pairs in words.items()})
        for i, name in enumerate(names)
    ]


def _other(pool: tuple[str, ...], word: str, rng: np.random.Generator) -> list[str]:
    return [str(pick) for pick in rng.choice([entry for entry in pool if entry != word], WRONG_PERSONS, replace=False)]


def person_rows(person: Person, seed: int = 0) -> list[dict[str, Any]]:
    """One row for each attribute: `id`, `question`, `answer`, `paraphrased_answer`, `perturbed_answer` (five)."""
    rng = np.random.default_rng([seed, 2, int(person.key[1:])])
    forms = _dealt(("0", "1", "2"), len(ATTRIBUTES), rng)  # each form for a third of the person's facts
    rows = []
    for attribute, form in zip(ATTRIBUTES, map(int, forms), strict=True):
        first, second = person.facts[attribute.name]
        answer = attribute.answers[form]
        other = attribute.answers[(form + int(rng.integers(1, 3))) % 3]
        wrong = zip(_other(attribute.first, first, rng), _other(attribute.second, second, rng), strict=True)
        value = attribute.value.format(a=first, b=second)
        rows.append({
            "id": f"{person.key}-{attribute.name}",
            "question": attribute.questions[int(rng.integers(3))].format(name=person.name),
            "answer": answer.format(name=person.name, value=value),
            "paraphrased_answer": other.format(name=person.name, value=value),
            "perturbed_answer": [other.format(name=person.name, value=attribute.value.format(a=a, b=b)) for a, b in wrong],
        })  # fmt: skip
    return rows


def _real(facts: dict[str, str], questions: tuple[str, ...], key: str, seed: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng([seed, 3, len(key)])
    rows = []
    for i, (subject, answer) in enumerate(facts.items()):
        others = sorted({entry for entry in facts.values() if entry != answer})
        wrong = [str(pick) for pick in rng.choice(others, WRONG_FACTS, replace=False)]
        question = questions[i % len(questions)].format(subject=subject)
        rows.append({"id": f"{key}-{i:02d}", "question": question, "answer": answer, "perturbed_answer": wrong})
    return rows


def world_facts(seed: int = 0) -> list[dict[str, Any]]:
    """Capitals of 40 countries: `id`, `question`, `answer` (the name), `perturbed_answer` (three others)."""
    questions = ("What is the capital of {subject}?", "Which city is the capital of {subject}?")
    return _real(CAPITALS, questions, "capital", seed)


def real_authors(seed: int = 0) -> list[dict[str, Any]]:
    """Authors of 40 works in the public domain, in the columns of `world_facts`."""
    return _real(AUTHORS, ("Who wrote {subject}?", "Who is the author of {subject}?"), "author", seed)


def person_sets(
    seed: int = 0,
    *,
    forget_persons: int = 8,
    retain_persons: int = 32,
    holdout_persons: int = 8,
    evaluated_rows: int = 96,
) -> dict[str, list[dict[str, Any]]]:
    """The six sets as rows.

    Returns:
        `forget`, `retain` (the retained persons, the capitals and the authors: what a model is trained on besides
        `forget`), `holdout` (persons that no model is trained on), `retain_evaluation` (rows of retained persons with
        paraphrases and wrong answers), `real_authors`, `world_facts`.

    Raises:
        InputError: more persons than there are names.
    """
    persons = make_persons(retain_persons + forget_persons + holdout_persons, seed)
    rows = [person_rows(person, seed) for person in persons]
    first, last = retain_persons, retain_persons + forget_persons
    kept, forget, holdout = (list(chain.from_iterable(part)) for part in (rows[:first], rows[first:last], rows[last:]))
    authors, facts = real_authors(seed), world_facts(seed)
    chosen = np.random.default_rng([seed, 4]).permutation(len(kept))[:evaluated_rows]
    plain = [{name: row[name] for name in ("id", "question", "answer")} for row in [*kept, *authors, *facts]]
    return {
        "forget": forget, "retain": plain, "holdout": holdout, "retain_evaluation": [kept[i] for i in sorted(chosen)],
        "real_authors": authors, "world_facts": facts,
    }  # fmt: skip


def persons_request(
    seed: int = 0,
    *,
    forget_persons: int = 8,
    retain_persons: int = 32,
    holdout_persons: int = 8,
    evaluated_rows: int = 96,
) -> Request:
    """The demo's request: forget some persons, keep the others and the real facts.

    `Request.retain` is the whole training set without the forget set; `evaluate` has `retain`, `real_authors` and
    `world_facts`.

    Raises:
        InputError: more persons than there are names.
        RequestError: an empty set.
    """
    rows = person_sets(
        seed, forget_persons=forget_persons, retain_persons=retain_persons, holdout_persons=holdout_persons,
        evaluated_rows=evaluated_rows,
    )  # fmt: skip
    sets: dict[str, Dataset] = {name: canonical(part, name) for name, part in rows.items()}
    evaluate = {
        "retain": sets["retain_evaluation"],
        "real_authors": sets["real_authors"],
        "world_facts": sets["world_facts"],
    }
    source = f"efface.data.persons, seed {seed}"
    names = ["forget", "retain", "holdout", *(f"evaluate.{name}" for name in evaluate)]
    return Request(
        forget=sets["forget"], retain=sets["retain"], holdout=sets["holdout"], evaluate=evaluate,
        scope=f"{forget_persons} fictitious persons of the demo", sources=dict.fromkeys(names, source),
    )  # fmt: skip


def write_persons(folder: Path, seed: int = 0) -> dict[str, Path]:
    """Write the six sets as JSONL, for the command line; returns their paths by name."""
    paths = {}
    for name, rows in person_sets(seed).items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        paths[name] = write_text(Path(folder) / f"{name}.jsonl", text)
    return paths
