from __future__ import annotations

import gzip
import struct

import pytest

from services.pipeline_registry.domain import LARGEST_PACKAGE_BYTES
from services.pipeline_registry.packages import UNPACKED_RATIO, read_package
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
