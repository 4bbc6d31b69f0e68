"""Speed of every part beside that of other libraries.

`python -m tools.benchmark` measures on a CPU, `python -m tools.benchmark.gpu` on a GPU,
`python -m tools.benchmark.server` the server. Begin in `rows.py`, which defines a row of results.
"""
