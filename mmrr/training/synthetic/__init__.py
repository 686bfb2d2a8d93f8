"""The page factory: documents in, page images out, with the place of every character. Seeded; no torch."""
