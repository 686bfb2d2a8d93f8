"""Short forms of the errors that transformers, tokenizers and torch raise."""

from __future__ import annotations


def first_line(error: Exception) -> str:
    """The first line of an error message that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    # The first line of an error of torch's load_state_dict is a heading.
    return lines[1] if lines[0].startswith("Error(s) in loading") and len(lines) > 1 else lines[0]
