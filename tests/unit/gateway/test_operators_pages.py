"""The pages for operators, held against the code: what they name is there, under that name."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import click
import msgspec
import pytest

from gateway.table import PAGES
from infra.cli import main
from infra.embedded import data_dir, postgres
from infra.embedded.preflight import CLIENTS_VARIABLES
from shared.settings import variable_of

PROJECT = Path(__file__).parents[3]
DOCS = PROJECT / "gateway" / "docs"
OPERATORS = ("operations.md", "backup.md")
SETTINGS = (
    "gateway.settings",
    "infra.docker.nats_config",
    "infra.embedded.settings",
    "services.run.engine.embedded.runner.settings",
    "shared.identity",
    "shared.logs",
    *(f"services.{path.parent.name}.settings" for path in sorted(PROJECT.glob("services/*/settings.py"))),
)
NO_SETTINGS = {
    "HEADRACE_SETTINGS_FILE",
    *CLIENTS_VARIABLES,
    *re.findall("^HEADRACE_[A-Z_]+_PASSWORD", (PROJECT / ".env.example").read_text(), re.MULTILINE),
}
"""Said to compose, to commands that reach a gateway, and to what makes users of the servers."""


@pytest.fixture(params=OPERATORS)
def page(request: pytest.FixtureRequest) -> str:
    text: str = (DOCS / request.param).read_text()
    return text


def test_every_page_is_served_and_found_from_the_first_ones() -> None:
    introduction, readme = (DOCS / "introduction.md").read_text(), (PROJECT / "README.md").read_text()
    for name in OPERATORS:
        assert f"/docs/{name}" in PAGES
        assert f"(docs/{name})" in introduction
        assert f"(gateway/docs/{name})" in readme


def test_every_setting_that_is_named_is_one(page: str) -> None:
    known = {variable for place in SETTINGS for variable, _ in _defaults(place)}
    assert set(re.findall(r"HEADRACE_[A-Z0-9_]*[A-Z0-9]", page)) - known - NO_SETTINGS == set()


def test_defaults_are_those_of_the_code() -> None:
    """Those that are numbers, and said as such in the table of settings."""
    page = (DOCS / "operations.md").read_text()
    defaults = {variable: default for place in SETTINGS for variable, default in _defaults(place)}
    rows = re.findall(r"^\| `(HEADRACE_[A-Z_]+)`(?:, `HEADRACE_[A-Z_]+`)? \| (\d+)( [GM]iB)? \|", page, re.MULTILINE)
    assert len(rows) > 8
    for variable, number, unit in rows:
        assert defaults[variable] == int(number) * {"": 1, " MiB": 2**20, " GiB": 2**30}[unit], variable


def test_every_command_that_is_named_is_one_and_takes_what_it_is_given(page: str) -> None:
    commands = set(re.findall(r"`(?:\w+=\S+ )?(headrace [^`]+)`", page))
    commands |= set(re.findall(r"^(?:\w+=\S+ )?(headrace [^#\n]+)", page, re.MULTILINE))
    commands |= {f"headrace {words}" for words in re.findall(r"-m infra\.cli ([^<>\n]+)", page)}
    assert commands
    for words in commands:
        command: click.Command = main
        rest = shlex.split(words)[1:]
        context = click.Context(main)
        while isinstance(command, click.Group) and rest:
            found = command.get_command(context, rest.pop(0))
            assert found is not None, words
            command = found
        options = {name for parameter in command.params for name in parameter.opts}
        assert {word for word in rest if word.startswith("-")} <= options, words
        assert not isinstance(command, click.Group), words


def test_every_figure_that_is_named_is_one(page: str) -> None:
    described = (DOCS / "metrics.md").read_text()
    for name in re.findall(r"\bheadrace_\w+", page):
        assert f"| `{name}` |" in described, name


def test_every_file_module_and_target_that_is_named_is_there(page: str) -> None:
    for name in re.findall(r"\b((?:infra|gateway|services|tests)/[\w./-]*\w)", page):
        assert (PROJECT / name).exists(), name
    for module in re.findall(r"python -m (infra[\w.]+)", page):
        import_module(module)
    targets = (PROJECT / "Makefile").read_text()
    for target in re.findall(r"`(?:[^`]*&& )?make ([a-z-]+)`", page):
        assert f"\n{target}:" in targets, target


def test_every_link_leads_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", page):
        assert (DOCS / target).is_file(), target


def test_what_is_said_of_limits_is_so() -> None:
    page = (DOCS / "operations.md").read_text()
    compose = (PROJECT / "docker-compose.yml").read_text()
    under_compose = re.findall(r"max_connections=(\d+)", compose)
    assert f"less than {data_dir.LEAST_FREE_BYTES // 2**20} MiB" in page
    assert f"`max_connections` is {postgres.SETTINGS['max_connections']} embedded and {under_compose[0]} under" in page


def _defaults(place: str) -> Iterator[tuple[str, object]]:
    for struct in vars(import_module(place)).values():
        if isinstance(struct, type) and issubclass(struct, msgspec.Struct):
            for field in msgspec.structs.fields(struct):
                yield variable_of(field.name), field.default
