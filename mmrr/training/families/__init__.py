"""Training of the scorers beside miniReranker: one file each, with ``Config`` and ``train(config, run, tell)``."""
