"""The target of a request, brought to the one form that the routes know.

Proxies may send the whole address (absolute form, RFC 9112 section 3.2.2), people and libraries end a path in a slash.
Answering both as the plain path needs no redirect, which behind a proxy would lead to the wrong scheme or place.
"""

import re

from starlette.types import Scope

__all__ = ["PAGE", "normalize"]

# The one path whose slash stays: the page's addresses are relative to it.
PAGE = "/ui/"

_ABSOLUTE = re.compile(r"https?://[^/]*", re.IGNORECASE)


def normalize(scope: Scope) -> None:
    """Rewrite `path` and `raw_path` of `scope` in place."""
    scope["path"] = _plain(scope["path"])
    if scope.get("raw_path"):
        scope["raw_path"] = _plain(scope["raw_path"].decode("latin1")).encode("latin1")


def _plain(path: str) -> str:
    path = _ABSOLUTE.sub("", path, count=1) if _ABSOLUTE.match(path) else path
    return path if path == PAGE else path.removesuffix("/") or "/"
