"""Training: what train.py is made of. Begin with `loop`, whose `Trainer` is one run.

`loaders` gives the pictures, `losses` is what a step minimises, `optimizer` how it changes the
weights, `validation` how good the network is, `resume` how a stopped run continues. `boxes` trains
the head that finds garments.
"""
