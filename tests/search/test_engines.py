"""What is said where another engine would serve a collection better."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from search.clusters import CLUSTERS
from search.engines import advise


@pytest.mark.parametrize(
    ("count", "engine", "said"),
    [
        (1_000_000, {"name": "exact", "recall": 1.0}, ""),
        (1_000_001, {"name": "exact", "recall": 1.0}, "run: python kmeans.py"),
        (1_000_001, {"name": "exact", "recall": 1.0, "on_gpu": True}, ""),
        (99, {"name": "kmeans", "recall": 0.98}, "98.0% of the nearest pictures"),
        (99, {"name": "kmeans", "recall": 0.99}, ""),
        (99, {"name": "kmeans", "recall": None}, ""),
        (200_001, {"name": "milvus", "recall": 1.0, "in_file": True}, "200,001 pictures are many"),
        (200_001, {"name": "milvus", "recall": 1.0}, ""),
    ],
)
def test_another_engine_is_named_in_one_line_once(
    tmp_path: Path, capsys, count: int, engine: dict, said: str
) -> None:
    database = SimpleNamespace(base=tmp_path, categories=np.zeros(count, np.int8))
    advise(database, target_recall=0.99, **engine)
    advise(database, target_recall=0.99, **engine)
    err = capsys.readouterr().err
    assert err.count("\n") == bool(said)
    assert said in err
    (tmp_path / CLUSTERS).parent.mkdir()
    (tmp_path / CLUSTERS).touch()
    advise(database, target_recall=0.99, **engine)
    assert "kmeans.py" not in capsys.readouterr().err
