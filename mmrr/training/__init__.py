"""Training: teaches a small Qwen3-VL to read pages, to embed them and to rerank them; fine-tunes published ones."""
