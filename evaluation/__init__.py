"""How good the answers are: the published protocols, and what is measured by them.

Begin with `protocols`: a `Task` is queries, gallery and correct answers; `run_task` gives an
`Outcome`. `metrics` has the formulas, `report` writes the page, `tune_weights` finds the weights of
the signals.
"""
