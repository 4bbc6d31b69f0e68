"""Answers without repeats, against a loop over all answers."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from search.duplicates import CollapsedEngine
from search.engine import ExactEngine
from search.signals import Signal


@given(st.lists(st.sampled_from(["", "a", "b", "c"]), min_size=1), st.integers(1, 5))
def test_items_are_the_first_of_all_pictures_collapsed(names: list[str], k: int) -> None:
    """However many pictures the nearest item has, and if there are fewer items than k."""
    items = np.array(names)
    places = np.arange(len(items), dtype=np.float32)[:, None]
    engine = ExactEngine([Signal("deep", places, "euclidean", 1.0)])
    queries = [np.float32([[-1], [99]])]
    answers = CollapsedEngine(engine, items).search(queries, k)
    for answer, plain in zip(answers, engine.search(queries, len(items)), strict=True):
        expected, seen = [], {""}
        for row in plain.rows:
            if items[row] not in seen or not items[row]:
                expected.append(row)
                seen.add(items[row])
        assert answer.rows.tolist() == expected[:k]
        assert len(answer.distances) == len(answer.parts) == len(answer.rows)
