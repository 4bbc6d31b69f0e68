"""The JSON interface and the page."""
