"""The alert rules in the form that the Prometheus operator takes: `python -m tests.support.alerts` writes it anew.

Kustomize cannot put one file into another, and a Prometheus without the operator refuses whatever else stands beside
its groups: so the rules are there twice, and people edit infra/observability/alerts.yaml alone. A cluster's Prometheus
scrapes others' processes, too, and some have the names of ours: there, jobs are those of our namespace.
"""

from __future__ import annotations

from pathlib import Path

_PROJECT = Path(__file__).parents[2]
RULES = _PROJECT / "infra" / "observability" / "alerts.yaml"
PROMETHEUS_RULE = _PROJECT / "infra" / "kubernetes" / "components" / "alerts" / "prometheus-rule.yaml"

_NAMESPACE = "headrace"

_HEAD = f"""\
# Written by `python -m tests.support.alerts` out of infra/observability/alerts.yaml: edit that.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: headrace
  namespace: {_NAMESPACE}
  labels:
    app.kubernetes.io/part-of: headrace
spec:
"""


def prometheus_rule() -> str:
    _, found, groups = RULES.read_text().partition("groups:\n")
    ours = groups.replace("{job=~", f'{{namespace="{_NAMESPACE}",job=~')
    return _HEAD + "".join(f"  {line}" if line.strip() else line for line in (found + ours).splitlines(keepends=True))


if __name__ == "__main__":
    PROMETHEUS_RULE.write_text(prometheus_rule())
