"""The fonts of this machine that can write English, by family. Knows files and advances, not pages."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from PIL import ImageFont

#: Faces that print seldom uses: hairlines, small capitals, symbols, handwriting.
UNUSUAL = ("math", "symbol", "keyboard", "caps", "dunhill", "demi", "quot", "slanted", "d050000l", "z003", "chorus")
UNUSUAL_STYLES = ("thin", "hairline", "extralight", "black", "heavy", "caps", "outline", "oblique italic", "initials")
#: Where a family comes in several design sizes, the one nearest to this is taken.
DESIGN_SIZE = 11
SLOTS = {
    **dict.fromkeys(("regular", "roman", "book", "normal"), "regular"),
    **dict.fromkeys(("italic", "oblique", "slanted"), "italic"),
    "bold": "bold",
    "medium": "medium",  # where there is no regular face
}


@dataclass(frozen=True, slots=True)
class Family:
    """One family: files of its upright, bold and slanted faces ("" stands for Pillow's own font)."""

    name: str
    regular: str
    bold: str
    italic: str
    mono: bool


@lru_cache(maxsize=1)
def families() -> tuple[Family, ...]:
    """Families that fontconfig lists for English, sorted by name; Pillow's built-in font where there are none."""
    faces: dict[str, dict[str, tuple[int, str]]] = {}  # name, slot: how far from the design size, file
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
    """Whether a face has something to draw for a character; asked once for each."""

    def __init__(self, file: str) -> None:
        super().__init__()
        self._font = _load(file, 20)
        self._box = self._drawn("\uffff")  # what the font draws in place of what it lacks

    def __missing__(self, character: str) -> bool:
        self[character] = character.isprintable() and self._drawn(character) not in (self._box, None)
        return self[character]

    def _drawn(self, character: str) -> tuple[tuple[int, int], bytes] | None:
        mask = self._font.getmask(character)
        return (mask.size, bytes(mask)) if mask.getbbox() else None


@lru_cache(maxsize=1024)
def _glyphs(file: str) -> _Glyphs:
    return _Glyphs(file)


def suited(word: str, file: str) -> str:
    """The face that draws this word: ``file``, or that of another family where this lacks some of the characters."""
    return file if all(map(_glyphs(file).__getitem__, word)) else _other(word, file)


@lru_cache(maxsize=8192)
def _other(word: str, file: str) -> str:
    candidates = (file, *(family.regular for family in families()))
    return max(candidates, key=lambda candidate: sum(map(_glyphs(candidate).__getitem__, word)))


def written(text: str, file: str) -> str:
    """The words of a text, less the characters that the face which suits their word cannot draw."""
    words = (
        "".join(character for character in word if glyphs[character])
        for word in text.split()
        for glyphs in (_glyphs(suited(word, file)),)
    )
    return " ".join(word for word in words if word)


def drawable(text: str) -> bool:
    """Whether any face here draws anything of a text."""
    return any(map(_some_face_has, text))


@lru_cache(maxsize=8192)
def _some_face_has(character: str) -> bool:
    return not character.isspace() and any(_glyphs(family.regular)[character] for family in families())


def _load(file: str, size_px: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    if not file:
        return ImageFont.load_default(size_px)
    return ImageFont.truetype(file, size_px, layout_engine=ImageFont.Layout.BASIC)


class Face:
    """One face at one size, with its advances remembered: measuring text is most of the work of setting it."""

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
    return Face(file, size_px)
