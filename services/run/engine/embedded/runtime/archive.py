"""Outputs to tgz and back, as Argo's executor writes and reads them (workflow specification, section 9).

Both directions stream: no content is ever held whole in memory. What is unpacked was packed by a step, so nothing in
it is trusted: an entry that would land outside the target refuses the whole archive. Both functions block; call them
in a thread.
"""

from __future__ import annotations

import gzip
import os
import shutil
import stat
import sys
import tempfile
import zlib
from pathlib import Path

if sys.version_info >= (3, 12):
    import tarfile
else:
    from backports import tarfile


class BadArchive(Exception):
    """The archive cannot be unpacked where it belongs; the text says why."""


def pack(path: Path, name: str, target_file: Path, *, compression_level: int = 6) -> None:
    """Write a gzip tar of a file or directory with the one top entry `name`.

    Symlinks are kept as such; what has no content to keep (sockets, FIFOs, devices, an overlay's whiteouts) is left
    out. Level 0 is still a gzip container. `target_file` is whole or absent.
    """

    def keep(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
        if not (entry.isfile() or entry.isdir() or entry.issym() or entry.islnk()):
            return None
        # Who owned it here means nothing where it is unpacked.
        entry.uid = entry.gid = 0
        entry.uname = entry.gname = ""
        return entry

    partial = target_file.with_name(target_file.name + ".partial")
    try:
        with (
            partial.open("wb") as raw,
            gzip.GzipFile(filename="", mode="wb", fileobj=raw, compresslevel=compression_level, mtime=0) as packed,
            tarfile.open(fileobj=packed, mode="w|", format=tarfile.PAX_FORMAT) as archive,
        ):
            archive.add(path, arcname=name, filter=keep)
        partial.rename(target_file)
    finally:
        partial.unlink(missing_ok=True)


def unpack(tgz: Path, target: Path) -> None:
    """Put the archive's content at `target`, which does not exist yet, nor need its parents.

    One top entry becomes `target` itself, several become a directory; what is no gzip tar is stored as it is.
    Raises BadArchive, and leaves nothing at `target` then.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if not _is_gzip_tar(tgz):
        shutil.copyfile(tgz, target)
        return
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".unpack-", ignore_cleanup_errors=True) as room:
        try:
            # Not tarfile's own "r|gz": it copies all it has decompressed ahead for each header, which is quadratic.
            with gzip.open(tgz) as content, tarfile.open(fileobj=content, mode="r|") as archive:
                # It refuses absolute names, `..`, links that lead out, and devices.
                archive.extractall(room, filter=_own)  # noqa: S202
        except tarfile.FilterError as error:
            raise BadArchive(f"an entry would escape: {error}") from error
        except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise BadArchive(f"the archive is damaged: {error}") from error
        except OSError as error:
            raise BadArchive(f"the archive cannot be unpacked: {error}") from error
        entries = os.listdir(room)
        if len(entries) == 1:
            os.rename(os.path.join(room, entries[0]), target)
        else:
            target.mkdir()
            for entry in entries:
                os.rename(os.path.join(room, entry), target / entry)


def _own(entry: tarfile.TarInfo, room: str) -> tarfile.TarInfo | None:
    """Tar's own filter for data, and whatever mode the author chose, we can read, write and remove it."""
    checked = tarfile.data_filter(entry, room)
    if checked.mode is None:
        return checked
    needed = stat.S_IRWXU if checked.isdir() else stat.S_IRUSR | stat.S_IWUSR
    return checked.replace(mode=checked.mode | needed, deep=False)


def _is_gzip_tar(path: Path) -> bool:
    try:
        with tarfile.open(path, mode="r|gz") as archive:
            archive.next()
    except (tarfile.TarError, EOFError, zlib.error, OSError):
        return False
    return True
