"""First-stage search: FAISS and BM25 indexes, late interaction, score fusion."""
