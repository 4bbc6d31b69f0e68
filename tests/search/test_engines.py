"""What is said where another engine or setting would serve better."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from search.clusters import CLUSTERS
from search.engines import advise_clusters, advise_engine


@pytest.mark.parametrize("count", [1_000_000, 1_000_001])
def test_another_engine_is_named_in_one_line_once(tmp_path: Path, capsys, count: int) -> None:
    database = SimpleNamespace(base=tmp_path, categories=np.zeros(count, np.int8))
    advise_engine(database)
    advise_engine(database)
    err = capsys.readouterr().err
    assert err.count("\n") == ("run: python kmeans.py" in err) == (count > 1_000_000)
    (tmp_path / CLUSTERS).parent.mkdir()
    (tmp_path / CLUSTERS).touch()
    advise_engine(database)
    assert "kmeans.py" not in capsys.readouterr().err


@pytest.mark.parametrize(("recall", "said"), [(0.98, True), (0.99, False), (None, False)])
def test_a_recall_below_the_target_is_said(capsys, recall: float | None, said: bool) -> None:
    advise_clusters(recall, 0.99)
    assert ("98.0% of the nearest pictures" in capsys.readouterr().err) == said
