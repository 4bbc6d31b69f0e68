"""The collection that the server searches: opened once, and anew when an extraction replaces it."""

import hashlib
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Generic, TypeVar

import torch

from config import Config
from data import DETAIL, Transform, eval_transform
from features.checksums import FileStamp, file_stamp
from features.database import INFO, FeatureDatabase, open_database
from net import FeatureNet
from search.engines import ENGINES, NamedEngine, open_engine
from search.milvus import RECORD
from search.query import load_models
from search.signals import Signal, signals_of
from server.schemas import CollectionState, EngineState, Item
from utils import UserError

LOOK_SECONDS = 1.0  # between looks whether the files are new
OPENED = 16  # engines kept open: one for each position of the slider that is in use

V = TypeVar("V")


class Recent(Generic[V]):
    """The values used last, up to a number of them, for several threads.

    Parameters
    ----------
    most : number of values
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.lock = threading.Lock()
        self.values: OrderedDict[Hashable, V] = OrderedDict()

    def get(self, key: Hashable) -> V | None:
        """The value of a key, None where it is forgotten."""
        with self.lock:
            if key in self.values:
                self.values.move_to_end(key)
            return self.values.get(key)

    def put(self, key: Hashable, value: V) -> None:
        """Keep a value; the one not used for longest is forgotten."""
        with self.lock:
            self.values[key] = value
            self.values.move_to_end(key)
            while len(self.values) > self.most:
                self.values.popitem(last=False)


@dataclass(frozen=True)
class Collection:
    """An opened feature database with the networks that made it.

    Attributes
    ----------
    config : the settings
    database : the features
    nets : of each model, on `device`
    transforms : of each model, RGB picture -> tensor
    least : px of the short side that queries are decoded at, see `utils.read_picture`
    device : of the networks
    version : changes with the features
    """

    config: Config
    database: FeatureDatabase
    nets: list[FeatureNet]
    transforms: list[Transform]
    least: int
    device: torch.device
    version: str
    opened: Recent[NamedEngine] = field(default_factory=lambda: Recent(OPENED))

    def __len__(self) -> int:
        return len(self.database.categories)

    @cached_property
    def signals(self) -> list[Signal]:
        """The signals with the weights of the settings."""
        return signals_of(self.database, **self.config.distance)

    def weighted(self, balance: float) -> list[Signal]:
        """The signals with their weights moved to the network's (0) or to colour (1)."""
        factors = {True: min(1.0, 2 * (1 - balance)), False: min(1.0, 2 * balance)}
        return [
            replace(signal, weight=signal.weight * factors[signal.name.startswith("deep")])
            for signal in self.signals
        ]

    def engine(self, name: str, signals: list[Signal]) -> NamedEngine:
        """An engine for signals with some weights.

        Raises
        ------
        UserError : see `engines.open_engine`
        """
        key = (name, tuple(signal.weight for signal in signals))
        engine = self.opened.get(key)
        if engine is None:
            config = self.config
            settings = (config.NPROBE, config.TARGET_RECALL, config.milvus)
            engine = open_engine(self.database, signals, name, *settings)
            self.opened.put(key, engine)
        return engine

    def item(self, row: int) -> Item:
        """What is told of a picture."""
        return Item(
            id=row,
            path=self.database.paths[row],
            category=self.database.category(row),
            item=str(self.database.items[row]),
            image=f"/api/image/{row}?v={self.version}",
        )

    def state(self) -> CollectionState:
        """What there is to search in."""
        engines = []
        for name in ENGINES:
            if name == "milvus":  # its server, which may be away, is asked once somebody is
                engines.append(self._milvus_state())
                continue
            try:
                engine = self.engine(name, self.signals)
                told = {"ready": True, "searched": engine.searched, "recall": engine.recall}
                engines.append(EngineState(name=name, reason="", **told))
            except UserError as error:
                reason = self.hide(str(error))
                told = {"ready": False, "searched": "", "recall": None}
                engines.append(EngineState(name=name, reason=reason, **told))
        names = Counter(self.database.categories.tolist())
        return CollectionState(
            name=self.config.DATASET_BASE.resolve().name,
            version=self.version,
            pictures=len(self),
            items=len(set(self.database.items.tolist()) - {""}),
            categories={
                self.database.category_names[number]: count
                for number, count in sorted(names.items())
                if number >= 0
            },
            engines=engines,
            weights={signal.name: signal.weight for signal in self.signals},
            distance=self.engine("exact", self.signals).searched.split(", ", 1)[1],
        )

    def _milvus_state(self) -> EngineState:
        """Whether the features have been pushed, as far as this machine knows."""
        pushed = (self.database.base / RECORD).exists()
        reason = "" if pushed else "not pushed; run: python milvus_push.py"
        return EngineState(name="milvus", ready=pushed, searched="", recall=None, reason=reason)

    def hide(self, text: str) -> str:
        """A message without the place of the collection on this machine."""
        return text.replace(str(self.config.DATASET_BASE), "DATASET_BASE")


def open_collection(config: Config, device: torch.device) -> Collection:
    """Open the feature database of the settings and load the networks that made it.

    Raises
    ------
    UserError : one of them is missing or damaged
    """
    database = open_database(config.DATASET_BASE)
    nets, networks = load_models(database, config.MODELS or (config.DUMPED_MODEL,), device)
    told = repr(sorted(database.metadata.sha256.items())).encode()
    return Collection(
        config=config,
        database=database,
        nets=nets,
        transforms=[eval_transform(network.img_size, network.crop_size) for network in networks],
        least=DETAIL * max(network.img_size for network in networks),
        device=device,
        version=hashlib.sha256(told).hexdigest()[:12],
    )


class Living:
    """The collection as it is now: opened again when its files are replaced.

    Parameters
    ----------
    config : the settings
    device : of the networks

    Raises
    ------
    UserError : see `open_collection`; later on the older state stays
    """

    def __init__(self, config: Config, device: torch.device) -> None:
        self.config = config
        self.device = device
        self.lock = threading.Lock()
        self.seen = _stamp(config.DATASET_BASE)
        self.looked = time.monotonic()
        self.collection = open_collection(config, device)

    def now(self) -> Collection:
        """The collection; its files are looked at once a second."""
        if time.monotonic() - self.looked < LOOK_SECONDS or not self.lock.acquire(blocking=False):
            return self.collection
        try:
            self.looked = time.monotonic()
            stamp = _stamp(self.config.DATASET_BASE)
            if stamp and stamp != self.seen:
                self.collection = open_collection(self.config, self.device)
                self.seen = stamp
        except UserError as error:  # an extraction that is about to end, or one that failed
            print(f"the older collection stays: {error}", flush=True)
        finally:
            self.lock.release()
        return self.collection


def _stamp(base: Path) -> FileStamp | None:
    try:
        return file_stamp(base / INFO)
    except OSError:
        return None
