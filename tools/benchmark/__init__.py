"""Speed of every part beside that of other libraries.

`python -m tools.benchmark` measures on a CPU, `python -m tools.benchmark.gpu` on a GPU,
`python -m tools.benchmark.web` the server. Begin in `table.py`, which defines a row of results.
"""
