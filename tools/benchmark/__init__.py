"""The speed of every part beside its peers: `python -m tools.benchmark`."""
