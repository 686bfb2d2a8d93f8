"""Scripts that measure what BENCHMARKS.md reports; see README.md in this folder."""
