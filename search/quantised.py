"""Features quantised to 8 bits, with the error of each row; stored beside the feature database.

Features x are stored as x' = scale * values, with the length of x - x': the error of any distance.
"""

import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from features.arrays import map_array
from features.database import COLOR, PALETTE, FeatureDatabase, deep_file
from search.signals import Signal
from utils import UserError, atomic_write, progress_bar

METRICS = ("euclidean", "cosine")
LEVELS = 127  # values are -127 to 127
ROUNDING = 2.0**-24  # relative, of float32
BLOCK = 8192  # rows at once
MAX_VALUE = 1e15  # float32 cannot hold the squares of greater ones
MIN_BAR = 1_000_000  # rows, from which on a progress bar is shown


@dataclass(frozen=True)
class Quantised:
    """A signal's features in 8 bits.

    Attributes
    ----------
    metric : euclidean, or cosine: then x is scaled to length 1 first
    values : N x D, int8
    scale : N, float32; x' = scale * values
    norm : N, float32; the squared length of x'
    error : N, float32; the length of x - x', rounded up; infinite where x has no distance
    """

    metric: str
    values: Tensor
    scale: Tensor
    norm: Tensor
    error: Tensor

    @cached_property
    def max_norm(self) -> float:
        """The greatest `norm`."""
        return float(self.norm.max())

    def ordered(self, order: np.ndarray) -> "Quantised":
        """The same rows in another order."""
        parts, rows = (self.values, self.scale, self.norm, self.error), torch.from_numpy(order)
        return Quantised(self.metric, *(part[rows] for part in parts))


def quantise(features: np.ndarray, metric: str) -> Quantised:
    """Quantise features to 8 bits.

    Parameters
    ----------
    features : N x D, float32
    metric : one of `METRICS`
    """
    count, dim = features.shape
    values = np.zeros((count, dim), np.int8)
    scale, norm = np.ones(count, np.float32), np.zeros(count, np.float32)
    error = np.full(count, np.inf, np.float32)
    bar = progress_bar(count, "quantising", "picture", shown=count >= MIN_BAR)
    for start in range(0, count, BLOCK):
        block = slice(start, min(start + BLOCK, count))
        x = np.asarray(features[block], np.float64)
        if metric == "cosine":
            length = np.linalg.norm(x, axis=1, keepdims=True)
            usable = (length > 0) & (length < np.inf)  # not NaN either
            x = np.divide(x, length, out=np.full_like(x, np.nan), where=usable)
        most = np.abs(x).max(axis=1)
        kept = np.flatnonzero(most < MAX_VALUE)  # others keep their infinite error: always ranked
        step = np.maximum(most[kept] / LEVELS, 1e-15).astype(np.float32)
        codes = np.rint(x[kept] / step[:, None].astype(np.float64)).clip(-LEVELS, LEVELS)
        decoded = codes * step[:, None].astype(np.float64)
        rows = start + kept
        values[rows], scale[rows] = codes, step
        norm[rows] = (decoded**2).sum(axis=1)
        error[rows] = np.linalg.norm(x[kept] - decoded, axis=1) * (1 + 4 * ROUNDING)
        bar.update(len(x))
    bar.close()
    return Quantised(metric, *map(torch.from_numpy, (values, scale, norm, error)))


def open_quantised(
    database: FeatureDatabase, signals: Sequence[Signal], order: np.ndarray | None = None
) -> list[Quantised] | None:
    """Open the quantised features of the signals that have a weight; make and save missing ones.

    Their files lie beside the feature database. The names hold the SHA-256 of the features, so
    that those of other features are never taken.

    Parameters
    ----------
    database : names its files
    signals : of the database
    order : N, the order of the rows; None: as in the database

    Returns
    -------
    None where a metric is not among `METRICS`, or where the files cannot be written: quantising
    takes longer than it saves one query.
    """
    used = [signal for signal in signals if signal.weight]
    if not used or any(signal.metric not in METRICS for signal in used):
        return None
    try:
        return [_open(database, signal, order) for signal in used]
    except UserError as error:
        print(f"queries will be slower: {error}", file=sys.stderr)
        return None


def _open(database: FeatureDatabase, signal: Signal, order: np.ndarray | None = None) -> Quantised:
    kind, _, number = signal.name.partition("_")
    file = {"color": COLOR, "palette": PALETTE}.get(kind) or deep_file(int(number or 1) - 1)
    key = database.metadata.sha256[file][:16]
    stem = f"{Path(file).stem}.{signal.metric}"
    if order is not None:
        stem += ".ordered"
        key += "-" + hashlib.sha256(order.tobytes()).hexdigest()[:16]
    places = [database.base / f"{stem}.{key}.{part}.npy" for part in ("codes", "bounds")]
    count, dim = signal.features.shape
    try:
        # Copy on write: torch warns of arrays that are read-only, though none is written to.
        values, bounds = map_array(places[0], "|i1", 2, "c"), map_array(places[1], "<f4", 2, "c")
        whole = values.shape == (count, dim) and bounds.shape == (3, count)
    except ValueError:  # none yet, or damaged
        whole = False
    if whole:
        return Quantised(signal.metric, *map(torch.from_numpy, (values, *bounds)))
    if order is None:
        made = quantise(signal.features, signal.metric)
    else:
        made = _open(database, signal).ordered(order)
    bounds = torch.stack([made.scale, made.norm, made.error]).numpy()
    for old in database.base.glob(f"{stem}.[0-9a-f]*.npy"):
        old.unlink(missing_ok=True)  # of other features or another order
    for place, array in zip(places, (made.values.numpy(), bounds), strict=True):
        with atomic_write(place) as part, open(part, "wb") as target:
            np.save(target, array)
    return made
