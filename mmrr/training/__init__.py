"""Training: small Qwen3-VL models from random init, and fine-tuning of published models. Needs the extra ``mmrr[train]``
for curves and several processes; the core of mmrr never imports it.
"""
