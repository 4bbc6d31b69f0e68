"""Run by developers: the drawn collection, benchmark, ablation, soak."""
