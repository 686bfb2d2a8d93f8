"""Queries for one page: what it answers and what it does not. Seeded; knows words, not models."""

from __future__ import annotations

import random
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from mmrr.modeling.chat import word_ends
from mmrr.training.data.cell_targets import fold
from mmrr.training.data.tower_features import ReadPage

#: Whole words that the tokenizer knows; word positions are counted in bytes, so queries with them are left out.
_ANSWERS = re.compile(r"\b(yes|no)\b")
MAX_CHARACTERS = 88


@dataclass(frozen=True, slots=True)
class Labelled:
    """A query and whether this page answers it."""

    text: str
    relevant: bool


def phrase(page: ReadPage, rng: random.Random, least: int = 1, most: int = 7) -> str | None:
    """Consecutive words of one block; short ones only where they are rare enough to mean something."""
    for _ in range(20):
        if len(page.words) < 8:
            return None
        n = rng.randint(least, most)
        at = rng.randrange(max(1, len(page.words) - n))
        if page.blocks[at] != page.blocks[min(at + n, len(page.words)) - 1]:
            continue
        words = page.words[at : at + n]
        if n <= 2 and max(len(fold(word)) for word in words) < 6:
            continue
        text = " ".join(words)
        if sum(map(str.isalnum, text)) >= 5 and usable(text):
            return text
    return None


def usable(text: str) -> bool:
    return len(text) <= MAX_CHARACTERS and not _ANSWERS.search(text) and any(map(str.isalnum, text))


def labelled(page: ReadPage, others: Sequence[ReadPage], n: int, rng: random.Random) -> list[Labelled]:
    """``n`` queries, about half of them answered here; the others come from pages of the same report and of others."""
    here = set(page.folded)
    found: list[Labelled] = []
    questions = [asked.text for asked in page.questions if usable(asked.text)]
    rng.shuffle(questions)
    found += [Labelled(text, True) for text in questions[: n // 4]]
    while len(found) < n // 2:
        text = phrase(page, rng)
        if text is None:
            break
        found.append(Labelled(loosen(text, rng), True))
    own = {asked.text for asked in page.questions}
    for _ in range(4 * n):
        if len(found) >= n:
            break
        other = rng.choice(others)
        asked = [question.text for question in other.questions if question.text not in own and usable(question.text)]
        if asked and rng.random() < 0.4:
            found.append(Labelled(rng.choice(asked), False))
            continue
        text = phrase(other, rng)
        if text is None:
            continue
        if rng.random() < 0.3:  # half of the words are here, half are not
            mine = phrase(page, rng, 1, 3)
            text = f"{text} {mine}" if mine and rng.random() < 0.5 else text if mine is None else f"{mine} {text}"
        rare = [word for word in map(fold, text.split()) if len(word) >= 4]
        if rare and not all(word in here for word in rare):
            found.append(Labelled(loosen(text, rng), False))
    return found


@dataclass(frozen=True, slots=True)
class Own:
    """A query made for a page."""

    text: str
    exact: str | None  # the words of the page that it was made of; None: a question of people


def own(page: ReadPage, n: int, rng: random.Random) -> list[Own]:
    """``n`` queries that the page answers: half are people's questions where there are enough, the rest phrases."""
    questions = [question.text for question in page.questions if usable(question.text)]
    half = (n + rng.randrange(2)) // 2  # of one query every second time
    made = [Own(text, None) for text in rng.sample(questions, min(len(questions), half))]
    for _ in range(n - len(made)):
        exact = phrase(page, rng)
        if exact is None:
            break
        made.append(Own(loosen(exact, rng), exact))
    return made


def crossed(pages: Sequence[ReadPage], queries: Sequence[Sequence[Own]]) -> list[list[Labelled]]:
    """For each page what to ask it: its own queries, and those of the others.

    A phrase is not asked of another page that writes it too. One that has its words elsewhere is a wrong answer, and
    the hardest there is.
    """
    asked: list[list[Labelled]] = [[] for _ in pages]
    for page, made in zip(pages, queries, strict=True):
        for query in made:
            for there, other in zip(asked, pages, strict=True):
                if query.exact is None:
                    there.append(Labelled(query.text, any(query.text == known.text for known in other.questions)))
                elif other is page or not writes(other, query.exact):
                    there.append(Labelled(query.text, other is page))
    return asked


def writes(page: ReadPage, text: str) -> bool:
    """Whether the words of a text stand on the page one after another."""
    here, there = (" ".join(filter(None, words)) for words in (map(fold, text.split()), page.folded))
    return f" {here} " in f" {there} "


def holds(page: ReadPage, text: str) -> bool:
    """Whether all longer words of a text stand on the page, which may answer it then, whoever's query it is."""
    return {word for word in map(fold, text.split()) if len(word) >= 4} <= set(page.folded)


def loosen(text: str, rng: random.Random) -> str:
    """As people type: now and then in lower case, without a word, without punctuation, or as a question."""
    chance = rng.random()
    if chance < 0.35:
        text = text.lower()
    words = text.split()
    if len(words) > 3 and rng.random() < 0.25:
        words.pop(rng.randrange(len(words)))
    if rng.random() < 0.3:
        words = [stripped for word in words if (stripped := word.strip(".,;:()[]\"'"))] or words
    if rng.random() < 0.12:
        start = ("what is", "how many", "who was", "which", "when did", "where is", "what does the page say about")
        words = [rng.choice(start), *words]
    return " ".join(words)[:MAX_CHARACTERS]


def folded_ends(text: str) -> list[tuple[str, int]]:
    """Folded words of a query and the byte at which each ends, counted from 0 in the NFC text."""
    ends = ((fold(word), byte) for word, byte in word_ends(unicodedata.normalize("NFC", text)))
    return [(word, byte) for word, byte in ends if word]
