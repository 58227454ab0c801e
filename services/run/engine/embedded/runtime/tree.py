"""Where a path of a step lies on the host, before the step (to place things) and after it (to collect them).

A step sees one file system; on the host it is made of branches: a private root, private upper layers over
directories of the host, and mounts. Paths are resolved here exactly as the step's kernel would, inside the tree:
an absolute symlink starts again at the tree's root and `..` stops there, so that nothing a step plants can make
the server read or write elsewhere. What the step only saw through a layer, a file of the host it did not write, is
never found: it is not its output.

The tree must be at rest while it is read: after the step's end, when its key is not running.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path, PurePosixPath

import msgspec

_MAX_SYMLINKS = 40


class Branch(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`source` on the host is seen at `target`; where `lower` is given, `source` holds only the changes to it."""

    target: str
    source: str
    lower: str | None = None
    read_only: bool = False


class Tree(msgspec.Struct, frozen=True, kw_only=True):
    """The branches of one process, the root first; the deepest target that contains a path owns it."""

    branches: tuple[Branch, ...]


class OutsideTree(Exception):
    """The path cannot be followed or made inside the tree; the text says why."""


def find(tree: Tree, path: str) -> Path | None:
    """Where the step left `path` (absolute, inside the sandbox), or None when it wrote nothing there."""
    try:
        found = _follow(tree, path, make=False)
    except OutsideTree:
        return None
    return found if found is not None and _exists(found) else None


def read_text(tree: Tree, path: str, *, limit_bytes: int) -> str:
    """The text of a file the step wrote. Raises FileNotFoundError, or OutsideTree for what is no file or too long."""
    found = find(tree, path)
    if found is None:
        raise FileNotFoundError(f"{path}: no such file or directory")
    # A planted FIFO must not block the reader, nor a symlink swapped in lead it away.
    descriptor = os.open(found, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        about = os.fstat(descriptor)
        if stat.S_ISDIR(about.st_mode):
            raise OutsideTree(f"{path}: is a directory")
        if not stat.S_ISREG(about.st_mode):
            raise OutsideTree(f"{path}: is not a regular file")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            content = file.read(limit_bytes + 1)
    finally:
        os.close(descriptor)
    if len(content) > limit_bytes:
        raise OutsideTree(f"{path}: is longer than {limit_bytes} bytes")
    return content.decode("utf-8", errors="replace")


def make_directory(tree: Tree, path: str) -> Path:
    """Make `path` and its parents in the private part of the tree. Raises OutsideTree."""
    made = _follow(tree, path, make=True)
    assert made is not None
    return made


def place_for(tree: Tree, path: str) -> Path:
    """The host path at which a file for `path` is to be written; its parents are made. Raises OutsideTree."""
    clean = PurePosixPath(path)
    if not clean.is_absolute() or clean.name in ("", ".."):
        raise OutsideTree(f"{path}: is not the absolute path of a file")
    at_mount = next((b for b in tree.branches if b.target == str(clean) and b.lower is None), None)
    if at_mount is not None:
        if at_mount.read_only:
            raise OutsideTree(f"{path}: lies in a read-only mount")
        return Path(at_mount.source)
    parent = make_directory(tree, str(clean.parent))
    if _branch_at(tree, parent).read_only:
        # It may be the host's own directory: neither a file nor the absence of one is placed there.
        raise OutsideTree(f"{path}: lies in a read-only part of the tree")
    final = parent / clean.name
    if final.is_symlink():
        # Writing through it would follow it on the host, not in the step.
        final.unlink()
    return final


def inside(directory: Path, path: str) -> Path:
    """`path` below a host directory, made when absent, never outside it whatever symlinks lie there."""
    alone = Tree(branches=(Branch(target="/", source=str(directory)),))
    found = find(alone, "/" + path)
    return found if found is not None else make_directory(alone, "/" + path)


def _follow(tree: Tree, path: str, *, make: bool) -> Path | None:
    """Resolve every component; where `make`, absent ones become directories, otherwise None is returned."""
    if not path.startswith("/"):
        raise OutsideTree(f"{path}: is not absolute")
    pending = _components_reversed(path)
    done: list[str] = []
    symlinks = 0
    host = Path(_owner(tree, "/").source)
    while pending:
        part = pending.pop()
        if part == "..":
            if done:
                done.pop()
            host, _ = _look(tree, "/" + "/".join(done))
            continue
        here = "/" + "/".join((*done, part))
        host, seen = _look(tree, here)
        if seen is not None and stat.S_ISLNK(seen.st_mode):
            symlinks += 1
            if symlinks > _MAX_SYMLINKS:
                raise OutsideTree(f"{path}: too many levels of symbolic links")
            target = os.readlink(host)
            if target.startswith("/"):
                done = []
            pending.extend(_components_reversed(target))
            # A link such as `a -> .` may leave nothing to walk: the place reached is then what is done so far.
            host, _ = _look(tree, "/" + "/".join(done))
            continue
        if seen is None and not make:
            return None
        if (pending or make) and seen is not None and not stat.S_ISDIR(seen.st_mode):
            raise OutsideTree(f"{path}: {here} is not a directory")
        if make:
            host = _make_one(tree, here, seen)
        done.append(part)
    return host if make else _private(tree, "/" + "/".join(done))


def _make_one(tree: Tree, here: str, seen: os.stat_result | None) -> Path:
    owner = _owner(tree, here)
    private = _below(owner.source, owner, here)
    if _exists(private):
        return private
    if owner.read_only and seen is None:
        raise OutsideTree(f"{here}: lies in a read-only mount")
    if owner.read_only:
        return _below(owner.lower or owner.source, owner, here)
    # A directory of the layer below keeps its mode when a private one is laid over it.
    os.mkdir(private, 0o755 if seen is None else stat.S_IMODE(seen.st_mode))
    return private


def _look(tree: Tree, here: str) -> tuple[Path, os.stat_result | None]:
    """What the step sees at `here`, itself not followed: its host path, and None where there is nothing."""
    owner = _owner(tree, here)
    private = _below(owner.source, owner, here)
    seen = _lstat(private)
    if seen is not None:
        return private, (None if _is_whiteout(seen) else seen)
    if owner.lower is None:
        return private, None
    below = _below(owner.lower, owner, here)
    return below, _lstat(below)


def _private(tree: Tree, here: str) -> Path:
    owner = _owner(tree, here)
    return _below(owner.source, owner, here)


def _owner(tree: Tree, here: str) -> Branch:
    return max(
        (b for b in tree.branches if b.target in ("/", here) or here.startswith(b.target + "/")),
        key=lambda branch: len(branch.target),
    )


def _branch_at(tree: Tree, host: Path) -> Branch:
    """The branch that a place on the host belongs to."""
    holding = (branch for branch in tree.branches if host.is_relative_to(branch.source))
    return max(holding, key=lambda branch: len(branch.source))


def _below(source: str, owner: Branch, here: str) -> Path:
    rest = here if owner.target == "/" else here[len(owner.target) :]
    return Path(source + rest.rstrip("/"))


def _components_reversed(path: str) -> list[str]:
    return [part for part in reversed(path.split("/")) if part not in ("", ".")]


def _lstat(path: Path) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _exists(path: Path) -> bool:
    seen = _lstat(path)
    return seen is not None and not _is_whiteout(seen)


def _is_whiteout(seen: os.stat_result) -> bool:
    """How overlayfs notes in the upper layer that a file of the lower one was deleted."""
    return stat.S_ISCHR(seen.st_mode) and seen.st_rdev == 0
