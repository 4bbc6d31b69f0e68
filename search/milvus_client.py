"""A connection to Milvus (a server, or a file of Milvus Lite) whose errors are one line each."""

import hashlib
import json
import logging
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

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
    """Import pymilvus, and Milvus Lite for a file; a `UserError` where it is not installed."""
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
            self.client = client(place.uri, timeout=place.timeout, **options)
            self.is_lite = "lite" in self.client.get_server_version(place.timeout)
        except Exception as error:  # of several libraries
            if place.is_file:
                raise AwayError(
                    f"{place.uri}: another process has it open, or it is damaged ({error}); stop"
                    " that, or run a server and set MILVUS_URI to its URL (see docs/search.md)"
                ) from None
            raise self._error("connect", error) from None

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
        end = time.monotonic() + self.place.timeout * (
            LONG_FACTOR if long or self.place.is_file else 1
        )
        while True:
            left = max(end - time.monotonic(), PAUSE)
            try:
                return getattr(self.client, method)(*args, timeout=left, **options)
            except Exception as error:  # of several libraries
                code = error_code(error)
                if method == "search" and code == NOT_LOADED:  # the server was started again
                    self.call("load_collection", args[0])
                elif code == UNREACHABLE and time.monotonic() + PAUSE < end:
                    time.sleep(PAUSE)
                else:
                    raise self._error(method.replace("_", " "), error) from None

    def stored(self, name: str) -> np.ndarray:
        """Key and version of all rows of a loaded collection: n x 2, int64."""
        options: dict[str, Any] = {"consistency_level": "Strong"}
        found = [np.empty((0, 2), np.int64)]
        fields = ["key", "version"]
        pages = self.call("query_iterator", name, PAGE, output_fields=fields, long=True, **options)
        try:
            while page := pages.next():
                found.append(np.array([(row["key"], row["version"]) for row in page], np.int64))
            pages.close()
        except Exception as error:  # of several libraries
            raise self._error("query", error) from None
        return np.concatenate(found)

    def count(self, name: str) -> int:
        """Number of rows of a loaded collection."""
        options: dict[str, Any] = {"output_fields": ["count(*)"], "consistency_level": "Strong"}
        return int(self.call("query", name, filter="", **options)[0]["count(*)"])

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
