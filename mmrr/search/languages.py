"""The languages of page text: which one a page is in, and the stemmer and stop words of each."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Any

import bm25s.stopwords
import Stemmer

#: Text in a language without a stemmer, or the choice to stem nothing: words stay as they are.
NONE = "none"
#: The language of a collection with too little text to tell.
DEFAULT = "en"

#: ISO 639-1 code: Snowball's algorithm.
STEMMERS = {
    "ar": "arabic",
    "ca": "catalan",
    "cs": "czech",
    "da": "danish",
    "de": "german",
    "el": "greek",
    "en": "english",
    "es": "spanish",
    "et": "estonian",
    "eu": "basque",
    "fa": "persian",
    "fi": "finnish",
    "fr": "french",
    "ga": "irish",
    "hi": "hindi",
    "hu": "hungarian",
    "hy": "armenian",
    "id": "indonesian",
    "it": "italian",
    "lt": "lithuanian",
    "ne": "nepali",
    "nl": "dutch",
    "no": "norwegian",
    "pl": "polish",
    "pt": "portuguese",
    "ro": "romanian",
    "ru": "russian",
    "sr": "serbian",
    "sv": "swedish",
    "ta": "tamil",
    "tr": "turkish",
}
#: Languages that the detector knows under another name than their stemmer.
_SAME = {"nn": "no", "hr": "sr", "bs": "sr"}
#: Languages without a stemmer. Without them in the choice, their pages would be taken for a relative's.
_UNSTEMMED = frozenset(
    ("af", "be", "bg", "bn", "gl", "he", "is", "ka", "kk", "lv", "mk", "ms", "sk", "sl", "sq", "uk", "ur", "vi")
)

#: bm25s's short lists of stop words. Languages without one have a stemmer only; rare words outweigh frequent ones.
_STOP_WORDS = {
    "da": bm25s.stopwords.STOPWORDS_DANISH,
    "de": bm25s.stopwords.STOPWORDS_GERMAN,
    "en": bm25s.stopwords.STOPWORDS_EN,
    "es": bm25s.stopwords.STOPWORDS_SPANISH,
    "fr": bm25s.stopwords.STOPWORDS_FRENCH,
    "it": bm25s.stopwords.STOPWORDS_ITALIAN,
    "nl": bm25s.stopwords.STOPWORDS_DUTCH,
    "no": bm25s.stopwords.STOPWORDS_NORWEGIAN,
    "pt": bm25s.stopwords.STOPWORDS_PORTUGUESE,
    "ru": bm25s.stopwords.STOPWORDS_RUSSIAN,
    "sv": bm25s.stopwords.STOPWORDS_SWEDISH,
    "tr": bm25s.stopwords.STOPWORDS_TURKISH,
}
#: Lucene's English list has "a" and lacks the other English word of one letter.
_MORE_STOP_WORDS = {"en": ("i",)}

#: A page with fewer letters has the language of the collection. Shorter texts are often taken for another language.
_FEWEST_LETTERS = 40
#: How much of a page's text is looked at, in characters.
_LOOKED_AT = 4000
_CLASSIFIED = 1000
#: The least probability that the detector must give its answer.
_CERTAIN = 0.9

_LETTERS = re.compile(r"[^\W\d_]+")
#: Scripts that ``words`` cuts without a language.
_OWN_SCRIPT = re.compile(
    r"[\u0e00-\u0eff\u1000-\u11ff\u1780-\u17ff\u3005-\u30ff\u3400-\u9fff\uac00-\ud7a3\uf900-\ufaff]+"
)


@cache
def stop_words(language: str) -> frozenset[str]:
    """Lower-case words that are not indexed on pages of this language; empty where no list is known."""
    words = {*map(str.lower, _STOP_WORDS.get(language, ())), *_MORE_STOP_WORDS.get(language, ())}
    if language == "de":  # typed without umlauts
        words |= {word.replace("ä", "ae").replace("ö", "oe").replace("ü", "ue") for word in words}
    return frozenset(words)


@cache
def stemmer(language: str) -> Any:
    """Snowball's stemmer, or None for ``NONE``. Any: PyStemmer has no types."""
    return Stemmer.Stemmer(STEMMERS[language], 0) if language in STEMMERS else None


def of_pages(texts: Sequence[str], choice: str = "auto") -> list[str]:
    """The language of each page: ``choice``, or with "auto" the one that its text is in.

    A page is in another language than most of the collection only if the detector is certain and if the page has more
    of that language's stop words. Other pages, short ones among them, are in the collection's main language.
    """
    if choice != "auto":
        return [choice] * len(texts)
    samples = [_sample(text) for text in texts]
    found = [_detect(sample) if _letters(sample) >= _FEWEST_LETTERS else None for sample in samples]
    counts = Counter(language for language in found if language)
    main = counts.most_common(1)[0][0] if counts else _of_all(samples)
    return [
        language if language and _is_in(sample, language, main) else main
        for sample, language in zip(samples, found, strict=True)
    ]


def by_frequency(languages: Sequence[str]) -> list[str]:
    """The languages of pages, the most frequent one first."""
    return [language for language, _ in Counter(languages).most_common()] or [DEFAULT]


def _sample(text: str) -> str:
    """The words of the page's beginning that need a language."""
    start = text[:_LOOKED_AT].replace("\u00ad\n", "").replace("\u00ad", "")
    return " ".join(_LETTERS.findall(_OWN_SCRIPT.sub(" ", start)))


def _letters(sample: str) -> int:
    return len(sample) - sample.count(" ")


def _of_all(samples: Sequence[str]) -> str:
    """The language of pages that are all short or doubtful, from the first of them together."""
    together = ""
    for sample in samples:
        together = f"{together} {sample}".strip() if len(together) < _CLASSIFIED else together
    return (_letters(together) >= _FEWEST_LETTERS and _detect(together)) or DEFAULT


def _is_in(sample: str, language: str, main: str) -> bool:
    if language == main or not (stop_words(language) and stop_words(main)):
        return True
    words = sample.lower().split()
    return sum(word in stop_words(language) for word in words) > sum(word in stop_words(main) for word in words)


def _detect(sample: str) -> str | None:
    """The language of a text, or None if the detector is not certain."""
    label, probability = _detector().classify(sample[:_CLASSIFIED])
    if probability < _CERTAIN:
        return None
    label = _SAME.get(label, label)
    return label if label in STEMMERS else NONE


@cache
def _detector() -> Any:
    """py3langid: its model is in the package and loads in about a second, so only texts in question need it."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    detector = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    detector.set_languages(sorted({*STEMMERS, *_SAME, *_UNSTEMMED} & set(detector.labels)))
    return detector
