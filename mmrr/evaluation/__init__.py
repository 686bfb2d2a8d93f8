"""Measures, TREC files, benchmarks, latency."""
