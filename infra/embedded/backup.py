"""What a stack on this machine keeps, written into a folder and read back into a new data directory.

The database goes first: whatever it refers to was stored before it was committed, so that the objects, copied behind
it, are all there. The broker's store is not kept, because the owners publish again what they keep; see
`infra/postgres/restored.sql` for what becomes of positions. Attempts of steps are not kept either: to a restored stack
they are lost, as if their machine had died.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from tarfile import TarError

import msgspec

from infra.embedded import objects
from infra.embedded.backing import BUCKET, PORT_NAMES, Backing
from infra.embedded.binaries import Programs, find_programs
from infra.embedded.data_dir import DataDir
from infra.embedded.objects import ObjectError
from infra.embedded.supervisor import Supervisor
from infra.postgres.roles import DATABASE
from shared.blobs import Blobs
from shared.errors import Unavailable

RESTORED = Path(__file__).parents[1] / "postgres" / "restored.sql"
"""What a restored database needs before anything starts on it."""

_FORMAT = 1
_ABOUT, _DUMP, _OBJECTS, _ENGINE = "backup.json", "database.dump", "objects.tar", "engine"
_FILES = ("secrets.json", "ports.json", "tokens.json")
"""What clients and subscribers were given: it stays as it is."""
_SCRATCH = "scratch"
"""What the engine brings to and from attempts; gone with them."""


class BackupError(Exception):
    """It is not made, or not restored; the message is a line for a person."""


class About(msgspec.Struct, frozen=True, kw_only=True):
    """Written last: a folder without it is no backup."""

    format: int = _FORMAT
    made_at: datetime
    """Nothing that was committed before it is missing."""
    objects: int


async def back_up(data_dir: Path, target: Path) -> About:
    """Write everything into the new folder `target`, while the stack runs or while it does not.

    Raises BackupError, StartFailure; nothing is left of the folder then.
    """
    home = DataDir(data_dir)
    programs = find_programs()
    is_running = home.is_in_use()
    _make(target)
    try:
        with _in_our_words():
            async with _running(home, programs) if is_running else _started(home, programs) as backing:
                about = await _write(home, programs, backing, target)
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        raise
    return about


async def _write(home: DataDir, programs: Programs, backing: Backing, target: Path) -> About:
    made_at = datetime.now(UTC)
    await _run(programs, backing, "pg_dump", "--format=custom", f"--file={target / _DUMP}")
    with _bucket(backing) as blobs, (target / _OBJECTS).open("xb") as file:
        count = await objects.save(blobs, file)
    await asyncio.to_thread(_copy, home.engine, target / _ENGINE, besides=home.engine / _SCRATCH)
    _copy_files(home.path, target)
    about = About(made_at=made_at, objects=count)
    os.sync()
    (target / _ABOUT).write_bytes(msgspec.json.encode(about))
    os.sync()
    return about


async def restore(source: Path, data_dir: Path) -> About:
    """Read a backup into a new or empty data directory; nothing is started.

    Raises BackupError, StartFailure; nothing is left in the directory then.
    """
    about = _read_about(source)
    programs = find_programs()
    home = DataDir(data_dir)
    await home.open()
    try:
        home.begin_restore()
    except BaseException:
        home.close()
        raise
    try:
        with _in_our_words():
            await _read(home, programs, source)
        home.end_restore()
    except BaseException:
        home.clear()
        raise
    finally:
        home.close()
    return about


async def _read(home: DataDir, programs: Programs, source: Path) -> None:
    _copy_files(source, home.path)
    async with _served(home, programs) as backing:
        await backing.create_roles()
        whole = ("--clean", "--if-exists", "--exit-on-error", "--single-transaction")
        await _run(programs, backing, "pg_restore", *whole, f"--dbname={DATABASE}", str(source / _DUMP))
        await _run(programs, backing, "psql", "-X", "-q", f"--file={RESTORED}")
        with _bucket(backing) as blobs, (source / _OBJECTS).open("rb") as file:
            await blobs.ensure_bucket()
            await objects.load(blobs, file)
    await asyncio.to_thread(_copy, source / _ENGINE, home.engine)


def _read_about(source: Path) -> About:
    try:
        about = msgspec.json.decode((source / _ABOUT).read_bytes(), type=About)
    except FileNotFoundError as error:
        raise BackupError(f"{source} is no backup, or one that was not finished") from error
    except (OSError, msgspec.DecodeError) as error:
        raise BackupError(f"{source / _ABOUT} cannot be read: {error}") from error
    if about.format != _FORMAT:
        raise BackupError(f"{source} was made by another Headrace, in format {about.format}")
    return about


def _make(target: Path) -> None:
    """For us alone, and with all that is in it."""
    try:
        target.mkdir(mode=0o700, parents=True)
    except OSError as error:
        raise BackupError(f"{target} cannot be made: {error.strerror}") from error


def _copy_files(source: Path, target: Path) -> None:
    for name in _FILES:
        with suppress(FileNotFoundError):
            shutil.copyfile(source / name, target / name)
            (target / name).chmod(0o600)


@asynccontextmanager
async def _running(home: DataDir, programs: Programs) -> AsyncIterator[Backing]:
    yield Backing(home, home.kept_ports(), programs)


@asynccontextmanager
async def _started(home: DataDir, programs: Programs) -> AsyncIterator[Backing]:
    await home.open()
    try:
        async with _served(home, programs) as backing:
            yield backing
    finally:
        home.close()


@asynccontextmanager
async def _served(home: DataDir, programs: Programs) -> AsyncIterator[Backing]:
    """Without the broker: nobody has anything to say."""
    backing = Backing(home, home.ports([*dict.fromkeys([*PORT_NAMES, *home.kept_ports()])]), programs)
    supervisor = Supervisor(say=lambda _: None)
    try:
        await supervisor.start(backing.keepers())
        yield backing
    finally:
        await supervisor.stop()


async def _run(programs: Programs, backing: Backing, name: str, *arguments: str) -> None:
    """One of Postgres's own programs, to its end. Raises BackupError."""
    program = programs.postgres_bin / name
    environment = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", **backing.superuser()}
    process = await asyncio.create_subprocess_exec(
        str(program),
        *arguments,
        env=environment,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        _, said = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        raise BackupError(f"{name}: {' '.join(said.decode(errors='replace').split())[-500:]}")


@contextmanager
def _bucket(backing: Backing) -> Iterator[Blobs]:
    access = backing.objects()
    blobs = Blobs(
        access["HEADRACE_OBJECT_STORE_URL"],
        access_key=access["HEADRACE_OBJECT_STORE_ACCESS_KEY"],
        secret_key=access["HEADRACE_OBJECT_STORE_SECRET_KEY"],
        bucket=BUCKET,
    )
    try:
        yield blobs
    finally:
        blobs.close()


def _copy(source: Path, target: Path, *, besides: Path | None = None) -> None:
    """Folders, files and links, with modes and times, and with owners where we may give them.

    Steps may be at work in them: what goes meanwhile is left out.
    """
    if source == besides:
        return
    with suppress(FileNotFoundError):
        if source.is_symlink():
            target.symlink_to(source.readlink())
        elif source.is_dir():
            target.mkdir(exist_ok=True)
            for each in source.iterdir():
                _copy(each, target / each.name, besides=besides)
        elif source.is_file():
            shutil.copyfile(source, target)
        else:
            return  # Sockets and pipes are nothing without their processes.
        shutil.copystat(source, target, follow_symlinks=False)
        if os.geteuid() == 0:
            owner = source.lstat()
            os.chown(target, owner.st_uid, owner.st_gid, follow_symlinks=False)


@contextmanager
def _in_our_words() -> Iterator[None]:
    try:
        yield
    except (Unavailable, ObjectError, TarError, OSError) as error:
        raise BackupError(" ".join(str(error).split())) from error
