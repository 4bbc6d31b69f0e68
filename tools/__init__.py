"""Tools for developers: the drawn collection, benchmark, ablation, soak, the page of settings."""
