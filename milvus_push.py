"""Load a feature database into Milvus, as `python index.py push` does."""

import json
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from config import Config
from index import Engine, FeatureDatabase, Signal, describe_distance, open_database, signals_of
from milvus import MOST, TOLD, K, MilvusEngine, Told, lists_of, milvus_metric
from milvus_server import Place, Server, library, older
from scan import exact_engine
from utils import AwayError, UserError, atomic_write, progress_bar

SENT = 4 << 20  # bytes of features at once; Milvus takes 64 MB
TEXT = 65_535  # bytes of a path, a category or an item: Milvus's most
QUERIES = 100
LEAST = 64  # candidates
PAUSE = 1.0  # s between looks how far the indexes are


def batch_of(signals: Sequence[Signal]) -> int:
    """Pictures sent at once: the same in each push of a database, which goes on by them."""
    return max(1, SENT // sum(4 * signal.features.shape[1] for signal in signals))


def make_collection(server: Server, name: str, signals: Sequence[Signal], count: int) -> None:
    """Make a collection with the indexes of the settings, or give the one there is those indexes.

    Raises
    ------
    UserError : Milvus has no such index
    AwayError : the server is away, or slow
    """
    milvus, kind = library(server.place), server.place.index
    if server.is_lite and kind == "DISKANN":  # it would say so only to a search
        raise UserError(f"MILVUS_INDEX {kind}: Milvus Lite has no such index")
    if not server.ask("has_collection", name):
        form = milvus.MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
        form.add_field("row", milvus.DataType.INT64, is_primary=True)
        for signal in signals:
            width = signal.features.shape[1]
            form.add_field(signal.name, milvus.DataType.FLOAT_VECTOR, dim=width)
        for column in ("path", "category", "item"):
            form.add_field(column, milvus.DataType.VARCHAR, max_length=TEXT)
        server.ask("create_collection", name, schema=form, patient=True)
    params = {"nlist": lists_of(count)} if kind.startswith("IVF") else {}
    params |= {"M": 32, "efConstruction": 200} if kind == "HNSW" else {}
    wanted = milvus.MilvusClient.prepare_index_params()
    for signal in signals:
        metric, found = milvus_metric(signal), _index_of(server, name, signal.name)
        if found == (kind, metric):
            continue
        if found:
            server.ask("release_collection", name, patient=True)
            server.ask("drop_index", name, index_name=signal.name, patient=True)
        wanted.add_index(signal.name, kind, signal.name, metric_type=metric, params=params)
    if wanted:
        try:
            server.ask("create_index", name, wanted, patient=True)
        except AwayError:
            raise
        except UserError as error:
            raise UserError(f"MILVUS_INDEX {kind}: {error}") from None
    server.ask("load_collection", name, patient=True)


def _index_of(server: Server, name: str, field: str) -> tuple[str, str] | None:
    """Type and metric of a field's index; None where it has none."""
    if field not in server.ask("list_indexes", name):
        return None
    index = server.ask("describe_index", name, index_name=field)
    return index["index_type"], index["metric_type"]


def send(server: Server, name: str, database: FeatureDatabase, signals: Sequence[Signal]) -> int:
    """Send the pictures that a collection does not hold yet, in order of their rows.

    Returns
    -------
    Pictures sent.

    Raises
    ------
    AwayError : the server is away, or slow, or holds another number of pictures in the end
    """
    count, batch = len(database.categories), batch_of(signals)
    # Batches are sent one after the other, so but for the last one those that began are whole.
    held = server.count(name)
    first = count if held == count else min(held // batch * batch, count)
    with progress_bar(count, "push", "picture", first) as bar:
        for start in range(first, count, batch):
            rows = range(start, min(start + batch, count))
            # An upsert, for what is sent twice is to be there once.
            server.ask("upsert", name, _records(database, signals, rows), patient=True)
            bar.update(len(rows))
    server.ask("flush", name, patient=True)
    held = server.count(name)
    if held != count:
        raise AwayError(
            f"{server.place.shown}: {name} holds {held:,} of {count:,} pictures; run it again"
        )
    return count - first


def _records(
    database: FeatureDatabase, signals: Sequence[Signal], rows: range
) -> list[dict[str, Any]]:
    block = slice(rows.start, rows.stop)
    features = {signal.name: np.asarray(signal.features[block]) for signal in signals}
    return [
        {
            "row": row,
            **{name: values[i] for name, values in features.items()},
            "path": database.paths[row],
            "category": database.category(row),
            "item": str(database.items[row]),
        }
        for i, row in enumerate(rows)
    ]


def wait_for_indexes(server: Server, name: str, signals: Sequence[Signal]) -> None:
    """Wait until a server has indexed all that it is going to, which it does by itself.

    Raises
    ------
    AwayError : the server is away, or slow
    """
    for signal in signals:
        left = _unindexed(server, name, signal)
        with progress_bar(left, f"index {signal.name}", "picture", shown=left > 0) as bar:
            while left:
                time.sleep(PAUSE)
                now = _unindexed(server, name, signal)
                bar.update(max(left - now, 0))
                left = now


def _unindexed(server: Server, name: str, signal: Signal) -> int:
    told = server.ask("describe_index", name, index_name=signal.name)
    return int(told.get("pending_index_rows") or 0)


def measure(engine: MilvusEngine, exact: Engine, target: float) -> tuple[int, float]:
    """The fewest candidates with which the engine has a recall, and the recall that it has.

    It is measured with pictures of the collection, each left out of its answer.
    """
    count = len(engine.signals[0].features)
    asked = np.unique(np.linspace(0, count - 1, min(QUERIES, count)).astype(np.int64))
    queries = [signal.features[asked] for signal in engine.signals]
    answers = zip(asked, exact.search(queries, K + 1), strict=True)
    truth = [answer.rows[answer.rows != row][:K] for row, answer in answers]
    engine.candidates = LEAST
    while True:
        found = engine.search(queries, K + 1)
        pairs = zip(truth, found, strict=True)
        shares = [np.isin(rows, answer.rows).mean() for rows, answer in pairs if len(rows)]
        recall = float(np.mean(shares)) if shares else 1.0
        if recall >= target or engine.candidates >= min(count, MOST // 4):
            return engine.candidates, recall
        engine.candidates *= 2


def push(config: Config) -> None:
    """Load the feature database of the settings into Milvus, and drop older ones of the data set.

    Raises
    ------
    UserError : no feature database; a metric or an index that Milvus has not
    AwayError : the server is away, or slow; nothing is lost, and another push goes on
    """
    database = open_database(config.DATASET_BASE)
    signals = signals_of(database, **config.distance)
    place = Place(**config.milvus)
    for signal in signals:
        milvus_metric(signal)
    name, count = place.collection(database), len(database.categories)
    start = time.perf_counter()
    server = Server(place)
    make_collection(server, name, signals, count)
    sent = send(server, name, database, signals)
    wait_for_indexes(server, name, signals)
    seconds = time.perf_counter() - start
    exact = exact_engine(database, signals)
    engine = MilvusEngine(signals, server, name, LEAST, exact, database)
    candidates, recall = measure(engine, exact, config.TARGET_RECALL)
    told = Told(
        collection=name,
        index=place.index,
        distance=describe_distance(signals),
        candidates=candidates,
        recall=recall,
    )
    with atomic_write(database.base / TOLD) as part:
        part.write_text(json.dumps(told, indent=1), "utf-8")
    for other in older(name, server.ask("list_collections")):
        server.ask("drop_collection", other, patient=True)
        print(f"dropped {other}, of older features")
    print(f"{place.shown}: {name}, {place.index}")
    print(f"{count:,} pictures, {sent:,} of them sent: {seconds:.1f} s")
    print(f"distance: {told['distance']}")
    print(f"recall@10 {recall:.3f} with {candidates:,} candidates of each signal")
