"""Training data: pairs, ranked lists, queries, negatives."""
