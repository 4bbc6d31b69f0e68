"""The drawn collection: `python -m tools.synthetic`."""
