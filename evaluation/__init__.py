"""How good the answers are: the published protocols, and what is measured by them.

Begin with `protocols`: a `Task` is queries, gallery and correct answers; `run_task` gives an
`Outcome`. `metrics` has the formulas, `report` writes the page, `query_ablation` and
`tune_weights` are two further measurements of evaluate.py.
"""
