"""The documentation for people: Swagger UI and what it shows, from files on this machine.

Swagger UI's own files come with an installed package; the page, its start and an example pipeline lie in `docs`. The
page may load from its own origin alone, which its policy tells the browser: nothing is fetched from elsewhere.
"""

from __future__ import annotations

import gzip
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import msgspec

from shared.openapi import HOST

_OURS: Final = Path(__file__).parent / "docs"
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_TYPES: Final = {
    ".html": b"text/html; charset=utf-8",
    ".js": b"text/javascript; charset=utf-8",
    ".css": b"text/css; charset=utf-8",
    ".yaml": b"text/plain; charset=utf-8",
    ".md": b"text/plain; charset=utf-8",
}


class Page(msgspec.Struct, frozen=True, kw_only=True):
    status: int
    content: bytes
    headers: tuple[tuple[bytes, bytes], ...]


class Pages:
    """Answers the paths under /docs."""

    def at(self, path: str, origin: str | None) -> Page:
        """`origin`: the address that the client sees us at, which the page names in its examples."""
        match path:
            case "/docs":
                return _page(_OURS / "index.html", origin)
            case "/docs/":
                # The page refers to its files relatively, so that it also works behind a prefix.
                return Page(status=301, content=b"", headers=((b"location", b"../docs"),))
            case "/docs/swagger-ui.css" | "/docs/swagger-ui-bundle.js":
                return _swagger_ui(path.rpartition("/")[2])
            case _:
                return _page(_OURS / path.rpartition("/")[2], origin)


def _page(file: Path, origin: str | None) -> Page:
    content = _read(file)
    if origin is not None:
        content = content.replace(HOST.encode(), origin.encode("ascii"))
    return Page(status=200, content=content, headers=_headers(file.suffix))


def _swagger_ui(name: str) -> Page:
    """A megabyte and a half of script, kept and sent compressed: every browser takes that."""
    file = _swagger_ui_folder() / name
    return Page(
        status=200,
        content=_compressed(file),
        headers=(
            *_headers(file.suffix),
            (b"content-encoding", b"gzip"),
            (b"cache-control", b"public, max-age=86400"),
        ),
    )


def _headers(suffix: str) -> tuple[tuple[bytes, bytes], ...]:
    return (
        (b"content-type", _TYPES[suffix]),
        (b"content-security-policy", _POLICY.encode("ascii")),
        (b"x-content-type-options", b"nosniff"),
    )


def _swagger_ui_folder() -> Path:
    # The package is found and not imported: its files are wanted, not its code.
    package = find_spec("aiohttp_swagger3")
    assert package is not None, "aiohttp-swagger3 is not installed"
    assert package.submodule_search_locations is not None
    return Path(package.submodule_search_locations[0], "swagger_ui")


@cache
def _read(file: Path) -> bytes:
    return file.read_bytes()


@cache
def _compressed(file: Path) -> bytes:
    return gzip.compress(file.read_bytes(), mtime=0)
