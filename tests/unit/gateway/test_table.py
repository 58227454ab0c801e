"""The routing rules of the API, row by row (API specification, sections 1.2 and 1.3)."""

from __future__ import annotations

import pytest

from gateway.table import EXTENSIONS, ROUTES, Match, MethodNotAllowed, NotFound, Owner, Redirect, find

V1 = "/apis/v1beta1"
UNKNOWN = NotFound(text="Not Found\n")
OUTSIDE = NotFound(text="404 page not found\n")
NOT_ALLOWED = MethodNotAllowed(text="Method Not Allowed\n")


def found(method: str, path: str, **headers: object) -> str:
    """The name of the matched route and the method it is forwarded by."""
    match = find(method, path.encode("ascii"), **headers)  # type: ignore[arg-type]
    assert isinstance(match, Match), match
    return f"{match.method} {match.route.name}"


# Written out from the specification's table, not derived from the code's.
SPECIFIED = [
    ("E1", "POST", "/experiments", Owner.EXPERIMENT),
    ("E2", "GET", "/experiments", Owner.EXPERIMENT),
    ("E3", "GET", "/experiments/a", Owner.EXPERIMENT),
    ("E4", "DELETE", "/experiments/a", Owner.EXPERIMENT),
    ("E5", "POST", "/experiments/a:archive", Owner.EXPERIMENT),
    ("E6", "POST", "/experiments/a:unarchive", Owner.EXPERIMENT),
    ("P1", "POST", "/pipelines", Owner.PIPELINE_REGISTRY),
    ("P2", "GET", "/pipelines", Owner.PIPELINE_REGISTRY),
    ("P3", "GET", "/pipelines/a", Owner.PIPELINE_REGISTRY),
    ("P4", "DELETE", "/pipelines/a", Owner.PIPELINE_REGISTRY),
    ("P5", "GET", "/pipelines/a/templates", Owner.PIPELINE_REGISTRY),
    ("P6", "POST", "/pipelines/upload", Owner.PIPELINE_REGISTRY),
    ("P7", "POST", "/pipelines/upload_version", Owner.PIPELINE_REGISTRY),
    ("P8", "POST", "/pipelines/a/default_version/b", Owner.PIPELINE_REGISTRY),
    ("V1", "POST", "/pipeline_versions", Owner.PIPELINE_REGISTRY),
    ("V2", "GET", "/pipeline_versions", Owner.PIPELINE_REGISTRY),
    ("V3", "GET", "/pipeline_versions/a", Owner.PIPELINE_REGISTRY),
    ("V4", "DELETE", "/pipeline_versions/a", Owner.PIPELINE_REGISTRY),
    ("V5", "GET", "/pipeline_versions/a/templates", Owner.PIPELINE_REGISTRY),
    ("R1", "POST", "/runs", Owner.RUN),
    ("R2", "GET", "/runs", Owner.RUN),
    ("R3", "GET", "/runs/a", Owner.RUN),
    ("R4", "DELETE", "/runs/a", Owner.RUN),
    ("R5", "POST", "/runs/a:archive", Owner.RUN),
    ("R6", "POST", "/runs/a:unarchive", Owner.RUN),
    ("R7", "POST", "/runs/a/retry", Owner.RUN),
    ("R8", "POST", "/runs/a/terminate", Owner.RUN),
    ("R9", "POST", "/runs/a:reportMetrics", Owner.METRICS),
    ("R10", "GET", "/runs/a/nodes/b/artifacts/c:read", Owner.RUN),
    ("J1", "POST", "/jobs", Owner.JOB_SCHEDULER),
    ("J2", "GET", "/jobs", Owner.JOB_SCHEDULER),
    ("J3", "GET", "/jobs/a", Owner.JOB_SCHEDULER),
    ("J4", "DELETE", "/jobs/a", Owner.JOB_SCHEDULER),
    ("J5", "POST", "/jobs/a/enable", Owner.JOB_SCHEDULER),
    ("J6", "POST", "/jobs/a/disable", Owner.JOB_SCHEDULER),
    ("X1", "GET", "/healthz", Owner.GATEWAY),
    ("X2", "POST", "/workflows", Owner.RUN),
    ("X3", "POST", "/scheduledworkflows", Owner.JOB_SCHEDULER),
    ("X4", "POST", "/visualizations", Owner.RUN),
    ("X4", "POST", "/visualizations/", Owner.RUN),
    ("X4", "POST", "/visualizations/ns", Owner.RUN),
    ("X5", "GET", "/auth", Owner.RUN),
    ("X7", "GET", "/runs/a/nodes/b/log", Owner.RUN),
]


@pytest.mark.parametrize(("name", "method", "path", "owner"), SPECIFIED)
def test_every_specified_route_reaches_its_owner(name: str, method: str, path: str, owner: Owner) -> None:
    match = find(method, f"{V1}{path}".encode())

    assert isinstance(match, Match)
    assert (match.route.name, match.owner, match.method) == (name, owner, method)
    assert not match.query_is_in_body


def test_the_table_holds_no_route_beyond_the_specified_ones() -> None:
    beyond = {route.name for route in ROUTES} - {name for name, *_ in SPECIFIED}

    assert beyond == {"X8", "livez", "readyz", "startupz", "openapi", "asyncapi", "docs"}


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "POST", "PUT", "DELETE", "PATCH"])
@pytest.mark.parametrize(
    ("path", "name"),
    [
        (f"{V1}/healthz", "X1"),
        (f"{V1}/pipelines/upload", "P6"),
        (f"{V1}/pipelines/upload_version", "P7"),
        (f"{V1}/runs/a/nodes/b/log", "X7"),
        ("/apis/v1alpha1/runs/a/nodes/b/log", "X7"),
        ("/metrics", "X8"),
    ],
)
def test_plain_handlers_take_every_method(method: str, path: str, name: str) -> None:
    assert found(method, path) == f"{method} {name}"


@pytest.mark.parametrize(
    "path", ["/", "/apis", "/livez/", "/pipeline/apis/v1beta1/runs", "/metrics/", "/metrics:x", ""]
)
def test_a_path_outside_the_api_is_page_not_found(path: str) -> None:
    assert find("GET", path.encode()) == OUTSIDE


@pytest.mark.parametrize(
    "path",
    [
        "/apis/",
        "/apis/v1beta1",
        "/apis/v1beta1/",
        "/apis/v1beta1/nothing",
        "/apis/v2beta1/runs",
        "/apis/v1alpha1/runs/a",
        "/apis/v1beta1/runs/a/b",
        "/apis/v1beta1/pipelines/upload/",
        "/apis/v1beta1/pipelines/upload:x",
        "/apis/v1beta1/namespaces/ns/pipelines/name",
        "/apis/v1beta1/Runs",
    ],
)
def test_an_unknown_path_of_the_api_is_not_found(path: str) -> None:
    assert find("GET", path.encode()) == UNKNOWN


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("HEAD", "/runs"),
        ("OPTIONS", "/runs"),
        ("OPTIONS", "/experiments/a"),
        ("PUT", "/runs/a"),
        ("POST", "/runs/a"),
        ("GET", "/runs/a:archive"),
        ("DELETE", "/runs/a/retry"),
        ("GET", "/workflows"),
        ("get", "/runs"),
    ],
)
def test_a_known_path_with_another_method_is_not_allowed(method: str, path: str) -> None:
    assert find(method, f"{V1}{path}".encode()) == NOT_ALLOWED


@pytest.mark.parametrize(
    "path", ["/runs/a:b", "/runs/a:Archive", "/runs/a:archive:b", "/runs:x", "/jobs/a:archive", "/runs/a/retry:now"]
)
def test_text_after_the_last_colon_is_a_verb_that_only_its_own_routes_match(path: str) -> None:
    assert find("GET", f"{V1}{path}".encode()) == UNKNOWN
    assert find("POST", f"{V1}{path}".encode()) == UNKNOWN


def test_a_colon_before_the_last_one_belongs_to_the_id() -> None:
    assert found("POST", f"{V1}/runs/a:b:archive") == "POST R5"


def test_a_colon_outside_the_last_segment_belongs_to_the_id() -> None:
    assert found("POST", f"{V1}/runs/a:b/terminate") == "POST R8"


def test_an_empty_verb_matches_the_routes_without_a_verb() -> None:
    assert found("GET", f"{V1}/runs/a:") == "GET R3"


@pytest.mark.parametrize("path", ["/runs/:archive", "/runs/:", "/:runs", "/runs/%3Aarchive"])
def test_a_last_segment_that_starts_with_its_only_colon_is_not_found(path: str) -> None:
    assert find("POST", f"{V1}{path}".encode()) == UNKNOWN


def test_a_slash_at_the_end_is_an_empty_id() -> None:
    assert found("GET", f"{V1}/runs/") == "GET R3"
    assert find("POST", f"{V1}/runs/".encode()) == NOT_ALLOWED
    assert find("GET", f"{V1}/runs/a/".encode()) == UNKNOWN


@pytest.mark.parametrize(
    ("path", "location"),
    [
        (f"{V1}//runs", f"{V1}/runs"),
        ("//apis/v1beta1/runs", f"{V1}/runs"),
        (f"{V1}/runs//", f"{V1}/runs/"),
        (f"{V1}/./runs", f"{V1}/runs"),
        (f"{V1}/runs/.", f"{V1}/runs"),
        (f"{V1}/runs/..", V1),
        (f"{V1}/runs/../jobs/", f"{V1}/jobs/"),
        ("/../../etc/passwd", "/etc/passwd"),
        ("/..", "/"),
        (f"{V1}/runs/%2e%2e/jobs", f"{V1}/jobs"),
        (f"{V1}/runs/a%2F%2Fb", f"{V1}/runs/a/b"),
        (f"{V1}//runs/a%20b%3Fc%23d", f"{V1}/runs/a%20b%3Fc%23d"),
        (f"{V1}//runs/%ff", f"{V1}/runs/%FF"),
        ("//evil.example/x", "/evil.example/x"),
        ("/%2Fevil.example/x", "/evil.example/x"),
        (f"{V1}//runs/a%0d%0aX:%20y", f"{V1}/runs/a%0D%0AX:%20y"),
    ],
)
def test_doubled_slashes_and_dot_segments_are_redirected_to_the_cleaned_path(path: str, location: str) -> None:
    assert find("GET", path.encode()) == Redirect(location=location)


def test_dots_inside_a_name_are_not_dot_segments() -> None:
    assert found("GET", f"{V1}/runs/.hidden") == "GET R3"
    assert found("GET", f"{V1}/runs/a..b") == "GET R3"


def test_an_encoded_slash_creates_a_segment() -> None:
    assert found("POST", f"{V1}/runs/a%2Fterminate") == "POST R8"
    assert find("GET", f"{V1}/runs/a%2Fb".encode()) == UNKNOWN


def test_an_encoded_colon_works_as_the_colon_of_a_verb() -> None:
    assert found("POST", f"{V1}/runs/a%3Aarchive") == "POST R5"
    assert found("POST", f"{V1}/runs/a%3areportMetrics") == "POST R9"


@pytest.mark.parametrize("identity", ["x" * 50_000, "%00", "%27%22", "%20%20", "%ff%fe", "%zz", "%", "%C3%A9"])
def test_an_id_that_cannot_exist_is_routed_like_any_other(identity: str) -> None:
    assert found("GET", f"{V1}/runs/{identity}") == "GET R3"


def test_bytes_beyond_ascii_in_the_path_are_routed_like_any_other() -> None:
    match = find("GET", f"{V1}/runs/".encode() + b"\xff\xc3\xa9")

    assert isinstance(match, Match)


def test_a_form_post_to_a_get_only_route_falls_through_to_get() -> None:
    match = find("POST", f"{V1}/runs/a".encode(), is_form=True)

    assert isinstance(match, Match)
    assert (match.route.name, match.method, match.query_is_in_body) == ("R3", "GET", True)


def test_a_form_post_to_a_route_that_takes_post_stays_a_post() -> None:
    match = find("POST", f"{V1}/runs".encode(), is_form=True)

    assert isinstance(match, Match)
    assert (match.route.name, match.method, match.query_is_in_body) == ("R1", "POST", False)


def test_only_a_post_can_stand_for_a_get() -> None:
    assert find("PUT", f"{V1}/runs/a".encode(), is_form=True) == NOT_ALLOWED


@pytest.mark.parametrize(
    ("path", "override", "expected"),
    [("/runs", "GET", "GET R2"), ("/runs", "get", "GET R2"), ("/runs/a", "DELETE", "DELETE R4")],
)
def test_the_override_of_a_form_post_names_the_method(path: str, override: str, expected: str) -> None:
    assert found("POST", f"{V1}{path}", is_form=True, method_override=override) == expected


def test_an_override_that_no_route_takes_is_not_allowed() -> None:
    assert find("POST", f"{V1}/runs".encode(), is_form=True, method_override="PATCH") == NOT_ALLOWED


def test_the_override_is_ignored_without_a_form() -> None:
    assert found("POST", f"{V1}/runs", method_override="GET") == "POST R1"
    assert find("POST", f"{V1}/runs/a".encode(), method_override="DELETE") == NOT_ALLOWED


def test_the_override_is_ignored_where_the_method_is_not_post() -> None:
    assert found("GET", f"{V1}/runs/a", is_form=True, method_override="DELETE") == "GET R3"


def test_the_override_is_ignored_by_plain_handlers() -> None:
    assert found("POST", f"{V1}/pipelines/upload", is_form=True, method_override="GET") == "POST P6"


@pytest.mark.parametrize(
    ("segment", "owner"),
    [
        ("runs", Owner.RUN),
        ("events", Owner.NOTIFIER),
        ("dead", Owner.NOTIFIER),
        ("engine", Owner.RUN),
        ("jobs", Owner.JOB_SCHEDULER),
        ("pipelines", Owner.PIPELINE_REGISTRY),
        ("experiments", Owner.EXPERIMENT),
        ("metrics", Owner.METRICS),
    ],
)
@pytest.mark.parametrize("rest", ["", "/", "/a", "/a/b/c:d", ":lost"])
def test_extensions_go_by_their_first_segment(segment: str, owner: Owner, rest: str) -> None:
    match = find("PUT", f"/apis/headrace/v1/{segment}{rest}".encode())

    assert isinstance(match, Match)
    assert (match.owner, match.method) == (owner, "PUT")


def test_what_happens_to_a_run_is_told_by_the_notifier() -> None:
    owners = {}
    for path in ("runs/a/events", "runs/a/events/b", "runs/a", "runs/events"):
        match = find("GET", f"/apis/headrace/v1/{path}".encode())
        assert isinstance(match, Match)
        owners[path] = match.owner

    assert [path for path, owner in owners.items() if owner is Owner.NOTIFIER] == ["runs/a/events"]


@pytest.mark.parametrize("path", ["/apis/headrace/v1/", "/apis/headrace/v1/nothing", "/apis/headrace/v2/runs"])
def test_an_unknown_extension_is_not_found(path: str) -> None:
    assert find("GET", path.encode()) == UNKNOWN


def test_no_extension_is_answered_by_the_gateway_itself() -> None:
    assert Owner.GATEWAY not in {route.owner for route in EXTENSIONS.values()}
