"""The feature database: extraction, writing, reading, incremental update."""
