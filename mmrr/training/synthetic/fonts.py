"""The installed fonts that can write English, by family. Knows font files and advances, not pages."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from PIL import ImageFont

#: Parts of the names of families and styles that are rare in print: hairlines, small capitals, symbols, handwriting.
UNUSUAL = ("math", "symbol", "keyboard", "caps", "dunhill", "demi", "quot", "slanted", "d050000l", "z003", "chorus")
UNUSUAL_STYLES = ("thin", "hairline", "extralight", "black", "heavy", "caps", "outline", "oblique italic", "initials")
#: In points. From a family with several design sizes the nearest one is taken.
DESIGN_SIZE = 11
SLOTS = {
    **dict.fromkeys(("regular", "roman", "book", "normal"), "regular"),
    **dict.fromkeys(("italic", "oblique", "slanted"), "italic"),
    "bold": "bold",
    "medium": "medium",  # replaces a missing regular face
}


@dataclass(frozen=True, slots=True)
class Family:
    """The font files of one family. An empty path means Pillow's built-in font."""

    name: str
    regular: str
    bold: str
    italic: str
    mono: bool


@dataclass(frozen=True, slots=True)
class Font:
    """A font file at one size."""

    file: str
    size_px: float


@lru_cache(maxsize=1)
def families() -> tuple[Family, ...]:
    """The families that fontconfig lists for English, sorted by name. Without any: Pillow's built-in font."""
    faces: dict[str, dict[str, tuple[int, str]]] = {}  # name -> slot -> (distance from the design size, file)
    spacing: dict[str, bool] = {}
    for line in _listing():
        file, names, styles, pitch = (*line.split("|"), "", "", "")[:4]
        name, style = names.split(",")[0], styles.split(",")[0].lower()
        odd = any(word in names.lower() for word in UNUSUAL) or any(word in styles.lower() for word in UNUSUAL_STYLES)
        if odd or Path(file).suffix.lower() not in (".ttf", ".otf"):
            continue
        number = re.match(r"\d+ +", style)  # "10 Regular": a design size
        slot = SLOTS.get(style[number.end() :] if number else style)
        if slot:
            face = (abs(int(number[0]) - DESIGN_SIZE) if number else 0, file)
            slots = faces.setdefault(name, {})
            slots[slot] = min(slots.get(slot, face), face)
            spacing[name] = spacing.get(name, False) or pitch == "100" or "mono" in name.lower()
    found = []
    for name in sorted(faces):
        files = {slot: file for slot, (_, file) in faces[name].items()}
        regular = files.get("regular", files.get("medium"))
        if regular and _writes_english(regular):
            found.append(Family(name, regular, files.get("bold", regular), files.get("italic", regular), spacing[name]))
    return tuple(found) or (Family("Pillow", "", "", "", False),)


def _listing() -> list[str]:
    command = ["fc-list", ":lang=en", "--format", "%{file}|%{family}|%{style}|%{spacing}\n"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return sorted(done.stdout.splitlines())


def _writes_english(file: str) -> bool:
    try:
        font = ImageFont.truetype(file, 20)
    except OSError:
        return False
    blank = bytes(font.getmask("\uffff"))
    return all(bytes(font.getmask(letter)) != blank for letter in "aQz7")


class _Glyphs(dict[str, bool]):
    """Character -> whether a font file has a glyph with ink for it. Each character is tested once."""

    def __init__(self, file: str) -> None:
        super().__init__()
        self._font = _load(file, 20)
        self._box = self._drawn("\uffff")  # what the font draws for a missing glyph

    def __missing__(self, character: str) -> bool:
        self[character] = character.isprintable() and self._drawn(character) not in (self._box, None)
        return self[character]

    def _drawn(self, character: str) -> tuple[tuple[int, int], bytes] | None:
        mask = self._font.getmask(character)
        return (mask.size, bytes(mask)) if mask.getbbox() else None


@lru_cache(maxsize=1024)
def _glyphs(file: str) -> _Glyphs:
    return _Glyphs(file)


def font_file_for(word: str, file: str) -> str:
    """The font file that draws a word: ``file`` if it has all characters, else the file that has the most of them."""
    return file if all(map(_glyphs(file).__getitem__, word)) else _fallback(word, file)


@lru_cache(maxsize=8192)
def _fallback(word: str, file: str) -> str:
    candidates = (file, *(family.regular for family in families()))
    return max(candidates, key=lambda candidate: sum(map(_glyphs(candidate).__getitem__, word)))


def drawable_text(text: str, file: str) -> str:
    """The words of a text without the characters that ``font_file_for`` their word cannot draw."""
    words = (
        "".join(character for character in word if glyphs[character])
        for word in text.split()
        for glyphs in (_glyphs(font_file_for(word, file)),)
    )
    return " ".join(word for word in words if word)


def is_drawable(text: str) -> bool:
    """Whether any installed font draws at least one character of a text."""
    return any(map(_any_font_has, text))


@lru_cache(maxsize=8192)
def _any_font_has(character: str) -> bool:
    return not character.isspace() and any(_glyphs(family.regular)[character] for family in families())


def _load(file: str, size_px: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    if not file:
        return ImageFont.load_default(size_px)
    return ImageFont.truetype(file, size_px, layout_engine=ImageFont.Layout.BASIC)


class Face:
    """A font file at one size with cached advances: measuring text is most of the work of typesetting."""

    def __init__(self, file: str, size_px: float) -> None:
        self.font = _load(file, size_px)
        self.size_px = size_px
        self._advances: dict[str, float] = {}

    def advances(self, text: str) -> list[float]:
        """Width of each character in pixels, without kerning."""
        known = self._advances
        widths = []
        for character in text:
            if character not in known:
                known[character] = float(self.font.getlength(character))
            widths.append(known[character])
        return widths

    def width(self, text: str) -> float:
        return sum(self.advances(text))


@lru_cache(maxsize=512)
def face(file: str, size_px: float) -> Face:
    """The cached ``Face`` of a font file at one size."""
    return Face(file, size_px)
