"""What a backup refuses, and what it leaves behind; that it brings a stack back is `tests/system/test_backup.py`'s."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from infra.embedded import objects
from infra.embedded.backup import BackupError, back_up, restore
from infra.embedded.data_dir import DataDir
from infra.embedded.failure import StartFailure
from shared.blobs import Blobs
from tests.support.servers import ObjectStoreAccess

_LARGE = os.urandom(3 * 1024 * 1024 + 5)


@pytest.fixture
async def blobs(object_store_access: ObjectStoreAccess) -> AsyncIterator[Blobs]:
    access = object_store_access
    blobs = Blobs(access.endpoint_url, access_key=access.access_key, secret_key=access.secret_key, bucket=access.bucket)
    await blobs.ensure_bucket()
    yield blobs
    blobs.close()


async def test_every_object_comes_back_under_its_key(blobs: Blobs) -> None:
    kept = {f"many/{nth:02}": str(nth).encode() for nth in range(20)}
    kept |= {"empty": b"", "a/long/" + 120 * "k" + "/ä": b"umlaut", "large": _LARGE}
    for key, data in kept.items():
        await blobs.put(key, data)
    file = io.BytesIO()
    assert await objects.save(blobs, file) == len(kept)
    for key in kept:
        await blobs.delete(key)
    file.seek(0)
    with tarfile.open(fileobj=file) as tar:  # Whoever has nothing but tar can read it.
        assert set(tar.getnames()) == set(kept)
    file.seek(0)
    assert await objects.load(blobs, file) == len(kept)
    assert {key: await blobs.get(key) for key in await blobs.list_keys("")} == kept


async def test_what_no_stack_has_run_on_is_not_backed_up(open_folder: Path) -> None:
    with pytest.raises(StartFailure, match=r"^no stack has run on .*: No such file"):
        await back_up(open_folder / "data", open_folder / "backup")
    assert os.listdir(open_folder) == []


async def test_a_folder_that_is_there_is_not_written_over(open_folder: Path) -> None:
    home = DataDir(open_folder / "data")
    await home.open()
    home.close()
    with pytest.raises(BackupError, match="cannot be made: File exists"):
        await back_up(home.path, open_folder)


async def test_a_backup_that_was_not_finished_is_not_restored(open_folder: Path) -> None:
    (open_folder / "backup").mkdir()
    with pytest.raises(BackupError, match="is no backup, or one that was not finished"):
        await restore(open_folder / "backup", open_folder / "data")
    assert os.listdir(open_folder) == ["backup"]


async def test_a_data_directory_that_holds_something_is_left_alone(open_folder: Path) -> None:
    home = DataDir(open_folder / "data")
    await home.open()
    home.secrets(["one"])
    home.close()
    before = sorted(os.listdir(home.path))
    with pytest.raises(StartFailure, match="holds something"):
        await restore(_backup(open_folder), home.path)
    assert sorted(os.listdir(home.path)) == before


async def test_of_a_restore_that_fails_nothing_is_left(open_folder: Path) -> None:
    with pytest.raises(BackupError, match=r"^pg_restore: "):
        await restore(_backup(open_folder), open_folder / "data")
    assert sorted(os.listdir(open_folder)) == ["backup"]


async def test_nothing_starts_on_a_restore_that_was_killed(open_folder: Path) -> None:
    home = DataDir(open_folder / "data")
    await home.open()
    home.begin_restore()
    home.close()
    with pytest.raises(StartFailure, match="holds a part of a backup: empty it, and restore again"):
        await DataDir(home.path).open()


def _backup(folder: Path) -> Path:
    """One that is complete, and whose database is damaged."""
    backup = folder / "backup"
    (backup / "engine").mkdir(parents=True)
    (backup / "database.dump").write_bytes(b"damaged")
    (backup / "backup.json").write_text('{"format":1,"made_at":"2026-01-02T03:04:05Z","objects":0}')
    return backup
