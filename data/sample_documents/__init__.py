"""One module per sample document, each with `build(path)`. `layout` and `charts` are shared."""
