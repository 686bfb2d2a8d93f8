"""``mmrr report``: one HTML file that shows what was run, how well it ranks, what it costs, and where it fails."""
