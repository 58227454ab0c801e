"""The HTTP door of the experiment service: E1 to E6 of the API specification's table 1.2."""

from __future__ import annotations

from functools import partial
from typing import Any

from litestar import Request, Response
from litestar.di import NamedDependency
from litestar.params import FromPath

from shared import idempotency, protojson
from shared.errors import InvalidInput, layer
from shared.idempotency import Answers
from shared.listing import ListRequest
from shared.references import ResourceType, WireReferenceKey
from shared.web import delete, get, post, reply

from .domain import Experiment
from .usecases import Experiments
from .wire import WireExperiment, WireExperiments, from_domain

Req = Request[Any, Any, Any]


@post("/apis/v1beta1/experiments")
async def create_experiment(
    request: Req, experiments: NamedDependency[Experiments], answers: NamedDependency[Answers]
) -> Response[bytes]:
    data = await request.body()
    body = protojson.decode(data, WireExperiment)
    if body.resource_references:
        raise InvalidInput(
            "In single-user mode, CreateExperimentRequest shouldn't contain resource references."
        ).inside("Validate experiment request failed.")
    keyed = idempotency.keyed("POST /experiments", request.headers.get(idempotency.HEADER), data)
    return reply(await answers.once(keyed, partial(experiments.create, body.name, body.description), _encoded))


@get("/apis/v1beta1/experiments")
async def list_experiments(request: Req, experiments: NamedDependency[Experiments]) -> Response[bytes]:
    asked = protojson.query(ListRequest, request.scope["query_string"])
    _check_reference(asked.resource_reference_key)
    page = await experiments.list(asked)
    return reply(
        WireExperiments(
            experiments=tuple(from_domain(experiment) for experiment in page.rows),
            total_size=page.total_size,
            next_page_token=page.next_page_token,
        )
    )


@get("/apis/v1beta1/experiments/{experiment_id:str}")
async def get_experiment(experiment_id: FromPath[str], experiments: NamedDependency[Experiments]) -> Response[bytes]:
    with layer("Get experiment failed."):
        return reply(from_domain(await experiments.get(experiment_id)))


@delete("/apis/v1beta1/experiments/{experiment_id:str}")
async def delete_experiment(experiment_id: FromPath[str], experiments: NamedDependency[Experiments]) -> Response[bytes]:
    with layer("Delete experiment failed"):
        await experiments.delete(experiment_id)
    return reply()


@post("/apis/v1beta1/experiments/{experiment_id:str}/:archive")
async def archive_experiment(
    experiment_id: FromPath[str], experiments: NamedDependency[Experiments]
) -> Response[bytes]:
    await experiments.archive(experiment_id)
    return reply()


@post("/apis/v1beta1/experiments/{experiment_id:str}/:unarchive")
async def unarchive_experiment(
    experiment_id: FromPath[str], experiments: NamedDependency[Experiments]
) -> Response[bytes]:
    await experiments.unarchive(experiment_id)
    return reply()


def _encoded(experiment: Experiment) -> bytes:
    return protojson.encode(from_domain(experiment))


def _check_reference(key: WireReferenceKey | None) -> None:
    """API specification, section 5.4: clients send an empty namespace, and nothing else filters experiments."""
    match key:
        case WireReferenceKey(type=ResourceType.UNKNOWN_RESOURCE_TYPE | ResourceType.PIPELINE as kind):
            raise InvalidInput(
                f"Unsupported resource type: {kind.name}",
                layers=("Validating filter failed.", "Unrecognized resource reference type."),
            )
        case WireReferenceKey(type=ResourceType.NAMESPACE, id=namespace) if namespace:
            raise InvalidInput("In single-user mode, ListExperiment cannot filter by namespace.")


ROUTES = (
    create_experiment,
    list_experiments,
    get_experiment,
    delete_experiment,
    archive_experiment,
    unarchive_experiment,
)
