"""8-bit copies of features, with the error of each row; kept beside the features they are of.

Features x are stored as x' = scale * codes, and the length of x - x' with them, so that whoever
reads the copy knows how far off it is.
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
from utils import UserError, atomic_write, evenly_spaced, progress_bar

METRICS = ("euclidean", "cosine")
LEVELS = 127  # of a code, either way
ROUNDING = 2.0**-24  # relative, of float32
ENCODED = 8192  # rows at once
FAR = 1e15  # values whose squares float32 cannot hold are left to `cdist`
TRIED = 8  # rows encoded anew, to see whether codes are those of the features
SHOWN = 1_000_000  # rows from which on a bar shows how far the encoding is


@dataclass(frozen=True)
class Codes:
    """The 8-bit copy of a signal's features.

    Attributes
    ----------
    values : N x D, int8
    scale : N, float32; x' = scale * values
    norm : N, float32; the squared length of x'
    error : N, float32; the length of x - x', rounded up; infinite where x has no distance at all
    metric : euclidean, or cosine: then x is scaled to length 1 first
    """

    values: Tensor
    scale: Tensor
    norm: Tensor
    error: Tensor
    metric: str

    @cached_property
    def most(self) -> float:
        """The greatest `norm`."""
        return float(self.norm.max())

    def ordered(self, order: np.ndarray) -> "Codes":
        """The same rows in another order."""
        parts = (self.values, self.scale, self.norm, self.error)
        rows = torch.from_numpy(order)
        return Codes(*(part[rows] for part in parts), metric=self.metric)


def encode(features: np.ndarray, metric: str) -> Codes:
    """Make the 8-bit copy of features.

    Parameters
    ----------
    features : N x D, float32
    metric : one of `METRICS`
    """
    count, dim = features.shape
    values = np.zeros((count, dim), np.int8)
    scale, norm = np.ones(count, np.float32), np.zeros(count, np.float32)
    error = np.full(count, np.inf, np.float32)
    bar = progress_bar(count, "encoding for the scan", "picture", shown=count >= SHOWN)
    for start in range(0, count, ENCODED):
        block = slice(start, min(start + ENCODED, count))
        x = np.asarray(features[block], np.float64)
        if metric == "cosine":
            length = np.linalg.norm(x, axis=1, keepdims=True)
            usable = (length > 0) & (length < np.inf)  # not NaN either
            x = np.divide(x, length, out=np.full_like(x, np.nan), where=usable)
        most = np.abs(x).max(axis=1)
        kept = np.flatnonzero(most < FAR)  # others keep their infinite error: never left out
        step = np.where(most[kept] > 0, most[kept] / LEVELS, 1).astype(np.float32)
        step = np.maximum(step, np.float32(1e-15))
        codes = np.rint(x[kept] / step[:, None].astype(np.float64)).clip(-LEVELS, LEVELS)
        decoded = codes * step[:, None].astype(np.float64)
        rows = start + kept
        values[rows], scale[rows] = codes, step
        norm[rows] = (decoded**2).sum(axis=1)
        error[rows] = np.linalg.norm(x[kept] - decoded, axis=1) * (1 + 4 * ROUNDING)
        bar.update(len(x))
    bar.close()
    tensors = (torch.from_numpy(array) for array in (values, scale, norm, error))
    return Codes(*tensors, metric=metric)


def open_codes(
    database: FeatureDatabase, signals: Sequence[Signal], order: np.ndarray | None = None
) -> list[Codes] | None:
    """The codes of the signals that have a weight, made and kept where there are none yet.

    They lie beside the features, under names that hold the features' SHA-256, so that they are
    never taken for those of others.

    Parameters
    ----------
    database : names its files
    signals : of the database
    order : N, the rows in the order in which the codes are to hold them; None: as they are

    Returns
    -------
    None where a metric is not among `METRICS`, or where the codes cannot be kept: making them takes
    longer than they save one query.
    """
    used = [signal for signal in signals if signal.weight]
    if not used or any(signal.metric not in METRICS for signal in used):
        return None
    try:
        return [_open(database, signal, order) for signal in used]
    except UserError as error:
        print(f"queries will be slower: {error}", file=sys.stderr)
        return None


def _open(database: FeatureDatabase, signal: Signal, order: np.ndarray | None = None) -> Codes:
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
        found = Codes(*map(torch.from_numpy, (values, *bounds)), metric=signal.metric)
        if _fits(found, signal, order):
            return found
    codes = encode(signal.features, signal.metric) if order is None else _open(database, signal)
    codes = codes.ordered(order) if order is not None else codes
    bounds = torch.stack([codes.scale, codes.norm, codes.error]).numpy()
    for old in database.base.glob(f"{stem}.[0-9a-f]*.npy"):
        old.unlink(missing_ok=True)  # of other features or another order
    for place, array in zip(places, (codes.values.numpy(), bounds), strict=True):
        with atomic_write(place) as part, open(part, "wb") as target:
            np.save(target, array)
    return codes


def _fits(codes: Codes, signal: Signal, order: np.ndarray | None) -> bool:
    """Whether codes are those of a signal's features, by a few rows that are encoded anew."""
    places = evenly_spaced(len(codes.values), TRIED)
    fresh = encode(signal.features[places if order is None else order[places]], signal.metric)
    return all(
        torch.equal(getattr(fresh, name), getattr(codes, name)[torch.from_numpy(places)])
        for name in ("values", "scale", "norm", "error")
    )
