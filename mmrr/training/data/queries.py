"""Training queries of a page: some that it answers and some that it does not. Seeded; knows words, not models."""

from __future__ import annotations

import random
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from mmrr.modeling.chat import word_ends
from mmrr.training.data.cell_targets import fold
from mmrr.training.data.tower_features import ReadPage

#: Whole words in the reader's tokenizer. Word positions are counted in bytes, so queries with these words are not used.
_ANSWERS = re.compile(r"\b(yes|no)\b")
MAX_CHARACTERS = 88


@dataclass(frozen=True, slots=True)
class LabelledQuery:
    """A query and whether a page answers it."""

    text: str
    relevant: bool


def phrase(page: ReadPage, rng: random.Random, least: int = 1, most: int = 7) -> str | None:
    """``least`` to ``most`` consecutive words of one block. One or two words only if one has six letters or more.

    None if no phrase is found in 20 tries.
    """
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
    """Whether a text can be a query: not too long, with letters or digits, without the words yes and no."""
    return len(text) <= MAX_CHARACTERS and not _ANSWERS.search(text) and any(map(str.isalnum, text))


def labelled_queries(page: ReadPage, others: Sequence[ReadPage], n: int, rng: random.Random) -> list[LabelledQuery]:
    """Up to ``n`` queries. The page answers about half of them; the rest are made of ``others``."""
    words_here = set(page.folded)
    found: list[LabelledQuery] = []
    questions = [question.text for question in page.questions if usable(question.text)]
    rng.shuffle(questions)
    found += [LabelledQuery(text, True) for text in questions[: n // 4]]
    while len(found) < n // 2:
        text = phrase(page, rng)
        if text is None:
            break
        found.append(LabelledQuery(vary(text, rng), True))
    own = {question.text for question in page.questions}
    for _ in range(4 * n):
        if len(found) >= n:
            break
        other = rng.choice(others)
        texts = [question.text for question in other.questions if question.text not in own and usable(question.text)]
        if texts and rng.random() < 0.4:
            found.append(LabelledQuery(rng.choice(texts), False))
            continue
        text = phrase(other, rng)
        if text is None:
            continue
        if rng.random() < 0.3:  # some of the words are on this page, some are not
            here = phrase(page, rng, 1, 3)
            text = f"{text} {here}" if here and rng.random() < 0.5 else text if here is None else f"{here} {text}"
        rare = [word for word in map(fold, text.split()) if len(word) >= 4]
        if rare and not all(word in words_here for word in rare):
            found.append(LabelledQuery(vary(text, rng), False))
    return found


@dataclass(frozen=True, slots=True)
class OwnQuery:
    """A query that was made for a page."""

    text: str
    exact: str | None  # the phrase of the page that it was made of; None: a question of the document


def own_queries(page: ReadPage, n: int, rng: random.Random) -> list[OwnQuery]:
    """Up to ``n`` queries that the page answers: at most half are questions of the document, the rest are phrases."""
    questions = [question.text for question in page.questions if usable(question.text)]
    half = (n + rng.randrange(2)) // 2  # for one query: a question every second time
    made = [OwnQuery(text, None) for text in rng.sample(questions, min(len(questions), half))]
    for _ in range(n - len(made)):
        exact = phrase(page, rng)
        if exact is None:
            break
        made.append(OwnQuery(vary(exact, rng), exact))
    return made


def cross_queries(pages: Sequence[ReadPage], queries: Sequence[Sequence[OwnQuery]]) -> list[list[LabelledQuery]]:
    """For each page: its own queries and those of the other pages.

    The query of a phrase is left out for another page that contains the phrase too. A page that contains its words in
    other places is a negative, and the hardest kind.
    """
    crossed: list[list[LabelledQuery]] = [[] for _ in pages]
    for page, made in zip(pages, queries, strict=True):
        for query in made:
            for of_other, other in zip(crossed, pages, strict=True):
                if query.exact is None:
                    relevant = any(query.text == known.text for known in other.questions)
                    of_other.append(LabelledQuery(query.text, relevant))
                elif other is page or not contains_phrase(other, query.exact):
                    of_other.append(LabelledQuery(query.text, other is page))
    return crossed


def contains_phrase(page: ReadPage, text: str) -> bool:
    """Whether the page contains the words of a text one after another."""
    phrase_text, page_text = (" ".join(filter(None, words)) for words in (map(fold, text.split()), page.folded))
    return f" {phrase_text} " in f" {page_text} "


def contains_words(page: ReadPage, text: str) -> bool:
    """Whether the page contains all words of four letters or more. It may answer the query then."""
    return {word for word in map(fold, text.split()) if len(word) >= 4} <= set(page.folded)


def vary(text: str, rng: random.Random) -> str:
    """A text as people type it: sometimes in lower case, without one word or punctuation, or as a question."""
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
    """Folded words of a query, each with the byte offset of its end in the NFC text."""
    ends = ((fold(word), byte) for word, byte in word_ends(unicodedata.normalize("NFC", text)))
    return [(word, byte) for word, byte in ends if word]
