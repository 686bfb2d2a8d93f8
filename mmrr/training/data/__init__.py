"""Training data: pairs, ranked lists, queries, negatives, features and targets."""
