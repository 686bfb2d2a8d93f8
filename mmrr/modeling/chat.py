"""Encodes chat messages with the checkpoint's template, so that no text can forge a control token.

The template is rendered with placeholders in place of the texts. Control tokens are read only from the template's own
output. The texts of pages and queries are encoded by a copy of the tokenizer without added tokens: a query that
contains ``<|im_end|>`` is encoded as the letters of ``<|im_end|>``. ``word_ends`` finds where the words of a text end.
"""

from __future__ import annotations

import bisect
import itertools
import json
import re
from collections.abc import Sequence
from enum import Enum
from typing import Any

from tokenizers import Tokenizer

from mmrr.contracts import QueryWord
from mmrr.errors import MmrrError
from mmrr.modeling import templates


class Mark(Enum):
    """A part of a message that is not text."""

    IMAGE = "image"
    SPLIT = "split"  # the boundary of two segments


Part = str | Mark
Message = tuple[str, Sequence[Part]]  # role, parts

_SLOT = re.compile("\ue000(\\d+)\ue001")
_WORD = re.compile(r"\S+")


class ChatEncoder:
    """Encodes chats for one checkpoint, with its tokenizer and its template."""

    def __init__(self, tokenizer: Any, template: str | None, *, own: bool = False) -> None:
        """``own``: the template comes with mmrr, so that it needs no process of its own to be rendered."""
        # Any: a fast tokenizer of transformers, which has no public type.
        self._tokenizer, self._own = tokenizer, own
        self._template = tokenizer.get_chat_template(template)
        specification = json.loads(tokenizer.backend_tokenizer.to_str())
        added = specification.pop("added_tokens")
        self._control = {token["content"]: int(token["id"]) for token in added}
        # A tokenizer.json may contain the truncation and padding of a training.
        changes: dict[str, object] = {"added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
        self._plain = Tokenizer.from_str(json.dumps({**specification, **changes}))
        longest_first = sorted(self._control, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    def encode(self, messages: Sequence[Message]) -> list[list[int]]:
        """Token ids of the chat with the generation prompt, one list for each segment; ``Mark.SPLIT`` ends a segment.

        An image is the single image token of the template. The caller replaces it by the visual tokens. Raises
        MmrrError if the template does not render, or does not place each text once.
        """
        slots: list[Part] = []
        chat = [{"role": role, "content": [self._slot(part, slots) for part in parts]} for role, parts in messages]
        rendered = self._render(chat, len(slots))
        segments: list[list[int]] = [[]]
        at = 0
        for control in self._pattern.finditer(rendered):
            self._append(segments, rendered[at : control.start()], slots)
            segments[-1].append(self._control[control.group()])
            at = control.end()
        self._append(segments, rendered[at:], slots)
        return segments

    def _render(self, chat: list[dict[str, Any]], n_slots: int) -> str:
        """The template's output. It depends on the number and the kinds of the parts, not on the texts."""
        values = {
            **{name: str(token) for name, token in self._tokenizer.special_tokens_map.items()},
            "messages": chat,
            "tools": None,
            "documents": None,
            "add_generation_prompt": True,
        }
        try:
            rendered = templates.render(self._template, values, own=self._own)
        except MmrrError as error:
            raise MmrrError(f"{self._tokenizer.name_or_path}: {error}") from error
        placed = sorted(_SLOT.findall(rendered))
        if placed != sorted(map(str, range(n_slots))):
            raise MmrrError(
                f"{self._tokenizer.name_or_path}: the chat template places {len(placed)} texts of a prompt with "
                f"{n_slots}; expected each text once: use the template that belongs to the checkpoint"
            )
        return rendered

    def with_template(self, template: str) -> ChatEncoder:
        """The same tokenizer with a template that comes with mmrr."""
        return ChatEncoder(self._tokenizer, template, own=True)

    def lengths(self, ids: Sequence[int]) -> list[int]:
        """Bytes of text of each token of a byte-level tokenizer. The text of a control token is its name."""
        return [len(token) for token in self._tokenizer.convert_ids_to_tokens(list(ids))]

    def word_tokens(self, ids: Sequence[int], before: str, text: str) -> list[QueryWord]:
        """The words of an NFC text with their tokens. ``ids`` begin with the tokens of ``before`` and ``text``.

        A token that spans the end of a word and the start of the next one belongs to both.
        """
        ends = list(itertools.accumulate(self.lengths(ids)))
        shift = len(before.encode())
        words = []
        for word, last in word_ends(text):
            first = last + 1 - len(word.encode())
            places = range(bisect.bisect_right(ends, shift + first), bisect.bisect_right(ends, shift + last) + 1)
            words.append(QueryWord(word, tuple(places)))
        return words

    def token_id(self, word: str) -> int:
        """The id of a word that is one token, such as ``yes``. Raises ValueError for a word of several tokens."""
        ids = self._encode_plain(word)
        if len(ids) != 1:
            raise ValueError(f"'{word}' is {len(ids)} tokens; expected 1")
        return ids[0]

    @staticmethod
    def _slot(part: Part, slots: list[Part]) -> dict[str, str]:
        if part is Mark.IMAGE:
            return {"type": "image"}
        slots.append(part)
        return {"type": "text", "text": f"\ue000{len(slots) - 1}\ue001"}

    def _append(self, segments: list[list[int]], run: str, slots: list[Part]) -> None:
        """Encode the text between two control tokens: the template's letters with the texts in their placeholders."""
        letters, *rest = _SLOT.split(run)  # letters, index, letters, index, letters
        for index, after in zip(rest[::2], rest[1::2], strict=True):
            part = slots[int(index)]
            if isinstance(part, str):
                letters += part
            else:
                segments[-1].extend(self._encode_plain(letters))
                segments.append([])
                letters = ""
            letters += after
        segments[-1].extend(self._encode_plain(letters))

    def _encode_plain(self, text: str) -> list[int]:
        return list(self._plain.encode(text, add_special_tokens=False).ids)


def word_ends(text: str) -> list[tuple[str, int]]:
    """The words of an NFC text, up to their last letter or digit, with the index of the last UTF-8 byte of each."""
    ends = []
    for match in _WORD.finditer(text):
        last = max((i for i, character in enumerate(match.group()) if character.isalnum()), default=-1)
        if last >= 0:
            end = match.start() + last + 1
            ends.append((text[match.start() : end], len(text[:end].encode()) - 1))
    return ends
