"""Whether the text of a page is garbled: characters that are no words, because a font maps its shapes wrongly.

Such text looks right on the page and cannot be searched. The test uses statistics of characters, no dictionary, so it
needs no language. Only pairs of Latin letters have statistics; other scripts are judged by their characters alone.
"""

from __future__ import annotations

import re
import unicodedata
from itertools import pairwise

#: The 258 pairs of letters that are most frequent in 27 languages of Latin script, without accents: each group is a
#: first letter and the letters that follow it. They are 88 % (Czech) to 97 % (Romanian) of the pairs of a text, 93 % in
#: English. Counted in the translated messages of Linux programs. With the alphabet permuted at random they are 36 % of
#: the pairs of English text, and below 61 % in 99 of 100 permutations.
_FREQUENT = (
    "aabcdghijklmnoprstuvwyz baeiloru caehijkortuz daeinoru eabcdefghijklmnprstuvxz faeiou gaeinoru haeiotu "
    "iabcdefgjklmnoprstuvz jaeu kaehiklorstu ladeilostu mabeimopu nacdefghijknostuy oabcdfgiklmnoprstuvwz paeiloprtu "
    "qu racdegikmnorstuvz sacehiklopstuyz taehiorstuyz uabcdegiklmnoprst vaeio waeiy yact zaeinoy"
)
_PAIRS = frozenset(group[0] + letter for group in _FREQUENT.split() for letter in group[1:])

_LEAST_PAIRS = 80  # pairs of letters that a judgement needs: about 20 words
_LEAST_CHARACTERS = 40
_FREQUENT_SHARE = 0.62  # of the pairs; less is garbled
_UNUSABLE_SHARE = 0.2  # of the characters: private, unassigned, replacement and control characters, and rare scripts
_WORD_SHARE = 0.3  # letters and digits among the characters; less is garbled
_LEAST_TOKENS = 25
_TOKEN_SHARE = 0.42  # share of words and numbers among the tokens of a page; a lower share is garbled
_LATIN_SHARE = 0.5  # of the letters; with less, the words are names and addresses in another script
_ACCENTED_SHARE = 0.6  # of the Latin letters; Vietnamese has about 0.3

_LATIN_WORD = re.compile(r"[A-Za-z\u00c0-\u024f\u1e00-\u1eff]{2,}")
_LEADERS = re.compile(r"([^\w\s])(?:\s*\1){2,}")  # dots and lines that fill a row
_TOKEN = re.compile(r"\W{0,3}(?:[^\W\d_]+(?:[-'\u2019][^\W\d_]+)*|[+-]?\d[\d.,:/%-]*)\W{0,3}")
_WITHOUT_BLANKS = re.compile("[\u0e00-\u0eff\u2e80-\u9fff\uac00-\ud7af]")  # scripts that put none between words
_SPACE = re.compile(r"[\s\u00ad]+")


def is_garbled(text: str) -> bool:
    """Whether most of the text cannot be words. Short texts, numbers and formulas are not garbled."""
    characters = _SPACE.sub("", _LEADERS.sub(" ", text))
    if len(characters) < _LEAST_CHARACTERS:
        return False
    if sum(map(_is_unusable, characters)) > _UNUSABLE_SHARE * len(characters):
        return True
    if sum(map(_is_word, characters)) < _WORD_SHARE * len(characters):
        return True
    return _has_odd_tokens(text) or _has_odd_letters(text)


def _has_odd_tokens(text: str) -> bool:
    """Whether letters, digits and signs are mixed within most words."""
    if _WITHOUT_BLANKS.search(text):
        return False
    tokens = [token for token in _LEADERS.sub(" ", text).replace("\u00ad\n", "").split() if len(token) > 1]
    return len(tokens) >= _LEAST_TOKENS and sum(
        _TOKEN.fullmatch(token) is not None for token in tokens
    ) < _TOKEN_SHARE * len(tokens)


def _has_odd_letters(text: str) -> bool:
    """Whether the Latin words have pairs of letters that no language has."""
    n_letters = n_accented = n_pairs = n_frequent = 0
    for word in _LATIN_WORD.findall(text.replace("\u00ad\n", "").replace("\u00ad", "")):
        n_letters += len(word)
        n_accented += sum(not letter.isascii() for letter in word)
        plain = _plain(word)
        n_pairs += len(plain) - 1
        n_frequent += sum(first + second in _PAIRS for first, second in pairwise(plain))
    if n_pairs < _LEAST_PAIRS or n_letters < _LATIN_SHARE * sum(map(str.isalpha, text)):
        return False
    return n_accented > _ACCENTED_SHARE * n_letters or n_frequent < _FREQUENT_SHARE * n_pairs


def _plain(word: str) -> str:
    return "".join(letter for letter in unicodedata.normalize("NFKD", word.casefold()) if letter.isalpha())


def _is_word(character: str) -> bool:
    return unicodedata.category(character)[0] in "LNM"


def _is_unusable(character: str) -> bool:
    # Rare Chinese characters and the Yi script: where letters get numbers of shapes as codes, they fall there.
    rare = "\u3400" <= character <= "\u4dbf" or "\ua000" <= character <= "\ua4cf"
    return character == "\ufffd" or rare or unicodedata.category(character) in ("Cc", "Cn", "Co", "Cs")
