"""From the bytes of a package to the text of its pipeline (API specification, section 8.2).

Pure: a file name and bytes go in, text or a refusal comes out. Nothing of an archive is ever written anywhere, and
no link in it is followed. Paths that would lead out of it are refused all the same: no ordinary archiver makes them,
and who unpacks such a package elsewhere would be sorry. It knows nothing of what the text means.

Archives are hostile until proven otherwise: what they unpack to is bounded, and the caller bounds time and memory.
"""

from __future__ import annotations

import gzip
import io
import lzma
import re
import stat
import tarfile
import zipfile
import zlib
from typing import IO, Final

from shared.errors import InvalidInput

from .domain import LARGEST_PACKAGE_BYTES, check_size

UNPACKED_RATIO: Final = 8
"""How many times the largest package a tarball may hold in front of the pipeline and behind it."""

MOST_ENTRIES: Final = 10_000
"""Of a tarball: half a million empty ones fit into a few hundred kilobytes, and reading them takes very long."""

_PIPELINE: Final = "pipeline.yaml"
_YAML: Final = (".yaml", ".yml")
_TARBALL: Final = "Error extracting pipeline from the tarball file."
_ZIP: Final = "Error extracting pipeline from the zip file."
_NO_TARBALL: Final = f"{_TARBALL} Not a valid tarball file."
_NO_ZIP: Final = f"{_ZIP} Not a valid zip file."
_SHOWN_CHARACTERS: Final = 200
"""Of an entry's name, which may be as long as the archive."""
_BROKEN_TAR: Final = (tarfile.TarError, OSError, EOFError, zlib.error, ValueError)
_BROKEN_ZIP: Final = (
    zipfile.BadZipFile,
    OSError,
    EOFError,
    zlib.error,
    lzma.LZMAError,
    ValueError,
    NotImplementedError,
    RuntimeError,
)
"""RuntimeError: the entry is encrypted."""


def read_package(file_name: str, data: bytes, largest_bytes: int = LARGEST_PACKAGE_BYTES) -> str:
    """The pipeline's text. Raises InvalidInput."""
    check_size(len(data), largest_bytes)
    if file_name.endswith((*_YAML, ".json")):
        content = data
    elif len(data) > 2 and data.startswith(b"PK"):
        content = _read_zip(data, largest_bytes)
    elif len(data) > 2 and data.startswith(b"\x1f\x8b"):
        content = _read_tarball(data, largest_bytes)
    else:
        raise InvalidInput("Unexpected pipeline file format. Support .zip, .tar.gz, .json or YAML.")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise InvalidInput("The pipeline file is not UTF-8 text.", cause=str(error)) from error


def _read_tarball(data: bytes, largest_bytes: int) -> bytes:
    """The entry `pipeline.yaml` wherever it stands, else the first one."""
    pipeline: bytes | None = None
    first: tarfile.TarInfo | None = None
    content_of_first = b""
    try:
        stream = _Bounded(gzip.GzipFile(fileobj=io.BytesIO(data)), largest_bytes)
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            for count, entry in enumerate(archive, start=1):
                if count > MOST_ENTRIES:
                    raise InvalidInput(_NO_TARBALL, cause=f"it has more than {MOST_ENTRIES} entries")
                _check_path(_TARBALL, entry.name)
                if entry.name == _PIPELINE and not entry.isdir():
                    _check_is_file(_TARBALL, entry.name, _kind_in_tarball(entry))
                    pipeline = _content_of(archive, entry, largest_bytes) if pipeline is None else pipeline
                elif first is None:
                    first = entry
                    if entry.isreg() and entry.name.endswith(_YAML):
                        content_of_first = _content_of(archive, entry, largest_bytes)
    except _BROKEN_TAR as error:
        raise InvalidInput(_NO_TARBALL, cause=str(error)) from error
    if pipeline is not None:
        return pipeline
    if first is None:
        raise InvalidInput(_NO_TARBALL)
    if first.isdir() or not first.name.endswith(_YAML):
        name = _shown(f"{first.name}/" if first.isdir() else first.name)
        raise InvalidInput(f"{_TARBALL} Expecting a pipeline.yaml file inside the tarball. Got: {name}")
    _check_is_file(_TARBALL, first.name, _kind_in_tarball(first))
    return content_of_first


def _kind_in_tarball(entry: tarfile.TarInfo) -> str:
    """Empty where it is a file."""
    if entry.isreg():
        return ""
    return "symbolic link" if entry.issym() else "hard link" if entry.islnk() else "special file"


def _content_of(archive: tarfile.TarFile, entry: tarfile.TarInfo, largest_bytes: int) -> bytes:
    file = archive.extractfile(entry)
    assert file is not None
    try:
        content = _bounded_read(file, largest_bytes)
    except _BROKEN_TAR as error:
        raise InvalidInput("Error reading pipeline YAML from the tarball file.", cause=str(error)) from error
    if len(content) < entry.size:
        raise InvalidInput("Error reading pipeline YAML from the tarball file.", cause="unexpected EOF")
    return content


def _read_zip(data: bytes, largest_bytes: int) -> bytes:
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
    except _BROKEN_ZIP as error:
        raise InvalidInput(_NO_ZIP, cause=str(error)) from error
    with archive:
        entries = archive.infolist()
        if not entries:
            raise InvalidInput(f"{_ZIP} Empty zip file.")
        for entry in entries:
            _check_path(_ZIP, entry.filename)
        candidates = [entry for entry in entries if entry.filename == _PIPELINE] or entries[:1]
        entry = candidates[0]
        if not entry.filename.endswith(_YAML):
            raise InvalidInput(f"{_ZIP} Expecting a pipeline.yaml file inside the zip. Got: {_shown(entry.filename)}")
        for each in candidates:
            _check_is_file(_ZIP, each.filename, _kind_in_zip(each))
        try:
            with archive.open(entry) as file:
                return _bounded_read(file, largest_bytes)
        except _BROKEN_ZIP as error:
            raise InvalidInput("Error reading pipeline YAML from the zip file.", cause=str(error)) from error


def _kind_in_zip(entry: zipfile.ZipInfo) -> str:
    """Empty where it is a file, as everything is that was packed without the modes of Unix."""
    match stat.S_IFMT(entry.external_attr >> 16):
        case 0 | stat.S_IFREG:
            return ""
        case stat.S_IFLNK:
            return "symbolic link"
        case stat.S_IFDIR:
            return "folder"
        case _:
            return "special file"


# What both kinds of archives are refused for.

_OUTWARD = re.compile(r"[/\\]|[a-zA-Z]:[/\\]|(?:.*[/\\])?\.\.(?:[/\\]|$)", re.DOTALL)
"""An absolute path of Unix or Windows, or one with `..` among its parts."""


def _check_path(where: str, name: str) -> None:
    if _OUTWARD.match(name):
        raise InvalidInput(f"{where} The entry {_shown(name)} has a path that leads out of the archive.")


def _check_is_file(where: str, name: str, kind: str) -> None:
    if kind:
        raise InvalidInput(f"{where} The entry {_shown(name)} is a {kind}, and only a file can be the pipeline.")


def _shown(name: str) -> str:
    """Bytes that are no text are spelled out."""
    text = name[: _SHOWN_CHARACTERS + 1].encode(errors="backslashreplace").decode()
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"


# Bounds.


def _bounded_read(file: IO[bytes], largest_bytes: int) -> bytes:
    content = file.read(largest_bytes + 1)
    check_size(len(content), largest_bytes)
    return content


class _Bounded(io.RawIOBase):
    """A stream that ends with a refusal where it gives more than it may."""

    def __init__(self, stream: IO[bytes] | gzip.GzipFile, largest_bytes: int) -> None:
        self._stream = stream
        self._largest_bytes = largest_bytes
        self._left = UNPACKED_RATIO * largest_bytes

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        wanted = self._left + 1 if size < 0 else min(size, self._left + 1)
        chunk = self._stream.read(wanted)
        self._left -= len(chunk)
        if self._left < 0:
            check_size(self._largest_bytes + 1, self._largest_bytes)
        return chunk
