"""Protocols, metrics, weights of signals, the report."""
