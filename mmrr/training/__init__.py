"""Training: small Qwen3-VL models from random init, and fine-tuning of published models.

Curves and several processes need the extra ``mmrr[train]``. The core of mmrr never imports this package.
"""
