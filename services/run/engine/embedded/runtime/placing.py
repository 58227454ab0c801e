"""What is put into a step's tree before it starts: files, directories, and what of the host is mounted where."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path, PurePosixPath

from services.run.engine.embedded.runtime import CannotStart, Mount, Placement, StepSpec
from services.run.engine.embedded.runtime import tree as trees
from services.run.engine.embedded.runtime.tree import Branch, OutsideTree, Tree


def place(spec: StepSpec, tree: Tree) -> None:
    """Main's directories and files. Blocks on the disk. Raises CannotStart."""
    try:
        for path in spec.make_directories:
            trees.make_directory(tree, path)
        for placement in spec.files:
            _place(placement, tree)
    except OutsideTree as error:
        raise CannotStart(str(error)) from error
    except shutil.Error as error:  # of a whole directory: one reason per file
        raise CannotStart(f"files cannot be placed: {error}") from error
    except OSError as error:
        raise CannotStart(f"{error.filename or 'files'}: {error.strerror}") from error


def _place(placement: Placement, tree: Tree) -> None:
    target = trees.place_for(tree, placement.target)
    if placement.source is None:
        target.write_text(placement.text or "")
    elif os.path.isdir(placement.source):
        shutil.copytree(placement.source, target, symlinks=True, dirs_exist_ok=True)
    else:
        shutil.copyfile(placement.source, target)
        target.chmod(stat.S_IMODE(os.stat(placement.source).st_mode) | stat.S_IRUSR | stat.S_IWUSR)
    if placement.mode is not None:
        target.chmod(placement.mode)


def mounted(mount: Mount) -> Branch:
    """Raises CannotStart."""
    source = Path(mount.source)
    if not source.is_absolute() or not source.exists():
        raise CannotStart(f"{mount.source}: no such directory to mount")
    target = PurePosixPath(mount.target)
    if not target.is_absolute() or target == PurePosixPath("/") or ".." in target.parts:
        raise CannotStart(f"{mount.target}: nothing can be mounted there")
    try:
        # A step that wrote into the volume before may have left a link there to lead us out of it.
        source = trees.inside(source, mount.sub_path) if mount.sub_path.strip("/.") else source
    except (OutsideTree, OSError) as error:
        raise CannotStart(f"{mount.target}: {error}") from error
    return Branch(target=str(target), source=str(source), read_only=mount.read_only)
