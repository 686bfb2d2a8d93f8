"""Adapters for other retrieval frameworks. Each file needs one extra of mmrr, and nothing in mmrr imports it."""
