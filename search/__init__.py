"""Distance and signals, the engines, re-ranking, the `Searcher`."""
