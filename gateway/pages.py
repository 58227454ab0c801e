"""The documentation for people: Swagger UI and what it shows, from files on this machine.

Pages of Markdown are sent as they are written, and as HTML to a browser. Swagger UI's own files come with an installed
package; its page, its start and an example pipeline lie in `docs`. A page may load from its own origin alone, which its
policy tells the browser: nothing is fetched from elsewhere.
"""

from __future__ import annotations

import gzip
import re
from functools import cache
from html import escape
from importlib.util import find_spec
from pathlib import Path
from string import Template
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

    def at(self, path: str, origin: str | None, accept: bytes = b"") -> Page:
        """`origin`: the address that the client sees us at, which the page names in its examples. `accept` is the
        request's header."""
        match path:
            case "/docs":
                return _page(_OURS / "index.html", origin)
            case "/docs/":
                # The page refers to its files relatively, so that it also works behind a prefix.
                return Page(status=301, content=b"", headers=((b"location", b"../docs"),))
            case "/docs/swagger-ui.css" | "/docs/swagger-ui-bundle.js":
                return _swagger_ui(path.rpartition("/")[2])
            case _ if path.endswith(".md"):
                return _written(_OURS / path.rpartition("/")[2], origin, as_html=b"text/html" in accept)
            case _:
                return _page(_OURS / path.rpartition("/")[2], origin)


def _page(file: Path, origin: str | None) -> Page:
    return Page(status=200, content=_addressed(_read(file), origin), headers=_headers(file.suffix))


def _written(file: Path, origin: str | None, *, as_html: bool) -> Page:
    content, suffix = (_rendered(file), ".html") if as_html else (_read(file), file.suffix)
    return Page(status=200, content=_addressed(content, origin), headers=(*_headers(suffix), (b"vary", b"accept")))


def _addressed(content: bytes, origin: str | None) -> bytes:
    return content if origin is None else content.replace(HOST.encode(), origin.encode("ascii"))


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
def _rendered(file: Path) -> bytes:
    """With an id for each heading, as alerts and other pages name it."""
    # Imported when somebody reads: the gateway writes HTML nowhere else.
    from markdown_it import MarkdownIt

    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = markdown.parse(_read(file).decode())
    headings = [(at, tokens[at + 1].content) for at, token in enumerate(tokens) if token.type == "heading_open"]
    for at, text in headings:
        tokens[at].attrSet("id", _anchor(text))
    page = Template(_read(_OURS / "page.html").decode())
    content = markdown.renderer.render(tokens, markdown.options, {})
    return page.substitute(title=escape(headings[0][1]), content=content).encode()


def _anchor(heading: str) -> str:
    """As where Markdown is shown otherwise: `What to do` is `#what-to-do`."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


@cache
def _read(file: Path) -> bytes:
    return file.read_bytes()


@cache
def _compressed(file: Path) -> bytes:
    return gzip.compress(file.read_bytes(), mtime=0)
