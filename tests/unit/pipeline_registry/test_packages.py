from __future__ import annotations

import gzip
import io
import re
import stat
import struct
import tarfile
import zipfile
from contextlib import nullcontext
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as how
from hypothesis import strategies as st

from services.pipeline_registry.domain import LARGEST_PACKAGE_BYTES
from services.pipeline_registry.packages import MOST_ENTRIES, UNPACKED_RATIO, read_package
from shared.errors import InvalidInput
from tests.support.packages import PIPELINE, tarball, tarball_of_zeros, zipped

TEXT = PIPELINE.encode()
OTHER = b"kind: Other"


@pytest.mark.parametrize(
    ("file_name", "data"),
    [
        ("a.yaml", TEXT),
        ("a.yml", TEXT),
        ("a.json", TEXT),
        ("../../etc/a.yaml", TEXT),
        ("a.tar.gz", tarball(("pipeline.yaml", TEXT))),
        ("a.tgz", tarball(("first.yaml", TEXT))),
        ("no-extension", tarball(("./pipeline.yaml", TEXT))),
        ("named.zip", tarball(("pipeline.yaml", TEXT))),
        ("wins-wherever.tgz", tarball(("first.yaml", OTHER), ("dir/", b""), ("pipeline.yaml", TEXT))),
        ("even-behind-others.tgz", tarball(("note.txt", OTHER), ("pipeline.yaml", TEXT))),
        ("a.zip", zipped(("pipeline.yaml", TEXT))),
        ("named.tar.gz", zipped(("any.yml", TEXT))),
        ("b.zip", zipped(("readme.md", OTHER), ("pipeline.yaml", TEXT))),
    ],
)
def test_a_package_is_read_by_its_content(file_name: str, data: bytes) -> None:
    assert read_package(file_name, data) == PIPELINE


_TAR = "Error extracting pipeline from the tarball file."
_ZIP = "Error extracting pipeline from the zip file."


@pytest.mark.parametrize(
    ("file_name", "data", "message"),
    [
        ("a.txt", TEXT, "Unexpected pipeline file format. Support .zip, .tar.gz, .json or YAML."),
        ("A.YAML", TEXT, "Unexpected pipeline file format. Support .zip, .tar.gz, .json or YAML."),
        ("empty", b"", "Unexpected pipeline file format. Support .zip, .tar.gz, .json or YAML."),
        ("short", b"PK", "Unexpected pipeline file format. Support .zip, .tar.gz, .json or YAML."),
        ("a.yaml", b"name: \xff\xfe", "The pipeline file is not UTF-8 text."),
        ("a.yaml", PIPELINE.encode("utf-16"), "The pipeline file is not UTF-8 text."),
        ("a.tgz", b"\x1f\x8b nonsense", f"{_TAR} Not a valid tarball file."),
        ("a.tgz", gzip.compress(TEXT), f"{_TAR} Not a valid tarball file."),
        ("a.tgz", tarball(), f"{_TAR} Not a valid tarball file."),
        (
            "a.tgz",
            tarball(("note.txt", OTHER), ("first.yaml", TEXT)),
            f"{_TAR} Expecting a pipeline.yaml file inside the tarball. Got: note.txt",
        ),
        (
            "a.tgz",
            tarball(("dir/", b""), ("dir/pipeline.yaml", TEXT)),
            f"{_TAR} Expecting a pipeline.yaml file inside the tarball. Got: dir/",
        ),
        ("a.zip", b"PK\x03\x04 nonsense", f"{_ZIP} Not a valid zip file."),
        ("a.zip", zipped(), f"{_ZIP} Empty zip file."),
        (
            "a.zip",
            zipped(("readme.md", OTHER), ("first.yaml", TEXT)),
            f"{_ZIP} Expecting a pipeline.yaml file inside the zip. Got: readme.md",
        ),
        (
            "a.zip",
            zipped(("dir.yaml/", b"")),
            f"{_ZIP} Expecting a pipeline.yaml file inside the zip. Got: dir.yaml/",
        ),
    ],
)
def test_what_is_no_package_is_refused_in_the_words_of_the_api(file_name: str, data: bytes, message: str) -> None:
    with pytest.raises(InvalidInput) as refusal:
        read_package(file_name, data)
    assert refusal.value.message == message


def test_an_entry_that_is_cut_short_is_refused() -> None:
    whole = gzip.decompress(tarball(("pipeline.yaml", TEXT * 100)))
    with pytest.raises(InvalidInput, match="Error reading pipeline YAML from the tarball file"):
        read_package("a.tgz", gzip.compress(whole[:2048]))


def test_a_zip_entry_whose_checksum_is_wrong_is_refused() -> None:
    packed = bytearray(zipped(("pipeline.yaml", TEXT)))
    central = packed.rfind(b"PK\x01\x02")
    struct.pack_into("<I", packed, central + 16, 1)
    with pytest.raises(InvalidInput, match="Error reading pipeline YAML from the zip file"):
        read_package("a.zip", bytes(packed))


@pytest.mark.parametrize("name", ["pipeline.yaml", "first.yaml"])
def test_an_entry_that_unpacks_to_more_than_a_package_may_hold_is_refused(name: str) -> None:
    huge = b"#" * (LARGEST_PACKAGE_BYTES + 1)
    for data in (tarball((name, huge)), zipped((name, huge))):
        with pytest.raises(InvalidInput, match=r"File size too large\. Maximum supported size: 33554432"):
            read_package("a", data)


def test_a_tarball_is_not_unpacked_beyond_its_bound() -> None:
    with pytest.raises(InvalidInput, match="File size too large"):
        read_package("bomb.tgz", tarball_of_zeros(2 * UNPACKED_RATIO * LARGEST_PACKAGE_BYTES))


def test_the_largest_size_is_allowed_and_one_byte_more_is_not() -> None:
    largest = b"#" * LARGEST_PACKAGE_BYTES
    assert len(read_package("a.yaml", largest)) == LARGEST_PACKAGE_BYTES
    with pytest.raises(InvalidInput, match=r"File size too large\. Maximum supported size: 33554432"):
        read_package("a.yaml", largest + b"#")


SPECIAL = {
    tarfile.SYMTYPE: "symbolic link",
    tarfile.LNKTYPE: "hard link",
    tarfile.FIFOTYPE: "special file",
    tarfile.CHRTYPE: "special file",
    tarfile.BLKTYPE: "special file",
    b"Z": "special file",  # What no version of tar has.
}


@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize("name", ["pipeline.yaml", "./pipeline.yaml", "first.yml"])
def test_what_is_no_file_in_a_tarball_is_no_pipeline(name: str, kind: bytes) -> None:
    special, end = tar_entry(name, kind), bytes(1024)
    with pytest.raises(InvalidInput) as refusal:
        read_package("a.tgz", gzip.compress(special + end))
    reason = f"The entry {name} is a {SPECIAL[kind]}, and only a file can be the pipeline."
    assert refusal.value.message == f"{_TAR} {reason}"


@pytest.mark.parametrize("kind", SPECIAL)
def test_a_link_called_pipeline_is_refused_beside_a_file_of_that_name(kind: bytes) -> None:
    special, file = tar_entry("pipeline.yaml", kind), tar_entry("pipeline.yaml", content=TEXT)
    for entries in (special + file, file + special):
        with pytest.raises(InvalidInput, match=rf"The entry pipeline\.yaml is a {SPECIAL[kind]}"):
            read_package("a.tgz", gzip.compress(entries + bytes(1024)))


def test_a_folder_called_pipeline_is_a_folder() -> None:
    folder, file = ("pipeline.yaml/", b""), ("pipeline.yaml", TEXT)
    assert read_package("a.tgz", tarball(folder, file)) == PIPELINE
    with pytest.raises(InvalidInput, match=r"Got: pipeline\.yaml/$"):
        read_package("a.tgz", tarball(folder))


def test_links_that_nobody_reads_do_no_harm() -> None:
    links = (("latest.yaml", "pipeline.yaml"), ("bin/python", "/usr/bin/python3"))
    assert read_package("a.tgz", tarball(("pipeline.yaml", TEXT), links=links)) == PIPELINE
    entry = zip_entry("bin/python", stat.S_IFLNK | 0o777)
    assert read_package("a.zip", zipped((entry, b"/usr/bin/python3"), ("pipeline.yaml", TEXT))) == PIPELINE


ZIP_SPECIAL = {
    stat.S_IFLNK: "symbolic link",
    stat.S_IFIFO: "special file",
    stat.S_IFSOCK: "special file",
    stat.S_IFCHR: "special file",
    stat.S_IFBLK: "special file",
    stat.S_IFDIR: "folder",
}


@pytest.mark.parametrize("kind", ZIP_SPECIAL)
def test_what_is_no_file_in_a_zip_is_no_pipeline(kind: int) -> None:
    for name, others in (("pipeline.yaml", ()), ("first.yml", ()), ("pipeline.yaml", (("pipeline.yaml", TEXT),))):
        entry = (zip_entry(name, kind | 0o644), b"/etc/passwd")
        for entries in ((entry, *others), (*others, entry)):
            with pytest.warns(UserWarning, match="Duplicate name") if others else nullcontext():
                data = zipped(*entries)
            with pytest.raises(InvalidInput, match=rf"{_ZIP} The entry {name} is a {ZIP_SPECIAL[kind]}, and only a"):
                read_package("a.zip", data)


@pytest.mark.parametrize("mode", [0, 0o644, stat.S_IFREG | 0o600])
def test_a_file_in_a_zip_is_one_whatever_made_it(mode: int) -> None:
    assert read_package("a.zip", zipped((zip_entry("pipeline.yaml", mode), TEXT))) == PIPELINE


@pytest.mark.parametrize(
    "name",
    [
        "../evil.yaml",
        "../../evil.yaml",
        "a/../../evil.yml",
        "a/..",
        "/tmp/evil.yaml",
        "//host/evil.yaml",
        "..\\evil.yaml",
        "\\evil.yaml",
        "C:\\evil.yaml",
        "c:/evil.yaml",
    ],
)
def test_a_path_that_leads_out_of_an_archive_is_refused_wherever_it_stands(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    evil, good = (name, OTHER), ("pipeline.yaml", TEXT)
    reason = re.escape(f"The entry {name} has a path that leads out of the archive.")
    for entries in ((evil,), (evil, good), (good, evil)):
        with pytest.raises(InvalidInput, match=f"{_TAR} {reason}"):
            read_package("a", tarball(*entries))
        with pytest.raises(InvalidInput, match=f"{_ZIP} {reason}"):
            read_package("a", zipped(*entries))
    assert not list(tmp_path.rglob("*"))


@pytest.mark.parametrize(
    "names",
    [
        ("./pipeline.yaml",),
        ("pipeline.yaml", "._pipeline.yaml", "__MACOSX/._pipeline.yaml"),
        ("._pipeline.yaml", "pipeline.yaml"),
        (".git/", ".git/HEAD", "pipeline.yaml", "src/", "src/..hidden/", "src/a..b.py"),
        ("ü\U0001f600.yaml",),
        ("my pipeline: 1.yaml",),
        ("dir/pipeline.yaml",),
        ("dir\\pipeline.yaml",),
    ],
    ids=lambda names: names[0],
)
def test_what_people_pack_is_read(names: tuple[str, ...]) -> None:
    entries = [(name, TEXT if name.endswith("l") and "._" not in name else b"") for name in names]
    assert read_package("a", tarball(*entries)) == PIPELINE
    assert read_package("a", zipped(*entries)) == PIPELINE


def test_a_name_that_is_no_text_is_told_in_letters() -> None:
    with pytest.raises(InvalidInput) as refusal:
        read_package("a.tgz", tarball(("\udcff.txt", OTHER)))
    assert refusal.value.message == f"{_TAR} Expecting a pipeline.yaml file inside the tarball. Got: \\udcff.txt"


def test_of_a_long_name_the_beginning_is_told() -> None:
    for data in (tarball(("n" * 60_000, OTHER)), zipped(("n" * 60_000, OTHER))):
        with pytest.raises(InvalidInput, match=r"Got: n{200}…$"):
            read_package("a", data)


def tar_entry(name: str, kind: bytes = tarfile.REGTYPE, content: bytes = b"") -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, len(content)
    info.linkname = "/etc/passwd" if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) else ""
    return info.tobuf() + content + bytes(-len(content) % tarfile.BLOCKSIZE)


def zip_entry(name: str, mode: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, mode << 16
    return info


def test_a_tarball_has_only_so_many_entries() -> None:
    entry = tarfile.TarInfo("note.txt").tobuf()
    last = gzip.decompress(tarball(("pipeline.yaml", TEXT)))
    assert read_package("a.tgz", gzip.compress(entry * (MOST_ENTRIES - 1) + last, 1)) == PIPELINE
    with pytest.raises(InvalidInput, match=r"Not a valid tarball file\.: it has more than 10000 entries"):
        read_package("a.tgz", gzip.compress(entry * MOST_ENTRIES + last, 1))


def test_an_archive_in_an_archive_is_not_opened() -> None:
    inner = zipped(("pipeline.yaml", TEXT))
    for pack in (tarball, zipped):
        with pytest.raises(InvalidInput, match=r"Expecting a pipeline\.yaml file inside the"):
            read_package("a", pack(("inner.zip", inner)))
        with pytest.raises(InvalidInput, match="The pipeline file is not UTF-8 text"):
            read_package("a", pack(("pipeline.yaml", b"\xff" + inner)))


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_broken_entry_of_any_compression_is_refused(compression: int) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        archive.writestr("pipeline.yaml", TEXT)
    assert read_package("a.zip", out.getvalue()) == PIPELINE
    broken = bytearray(out.getvalue())
    for at in range(50, 60):
        broken[at] ^= 0xFF
    with pytest.raises(InvalidInput, match="Error reading pipeline YAML from the zip file"):
        read_package("a.zip", bytes(broken))


def test_an_encrypted_entry_is_refused() -> None:
    packed = bytearray(zipped(("pipeline.yaml", TEXT)))
    for signature, offset in ((b"PK\x01\x02", 8), (b"PK\x03\x04", 6)):
        packed[packed.find(signature) + offset] |= 1
    with pytest.raises(InvalidInput, match="Error reading pipeline YAML from the zip file"):
        read_package("a.zip", bytes(packed))


def test_a_sparse_entry_that_claims_much_is_refused() -> None:
    info = tarfile.TarInfo("pipeline.yaml")
    info.type = tarfile.GNUTYPE_SPARSE
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[386:482] = b"00000000000\0" * 8
    header[483:495] = b"77777777777\0"  # 8 GiB, of which none is there.
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    with pytest.raises(InvalidInput, match="File size too large"):
        read_package("a.tgz", gzip.compress(bytes(header) + bytes(1024)))


@pytest.mark.parametrize("text", ["", "\ufeff" + PIPELINE, "naïve: \U0001f600"])
def test_any_text_that_is_utf8_is_handed_on_as_it_is(text: str) -> None:
    assert read_package("a.yaml", text.encode()) == text


SEEDS = (
    zipped(("first.yaml", TEXT), ("pipeline.yaml", TEXT)),
    gzip.decompress(tarball(("first.yaml", TEXT), ("pipeline.yaml", TEXT), links=(("l", "x"),))),
)


@given(
    seed=st.sampled_from(SEEDS),
    edits=st.lists(st.tuples(st.integers(2, 4000), st.integers(0, 3), st.binary(max_size=12)), min_size=1, max_size=6),
)
@how(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
def test_a_damaged_archive_is_read_or_refused_and_nothing_else(
    seed: bytes, edits: list[tuple[int, int, bytes]]
) -> None:
    data = bytearray(seed)
    for position, removed, added in edits:
        at = min(position, len(data))
        data[at : at + removed] = added
    packed = bytes(data) if seed.startswith(b"PK") else gzip.compress(bytes(data), 1)
    try:
        text = read_package("a", packed)
    except InvalidInput:
        return
    assert isinstance(text, str)
