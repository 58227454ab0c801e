"""Every metric of every process, as the code registers it, and as the page of metrics tells of it.

`python -m tests.support.metrics` prints the page's table.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from pathlib import Path

import msgspec
from prometheus_client.parser import text_string_to_metric_families

import gateway
import services
import shared
from services.run.engine.embedded.runner.figures import Figures
from shared import telemetry

PAGE = Path(__file__).parents[2] / "gateway/docs/metrics.md"
_ROW = re.compile(r"\| `(?P<name>\w+)` \| (?P<kind>\w+) \| (?P<labels>[^|]*) \| (?P<about>[^|]+) \|")
_NOT_IMPORTED = re.compile(r"__main__|runner\.|launcher|download")
"""Programs of their own, some of which change the interpreter they are imported by."""


class Metric(msgspec.Struct, frozen=True, kw_only=True, order=True):
    name: str
    kind: str
    labels: tuple[str, ...]
    about: str

    @property
    def row(self) -> str:
        return f"| `{self.name}` | {self.kind} | {', '.join(self.labels)} | {self.about} |"

    @property
    def series(self) -> tuple[str, ...]:
        """The names under which Prometheus keeps it."""
        if self.kind == "histogram":
            return tuple(f"{self.name}_{suffix}" for suffix in ("bucket", "sum", "count"))
        return (self.name,)


def registered() -> tuple[Metric, ...]:
    """Those of ours, by name."""
    for package in (gateway, services, shared):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not _NOT_IMPORTED.search(module.name):
                importlib.import_module(module.name)
    found = {
        Metric(
            name=f"{metric.name}_total" if metric.type == "counter" else metric.name,
            kind=metric.type,
            labels=tuple(getattr(collector, "_labelnames", ())),
            about=metric.documentation,
        )
        for collector in set(telemetry.metrics._names_to_collectors.values())
        for metric in collector.describe()  # type: ignore[attr-defined] # all of ours describe themselves
    }
    return tuple(sorted(metric for metric in found | _of_the_step_runner() if metric.name.startswith("headrace_")))


def _of_the_step_runner() -> set[Metric]:
    return {
        Metric(
            name=f"{family.name}_total" if family.type == "counter" else family.name,
            kind=family.type,
            labels=tuple(sorted({label for sample in family.samples for label in sample.labels} - {"le"})),
            about=family.documentation,
        )
        for family in text_string_to_metric_families(Figures().exposition(running=0, is_watched=False))
    }


def documented() -> tuple[Metric, ...]:
    return tuple(
        Metric(
            name=row["name"],
            kind=row["kind"],
            labels=tuple(filter(None, row["labels"].strip().split(", "))),
            about=row["about"],
        )
        for row in _ROW.finditer(PAGE.read_text())
    )


if __name__ == "__main__":
    for each in registered():
        print(each.row)
