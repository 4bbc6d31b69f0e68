"""A connection to Milvus (a server, or a file of Milvus Lite) whose errors are one line each."""

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
from filelock import FileLock, Timeout

from features.database import FeatureDatabase
from utils import AwayError, UserError

INPUT_ERROR, NOT_LOADED, UNREACHABLE = 1100, 101, 2  # codes of Milvus
SCHEMA_VERSION = 3  # of a collection's fields; another version is another alias
HASH_DIGITS = 16  # of the features' SHA-256 in an alias
LONG_FACTOR = 10  # times MILVUS_TIMEOUT, for writing and loading
PAUSE = 0.5  # s between attempts to reach a server
PAGE = 16_384  # rows of a query at once: the most that Milvus returns
GRPC_OPTIONS = {
    "grpc.keepalive_time_ms": 330_000,  # below 300 s, Milvus Lite ends the connection
    "grpc.max_reconnect_backoff_ms": 1000,  # not 2 minutes: a server that is back is found
}


@dataclass(frozen=True)
class Place:
    """Where Milvus is: the settings MILVUS_... of config.py.

    Attributes
    ----------
    uri : of a server, or a file NAME.db
    token : that the server requires, "" for none
    prefix : begin of the collections' names, "" for the data set's folder
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
        """Begin of the names of a data set's collections and aliases."""
        name = re.sub(r"[^A-Za-z0-9_]", "_", base.resolve().name)[:200]
        return self.prefix or (name if re.match("[A-Za-z_]", name) else f"_{name}")

    def alias(self, database: FeatureDatabase) -> str:
        """Alias of the collection that holds exactly these features."""
        hashes = sorted(database.metadata.checksums.items())
        content = json.dumps([SCHEMA_VERSION, hashes, database.category_names])
        digest = hashlib.sha256(content.encode()).hexdigest()
        return f"{self.family(database.base)}_{digest[:HASH_DIGITS]}"


def import_client(place: Place) -> Any:
    """Import pymilvus.

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


class Client:
    """A connection to Milvus.

    Parameters
    ----------
    place : of it; the folder of a file is made

    Raises
    ------
    UserError : no such address, or the server requires another token
    AwayError : nobody answers, or another process has the file open
    """

    def __init__(self, place: Place) -> None:
        self.place = place
        client = import_client(place).MilvusClient
        if place.is_file:
            if not place.uri.endswith(".db"):
                raise UserError(f"MILVUS_URI {place.uri}: neither a URL nor a file NAME.db")
            Path(place.uri).parent.mkdir(parents=True, exist_ok=True)
        options = {"token": place.token, "grpc_options": GRPC_OPTIONS}
        try:
            self.client = _retry(place.timeout, lambda s: client(place.uri, timeout=s, **options))
            version = _retry(place.timeout, lambda s: self.client.get_server_version(s))
        except Exception as error:  # of several libraries
            if place.is_file and _is_locked(Path(place.uri)):
                raise AwayError(
                    f"{place.uri}: another process has it open; stop that, or run a server and set"
                    " MILVUS_URI to its URL (see docs/search.md)"
                ) from None
            raise self._error("connect", error) from None
        self.is_lite = "lite" in version

    def call(self, method: str, *args: Any, long: bool = False, **options: Any) -> Any:
        """Call a method of `pymilvus.MilvusClient`.

        Parameters
        ----------
        long : wait `LONG_FACTOR` times MILVUS_TIMEOUT; always so for a file

        Raises
        ------
        AwayError : no answer in time, or the server cannot do it now
        UserError : it never will
        """
        try:
            return self._call(method, *args, long=long, **options)
        except Exception as error:  # of several libraries
            raise self._error(method.replace("_", " "), error) from None

    def _call(self, method: str, *args: Any, long: bool = False, **options: Any) -> Any:
        function = getattr(self.client, method)
        seconds = self.place.timeout * (LONG_FACTOR if long or self.place.is_file else 1)
        return _retry(seconds, lambda left: function(*args, timeout=left, **options))

    def search(self, name: str, *args: Any, **options: Any) -> Any:
        """`call("search", ...)`; a server that was started again loads the collection first."""
        try:
            return self._call("search", name, *args, **options)
        except Exception as error:  # of several libraries
            if error_code(error) == NOT_LOADED:
                self.call("load_collection", name)
                return self.call("search", name, *args, **options)
            raise self._error("search", error) from None

    def columns(self, name: str, fields: Sequence[str]) -> list[np.ndarray]:
        """Integer fields of all rows of a loaded collection: of each field n, int64.

        Raises
        ------
        UserError, AwayError : see `call`
        """
        options: dict[str, Any] = {"output_fields": list(fields), "consistency_level": "Strong"}
        found = [[np.empty(0, np.int64)] for _ in fields]
        pages = self.call("query_iterator", name, PAGE, long=True, **options)
        try:
            while page := pages.next():
                for column, field in zip(found, fields, strict=True):
                    column.append(np.array([record[field] for record in page], np.int64))
            pages.close()
        except Exception as error:  # of several libraries
            raise self._error("query", error) from None
        return [np.concatenate(column) for column in found]

    def count(self, name: str) -> int:
        """Number of rows of a loaded collection."""
        found = self.call(
            "query", name, filter="", output_fields=["count(*)"], consistency_level="Strong"
        )
        return int(found[0]["count(*)"])

    def _error(self, step: str, error: Any) -> UserError:
        """The one line for what a library raised."""
        where, code = self.place.shown, error_code(error)
        is_grpc = callable(getattr(error, "details", None))
        reason = (error.details() or code) if is_grpc else getattr(error, "message", error)
        reason = " ".join(str(reason).split()).replace(self.place.token or "\0", "...")[:300]
        if code in ("UNAUTHENTICATED", "PERMISSION_DENIED") or "auth check failure" in reason:
            return UserError(f"{where}: access denied ({reason}); see MILVUS_TOKEN")
        if type(error).__name__ == "ConnectionConfigException":
            return UserError(f"MILVUS_URI {where}: cannot be opened ({reason})")
        in_process = self.place.is_file and not is_grpc
        if in_process or code == INPUT_ERROR or getattr(error, "is_input_error", False):
            return UserError(f"{where}: {step}: refused ({reason})")
        return AwayError(
            f"{where}: no answer to '{step}' in time, or not now ({reason}); nothing is lost: check"
            " the server, or raise MILVUS_TIMEOUT, and run it again"
        )


def error_code(error: Any) -> Any:
    """Code of an error of pymilvus or, as its name, of gRPC; None of any other."""
    code = getattr(error, "code", None)
    return code().name if callable(code) else code


def _retry(seconds: float, call: Callable[[float], Any]) -> Any:
    """Call a function with the seconds that are left, again while nobody listens."""
    end = time.monotonic() + seconds
    while True:
        try:
            return call(max(end - time.monotonic(), PAUSE))
        except Exception as error:  # of several libraries
            if error_code(error) != UNREACHABLE or time.monotonic() + PAUSE > end:
                raise
            time.sleep(PAUSE)


def _is_locked(folder: Path) -> bool:
    """Whether a process has Milvus Lite's file, which is a folder, open."""
    try:
        with FileLock(folder / "LOCK", timeout=0):
            return False
    except Timeout:
        return True
    except OSError:
        return False
