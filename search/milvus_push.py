"""Load a feature database into Milvus, as `python milvus_push.py` does."""

import json
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from config import Config
from features.database import FeatureDatabase, open_database
from search.engine import Engine
from search.exact import exact_engine
from search.milvus import MOST, TOLD, K, MilvusEngine, Told, lists_of, milvus_metric, read_told
from search.milvus_numbers import make_numbers, save_numbers, versions_of
from search.milvus_server import Place, Server, library, older
from search.recall import nearest_others, recall_of
from search.signals import Signal, describe_distance, signals_of
from utils import AwayError, UserError, atomic_write, progress_bar

SENT = 4 << 20  # bytes of features at once; Milvus takes 64 MB
TEXT = 65_535  # bytes of a path, a category or an item: Milvus's most
QUERIES = 100
LEAST = 64  # candidates
BATCH = 8192  # pictures dropped at once
PAUSE = 1.0  # s between looks how far the indexes are


def batch_of(signals: Sequence[Signal]) -> int:
    """Pictures sent at once."""
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
        form.add_field("number", milvus.DataType.INT64, is_primary=True)
        form.add_field("version", milvus.DataType.INT64)
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


class Wanted:
    """What a collection is to hold.

    Parameters
    ----------
    database : the feature database
    signals : of it
    """

    def __init__(self, database: FeatureDatabase, signals: Sequence[Signal]) -> None:
        self.numbers = make_numbers(database)
        self.versions = versions_of(database, signals)

    def compared(self, server: Server, name: str) -> tuple[np.ndarray, np.ndarray]:
        """The numbers of all pictures that a collection holds, and the rows that are in it."""
        held, versions = server.columns(name, ("number", "version"))
        known = np.isin(held, self.numbers.of_rows)
        rows = self.numbers.rows(held[known])
        return held, rows[self.versions[rows] == versions[known]]


def to_take_over(
    server: Server, name: str, signals: Sequence[Signal], wanted: Wanted
) -> str | None:
    """A collection of older features of the data set, if at least half of it may stay as it is.

    Parameters
    ----------
    server : has it
    name : that it is to have
    signals : that it has to have
    wanted : what it is to hold

    Raises
    ------
    AwayError : the server is away, or slow
    """
    widths = {signal.name: signal.features.shape[1] for signal in signals}
    for other in older(name, server.ask("list_collections")):
        fields = server.ask("describe_collection", other)["fields"]
        found = {field["name"]: field.get("params", {}).get("dim") for field in fields}
        vectors = {field: int(width) for field, width in found.items() if width}
        if vectors != widths or not {"number", "version"} <= found.keys():
            continue
        server.ask("load_collection", other, patient=True)
        held, same = wanted.compared(server, other)
        if 2 * len(same) >= max(len(held), len(wanted.versions)):
            return other
    return None


def send(
    server: Server, name: str, database: FeatureDatabase, signals: Sequence[Signal], wanted: Wanted
) -> tuple[int, int]:
    """Make a collection hold what it is to: send what is new or has changed, drop what is gone.

    Returns
    -------
    Pictures sent, and dropped.

    Raises
    ------
    AwayError : the server is away, or slow, or holds another number of pictures in the end
    """
    count = len(database.categories)
    held, same = wanted.compared(server, name)
    gone = np.setdiff1d(held, wanted.numbers.of_rows)
    for start in range(0, len(gone), BATCH):
        server.ask("delete", name, ids=gone[start : start + BATCH].tolist(), patient=True)
    rest, batch = np.setdiff1d(np.arange(count), same), batch_of(signals)
    with progress_bar(count, "push", "picture", count - len(rest)) as bar:
        for start in range(0, len(rest), batch):
            rows = rest[start : start + batch]
            # An upsert, for what is sent twice is to be there once.
            server.ask("upsert", name, _records(database, signals, rows, wanted), patient=True)
            bar.update(len(rows))
    server.ask("flush", name, patient=True)
    now = server.count(name)
    if now != count:
        raise AwayError(
            f"{server.place.shown}: {name} holds {now:,} of {count:,} pictures; run it again"
        )
    return len(rest), len(gone)


def _records(
    database: FeatureDatabase, signals: Sequence[Signal], rows: np.ndarray, wanted: Wanted
) -> list[dict[str, Any]]:
    features = {signal.name: np.asarray(signal.features[rows]) for signal in signals}
    return [
        {
            "number": int(wanted.numbers.of_rows[row]),
            "version": int(wanted.versions[row]),
            **{name: values[i] for name, values in features.items()},
            "path": database.paths[row],
            "category": database.category(row),
            "item": str(database.items[row]),
        }
        for i, row in enumerate(rows.tolist())
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
    truth = nearest_others(exact, engine.signals, asked, K)
    engine.candidates = LEAST
    while True:
        recall = recall_of([answer.rows for answer in engine.search(queries, K + 1)], truth)
        if recall >= target or engine.candidates >= min(count, MOST // 4):
            return engine.candidates, recall
        engine.candidates *= 2


def push(config: Config, told: Told | None = None) -> None:
    """Make Milvus hold the feature database of the settings.

    A collection of older features is changed to these where that is less work, and else dropped in
    the end.

    Parameters
    ----------
    config : the settings
    told : what was measured before an update, and holds where little has changed; None to measure
        it now

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
    wanted = Wanted(database, signals)
    old = None
    if not server.ask("has_collection", name):
        old = to_take_over(server, name, signals, wanted)
    current = old or name
    make_collection(server, current, signals, count)
    sent, dropped = send(server, current, database, signals, wanted)
    if old:  # only now is it that of these features
        server.ask("rename_collection", old, name, patient=True)
        server.ask("load_collection", name, patient=True)
    wait_for_indexes(server, name, signals)
    seconds = time.perf_counter() - start
    distance = describe_distance(signals)
    if old and told and (told["index"], told["distance"]) == (place.index, distance):
        candidates, recall = told["candidates"], told["recall"]
    else:
        exact = exact_engine(database, signals)
        engine = MilvusEngine(signals, server, name, LEAST, wanted.numbers, exact, database)
        candidates, recall = measure(engine, exact, config.TARGET_RECALL)
    told = Told(
        at=place.shown,
        collection=name,
        index=place.index,
        distance=distance,
        candidates=candidates,
        recall=recall,
    )
    save_numbers(database.base, name, wanted.numbers)
    with atomic_write(database.base / TOLD) as part:
        part.write_text(json.dumps(told, indent=1), "utf-8")
    for other in older(name, server.ask("list_collections")):
        server.ask("drop_collection", other, patient=True)
        print(f"dropped {other}, of older features")
    print(f"{place.shown}: {name}, {place.index}")
    print(f"{count:,} pictures, {sent:,} of them sent, {dropped:,} dropped: {seconds:.1f} s")
    print(f"distance: {distance}")
    print(f"recall@10 {recall:.3f} with {candidates:,} candidates of each signal")


def follow(config: Config, database: FeatureDatabase) -> None:
    """Let Milvus follow an update of a feature database that was pushed; else nothing is done.

    Raises
    ------
    UserError, AwayError : see `push`
    """
    told, place = read_told(database.base), Place(**config.milvus)
    name = place.collection(database)
    if told is None or told["collection"] == name:
        return
    if (told["at"], [told["collection"]]) != (place.shown, older(name, [told["collection"]])):
        print(
            f"{database.base / TOLD}: the last push was to {told['collection']} at {told['at']},"
            " which the settings MILVUS_... do not name; it was not updated"
        )
        return
    push(config, told)
