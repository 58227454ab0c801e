"""The folder of a stack: whose it is, who may use it, and what is left of it when it cannot be used."""

import asyncio
import contextlib
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway import tokens
from infra.embedded.data_dir import DataDir
from infra.embedded.failure import StartFailure
from infra.embedded.object_store import ports_of_others
from infra.embedded.ports import SLICE, free_ports
from infra.embedded.postgres import NOBODY

AN_IMPOSSIBLE_SIZE = 2**62


async def test_the_folder_it_makes_lets_nobody_look_around(open_folder: Path) -> None:
    data_dir = DataDir(open_folder / "deep" / "data")
    await data_dir.open()
    data_dir.close()
    # Root's Postgres is another user, who must be able to pass through.
    assert mode_of(data_dir.path) == (0o701 if os.geteuid() == 0 else 0o700)


@pytest.mark.parametrize("mode", [0o1777, 0o700, 0o755])
async def test_a_folder_that_was_there_keeps_its_mode(open_folder: Path, mode: int) -> None:
    path = open_folder / "data"
    path.mkdir()
    path.chmod(mode)
    for _ in range(2):
        data_dir = DataDir(path)
        await data_dir.open()
        data_dir.close()
        assert mode_of(path) == mode


async def test_what_lies_in_a_folder_that_others_may_enter_is_closed_to_them(open_folder: Path) -> None:
    (open_folder / "data").mkdir(mode=0o755)
    data_dir = DataDir(open_folder / "data")
    await data_dir.open()
    data_dir.close()
    assert {mode_of(entry) & 0o077 for entry in data_dir.path.iterdir()} == {0}


async def test_a_folder_of_somebody_elses_things_is_refused_and_left_as_it_was(open_folder: Path) -> None:
    (open_folder / "lock").touch()
    before = os.listdir(open_folder), mode_of(open_folder)
    with pytest.raises(StartFailure) as refused:
        await DataDir(open_folder).open()
    assert str(refused.value) == (
        f"the data directory {open_folder} holds other things than a stack's data: name an empty folder, or a new one"
    )
    assert (os.listdir(open_folder), mode_of(open_folder)) == before


async def test_tokens_that_were_made_before_the_first_start_are_no_other_things(open_folder: Path) -> None:
    tokens.create(open_folder / "data" / "tokens.json", "somebody")
    (open_folder / "data" / "lost+found").mkdir()  # The root of a disk of its own.
    data_dir = DataDir(open_folder / "data")
    await data_dir.open()
    data_dir.close()


async def test_a_folder_one_may_not_write_to_is_refused_and_left_as_it_was(open_folder: Path) -> None:
    ours = DataDir(open_folder / "ours")
    with an_ordinary_user(open_folder):
        await ours.open()
        ours.close()
        (open_folder / "empty").mkdir()
        for path in (ours.path, open_folder / "empty"):
            path.chmod(0o500)
            before = sorted(os.listdir(path))
            with pytest.raises(StartFailure) as refused:
                await DataDir(path).open()
            assert str(refused.value) == f"the data directory {path} is not writable"
            assert (sorted(os.listdir(path)), mode_of(path)) == (before, 0o500)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a folder of another user's")
async def test_another_users_folder_is_refused(open_folder: Path) -> None:
    (open_folder / "data").mkdir(mode=0o700)
    with an_ordinary_user(), pytest.raises(StartFailure) as refused:
        await DataDir(open_folder / "data").open()
    assert str(refused.value) == f"the data directory {open_folder}/data cannot be used: Permission denied"


async def test_a_link_to_nowhere_is_refused(open_folder: Path) -> None:
    (open_folder / "data").symlink_to(open_folder / "nowhere")
    with pytest.raises(StartFailure, match="cannot be used: No such file or directory"):
        await DataDir(open_folder / "data").open()


async def test_a_folder_it_made_and_cannot_use_is_removed(open_folder: Path) -> None:
    with pytest.raises(StartFailure, match="is on a full disk"):
        await DataDir(open_folder / "data").open(least_free_bytes=AN_IMPOSSIBLE_SIZE)
    assert os.listdir(open_folder) == []


async def test_waiting_for_servers_of_a_killed_stack_can_be_called_off(open_folder: Path) -> None:
    data_dir = DataDir(open_folder / "data")
    await data_dir.open()
    lock = data_dir.path / "headrace.lock"
    lock.write_text("1 0.5")  # A process that is not, and whose servers hold on.
    waiting = asyncio.create_task(DataDir(open_folder / "data").open())
    async with asyncio.timeout(20):
        while not held_twice(lock):  # noqa: ASYNC110 - a file
            await asyncio.sleep(0.01)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(waiting, 10)
    assert not held_twice(lock)
    data_dir.close()


async def test_ports_are_the_same_as_last_time_but_for_those_that_are_somebody_elses(open_folder: Path) -> None:
    data_dir = DataDir(open_folder / "data")
    await data_dir.open()
    try:
        first = data_dir.ports(["nats", "run"], told={"gateway": 8888})
        assert data_dir.ports(["nats", "run"], told={"gateway": 8888}) == first
        # Nobody listens on the gateway's port yet.
        second = data_dir.ports(["nats", "run"], told={"gateway": first["nats"]})
        assert data_dir.kept_ports() == second | {"gateway": first["nats"]}
    finally:
        data_dir.close()
    assert second["run"] == first["run"]
    assert second["nats"] not in first.values()


def test_whoever_fails_to_start_takes_nothing_from_whoever_starts(open_folder: Path) -> None:
    """Many begin at the same moment on a folder that is not there; half of them find the disk too full."""
    path = open_folder / "data"
    starters = 6
    at_once = threading.Barrier(starters)
    robbed: list[str] = []

    def start(round_: int, number: int) -> None:
        data_dir = DataDir(path)
        at_once.wait()
        try:
            asyncio.run(data_dir.open(least_free_bytes=AN_IMPOSSIBLE_SIZE if number % 2 else 0))
        except StartFailure:
            at_once.wait()
            return
        mine = path / f"kept-{round_}"
        try:
            mine.touch()
        except FileNotFoundError:
            robbed.append("the folder went while it was held")
        at_once.wait()
        if not mine.exists() or not (path / "logs").exists():
            robbed.append("its data went while it was held")
        if not is_open_at(data_dir.lock_descriptor, path / "headrace.lock"):
            robbed.append("the lock went while it was held")
        data_dir.close()

    for round_ in range(60):
        threads = [threading.Thread(target=start, args=(round_, number)) for number in range(starters)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert robbed == []
        if path.exists():
            for entry in path.iterdir():
                entry.rmdir() if entry.is_dir() else entry.unlink()
            path.rmdir()


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@contextlib.contextmanager
def an_ordinary_user(*owned: Path) -> Iterator[None]:
    """Root may write anywhere; as an ordinary user we are what we are."""
    if os.geteuid() != 0:
        yield
        return
    for path in owned:
        os.chown(path, NOBODY, NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def held_twice(lock: Path) -> bool:
    """Whether two descriptors of this process are open on the file."""
    count = 0
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            count += descriptor.readlink() == lock
    return count == 2


def is_open_at(descriptor: int, file: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), file.stat())
    return False


def test_no_port_is_chosen_at_which_another_user_has_left_a_socket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (port,) = free_ports(1)
    left = Path(f"/tmp/seaweedfs-volume-grpc-{port}.sock")
    left.touch()
    try:
        monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
        assert port in ports_of_others()
        (tmp_path / "ports.json").write_text(f'{{"s3": {port}}}')
        assert DataDir(tmp_path).ports(["s3"])["s3"] != port
    finally:
        left.unlink()


def test_processes_side_by_side_look_for_ports_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SLICE, "0/2")
    ours = free_ports(50)
    monkeypatch.setenv(SLICE, "1/2")
    assert {port % 2 for port in ours} != {port % 2 for port in free_ports(50)}
