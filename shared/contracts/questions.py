"""Questions: what one service asks another's owner over request/reply, and the shape of the answer.

A question travels on `kfp.ask.<owner>.<what>`; every replica of the owner answers, one of them each time.
A refusal comes back as the refusal it was (`shared.errors`).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final, Generic, TypeVar

import msgspec

from shared.contracts.states import ExperimentState, JobState, Metric, PipelineId, PipelineVersionId, RunId, RunState

Q = TypeVar("Q", bound=msgspec.Struct)
A = TypeVar("A", bound=msgspec.Struct)


@dataclass(frozen=True, slots=True)
class Question(Generic[Q, A]):
    owner: str
    what: str
    request: type[Q]
    answer: type[A]

    @property
    def subject(self) -> str:
        return f"kfp.ask.{self.owner}.{self.what}"


class Ask(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Base of all requests and answers: frozen, by keyword, defaults left out on the wire."""


class ById(Ask, frozen=True, kw_only=True):
    id: str


class Nothing(Ask, frozen=True, kw_only=True):
    pass


class Parameter(Ask, frozen=True, kw_only=True, omit_defaults=True):
    """A declared pipeline parameter; without a default, `value` is None."""

    name: str
    value: str | None = None


class VersionAnswer(Ask, frozen=True, kw_only=True, omit_defaults=True):
    """A pipeline version as runs and jobs need it. The manifest's text is at `manifests/<manifest_digest>`."""

    version_id: PipelineVersionId
    version_name: str
    pipeline_id: PipelineId
    pipeline_name: str
    manifest_digest: str
    parameters: tuple[Parameter, ...] = ()


class VersionRequest(Ask, frozen=True, kw_only=True, omit_defaults=True):
    version_id: PipelineVersionId
    pipeline_id: PipelineId | None = None
    """Where given, the version must belong to this pipeline, else InvalidInput."""


class ManifestRequest(Ask, frozen=True, kw_only=True, omit_defaults=True):
    """A manifest whose text is at `manifests/<manifest_digest>`; NotFound where it is not."""

    manifest_digest: str
    parameters: tuple[str, ...] = ()
    """The names that runs will be given values for."""


class ManifestAnswer(Ask, frozen=True, kw_only=True, omit_defaults=True):
    """What can be said of a manifest before anything is made of it. Texts that are empty do not apply."""

    malformation: str = ""
    """Why it is no workflow at all; nothing else is said then."""
    refusal: str = ""
    """Why the engine would refuse to run it."""
    unrecognized: str | None = None
    """The first of the parameters that it does not declare."""
    service_account: str = ""
    """Whose account its runs use when nobody names one."""


class ReportRequest(Ask, frozen=True, kw_only=True, omit_defaults=True):
    run_id: RunId
    metrics: tuple[Metric, ...]


class ReportAnswer(Ask, frozen=True, kw_only=True, omit_defaults=True):
    """One outcome per metric of the request, in its order: OK, INVALID_ARGUMENT, DUPLICATE_REPORTING or
    INTERNAL_ERROR, and the message of a refusal."""

    outcomes: tuple[tuple[str, str], ...] = ()
    position: int = 0
    """The position of the fact that recorded them; 0 where nothing new was recorded."""


class LogRequest(Ask, frozen=True, kw_only=True, omit_defaults=True):
    workflow_name: str
    node_id: str
    offset: int = 0
    """The first byte that is asked for."""
    within_seconds: float = 0
    """How long to wait for it where the step has not written it yet."""


class LogAnswer(Ask, frozen=True, kw_only=True, omit_defaults=True):
    text: bytes = b""
    """Some bytes from the offset on; none where there are none yet, or the step is not at hand."""


class StepOutput(Ask, frozen=True, kw_only=True):
    """An output parameter of a step, by the name or the id of its node."""

    node: str
    name: str


class ValuesRequest(Ask, frozen=True, kw_only=True, omit_defaults=True):
    """What a run that is over has left. Where it has not all of it, InvalidInput tells what is missing."""

    run_id: RunId
    attempt: int
    """Another one has other values, and is refused."""
    outputs: tuple[StepOutput, ...] = ()
    metrics: tuple[str, ...] = ()


class ValuesAnswer(Ask, frozen=True, kw_only=True, omit_defaults=True):
    """One value for each that was asked for, in that order."""

    outputs: tuple[str, ...] = ()
    metrics: tuple[float, ...] = ()
    """Where several steps report one name, the largest."""


class EngineAnswer(Ask, frozen=True, kw_only=True, omit_defaults=True):
    """What executes the runs."""

    name: str
    runtime: str
    """What steps run in; `none` where they cannot."""
    weaker: str | None = None
    """What that lacks, and how to mend it."""


class AppliedRequest(Ask, frozen=True, kw_only=True):
    owner: str
    position: int
    within_seconds: float


class AppliedAnswer(Ask, frozen=True, kw_only=True):
    is_applied: bool


class DeadRequest(Ask, frozen=True, kw_only=True, omit_defaults=True):
    most: int = 200
    behind: int = 0
    """The place of a letter: only those that stand behind it."""


LAST_PLACE: Final = 2**63 - 1


class DeadLetter(Ask, frozen=True, kw_only=True, omit_defaults=True):
    """A fact that a subscriber gave up on. `id`, `time` and so on are the fact's own."""

    id: str
    type: str
    owner: str
    what: str
    resource_id: str
    position: int
    time: datetime
    reason: str
    tries: int
    put_aside_at: datetime
    place: int = LAST_PLACE
    """Among those of its subscriber, in the order of giving up. A service that does not say it cannot go on behind it,
    either."""


class DeadAnswer(Ask, frozen=True, kw_only=True, omit_defaults=True):
    letters: tuple[DeadLetter, ...] = ()
    """The oldest ones."""
    count: int = 0
    """Of all."""


class DeadLetterAnswer(Ask, frozen=True, kw_only=True):
    letter: DeadLetter
    body: bytes
    """The fact's, which may be anything."""


class RepeatRequest(Ask, frozen=True, kw_only=True):
    position: int


class RepeatAnswer(Ask, frozen=True, kw_only=True):
    position: int
    """The first position, from the asked one on, that the owner still has; what lies between is gone for good."""


GET_EXPERIMENT = Question("experiment", "get", ById, ExperimentState)
GET_DEFAULT_EXPERIMENT = Question("experiment", "get-default", Nothing, ExperimentState)
GET_VERSION = Question("pipeline-registry", "get-version", VersionRequest, VersionAnswer)
GET_DEFAULT_VERSION = Question("pipeline-registry", "get-default-version", ById, VersionAnswer)
GET_RUN = Question("run", "get", ById, RunState)
GET_RUN_VALUES = Question("run", "get-values", ValuesRequest, ValuesAnswer)
CHECK_MANIFEST = Question("run", "check-manifest", ManifestRequest, ManifestAnswer)
GET_JOB = Question("job-scheduler", "get", ById, JobState)
READ_LOG = Question("run-controller", "log", LogRequest, LogAnswer)
DESCRIBE_ENGINE = Question("run-controller", "engine", Nothing, EngineAnswer)
REPORT_METRICS = Question("metrics", "report", ReportRequest, ReportAnswer)


def applied(subscriber: str) -> Question[AppliedRequest, AppliedAnswer]:
    """Whether `subscriber` has applied an owner's facts up to a position, waiting up to `within_seconds`."""
    return Question(subscriber, "applied", AppliedRequest, AppliedAnswer)


SUBSCRIBERS: Final = ("job-scheduler", "metrics", "notifier", "run")
"""Who applies facts of others, and answers the questions about that."""


def dead(subscriber: str) -> Question[DeadRequest, DeadAnswer]:
    """The facts that `subscriber` gave up on."""
    return Question(subscriber, "dead", DeadRequest, DeadAnswer)


def dead_letter(subscriber: str) -> Question[ById, DeadLetterAnswer]:
    """One of them, with its body."""
    return Question(subscriber, "dead-letter", ById, DeadLetterAnswer)


def retry_dead(subscriber: str) -> Question[ById, Nothing]:
    """Apply one of them after all, behind the cursor; it is gone then. WrongState where it is given up on again."""
    return Question(subscriber, "retry-dead", ById, Nothing)


def discard_dead(subscriber: str) -> Question[ById, Nothing]:
    """Never apply one of them; it is gone then."""
    return Question(subscriber, "discard-dead", ById, Nothing)


def repeat(owner: str) -> Question[RepeatRequest, RepeatAnswer]:
    """Publish the facts from a position on again, for a subscriber that misses them on the bus."""
    return Question(owner, "repeat", RepeatRequest, RepeatAnswer)
