"""mmrr: find the right page in thousands of PDF pages by looking at the pages."""

__version__ = "0.2.0"
