"""Synthetic pages: documents in, page images out, with the position of every character. Seeded; no torch."""
