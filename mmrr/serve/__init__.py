"""``mmrr serve``: workspaces and a reranker over HTTP. It needs the extra ``mmrr[serve]``."""
