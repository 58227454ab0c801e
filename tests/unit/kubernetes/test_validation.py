"""What `make check` says of manifests that no cluster would take."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.manifests import VERSIONS, Object, problems, with_components


def _changed(thing: Object, path: str, value: Any) -> Object:
    """A copy in which one field, named by its way through mappings, is another."""
    name, _, rest = path.partition(".")
    return {**thing, name: _changed(thing[name], rest, value) if rest else value}


def _first(kind: str, *components: str) -> Object:
    return next(thing for thing in with_components(*components) if thing["kind"] == kind)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("kind", "component", "path", "value", "said"),
    [
        pytest.param("Deployment", "", "spec.replica", 2, "'replica' was unexpected", id="unknown field"),
        pytest.param("Service", "", "spec.ports", "http", "'http' is not of type", id="wrong type"),
        pytest.param("Namespace", "", "kind", "Namespaces", "Couldn't find schema for kind Namespaces", id="no kind"),
        pytest.param(
            *("ServiceMonitor", "service-monitors", "spec.endpoint", [], "'endpoint' was unexpected"),
            id="unknown field of a custom kind",
        ),
        pytest.param(
            *("PrometheusRule", "alerts", "spec.group", [], "'group' was unexpected"),
            id="unknown field of another custom kind",
        ),
        pytest.param(
            *("HTTPRoute", "http-route", "spec.hostnames", ["No Host"], "'No Host' does not match"),
            id="wrong text in a custom kind",
        ),
    ],
)
def test_an_object_that_is_none_is_found_and_named(
    version: str, kind: str, component: str, path: str, value: Any, said: str
) -> None:
    thing = _first(kind, *filter(None, [component]))
    assert problems([thing], version) == []
    (problem,) = problems([_changed(thing, path, value)], version)
    assert said in problem
    assert thing["metadata"]["name"] in problem


def test_an_object_that_is_there_twice_is_found() -> None:
    thing = _first("Service")
    assert problems([thing, thing], VERSIONS[0]) == [f"Service headrace/{thing['metadata']['name']} is there twice"]
