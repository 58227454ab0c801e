"""The dashboard, the alerts and the pages they lead to, read beside the code that they are about."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml

from gateway.table import PAGES
from infra.embedded.replicas import SERVICES
from infra.embedded.stack import CONTROLLER, GATEWAY, RUNNER
from tests.support.alerts import PROMETHEUS_RULE, prometheus_rule
from tests.support.metrics import Metric, registered

_PROJECT = Path(__file__).parents[2]
_ROOM = _PROJECT / "infra/observability"
_DOCS = _PROJECT / "gateway/docs"
_DASHBOARD = json.loads((_ROOM / "dashboard.json").read_text())
_RULES = [rule for group in yaml.safe_load((_ROOM / "alerts.yaml").read_text())["groups"] for rule in group["rules"]]
_PROCESSES = {*SERVICES, CONTROLLER, RUNNER, GATEWAY}

_EVERYBODYS = frozenset(
    {"up", "process_start_time_seconds", "process_cpu_seconds_total", "process_resident_memory_bytes"}
)
_TARGETS = frozenset({"job", "instance"})


def _expressions() -> dict[str, str]:
    alerts = {rule["alert"]: rule["expr"] for rule in _RULES}
    panels = {
        f"{panel['title']} {target['refId']}": target["expr"]
        for panel in _DASHBOARD["panels"]
        for target in panel.get("targets", ())
    }
    return alerts | panels


@cache
def _by_series() -> dict[str, Metric]:
    return {series: metric for metric in registered() for series in metric.series}


def _parsed(expression: str) -> Any:
    # A variable of Grafana's own, which stands for a duration.
    return promql_parser.parse(expression.replace("$__rate_interval", "5m"))


def _selectors(node: Any) -> Iterator[Any]:
    if isinstance(node, promql_parser.VectorSelector):
        yield node
        return
    for name in ("expr", "lhs", "rhs", "args", "vector_selector", "param"):
        child = getattr(node, name, None)
        for each in child if isinstance(child, list) else [child]:
            if each is not None and not isinstance(each, str | int | float):
                yield from _selectors(each)


@pytest.mark.parametrize(("title", "expression"), _expressions().items())
def test_every_expression_parses_and_asks_for_metrics_and_labels_that_exist(title: str, expression: str) -> None:
    selectors = list(_selectors(_parsed(expression)))
    assert selectors, f"{title} asks for nothing"
    for selector in selectors:
        matched = {matcher.name for matcher in selector.matchers.matchers}
        if selector.name in _EVERYBODYS:
            assert "job" in matched, f"{title} asks about everybody's processes"
            assert matched <= _TARGETS
            continue
        assert selector.name in _by_series(), f"{title}: there is no {selector.name}"
        known = set(_by_series()[selector.name].labels) | _TARGETS
        assert matched <= known, f"{title}: {selector.name} has no label {matched - known}"
        grouped = {label for labels in re.findall(r"by \(([^)]*)\)", expression) for label in labels.split(", ")}
        assert grouped <= known | {"le"}, f"{title}: {selector.name} has no label {grouped - known}"


def test_figures_of_a_schema_are_never_summed_over_replicas() -> None:
    of_a_schema = ("headrace_outbox", "headrace_subscriber_behind", "headrace_dead_letters", "headrace_runs{")
    for title, expression in _expressions().items():
        if any(name in expression for name in of_a_schema):
            is_safe = "max" in expression or "sum" not in expression
            assert is_safe, f"{title} doubles what two processes show while one takes over"


def test_jobs_that_alerts_ask_for_are_the_processes_there_are() -> None:
    scraped = yaml.safe_load((_ROOM / "prometheus.yaml").read_text())["scrape_configs"]
    assert {each["job_name"] for each in scraped} == _PROCESSES
    assert all(each["honor_labels"] for each in scraped)
    asked = {job for expression in _expressions().values() for job in re.findall(r'job=~"([^"]*)"', expression)}
    assert asked == {job for job in asked if set(job.split("|")) == _PROCESSES}


def test_the_prometheus_operator_is_given_the_same_alerts() -> None:
    assert PROMETHEUS_RULE.read_text() == prometheus_rule(), "python -m tests.support.alerts writes it anew"
    rule = yaml.safe_load(PROMETHEUS_RULE.read_text())
    given = [each for group in rule["spec"]["groups"] for each in group["rules"]]
    assert [each | {"expr": ""} for each in given] == [each | {"expr": ""} for each in _RULES]
    for ours, theirs in zip(given, _RULES, strict=True):
        for selector, same in zip(_selectors(_parsed(ours["expr"])), _selectors(_parsed(theirs["expr"])), strict=True):
            said = {(each.name, each.value) for each in selector.matchers.matchers}
            more = said - {(each.name, each.value) for each in same.matchers.matchers}
            # A cluster has other processes, and some are called `gateway`.
            in_our_namespace = {("namespace", rule["metadata"]["namespace"])}
            assert more == (in_our_namespace if selector.name in _EVERYBODYS else set()), ours["alert"]


@pytest.mark.parametrize("rule", _RULES, ids=lambda rule: rule["alert"])
def test_every_alert_says_how_bad_it_is_and_what_to_do(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("critical", "warning", "info")
    assert rule["annotations"]["summary"]
    page, _, anchor = rule["annotations"]["runbook"].removeprefix("docs/").partition("#")
    assert f"/docs/{page}" in PAGES
    assert f"\n### {anchor}\n" in (_DOCS / page).read_text()


def test_every_runbook_is_some_alerts() -> None:
    anchors = set(re.findall(r"^### (.+)$", (_DOCS / "observability.md").read_text(), re.MULTILINE))
    assert anchors == {rule["annotations"]["runbook"].partition("#")[2] for rule in _RULES}


def test_the_dashboard_can_be_imported_beside_any_others() -> None:
    panels = _DASHBOARD["panels"]
    assert _DASHBOARD["uid"] == "headrace"
    assert "id" not in _DASHBOARD, "that is the number in somebody's own Grafana"
    assert len({panel["id"] for panel in panels}) == len(panels)
    (variable,) = _DASHBOARD["templating"]["list"]
    assert (variable["name"], variable["type"], variable["query"]) == ("datasource", "datasource", "prometheus")
    shown = [panel for panel in panels if panel["type"] != "row"]
    for panel in shown:
        assert panel["datasource"]["uid"] == "${datasource}"
        assert all(target["datasource"]["uid"] == "${datasource}" for target in panel["targets"])
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24
    places = [(panel["gridPos"]["y"], panel["gridPos"]["x"]) for panel in panels]
    assert len(set(places)) == len(places)


@pytest.mark.parametrize("page", sorted(path.name for path in _DOCS.glob("*.md")))
def test_links_between_the_pages_lead_somewhere(page: str) -> None:
    # The introduction is shown one level up, in the description.
    base = "/" if page == "introduction.md" else "/docs/"
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", (_DOCS / page).read_text()):
        path = "/".join((base.rstrip("/"), target)) if not target.startswith("../") else target.removeprefix("..")
        assert path in {*PAGES, "/asyncapi.json", "/openapi.json"}, f"{page} links to {target}"
