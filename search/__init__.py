"""Ranks the pictures of a feature database by their distance to a query. Begin with `Searcher`.

`signals` defines the distance, `engine` what an engine is, and `engines` opens one by its name.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from search.searcher import Searcher

__all__ = ["Searcher"]


def __getattr__(name: str) -> Any:
    if name == "Searcher":  # not at import: scripts that only rank features need no network
        from search.searcher import Searcher

        return Searcher
    raise AttributeError(name)
