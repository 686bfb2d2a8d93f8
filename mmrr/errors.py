"""The error that a user can fix. Every other exception is a bug and keeps its traceback."""


class MmrrError(Exception):
    """One line for the user: what was found, what was expected, and what to do next."""


class UnsupportedQueryError(MmrrError):
    """A query has an image, and this index or this model finds nothing by images."""
