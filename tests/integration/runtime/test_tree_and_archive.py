"""Where a step's paths lie on the host, and artifacts there and back: no step may lead either of them astray."""

from __future__ import annotations

import gzip
import io
import os
import stat
import tarfile
from pathlib import Path

import pytest

from services.run.engine.embedded.runtime.archive import BadArchive, pack, unpack
from services.run.engine.embedded.runtime.tree import (
    Branch,
    OutsideTree,
    Tree,
    find,
    inside,
    make_directory,
    place_for,
    read_text,
)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """A root, a layer over a host directory, a shared mount and a read-only one."""
    for name in ("root", "layer", "host/sub", "mount", "fixed", "outside"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "host" / "file").write_text("of the host")
    (tmp_path / "host" / "jump").symlink_to("/tmp")
    (tmp_path / "outside" / "secret").write_text("secret")
    return Tree(
        branches=(
            Branch(target="/", source=str(tmp_path / "root")),
            Branch(target="/usr", source=str(tmp_path / "layer"), lower=str(tmp_path / "host")),
            Branch(target="/data", source=str(tmp_path / "mount")),
            Branch(target="/data/fixed", source=str(tmp_path / "fixed"), read_only=True),
        )
    )


@pytest.mark.parametrize(
    ("path", "lies_in"),
    [
        ("/output.txt", "root/output.txt"),
        ("/tmp/outputs/x/data", "root/tmp/outputs/x/data"),
        ("/usr/share/x", "layer/share/x"),
        ("/usrx/y", "root/usrx/y"),
        ("/data/a/b", "mount/a/b"),
        ("/tmp/../../../data/a", "mount/a"),
        ("/usr/jump/x", "root/tmp/x"),
    ],
)
def test_a_path_is_placed_in_the_branch_that_owns_it_and_found_there(
    tree: Tree, tmp_path: Path, path: str, lies_in: str
) -> None:
    place_for(tree, path).write_text("here")
    assert (tmp_path / lies_in).read_text() == "here"
    assert find(tree, path) == tmp_path / lies_in


def test_what_the_step_did_not_write_is_not_found(tree: Tree) -> None:
    assert find(tree, "/usr/file") is None
    assert find(tree, "/usr/sub") is None
    assert find(tree, "/nothing") is None
    assert find(tree, "relative") is None


def test_absolute_and_climbing_links_stay_inside(tree: Tree, tmp_path: Path) -> None:
    make_directory(tree, "/tmp")
    secret = str(tmp_path / "outside" / "secret")
    (tmp_path / "root/tmp/absolute").symlink_to(secret)
    (tmp_path / "root/tmp/climbing").symlink_to("../" * 30 + secret.lstrip("/"))
    (tmp_path / "root/tmp/directory").symlink_to(str(tmp_path / "outside"))
    (tmp_path / "root/tmp/loop").symlink_to("loop")
    for path in ("/tmp/absolute", "/tmp/climbing", "/tmp/directory/secret", "/tmp/loop"):
        assert find(tree, path) is None
    with pytest.raises(OutsideTree, match="too many levels"):
        place_for(tree, "/tmp/loop/x")
    place_for(tree, "/tmp/absolute").write_text("placed")
    assert (tmp_path / "outside/secret").read_text() == "secret"
    place_for(tree, "/tmp/directory/new").write_text("placed")
    assert os.listdir(tmp_path / "outside") == ["secret"]


def test_a_read_only_mount_takes_nothing(tree: Tree) -> None:
    with pytest.raises(OutsideTree, match="read-only"):
        make_directory(tree, "/data/fixed/x")
    with pytest.raises(OutsideTree, match="read-only"):
        place_for(tree, "/data/fixed")


def test_nothing_is_placed_or_removed_in_a_directory_that_is_the_hosts_own(tmp_path: Path) -> None:
    """Where no layer can be laid over it, a step sees the host's directory itself, read-only."""
    host, root = tmp_path / "host", tmp_path / "root"
    (host / "bin").mkdir(parents=True)
    (host / "bin" / "dash").touch()
    (host / "bin" / "sh").symlink_to("dash")
    root.mkdir()
    (root / "bin").symlink_to("usr/bin")
    usr = Branch(target="/usr", source=str(host), lower=str(host), read_only=True)
    tree = Tree(branches=(Branch(target="/", source=str(root)), usr))

    for path in ("/usr/bin/sh", "/usr/bin/new", "/usr/new", "/bin/sh", "/usr/new/deep"):
        with pytest.raises(OutsideTree, match="read-only"):
            place_for(tree, path)

    assert os.readlink(host / "bin" / "sh") == "dash"
    assert sorted(each.name for each in host.iterdir()) == ["bin"]


def test_a_sub_path_stays_inside_its_volume(tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    (volume / "out").symlink_to("../outside")
    assert inside(volume, "../../a/b") == volume / "a" / "b"
    assert inside(volume, "out/c") == volume / "outside" / "c"
    assert not (tmp_path / "outside").exists()


def test_text_is_read_within_its_limit_and_from_regular_files_alone(tree: Tree, tmp_path: Path) -> None:
    (tmp_path / "root/long").write_text("x" * 11)
    os.mkfifo(tmp_path / "root/fifo")
    assert read_text(tree, "/long", limit_bytes=11) == "x" * 11
    with pytest.raises(OutsideTree, match="longer than 10 bytes"):
        read_text(tree, "/long", limit_bytes=10)
    with pytest.raises(OutsideTree, match="not a regular file"):
        read_text(tree, "/fifo", limit_bytes=10)
    with pytest.raises(OutsideTree, match="is a directory"):
        read_text(tree, "/", limit_bytes=10)
    with pytest.raises(FileNotFoundError, match="/none: no such file or directory"):
        read_text(tree, "/none", limit_bytes=10)


def test_a_file_comes_back_as_the_path_itself(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(b"\0\xffbytes")
    pack(tmp_path / "data", "data", tmp_path / "a.tgz")
    with tarfile.open(tmp_path / "a.tgz", "r:gz") as archive:
        assert archive.getnames() == ["data"]
    unpack(tmp_path / "a.tgz", tmp_path / "deep" / "elsewhere")
    assert (tmp_path / "deep" / "elsewhere").read_bytes() == b"\0\xffbytes"
    assert sorted(os.listdir(tmp_path / "deep")) == ["elsewhere"]


def test_a_directory_of_ten_thousand_files_comes_back_whole(tmp_path: Path) -> None:
    source = tmp_path / "many"
    for number in range(100):
        (source / str(number)).mkdir(parents=True)
        for file in range(100):
            (source / str(number) / str(file)).write_text(f"{number}/{file}")
    pack(source, "many", tmp_path / "a.tgz")
    unpack(tmp_path / "a.tgz", tmp_path / "back")
    back = sorted(path for path in (tmp_path / "back").rglob("*") if path.is_file())
    assert len(back) == 10_000
    assert (tmp_path / "back/42/17").read_text() == "42/17"


def test_links_inside_are_kept_and_what_has_no_content_is_left_out(tmp_path: Path) -> None:
    source = tmp_path / "model"
    (source / "v1").mkdir(parents=True)
    (source / "v1" / "weights").write_text("w")
    (source / "latest").symlink_to("v1")
    (source / "v1" / "run.sh").write_text("#!/bin/sh\n")
    (source / "v1" / "run.sh").chmod(0o750)
    os.mkfifo(source / "pipe")
    pack(source, "model", tmp_path / "a.tgz", compression_level=0)
    assert (tmp_path / "a.tgz").read_bytes()[:2] == b"\x1f\x8b"
    unpack(tmp_path / "a.tgz", tmp_path / "back")
    assert (tmp_path / "back/latest/weights").read_text() == "w"
    assert stat.S_IMODE((tmp_path / "back/v1/run.sh").stat().st_mode) & 0o700 == 0o700
    assert not (tmp_path / "back/pipe").exists()


def test_several_entries_become_a_directory_and_no_tar_stays_what_it_is(tmp_path: Path) -> None:
    _tar(tmp_path / "two.tgz", [_file("a"), _file("b")])
    unpack(tmp_path / "two.tgz", tmp_path / "two")
    assert sorted(os.listdir(tmp_path / "two")) == ["a", "b"]
    for name, content in (("plain", b"just text"), ("gzipped", gzip.compress(b"no tar")), ("empty", b"")):
        (tmp_path / name).write_bytes(content)
        unpack(tmp_path / name, tmp_path / "out" / name)
        assert (tmp_path / "out" / name).read_bytes() == content


def _file(name: str) -> tuple[tarfile.TarInfo, bytes]:
    entry = tarfile.TarInfo(name)
    entry.size = 1
    return entry, b"x"


def _link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tuple[tarfile.TarInfo, bytes]:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, target
    return entry, b""


def _tar(path: Path, entries: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for entry, content in entries:
            archive.addfile(entry, io.BytesIO(content))


@pytest.mark.parametrize(
    "entries",
    [
        [_file("../escaped")],
        [_file("a/../../escaped")],
        [_link("a", "/etc/passwd")],
        [_link("a", "../../escaped")],
        [_link("a", "../escaped", tarfile.LNKTYPE)],
        [_link("out", ".."), _file("out/escaped")],
    ],
    ids=["parent", "climb", "absolute-link", "climbing-link", "hard-link", "through-a-link"],
)
def test_an_entry_that_would_escape_refuses_the_whole_archive(
    tmp_path: Path, entries: list[tuple[tarfile.TarInfo, bytes]]
) -> None:
    _tar(tmp_path / "bad.tgz", [_file("good"), *entries])
    with pytest.raises(BadArchive, match="would escape"):
        unpack(tmp_path / "bad.tgz", tmp_path / "room" / "target")
    assert os.listdir(tmp_path / "room") == []
    assert "escaped" not in os.listdir(tmp_path)


def test_a_truncated_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(os.urandom(100_000))
    pack(tmp_path / "data", "data", tmp_path / "a.tgz")
    whole = (tmp_path / "a.tgz").read_bytes()
    (tmp_path / "a.tgz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadArchive, match="damaged"):
        unpack(tmp_path / "a.tgz", tmp_path / "back")
    assert not (tmp_path / "back").exists()
