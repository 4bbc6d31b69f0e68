"""Training: what train.py is made of. Begin with `loop`, whose `Trainer` is one run.

`losses` is what a step minimises, `optimizer` how it changes the weights, `validation` how good the
network is, `resume` the file from which a stopped run continues.
"""
