"""Cuts text into the words that BM25 compares. A page and a query are cut by the same rules.

Text is normalised first: compatibility forms (NFKC), quotation marks, hyphens, invisible characters. A word is a run of
letters, marks and digits. docs/text-search.md has the rules.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence, Set
from functools import cache

from mmrr.search.languages import stemmer, stop_words

#: Part of the index: it rises when the same text gives other words.
VERSION = 1

#: Words that a ``Words`` remembers the result of, and the longest word that is kept whole.
_REMEMBERED, _LONGEST = 1 << 18, 64

_HAN = "\u3005\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_KANA = "\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff"
_HANGUL = "\uac00-\ud7a3"
#: Scripts written without blanks between words that have no agreed shorter unit: Thai, Lao, Burmese, Khmer.
_UNSPACED = "\u0e00-\u0e7f\u0e80-\u0eff\u1000-\u109f\u1780-\u17ff"

_SHY = "\u00ad"  # soft hyphen
#: PDFium's sign for a hyphen at a line end, hyphens, quotation marks, joiners and separators without width.
_SIGNS = str.maketrans(
    {
        "\ufffe": _SHY,
        **dict.fromkeys("\u2010\u2011\u2012\u2013\u2212\ufe63\uff0d", "-"),
        **dict.fromkeys("\u2018\u2019\u201b\u02bc\u2032\uff07", "'"),
        **dict.fromkeys("\u200c\u200d\u2060\ufeff", ""),
        "\u200b": " ",
    }
)
#: Blanks that keep the digits of one number together.
_DIGIT_BLANK = re.compile(r"(?<=\d)[\u00a0\u2009\u202f](?=\d{3}(?!\d))")
#: A hyphen at a line end, or a soft hyphen anywhere, inside a word.
_BROKEN = re.compile(rf"(?<=\w)(?:{_SHY}\s*|-[ \t]*\n\s*)(?=\w)")
#: Lines of Chinese and Japanese end anywhere.
_UNSPACED_BREAK = re.compile(rf"(?<=[{_HAN}{_KANA}])\s+(?=[{_HAN}{_KANA}])")
#: A capital that is a word of one letter in some language.
_CAPITAL = re.compile(r"(?<![\w.&'+-])[AEIOUY](?![\w.,:;)\]!?'&#+-]|[ \t]*(?:\n|\Z))")
_LAST_LETTER = re.compile(r"(?<![\w'])[a-z](?=[\s.?!]*\Z)")

#: A number with separators, and letters with a dot after each.
_NUMBER = r"\d+(?:[.,']\d+)+(?![^\W_])"
_DOTTED = r"(?:[^\W\d_]\.)+[^\W\d_](?![^\W_])"
_PIECE = re.compile(rf"(?<![^\W_]){_NUMBER}|(?<![^\W_]){_DOTTED}|[^.,]+")
#: What joins the parts of one word.
_HYPHEN = re.compile(r"[-&]")

#: What folding turns into other letters, beyond taking marks off.
_LETTERS: dict[int, int | str | None] = {
    **dict(zip(map(ord, "øđðłıħ"), "oddlih", strict=True)),
    **{ord(letter): spelt for letter, spelt in {"ß": "ss", "æ": "ae", "œ": "oe", "þ": "th"}.items()},
    0x640: None,  # the Arabic letter that only makes a word longer
}
_UMLAUTS = str.maketrans({"ä": "ae", "ö": "oe", "ü": "ue", "å": "aa", "ø": "oe"})
#: Accents; points of Hebrew and Arabic. Marks of other scripts are vowels.
_MARKS = re.compile(r"[\u0300-\u036f\u0591-\u05c7\u064b-\u065f\u0670]+")
_LAST_LATIN = "\u024f"


class Words:
    """Cuts pages and queries for one set of languages, and remembers the words that it has seen."""

    def __init__(self, languages: Sequence[str]) -> None:
        """``languages``: of the pages, the most frequent one first."""
        self._languages = list(languages)
        self._known: dict[str, dict[str, tuple[str, ...]]] = {language: {} for language in languages}
        self._seen: dict[str, dict[str, list[str]]] = {}  # by language: runs of a text that was not normalised

    def of_page(self, text: str, language: str) -> list[str]:
        """The words of a page, in order, stemmed. A word with several readings is there in each of them."""
        known = self._known[language]
        found: list[str] = []
        for chunk in _pattern().findall(normalise(text)):
            words = known.get(chunk)
            if words is None:
                if len(known) >= _REMEMBERED:
                    known.clear()
                words = known[chunk] = _unique(
                    word for form in _forms(chunk, page=True) for word in _stems(form, language)
                )
            found += words
        return found

    def of_query(self, text: str) -> list[str]:
        """The words of a query, as they are on pages of every language.

        The stop words of the most frequent language are left out for all pages: a page that was taken for another
        language has them as words.
        """
        # "vitamin a": an article is never the last word.
        last = _LAST_LETTER.sub(lambda letter: letter[0].upper(), text)
        skipped = stop_words(self._languages[0])
        found: list[str] = []
        for chunk in _pattern().findall(normalise(last)):
            forms = [form for form in _forms(chunk, page=False) if not _is_stop_word(form, skipped)]
            found += _unique(word for form in forms for language in self._languages for word in _stems(form, language))
        return found

    def places(self, text: str, wanted: Set[str], language: str) -> list[tuple[int, int]]:
        """(start, end) in a page's text of its words that are in ``wanted``, such as ``of_query`` gives, in order."""
        found: list[tuple[int, int]] = []
        seen = self._seen.setdefault(language, {})
        for chunk in _pattern().finditer(text):
            for start, end in _parts(chunk[0], chunk.start()):
                run = text[start:end]
                words = seen.get(run)
                if words is None:
                    if len(seen) >= _REMEMBERED:
                        seen.clear()
                    words = seen[run] = self.of_page(run, language)
                if wanted.isdisjoint(words):
                    continue
                if found and start <= found[-1][1]:  # neighbouring pairs of characters overlap
                    start = found.pop()[0]
                found.append((start, end))
        return found


def _parts(chunk: str, start: int) -> Iterator[tuple[int, int]]:
    """The places of the words of a chunk that begins at ``start``: a script without blanks has several words."""
    if chunk[0] <= "\u0dff":
        yield start, start + len(chunk)
    elif _cjk().match(chunk) and len(chunk) > 1:
        yield from ((start + i, start + i + 2) for i in range(len(chunk) - 1))
    elif _unspaced().match(chunk):
        for word in _cut(chunk):
            place = chunk.index(word)
            yield start + place, start + place + len(word)
            start, chunk = start + place + len(word), chunk[place + len(word) :]
    else:
        yield start, start + len(chunk)


def normalise(text: str) -> str:
    """The text with one sign for each character that has several, and with words at line ends put together.

    A soft hyphen stands where a word may be one or two: at a line end, before a raised number (a footnote or a power).
    A capital "A" or "I" that is an article or a pronoun is in lower case; in "Vitamin A" it stays.
    """
    if not text.isascii():
        text = _DIGIT_BLANK.sub("", text)
        text = _raised().sub(rf"{_SHY}\g<0>", text)
        text = unicodedata.normalize("NFKC", text.translate(_SIGNS)).translate(_SIGNS)
        text = text.replace("\u0e4d\u0e32", "\u0e33").replace("\u0ecd\u0eb2", "\u0eb3")  # as dictionaries have them
        text = _UNSPACED_BREAK.sub("", text)
    text = _BROKEN.sub(_SHY, text)
    return _CAPITAL.sub(_lower_article, text)


def _lower_article(found: re.Match[str]) -> str:
    start = found.start()
    before = found.string[max(start - 2, 0) : start]
    is_name = found[0] != "I" and len(before) == 2 and before[1] == " " and before[0].islower()
    return found[0] if is_name else found[0].lower()


@cache
def _raised() -> re.Pattern[str]:
    """Superscript digits, fractions and numbers in circles after a letter or digit."""
    subscripts = range(0x2080, 0x208A)  # belong to the word: H2O
    raised = [chr(code) for code in (*range(0xB2, 0xBF), *range(0x2070, 0x218A), *range(0x2460, 0x24FF))]
    digits = "".join(one for one in raised if unicodedata.category(one) == "No" and ord(one) not in subscripts)
    return re.compile(rf"(?<=[^\W{digits}])[{digits}]")


@cache
def _pattern() -> re.Pattern[str]:
    """Chunks: runs of one of the scripts above, or words with the signs that may join them."""
    codes = (*range(0x300, 0x3100), *range(0xA600, 0xAC00), *range(0xFE20, 0xFE30))
    marks = "".join(re.escape(chr(code)) for code in codes if unicodedata.category(chr(code)).startswith("M"))
    word = rf"(?:[^\W_{_HAN}{_KANA}{_HANGUL}{_UNSPACED}]+[{marks}]*)+"
    signs = r"(?:\+{1,2}(?![\w+])|#(?!\w)| ?%)?"
    return re.compile(
        rf"[{_HAN}{_KANA}{_HANGUL}]+|[{_UNSPACED}]+|{word}(?:[-.,'&{_SHY}]{word})*{signs}",
    )


def _forms(chunk: str, *, page: bool) -> Iterator[str]:
    """The words of a chunk, not yet stemmed."""
    first = chunk[0]
    if first > "\u0dff":
        if _cjk().match(first):
            yield from _grams(chunk, page=page)
            return
        if _unspaced().match(first):
            yield from _cut(chunk)
            return
    bare = chunk.rstrip("+#% ")
    sign = chunk[len(bare) :].strip()
    *pieces, last = _PIECE.findall(bare)
    for piece in pieces:
        yield from _of_piece(piece)
    forms = list(_of_piece(last))
    if sign and forms:
        if re.fullmatch(_NUMBER, last):
            forms = forms[:1]
        if len(bare) > 1 or bare.isdigit():  # the C of "C++" is no word
            yield from forms
        yield forms[-1] + sign
        return
    yield from forms


@cache
def _cjk() -> re.Pattern[str]:
    return re.compile(rf"[{_HAN}{_KANA}{_HANGUL}]")


@cache
def _unspaced() -> re.Pattern[str]:
    return re.compile(rf"[{_UNSPACED}]")


@cache
def _syllabic() -> re.Pattern[str]:
    """Signs that may be a word alone."""
    return re.compile(rf"[{_HAN}{_HANGUL}]")


def _grams(run: str, *, page: bool) -> Iterator[str]:
    """Every two neighbouring characters of Chinese, Japanese or Korean, as Lucene's CJKAnalyzer cuts it.

    On a page single characters are words too, for queries of one character.
    """
    if len(run) == 1:
        yield run
        return
    yield from (run[i : i + 2] for i in range(len(run) - 1))
    if page:
        yield from _syllabic().findall(run)


def _cut(run: str) -> Iterator[str]:
    """The words of a script without blanks, by the dictionaries of ICU."""
    from icu4py.breakers import WordBreaker

    yield from (word for word in WordBreaker(run, "en") if any(unicodedata.category(one)[0] in "LMN" for one in word))


def _of_piece(piece: str) -> Iterator[str]:
    if re.fullmatch(_NUMBER, piece):
        yield from _numbers(piece)
    elif "." in piece:  # U.S.A.
        yield piece.replace(".", "")
    else:
        fragments = piece.split("'")
        for fragment in fragments:
            if len(fragment) > 1 or fragment.isdigit() or len(fragments) == 1:  # not the s of "it's", the l of "l'eau"
                yield from _hyphenated(fragment)


def _hyphenated(fragment: str) -> Iterator[str]:
    """ "state-of-the-art": four words. "e-mail", "R&D": one, and its parts that are words. A soft hyphen: both."""
    parts = _HYPHEN.split(fragment)
    whole = [part.replace(_SHY, "") for part in parts]
    short = len(parts) > 1 and any(len(part) == 1 for part in whole)
    for part, joined in zip(parts, whole, strict=True):
        if len(parts) == 1 or len(joined) > 1 or joined.isdigit():
            yield joined
        if _SHY in part:
            yield from (half for half in part.split(_SHY) if len(half) > 1)
    if short:
        yield fragment.replace("-", "").replace(_SHY, "")


def _numbers(text: str) -> Iterator[str]:
    """One spelling for 12,500, 12.500 and 12500, one for 3.5 and 3,5. Dates and lists give their parts too."""
    groups = re.split(r"[.,']", text)
    signs = [sign for sign in text if not sign.isdigit()]
    grouped = len(groups[0]) <= 3 and groups[0] != "0"
    if grouped and len(set(signs)) == 1 and all(len(group) == 3 for group in groups[1:]):
        yield "".join(groups)
        return
    thousands = all(len(group) == 3 for group in groups[1:-1]) and len(set(signs[:-1])) <= 1
    if signs[-1] != "'" and thousands and (len(signs) == 1 or (grouped and signs[-1] != signs[0])):
        yield "".join(groups[:-1]) + "." + groups[-1]
        shortest = 1 if signs == [","] and groups[0] != "0" else 4  # "3,4" may be a list, "05.2024" a month
    else:
        if set(signs) == {"."}:
            yield text
        shortest = 1 if "." not in signs else 2
    yield from (group for group in groups if len(group) >= shortest)


def _is_stop_word(form: str, of: frozenset[str]) -> bool:
    """A capital alone is a name: ``normalise`` has put articles in lower case."""
    return form.lower() in of and not (len(form) == 1 and form.isupper())


def _stems(form: str, language: str) -> Iterator[str]:
    """The word as the index has it: in lower case, stemmed, without accents. Nothing for a stop word.

    A word with accents gives the stem of each spelling that people type: "kündigung", "kundigung", "kuendigung".
    """
    if _is_stop_word(form, stop_words(language)):
        return
    word = form.lower()[:_LONGEST]
    stem: Callable[[str], str] = one.stemWord if (one := stemmer(language)) else str
    if len(word) == 1 or word.isdigit():
        yield fold(word)
        return
    yield fold(stem(word))
    if not word.isascii() and word[0] <= _LAST_LATIN:
        yield fold(stem(fold(word)))
        typed = word.translate(_UMLAUTS)
        if typed != word:
            yield fold(stem(typed))


def fold(word: str) -> str:
    """A lower-case word without accents, and with ß as ss."""
    if word.isascii():
        return word
    bare = _MARKS.sub("", unicodedata.normalize("NFKD", word)).translate(_LETTERS)
    return unicodedata.normalize("NFC", bare)


def _unique(words: Iterator[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(words))
