"""A connection to Milvus, a cluster's or a file's, whose faults are told in one line."""

import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from features.database import FeatureDatabase
from utils import AwayError, UserError

INPUT_ERROR = 1100  # Milvus's code of what it will never do
NOT_LOADED = 101
UNREACHED = 2
FORM = 2  # of a collection's fields; another one is another collection
DIGITS = 16  # of the features' SHA-256 in a collection's name
PATIENCE = 10  # times MILVUS_TIMEOUT, for what a server has to work for
OPTIONS = {
    "grpc.keepalive_time_ms": 330_000,  # below 300 s, Milvus Lite ends the connection
    "grpc.max_reconnect_backoff_ms": 1000,  # not 2 minutes: a server that is back is to be found
}
PAUSE = 0.5  # s between attempts to reach a server
PAGE = 16_384  # pictures told of at once: Milvus's most


@dataclass(frozen=True)
class Place:
    """Where Milvus is and how it is asked: the settings MILVUS_..., see config.py.

    Attributes
    ----------
    uri : of a server, or a file NAME.db
    token : that the server wants, "" for none
    prefix : begin of the collection's name, "" for the data set's folder
    index : type of the indexes
    timeout : s
    """

    uri: str
    token: str
    prefix: str
    index: str
    timeout: float

    @property
    def is_file(self) -> bool:
        return "://" not in self.uri and not self.uri.startswith("unix:")

    @property
    def shown(self) -> str:
        """The address without a password."""
        return re.sub(r"//[^/@]*@", "//", self.uri)

    def family(self, base: Path) -> str:
        """Begin of the names of a data set's collections."""
        name = re.sub(r"[^A-Za-z0-9_]", "_", base.resolve().name)[:200]
        return self.prefix or (name if re.match("[A-Za-z_]", name) else f"_{name}")

    def collection(self, database: FeatureDatabase) -> str:
        """Name of the collection of a feature database: other features have another one."""
        info = database.info
        hashes = sorted((info["sha256"] | info["sha256_others"]).items())
        told = [FORM, hashes, database.category_names]
        digest = hashlib.sha256(json.dumps(told).encode()).hexdigest()
        return f"{self.family(database.base)}_{digest[:DIGITS]}"


def older(name: str, names: Sequence[str]) -> list[str]:
    """Those of some collections that are of the same data set as one, with other features."""
    form = re.compile(re.escape(name[:-DIGITS]) + f"[0-9a-f]{{{DIGITS}}}")
    return [other for other in names if form.fullmatch(other) and other != name]


def library(place: Place) -> Any:
    """The client's package.

    Raises
    ------
    UserError : it is not installed, or Milvus Lite is not, which a file needs
    """
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        if place.is_file:
            import milvus_lite  # noqa: F401
        import pymilvus
    except ImportError as error:
        raise UserError(
            f"the milvus engine needs pymilvus and, for a file, milvus-lite ({error});"
            " run: pip install -r requirements-milvus.txt"
        ) from None
    for name in ("pymilvus", "milvus_lite"):  # they log what they raise, with its traceback
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    return pymilvus


class Server:
    """A connection to Milvus; what goes wrong there becomes one line.

    Parameters
    ----------
    place : of it; the folder of a file is made

    Raises
    ------
    UserError : no such address, or the server wants another token
    AwayError : nobody answers, or another process has the file open
    """

    def __init__(self, place: Place) -> None:
        self.place = place
        client = library(place).MilvusClient
        if place.is_file:
            if not place.uri.endswith(".db"):
                raise UserError(f"MILVUS_URI {place.uri}: neither a URL nor a file NAME.db")
            Path(place.uri).parent.mkdir(parents=True, exist_ok=True)
        told = {"token": place.token, "grpc_options": OPTIONS}
        try:
            self.client = _until(
                place.timeout, lambda left: client(place.uri, timeout=left, **told)
            )
            version = _until(place.timeout, lambda left: self.client.get_server_version(left))
        except Exception as error:  # of several libraries
            if place.is_file and _is_locked(Path(place.uri)):
                raise AwayError(
                    f"{place.uri}: another process has it open; stop that, or run a server and set"
                    " MILVUS_URI to its URL (see docs/milvus.md)"
                ) from None
            raise self._error("connect", error) from None
        self.is_lite = "lite" in version

    def ask(
        self, method: str, *args: Any, patient: bool = False, again: bool = True, **options: Any
    ) -> Any:
        """Call a method of `pymilvus.MilvusClient`.

        Parameters
        ----------
        patient : wait `PATIENCE` times as long; for a file, that is always so
        again : load the collection of a search where a server that has started anew has not

        Raises
        ------
        AwayError : no answer in time, or the server cannot do it now
        UserError : it never will
        """
        call = getattr(self.client, method)
        try:
            return _until(self._seconds(patient), lambda left: call(*args, timeout=left, **options))
        except Exception as error:  # of several libraries
            if again and method == "search" and getattr(error, "code", None) == NOT_LOADED:
                self.ask("load_collection", args[0])
                return self.ask(method, *args, again=False, **options)
            raise self._error(method.replace("_", " "), error) from None

    def _seconds(self, patient: bool) -> float:
        return self.place.timeout * (PATIENCE if patient or self.place.is_file else 1)

    def columns(self, name: str, fields: Sequence[str]) -> list[np.ndarray]:
        """Some fields of whole numbers of all pictures of a collection, which is loaded.

        Returns
        -------
        Of each field, n, int64.

        Raises
        ------
        UserError, AwayError : see `ask`
        """
        asked = {"output_fields": list(fields), "consistency_level": "Strong"}
        found = [[np.empty(0, np.int64)] for _ in fields]
        pages = self.ask("query_iterator", name, PAGE, patient=True, **asked)
        try:
            while page := _until(self._seconds(patient=True), lambda _: pages.next()):
                for column, field in zip(found, fields, strict=True):
                    column.append(np.array([record[field] for record in page], np.int64))
            pages.close()
        except Exception as error:  # of several libraries
            raise self._error("query", error) from None
        return [np.concatenate(column) for column in found]

    def count(self, name: str) -> int:
        """Pictures that a collection, which is loaded, holds now."""
        asked = {"output_fields": ["count(*)"], "consistency_level": "Strong"}
        return int(self.ask("query", name, filter="", **asked)[0]["count(*)"])

    def _error(self, step: str, error: Any) -> UserError:
        where, code = self.place.shown, getattr(error, "code", None)
        is_of_grpc = callable(code)
        if is_of_grpc:
            code = error.code().name
            reason = error.details() or code
        else:
            reason = str(getattr(error, "message", error))
        reason = " ".join(reason.split()).replace(self.place.token or "\0", "...")
        if len(reason) > 300:
            reason = reason[:300] + "..."
        if code in ("UNAUTHENTICATED", "PERMISSION_DENIED") or "auth check failure" in reason:
            return UserError(f"{where}: not let in ({reason}); see MILVUS_TOKEN")
        if type(error).__name__ == "ConnectionConfigException":
            return UserError(f"MILVUS_URI {where}: cannot be opened ({reason})")
        inside = self.place.is_file and not is_of_grpc
        if inside or code == INPUT_ERROR or getattr(error, "is_input_error", False):
            return UserError(f"{where}: {step}: refused ({reason})")
        return AwayError(
            f"{where}: no answer to '{step}' in time, or not now ({reason}); nothing is lost: see"
            " to the server, or raise MILVUS_TIMEOUT, and run it again"
        )


def _until(seconds: float, call: Callable[[float], Any]) -> Any:
    """What a call gives that is told the seconds left; done again where nobody listens."""
    end = time.monotonic() + seconds
    while True:
        try:
            return call(max(end - time.monotonic(), PAUSE))
        except Exception as error:  # of several libraries
            again = getattr(error, "code", None) == UNREACHED
            if not again or time.monotonic() + PAUSE > end:
                raise
            time.sleep(PAUSE)


def _is_locked(folder: Path) -> bool:
    """Whether a process has Milvus Lite's file, which is a folder, open."""
    try:
        import fcntl

        with open(folder / "LOCK") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except (ImportError, OSError):
        pass
    return False
