from __future__ import annotations

import pytest

from services.pipeline_registry.domain import check_name, check_size, check_url, last_element
from shared.errors import InvalidInput


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com",
        "https://example.com/a/b.yaml?version=1#part",
        "HTTPS://user:password@example.com:8443/a b.zip",
        "http://[2606:4700::1]:80/p.yaml",
        "http://bücher.example/p.yaml",
    ],
)
def test_urls_of_the_web_are_accepted(url: str) -> None:
    check_url(url)


@pytest.mark.parametrize(
    "url",
    [
        "nonsense",
        "/etc/passwd",
        "//example.com/p.yaml",
        "file:///etc/passwd",
        "ftp://example.com/p.yaml",
        "gopher://example.com/",
        "gs://bucket/p.yaml",
        "http:example.com",
        "http://",
        "http:///p.yaml",
        "http://:80/p.yaml",
        "http://example.com:99999/",
        "http://example.com:0/",
        "http://example.com:port/",
        "http://[::1/p.yaml",
        "http://example.com/\r\nHost: other",
        "http://example.com/\tp.yaml",
        " http://example.com/p.yaml",
        "javascript:alert(1)",
    ],
)
def test_other_urls_are_refused_in_the_words_of_the_api(url: str) -> None:
    with pytest.raises(InvalidInput) as refusal:
        check_url(url)
    assert refusal.value.message == f"Invalid Pipeline URL {url}. Please specify a valid URL"


def test_no_url_is_a_refusal_of_its_own() -> None:
    with pytest.raises(InvalidInput, match=r"^Invalid input error: Pipeline URL is empty\. Please specify a valid URL"):
        check_url("")


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("http://example.com/a/p.yaml", "p.yaml"),
        ("http://example.com/a/p.yaml?v=1", "p.yaml?v=1"),
        ("http://example.com/a?file=b/p.yaml", "p.yaml"),
        ("http://example.com/a/b%2Bc+d.zip/", "b%2Bc+d.zip"),
        ("http://example.com", "example.com"),
        ("http://example.com/..", ".."),
    ],
)
def test_a_package_from_a_url_is_called_as_its_last_element(url: str, name: str) -> None:
    assert last_element(url) == name


@pytest.mark.parametrize("name", ["", "a" * 100, "ü" * 50, "\U0001f600" * 25, "100 %", "a+b", "a%2Fb", "../../x.yaml"])
def test_names_are_texts_of_at_most_a_hundred_bytes(name: str) -> None:
    check_name(name)


@pytest.mark.parametrize("name", ["a" * 101, "ü" * 50 + "a", "\U0001f600" * 25 + "a"])
def test_a_hundred_and_one_bytes_are_too_many(name: str) -> None:
    assert len(name.encode()) == 101
    with pytest.raises(InvalidInput) as refusal:
        check_name(name)
    assert refusal.value.message == "Pipeline name too long. Support maximum length of 100"


def test_a_size_that_is_refused_names_the_limit_and_its_setting() -> None:
    check_size(10, 10)
    with pytest.raises(InvalidInput) as refusal:
        check_size(11, 10)
    assert refusal.value.message == "File size too large. Maximum supported size: 10"
    assert "HEADRACE_LARGEST_PACKAGE_BYTES" in refusal.value.error
