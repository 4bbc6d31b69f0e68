"""The drawn collection, in DeepFashion's layout, for the demo and the tests.

`python -m tools.synthetic` draws it. `draw.py` plans the items and writes the lists;
`items.py` designs an item, `garments.py` draws its strokes in cm (with `collars.py`, `fronts.py`,
`extras.py`, all from `shapes.py`), and `pictures.py` makes pixels of them (on `backgrounds.py`).
"""
