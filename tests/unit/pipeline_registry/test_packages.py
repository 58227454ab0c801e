from __future__ import annotations

import gzip
import io
import struct
import tarfile
import zipfile
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
        (
            "a.tgz",
            tarball(links=(("pipeline.yaml", "/etc/passwd"),)),
            f"{_TAR} Expecting a pipeline.yaml file inside the tarball. Got: pipeline.yaml",
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


@pytest.mark.parametrize(
    ("kind", "target"),
    [
        (tarfile.SYMTYPE, "/etc/passwd"),
        (tarfile.LNKTYPE, "first.yaml"),
        (tarfile.FIFOTYPE, ""),
        (tarfile.CHRTYPE, ""),
        (tarfile.BLKTYPE, ""),
        (tarfile.DIRTYPE, ""),
    ],
)
def test_what_is_no_file_is_no_pipeline_whatever_it_is_called(kind: bytes, target: str) -> None:
    special = special_entry(kind, target)
    with pytest.raises(InvalidInput, match=r"Expecting a pipeline\.yaml file inside the tarball\. Got: pipeline\.yaml"):
        read_package("a.tgz", gzip.compress(special + bytes(1024)))
    # One that is a file wins, even behind it.
    assert read_package("a.tgz", gzip.compress(special + gzip.decompress(tarball(("pipeline.yaml", TEXT))))) == PIPELINE


def special_entry(kind: bytes, target: str) -> bytes:
    info = tarfile.TarInfo("pipeline.yaml")
    info.type, info.linkname = kind, target
    return info.tobuf()


@pytest.mark.parametrize(
    "name", ["../../evil.yaml", "/tmp/evil.yaml", "C:\\evil.yaml", "a/../../evil.yml", "ü\U0001f600.yaml"]
)
def test_a_path_in_an_archive_is_only_a_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for data in (tarball((name, TEXT)), zipped((name, TEXT))):
        assert read_package("a", data) == PIPELINE
    assert not list(tmp_path.rglob("*"))
    assert not Path("/tmp/evil.yaml").exists()


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
