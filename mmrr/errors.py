"""Errors the user can fix. Anything else is a bug and kept its traceback."""


class MmrrError(Exception):
    """One line for the user: what was found, what was expected, what to do next."""
