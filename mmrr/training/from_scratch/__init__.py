"""Training of the small Qwen3-VL models that come with mmrr."""
