"""The feature database -> Milvus: a collection is filled, then the data set's alias names it.

The collection's name is a hash of all it is to hold: two pushes at once, or one after another that
was stopped, fill it with the same, and no engine searches a part of it or another one.
"""

import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from features.database import FeatureDatabase, open_database
from search.engine import Engine
from search.exact import exact_engine
from search.milvus import (
    MAX_CANDIDATES,
    METRICS,
    RECORD,
    K,
    MilvusEngine,
    PushRecord,
    collection_name,
)
from search.milvus_client import LONG, ROWS, Client
from search.recall import nearest_others, recall_of
from search.signals import Signal, describe_distance, signals_of
from utils import AwayError, UserError, atomic_write, evenly_spaced, progress_bar

REQUEST_BYTES = 4 << 20  # of features sent at once; Milvus takes 64 MB
MAX_TEXT = 65_535  # bytes of a path or a category: the most that Milvus takes
QUERIES = 100  # that the recall is measured with
MIN_CANDIDATES = 64


def push(
    base: Path, distance: Mapping[str, Any], settings: Mapping[str, Any], target_recall: float
) -> None:
    """Make Milvus hold the feature database of a data set: the signals whose weight is not 0.

    Older collections of the data set are dropped once the new one is whole.

    Parameters
    ----------
    base : DATASET_BASE
    distance : the arguments of `signals_of`
    settings : the arguments of `Client`
    target_recall : recall@10 that the number of candidates is chosen for

    Raises
    ------
    UserError : no feature database; a metric or a signal that Milvus does not take
    AwayError : the server is away, or slow; nothing is lost, another push begins again
    """
    database = open_database(base)
    signals = signals_of(database, **distance)
    pushed = [signal for signal in signals if signal.weight]
    for signal in pushed:
        if signal.metric not in METRICS:
            raise UserError(
                f"Milvus has {' and '.join(METRICS)} distances only, not {signal.name}"
                f" {signal.metric}: choose another --distance-metric or engine"
            )
    start, client = time.perf_counter(), Client(**settings)
    name = collection_name(client.alias, database, pushed)
    if client.collection() != name:
        fill(client, name, database, pushed)
        change = "alter_alias" if client.collection() else "create_alias"
        client.call(change, name, client.alias, times=LONG)
    for other in client.call("list_collections"):
        if re.fullmatch(f"{client.alias}(_[0-9a-f]{{12}}){{2}}", other) and other != name:
            client.call("drop_collection", other, times=LONG)
            print(f"dropped {other}, of an older push")
    seconds = time.perf_counter() - start

    exact = exact_engine(database, signals)
    engine = MilvusEngine(database, signals, client, name, MIN_CANDIDATES, exact)
    recall, shown = measure(engine, exact, signals, target_recall), describe_distance(signals)
    record = PushRecord(
        collection=name, distance=shown, candidates=engine.candidates, recall=recall
    )
    with atomic_write(base / RECORD) as part:
        part.write_text(record.model_dump_json(indent=1), "utf-8")
    print(f"{client.shown}: collection {name}, alias {client.alias}")
    print(f"{len(database.paths):,} pictures: {seconds:.1f} s")
    print(f"distance: {shown}")
    print(f"recall@10 {recall:.3f} with {engine.candidates:,} candidates of each signal")


def fill(client: Client, name: str, database: FeatureDatabase, signals: Sequence[Signal]) -> None:
    """Make a collection hold all pictures, indexed and loaded."""
    from pymilvus import DataType, MilvusClient

    if not client.call("has_collection", name):
        schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("row", DataType.INT64, is_primary=True)
        for column in ("path", "category"):
            schema.add_field(column, DataType.VARCHAR, max_length=MAX_TEXT)
        for signal in signals:
            dim = signal.features.shape[1]
            schema.add_field(signal.name, DataType.FLOAT_VECTOR, dim=dim)
        client.call("create_collection", name, schema=schema, times=LONG)
    count = len(database.paths)
    step = max(1, REQUEST_BYTES // sum(4 * signal.features.shape[1] for signal in signals))
    with progress_bar(count, "push", "picture") as bar:
        for start in range(0, count, step):
            block = slice(start, min(start + step, count))
            features = {signal.name: np.asarray(signal.features[block]) for signal in signals}
            pictures = [
                {
                    "row": start + i,
                    "path": path,
                    "category": database.category(start + i),
                    **{field: values[i] for field, values in features.items()},
                }
                for i, path in enumerate(database.paths[block])
            ]
            # An upsert: what two pushes send must be there once.
            client.call("upsert", name, pictures, times=LONG)
            bar.update(len(pictures))
    client.call("flush", name, times=LONG)
    known, missing = client.call("list_indexes", name), MilvusClient.prepare_index_params()
    for signal in signals:
        if signal.name not in known:
            metric = METRICS[signal.metric]
            missing.add_index(signal.name, "AUTOINDEX", signal.name, metric_type=metric)
    if missing:  # both wait for the end
        client.call("create_index", name, missing, times=LONG + count / ROWS)
    client.call("load_collection", name, times=LONG + count / ROWS)
    options = {"filter": "", "output_fields": ["count(*)"], "consistency_level": "Strong"}
    found = int(client.call("query", name, times=LONG, **options)[0]["count(*)"])
    if found != count:
        raise AwayError(
            f"{client.shown}: {name} holds {found:,} of {count:,} pictures; run it again"
        )


def measure(engine: MilvusEngine, exact: Engine, signals: Sequence[Signal], target: float) -> float:
    """Set the fewest candidates that reach a recall@10, and return that recall.

    It is measured with pictures of the collection, each omitted from its own answer.
    """
    count = len(engine.database.paths)
    rows = evenly_spaced(count, QUERIES)
    queries = [signal.features[rows] for signal in signals]
    truth = nearest_others(exact, signals, rows, K)
    while True:
        recall = recall_of([answer.rows for answer in engine.search(queries, K + 1)], truth)
        if recall >= target or engine.candidates >= min(count, MAX_CANDIDATES // 4):
            return recall
        engine.candidates *= 2
