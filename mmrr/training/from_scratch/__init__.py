"""Training of small Qwen3-VL models from random init, on synthetic pages."""
