from __future__ import annotations

import re
from typing import Any

import msgspec
import pytest
import yaml

from shared import go_yaml
from shared.go_yaml import LARGEST_EXPANDED_BYTES, NotYaml
from tests.support.packages import CORPUS, alias_bomb, merge_bomb


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("---", None),
        ("# nothing", None),
        ("a: 1\n--- \n[not read", {"a": 1}),
        ("\ufeffa: b", {"a": "b"}),
        ("[1e3, '1e3', \"yes\", yes, ~, 1:30, 0.5]", [1000, "1e3", "yes", True, None, "1:30", 0.5]),
        ("|\n  yes\n", "yes\n"),
        ("[!!str 1, !!int '1', !!float 1, !!bool 'yes', !!null '', !!timestamp 2020-01-01, ! 1]",
         ["1", 1, 1, True, None, "2020-01-01", "1"]),
        ("!!map {a: !!seq [b]}", {"a": ["b"]}),
        # Spelled as in JSON, two keys may be one; the last one counts.
        ("{1: a, '1': b, 0x1: c, on: d, 1.50: e}", {"1": "c", "true": "d", "1.5": "e"}),
        ("{y: 1, n: 2}", {"y": 1, "n": 2}),
        # Aliases, and merge keys: own entries win, and of a list the first mapping does.
        ("[&a {k: v}, *a, &a other, *a]", [{"k": "v"}, {"k": "v"}, "other", "other"]),
        ("{a: &a {x: 1, y: 1}, b: {y: 2, <<: *a}}", {"a": {"x": 1, "y": 1}, "b": {"x": 1, "y": 2}}),
        ("{<<: [{x: 1}, {x: 2, y: 2}], z: 3}", {"x": 1, "y": 2, "z": 3}),
        ("{'<<': {x: 1}}", {"<<": {"x": 1}}),
    ],
)  # fmt: skip
def test_the_first_document_is_read_as_go_reads_it(text: str, value: Any) -> None:
    found = go_yaml.load(text)
    assert found == value
    # True is 1 to Python; the JSON of both tells them apart.
    assert msgspec.json.encode(found, order="sorted") == msgspec.json.encode(value, order="sorted")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: [", "line 2"),
        ("a: b\n\tc: d", "line 2"),
        ("a\x00b", "control characters are not allowed"),
        ("'\ud800'", "surrogates not allowed"),
        ("*a", "there is no anchor 'a'"),
        ("&a [*a]", "an alias stands inside of what it stands for"),
        ("{&a k: &a {x: *a}}", "an alias stands inside of what it stands for"),
        (".nan", "nan is no number of JSON"),
        ("!!float .inf", "inf is no number of JSON"),
        ("~: a", "a key of a mapping must be text"),
        ("? [a]\n: b", "a key of a mapping must be text"),
        ("<<: a", "a merge key needs a mapping"),
        ("<<: [a]", "a merge key needs a mapping"),
        ("!!int yes", "`yes` cannot be read as int"),
        ("!!bool 1", "`1` cannot be read as bool"),
        ("!!binary aGk=", "`aGk=` cannot be read as binary"),
        ("!mine a", "`a` cannot be read as !mine"),
        ("!!set {a, b}", "the tag tag:yaml.org,2002:set is not supported"),
        ("!!python/object/apply:os.system [id]", "is not supported"),
        ("[" * 100_000, "the document is nested too deeply"),
        (alias_bomb(), "the document is too large once its aliases are expanded"),
        (merge_bomb(), "the document is too large once its aliases are expanded"),
    ],
    ids=lambda text: repr(text[:30]),
)
def test_what_is_no_yaml_of_json_types_is_refused(text: str, reason: str) -> None:
    with pytest.raises(NotYaml, match=re.escape(reason)):
        go_yaml.load(text)


def test_a_document_that_must_be_the_only_one_is() -> None:
    assert go_yaml.load("---\na: 1\n...\n", only=True) == {"a": 1}
    assert go_yaml.load("", only=True) is None
    with pytest.raises(NotYaml, match="another document follows"):
        go_yaml.load("a: 1\n---\nb: 2", only=True)


def test_what_an_alias_stands_for_is_weighed_as_often_as_it_is_used() -> None:
    kilobyte = "x" * 1021
    most = LARGEST_EXPANDED_BYTES // 1024
    text = f"[&a {kilobyte}" + ", *a" * most
    assert len(go_yaml.load(text + "]")) == most + 1
    with pytest.raises(NotYaml, match="too large"):
        go_yaml.load(text + ", *a]")


def test_many_merge_keys_in_one_mapping_cost_no_more_than_they_are_long() -> None:
    """Copying what was merged so far, for each of them, would not end within the time limit of a test."""
    text = "{" + ", ".join(f"<<: {{k{number}: v}}" for number in range(200_000)) + "}"
    assert len(go_yaml.load(text)) == 200_000


@pytest.mark.parametrize("file", sorted(CORPUS.glob("*/*.yaml")), ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_a_compiled_pipeline_says_what_it_says_to_any_reader_of_yaml(file: Any) -> None:
    """Compilers quote whatever could be misread."""
    text = file.read_text()
    assert go_yaml.load(text) == yaml.load(text, Loader=yaml.CSafeLoader)
