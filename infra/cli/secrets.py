"""`headrace secrets`: the Secrets that the manifests of infra/kubernetes refer to, with passwords of their own.

A Secret for each process, and in it what that process logs in with and nothing of another's; beside them what the
servers have to be told, in words that their own tools read (infra/docker/roles.sql, infra/docker/nats_config.py). It
knows no cluster: what it prints is for kubectl, or for whatever else keeps an installation's secrets.
"""

from __future__ import annotations

import json
import os
import secrets as randomness
from collections.abc import Mapping

import click

from infra.cli.serve import SERVICES
from infra.nats.permissions import USER_NAMES
from infra.postgres.roles import ROLES

_WITH_OBJECTS = frozenset({"pipeline-registry", "run", "run-controller", "job-scheduler", "prepare"})
_ACCESS_KEY = "HEADRACE_OBJECT_STORE_ACCESS_KEY"
_SECRET_KEY = "HEADRACE_OBJECT_STORE_SECRET_KEY"  # noqa: S105 - its name


@click.command(short_help="Print the Secrets of an installation on Kubernetes.")
@click.option(
    "--postgres", default="postgres:5432/headrace", show_default=True, help="Where the database is: HOST:PORT/NAME."
)
@click.option("--nats", default="nats:4222", show_default=True, help="Where the broker is: HOST:PORT.")
@click.option("--namespace", default="headrace", show_default=True, help="Where the processes run.")
@click.option("--runs-namespace", default="kubeflow", show_default=True, help="Where the steps of pipelines run.")
def secrets(postgres: str, nats: str, namespace: str, runs_namespace: str) -> None:
    """Print the Secrets of an installation on Kubernetes, with passwords made anew.

    \b
    headrace secrets | kubectl create -f -

    `create`, because it refuses what is there: other passwords than those the servers know would lock everybody out.
    The superuser of the database and the keys of the object store are taken from POSTGRES_PASSWORD,
    HEADRACE_OBJECT_STORE_ACCESS_KEY and HEADRACE_OBJECT_STORE_SECRET_KEY where these are set. Nothing is kept.
    """
    of_namespaces = {namespace: secrets_of_the_house(postgres=postgres, nats=nats, given=os.environ)}
    store = of_namespaces[namespace]["object-store"]
    # By this name Kubeflow's pipelines know it. Argo brings and fetches artifacts by it, and so could any step: where
    # the store can tell keys apart, give it one that reaches `artifacts/` alone.
    of_namespaces[runs_namespace] = {
        "mlpipeline-minio-artifact": {"accesskey": store[_ACCESS_KEY], "secretkey": store[_SECRET_KEY]}
    }
    items = [
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": name, "namespace": place, "labels": {"app.kubernetes.io/part-of": "headrace"}},
            "stringData": values,
        }
        for place, named in of_namespaces.items()
        for name, values in named.items()
    ]
    click.echo(json.dumps({"apiVersion": "v1", "kind": "List", "items": items}, indent=2))


def secrets_of_the_house(*, postgres: str, nats: str, given: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """What each Secret of the processes' namespace holds."""
    roles = {role: _password() for role in ROLES}
    users = {user: _password() for user in USER_NAMES}
    objects = {
        _ACCESS_KEY: given.get(_ACCESS_KEY) or randomness.token_hex(8),
        _SECRET_KEY: given.get(_SECRET_KEY) or _password(),
    }
    identity = {"HEADRACE_IDENTITY_KEY": _password()}

    def database(role: str) -> dict[str, str]:
        return {"HEADRACE_DATABASE_URL": f"postgresql://{role}:{roles[role]}@{postgres}"}

    def bus(user: str) -> dict[str, str]:
        return {"HEADRACE_NATS_URL": f"nats://{user}:{users[user]}@{nats}"}

    processes = {
        "gateway": identity,
        **{name: database(name.replace("-", "_")) | bus(name) | identity for name in SERVICES},
        # The run service's second process: it works on the same schema, and on the bus it is somebody else.
        "run-controller": database("run") | bus("run-controller"),
        "prepare": bus("admin"),
    }
    return {
        **{name: own | (objects if name in _WITH_OBJECTS else {}) for name, own in processes.items()},
        "postgres": {
            "POSTGRES_PASSWORD": given.get("POSTGRES_PASSWORD") or _password(),
            **{f"HEADRACE_{role.upper()}_DATABASE_PASSWORD": password for role, password in roles.items()},
        },
        "nats": {
            f"HEADRACE_NATS_{user.replace('-', '_').upper()}_PASSWORD": password for user, password in users.items()
        },
        "object-store": objects,
    }


def _password() -> str:
    """Fit to be part of a URL as it stands, and long enough to sign with (shared/identity.py)."""
    return randomness.token_hex(24)
