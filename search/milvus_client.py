"""A connection to Milvus (a server, or a file of Milvus Lite) whose errors are one line each."""

import logging
import math
import os
import re
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from utils import AwayError, UserError

UNREACHABLE, NOT_FOUND, UNEXPECTED = 2, 100, 65535  # codes of Milvus
LITE_FAULT = 1  # Milvus Lite's code of what it did not expect
NOT_LOADED = (101, 103)  # nothing of a collection, or not all
# Hundreds of the codes of what is refused again: collection, partition, index, database,
# parameter, privilege, alias.
PERMANENT = (1, 2, 7, 8, 11, 14, 16)
LONG = 10  # times MILVUS_TIMEOUT, for writing
ROWS = 5000  # that Milvus at least indexes, or loads, in one MILVUS_TIMEOUT
PAUSE = 0.5  # s between attempts
GRPC_OPTIONS = {
    "grpc.keepalive_time_ms": 330_000,  # below 300 s, Milvus Lite ends the connection
    "grpc.max_reconnect_backoff_ms": 1000,  # not 2 minutes: a server that is back is found
}


def is_file(uri: str) -> bool:
    """Whether an address is a file of Milvus Lite."""
    return "://" not in uri and not uri.startswith("unix:")


class Client:
    """A connection to Milvus: the settings MILVUS_... of config.py.

    Parameters
    ----------
    uri : of a server, or a file NAME.db, whose folder is made
    token : that the server requires, "" for none
    alias : of the data set's collection
    timeout : s

    Raises
    ------
    UserError : a package is missing, no such address, another token or certificate is required
    AwayError : nobody answers, or another process has the file open
    """

    def __init__(self, uri: str, token: str, alias: str, timeout: float) -> None:
        self.is_file, self.token, self.alias, self.timeout = is_file(uri), token, alias, timeout
        self.shown = re.sub(r"//[^/@]*@", "//", uri)  # without a password
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
        try:
            if self.is_file:
                import milvus_lite  # noqa: F401
            from pymilvus import MilvusClient
        except ImportError as error:
            raise UserError(
                f"the milvus engine needs pymilvus and, for a file, milvus-lite ({error});"
                " run: pip install -r requirements-milvus.txt"
            ) from None
        for name in ("pymilvus", "milvus_lite"):  # they log what they raise, with its traceback
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)
        if self.is_file:
            if not uri.endswith(".db"):
                raise UserError(f"MILVUS_URI {uri}: neither a URL nor a file NAME.db")
            Path(uri).parent.mkdir(parents=True, exist_ok=True)
        try:
            self.client = MilvusClient(uri, token=token, timeout=timeout, grpc_options=GRPC_OPTIONS)
        except Exception as error:  # of several libraries
            if self.is_file:
                raise AwayError(
                    f"{uri}: another process has it open, or it is damaged ({error}); stop"
                    " that, or run a server and set MILVUS_URI to its URL (see docs/search.md)"
                ) from None
            raise self._error("connect", error) from None

    def call(self, method: str, *args: Any, long: bool = False, **options: Any) -> Any:
        """Call a method of `pymilvus.MilvusClient`.

        Parameters
        ----------
        long : wait `LONG` times MILVUS_TIMEOUT; always so for a file

        Raises
        ------
        AwayError : no answer in time, or the server cannot do it now
        UserError : it never will
        """
        start = time.monotonic()
        end = start + self.timeout * (LONG if long or self.is_file else 1)
        while True:
            left = max(math.ceil(end - time.monotonic()), 1)  # pymilvus wants whole seconds
            try:
                return getattr(self.client, method)(*args, timeout=left, **options)
            except Exception as error:  # of several libraries
                code = getattr(error, "code", None)
                # Milvus Lite may have read an index that it is still writing, for some seconds.
                is_early = code == LITE_FAULT and method == "load_collection"
                limit = start + self.timeout if is_early else end
                if code in NOT_LOADED and method in ("search", "query"):  # after a restart
                    self.load(args[0])
                elif (is_early or code == UNREACHABLE) and time.monotonic() + PAUSE < limit:
                    time.sleep(PAUSE)
                else:
                    raise self._error(method.replace("_", " "), error) from None

    def load(self, name: str) -> None:
        """Load a collection into the server's memory, with the indexes that are built.

        pymilvus's own waiting fails where another push just releases the collection.
        """
        self.call("load_collection", name, _async=True)
        rows = int(self.call("get_collection_stats", name)["row_count"])
        fault = f"{name} is not loaded"
        self.wait(fault, rows, lambda: self.call("get_load_state", name)["state"].name == "Loaded")

    def wait(self, fault: str, rows: int, is_done: Callable[[], bool]) -> None:
        """Wait for what Milvus does with some rows; an `AwayError` where it takes too long."""
        limit = self.timeout * (LONG + rows / ROWS)
        end = time.monotonic() + limit
        while not is_done():
            if time.monotonic() > end:
                raise AwayError(
                    f"{self.shown}: {fault} after {limit:.0f} s; nothing is lost: check the"
                    " memory and the log of the server, or raise MILVUS_TIMEOUT, and run it again"
                )
            time.sleep(PAUSE)

    def collection(self) -> str:
        """Name of the collection that the alias names, "" for none."""
        known = self.call("has_collection", self.alias)
        return self.call("describe_alias", self.alias)["collection_name"] if known else ""

    def _error(self, step: str, error: Any) -> UserError:
        """The one line for what a library raised."""
        where, code = self.shown, getattr(error, "code", None)
        is_input, again = (getattr(error, n, False) for n in ("is_input_error", "retriable"))
        while error.__cause__ not in (None, error):  # gRPC knows more
            error = error.__cause__
        is_grpc = callable(getattr(error, "details", None))
        status = error.code().name if is_grpc else ""
        reason = (error.details() or status) if is_grpc else getattr(error, "message", error)
        reason = " ".join(str(reason).split()).replace(self.token or "\0", "...")[:300]
        if status in ("UNAUTHENTICATED", "PERMISSION_DENIED"):
            return UserError(f"{where}: access denied ({reason}); set MILVUS_TOKEN=USER:PASSWORD")
        if "handshake failed" in reason:
            return UserError(
                f"{where}: no TLS connection ({reason}); set GRPC_DEFAULT_SSL_ROOTS_FILE_PATH to"
                " the certificate of the server's CA; or, without TLS, MILVUS_URI to http://..."
            )
        if type(error).__name__ == "ConnectionConfigException":
            return UserError(f"MILVUS_URI {where}: cannot be opened ({reason})")
        if code == NOT_FOUND and step in ("search", "query", "upsert"):
            return UserError(f"{where}: another push has replaced the collection; run it again")
        # Milvus 2.3 gives UNEXPECTED for most refusals, and for a search without its node.
        is_final = (not again and isinstance(code, int)) and (
            code // 100 in PERMANENT or (code == UNEXPECTED and step not in ("search", "query"))
        )
        if status == "UNIMPLEMENTED" or (not is_grpc and (self.is_file or is_input or is_final)):
            return UserError(f"{where}: {step}: refused for good ({reason}); see docs/search.md")
        return AwayError(
            f"{where}: no answer to '{step}' in time, or not now ({reason}); nothing is lost: check"
            " the server, or raise MILVUS_TIMEOUT, and run it again"
        )


connect = cache(Client)  # the page's server opens an engine for each set of weights
