"""The manifests of infra/kubernetes read beside the code that they start; no cluster is needed."""

from __future__ import annotations

import importlib
import re
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

import msgspec
import pytest
import yaml
from prometheus_client import generate_latest

from infra.cli.secrets import secrets_of_the_house
from infra.cli.serve import SERVICES
from infra.docker import nats_config
from infra.embedded import prepare
from infra.embedded.preflight import variables_of
from services.run.compose import KEY_FORMAT
from services.run.domain import DEFAULT_SERVICE_ACCOUNT
from services.run.engine.argo.cluster import RULES
from shared import telemetry, web
from shared.addresses import is_public
from shared.settings import ReachSettings, load, variable_of
from tests.support.manifests import (
    COMPONENTS,
    MANIFESTS,
    OVERLAYS,
    PROJECT,
    Object,
    name_of,
    overlay,
    with_components,
)
from tests.support.reachable import Pod, reaches, reaches_address, selects
from tests.support.servers import MINIO_IMAGE, NATS_IMAGE, POSTGRES_IMAGE

_SETTINGS = {
    "gateway": "gateway.settings:Settings",
    **{name: f"services.{name.replace('-', '_')}.settings:Settings" for name in SERVICES},
    "run-controller": "services.run.settings:ControllerSettings",
    "prepare": "infra.embedded.prepare:Settings",
}
_EVERYTHING_ELSE = ("shared.logs:LogSettings", "shared.identity:Settings")
_PODS_OF = {"Deployment", "StatefulSet", "Job"}
_SECRETS = secrets_of_the_house(postgres="postgres:5432/headrace", nats="nats:4222", given={})
_NAMESPACE = "headrace"


def _struct(name: str) -> type[msgspec.Struct]:
    module, _, struct = _SETTINGS[name].partition(":")
    found: type[msgspec.Struct] = getattr(importlib.import_module(module), struct)
    return found


def _all(things: tuple[Object, ...], *kinds: str) -> list[Object]:
    return [thing for thing in things if thing["kind"] in kinds]


def _one(things: tuple[Object, ...], kind: str, name: str) -> Object:
    (found,) = [thing for thing in _all(things, kind) if thing["metadata"]["name"] == name]
    return found


def _containers(workload: Object) -> list[Object]:
    pod = workload["spec"]["template"]["spec"]
    return [*pod.get("initContainers", ()), *pod["containers"]]


def _process(things: tuple[Object, ...], name: str) -> Object:
    """The container that is the process, or the job."""
    kind = "Job" if name == "prepare" else "Deployment"
    (container,) = _one(things, kind, name)["spec"]["template"]["spec"]["containers"]
    assert isinstance(container, dict)
    return container


def _settings(things: tuple[Object, ...]) -> dict[str, str]:
    (found,) = [
        thing["data"] for thing in _all(things, "ConfigMap") if thing["metadata"]["name"].startswith("settings-")
    ]
    assert isinstance(found, dict)
    return found


def _environment(things: tuple[Object, ...], name: str) -> dict[str, str]:
    """What the process is told, with the secrets that `headrace secrets` makes."""
    container = _process(things, name)
    (reference,) = container["envFrom"]
    assert reference["configMapRef"]["name"].startswith("settings-")
    told = dict(_settings(things))
    for variable in container["env"]:
        if "value" in variable:
            told[variable["name"]] = variable["value"]
        else:
            secret = variable["valueFrom"]["secretKeyRef"]
            told[variable["name"]] = _SECRETS[secret["name"]][secret["key"]]
    return told


def test_every_process_and_no_other_is_a_deployment_that_serves_it() -> None:
    deployments = _all(overlay("production"), "Deployment")
    assert {each["metadata"]["name"] for each in deployments} == {*SERVICES, "gateway", "run-controller"}
    for deployment in deployments:
        name = deployment["metadata"]["name"]
        assert _process(overlay("production"), name)["args"] == ["serve", name]
        migrated = [each["args"] for each in deployment["spec"]["template"]["spec"].get("initContainers", ())]
        assert migrated == ([] if name == "gateway" else [["migrate", "run" if name == "run-controller" else name]])


@pytest.mark.parametrize("name", _SETTINGS)
@pytest.mark.parametrize("where", OVERLAYS)
def test_every_process_is_told_what_it_needs_and_takes_it(where: str, name: str) -> None:
    load(_struct(name), _environment(overlay(where), name))


@pytest.mark.parametrize("name", _SETTINGS)
def test_every_process_is_told_nothing_that_it_does_not_know(name: str) -> None:
    known = variables_of(_SETTINGS[name], *_EVERYTHING_ELSE)
    for things in (overlay("kind"), overlay("production")):
        assert {variable["name"] for variable in _process(things, name)["env"]} - known == set()


def test_what_all_are_told_is_known_to_one_of_them() -> None:
    known = variables_of(*_SETTINGS.values(), *_EVERYTHING_ELSE)
    assert set(_settings(overlay("kind"))) | set(_settings(overlay("production"))) <= known
    assert set(_settings(with_components(*COMPONENTS))) <= known


def test_a_gateway_with_an_identity_provider_takes_what_it_is_told() -> None:
    load(_struct("gateway"), _environment(with_components("oidc"), "gateway"))


def test_migrations_are_told_where_the_database_is_and_no_secret_beside() -> None:
    for deployment in _all(overlay("production"), "Deployment"):
        for container in deployment["spec"]["template"]["spec"].get("initContainers", ()):
            assert [each["name"] for each in container["env"]] == ["HEADRACE_DATABASE_URL"]


@pytest.mark.parametrize("where", OVERLAYS)
def test_a_process_reads_its_own_secret_alone_and_the_secret_holds_nothing_else(where: str) -> None:
    read: dict[str, set[str]] = {}
    for workload in _all(overlay(where), *_PODS_OF):
        name = workload["metadata"]["name"]
        of_servers = {"roles": "postgres"}.get(name, name)
        for container in _containers(workload):
            references = [each["valueFrom"]["secretKeyRef"] for each in container.get("env", ()) if "valueFrom" in each]
            wholes = [each["secretRef"]["name"] for each in container.get("envFrom", ()) if "secretRef" in each]
            assert {each["name"] for each in references} | set(wholes) <= {of_servers}
            assert not any(each.get("optional") for each in references)
            read.setdefault(of_servers, set()).update(each["key"] for each in references)
            for whole in wholes:
                read[of_servers] |= set(_SECRETS[whole])
    asked = {secret: set(values) for secret, values in _SECRETS.items()}
    if where == "production":  # These are for who looks after the servers.
        asked = {secret: keys for secret, keys in asked.items() if secret in _SETTINGS}
    else:  # Nobody is asked who they are.
        asked = {secret: keys - {"HEADRACE_IDENTITY_KEY"} for secret, keys in asked.items()} | {"gateway": set()}
    assert read == asked


def test_no_process_is_told_a_password_of_another() -> None:
    for name, values in _SECRETS.items():
        if name not in _SETTINGS:
            continue
        database, bus = (values.get(f"HEADRACE_{each}_URL", "") for each in ("DATABASE", "NATS"))
        role = "run" if name == "run-controller" else name.replace("-", "_")
        if database:
            assert urlsplit(database).username == role
        if bus:
            assert urlsplit(bus).username == ("admin" if name == "prepare" else name)
        sharing = {
            other
            for other, others in _SECRETS.items()
            for url in filter(None, (database, bus))
            if other in _SETTINGS and str(urlsplit(url).password) in " ".join(others.values())
        }
        assert sharing <= ({"run", "run-controller"} if role == "run" else {name})


@pytest.mark.parametrize("where", OVERLAYS)
def test_who_is_asked_holds_the_key_that_identities_are_signed_with_and_otherwise_nobody_does(where: str) -> None:
    """A service with the key refuses everybody whom the gateway has not signed for."""
    things = overlay(where)
    holders = {
        name
        for name in _SETTINGS
        if any(each["name"] == "HEADRACE_IDENTITY_KEY" for each in _process(things, name)["env"])
    }
    assert holders == (set() if _settings(things)["HEADRACE_AUTH"] == "none" else {"gateway", *SERVICES})


def test_tokens_are_read_where_their_secret_is_mounted() -> None:
    things = overlay("production")
    file = _settings(things)["HEADRACE_AUTH_TOKENS_FILE"]
    mounts = {each["name"]: each["mountPath"] for each in _process(things, "gateway")["volumeMounts"]}
    assert file.rpartition("/")[0] == mounts["tokens"]


def test_the_bus_of_the_try_out_is_configured_by_the_code_that_does_it_everywhere(tmp_path: Any) -> None:
    (writer,) = _one(overlay("kind"), "StatefulSet", "nats")["spec"]["template"]["spec"]["initContainers"]
    assert writer["command"] == ["python", "-m", nats_config.__name__]
    assert nats_config.main({"HEADRACE_NATS_DIR": str(tmp_path), **_SECRETS["nats"]}) == 0


def test_the_roles_of_the_try_out_are_given_every_password_that_their_file_asks_for() -> None:
    (psql,) = _one(overlay("kind"), "Job", "roles")["spec"]["template"]["spec"]["containers"]
    told = {each["name"] for each in psql["env"]}
    asked = set(re.findall(r"\\getenv \w+ (\w+)", (PROJECT / "infra/docker/roles.sql").read_text()))
    assert asked == {each for each in told if each.startswith("HEADRACE_")}
    assert {"PGHOST", "PGUSER", "PGPASSWORD"} <= told


@pytest.mark.parametrize("where", OVERLAYS)
def test_probes_ask_what_every_process_answers_where_it_listens(where: str) -> None:
    things = overlay(where)
    for deployment in _all(things, "Deployment"):
        name = deployment["metadata"]["name"]
        container = _process(things, name)
        (port,) = container["ports"]
        assert port == {"name": "http", "containerPort": int(_environment(things, name)["HEADRACE_LISTEN_PORT"])}
        asked = {each: container[f"{each}Probe"]["httpGet"] for each in ("startup", "liveness", "readiness")}
        assert {probe["port"] for probe in asked.values()} == {"http"}
        assert [asked[each]["path"] for each in asked] == ["/startupz", "/livez", "/readyz"]
        assert {probe["path"] for probe in asked.values()} <= web._OPEN_PATHS
        assert container["readinessProbe"]["timeoutSeconds"] > web.READINESS_TIMEOUT_SECONDS
        # A database and a broker that are waited for, one after the other.
        startup = container["startupProbe"]
        assert startup["periodSeconds"] * startup["failureThreshold"] >= 2 * 60


def test_the_gateway_finds_every_service_by_the_name_and_port_of_a_headless_service() -> None:
    things = overlay("production")
    upstreams = {
        variable: urlsplit(url)
        for variable, url in _environment(things, "gateway").items()
        if variable.endswith("_UPSTREAMS")
    }
    assert {variable_of(f"{name.replace('-', '_')}_upstreams") for name in SERVICES} == set(upstreams)
    for url in upstreams.values():
        service = _one(things, "Service", url.hostname or "")
        assert url.scheme == "dns+http"
        assert service["spec"]["clusterIP"] == "None"
        assert [(each["port"], each["targetPort"]) for each in service["spec"]["ports"]] == [(url.port, "http")]


def test_a_process_is_killed_no_earlier_than_its_drain_may_take() -> None:
    for deployment in _all(overlay("production"), "Deployment"):
        pod = deployment["spec"]["template"]["spec"]
        (command,) = [each["lifecycle"]["preStop"]["exec"]["command"] for each in pod["containers"]]
        assert command[0] == "sleep"
        to_stop_work_and_close_connections = 20
        drain = web.DRAIN_NOTICE_SECONDS + web.DRAIN_LIMIT_SECONDS + to_stop_work_and_close_connections
        assert pod["terminationGracePeriodSeconds"] >= int(command[1]) + drain


def test_a_rollout_starts_a_replica_before_it_ends_one() -> None:
    for deployment in _all(overlay("production"), "Deployment"):
        assert deployment["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}


@pytest.mark.parametrize("where", OVERLAYS)
def test_whatever_selects_pods_selects_those_of_one_workload(where: str) -> None:
    things = overlay(where)
    labels = {
        each["metadata"]["name"]: each["spec"]["template"]["metadata"]["labels"] for each in _all(things, *_PODS_OF)
    }
    for thing in _all(things, "Service", "PodDisruptionBudget", "Deployment", "StatefulSet"):
        selector = thing["spec"]["selector"]
        selector = {"matchLabels": selector} if thing["kind"] == "Service" else selector
        assert [name for name, each in labels.items() if selects(selector, each)] == [thing["metadata"]["name"]]
    for deployment in _all(things, "Deployment"):
        name = deployment["metadata"]["name"]
        spread = deployment["spec"]["template"]["spec"]["topologySpreadConstraints"]
        assert {each["topologyKey"] for each in spread} == {"kubernetes.io/hostname", "topology.kubernetes.io/zone"}
        assert all(selects(each["labelSelector"], labels[name]) for each in spread)
        assert all(each["labelSelector"]["matchLabels"] == {"app.kubernetes.io/name": name} for each in spread)


def test_every_deployment_of_production_has_a_budget_and_an_autoscaler_and_no_number_of_its_own() -> None:
    things = overlay("production")
    names = {each["metadata"]["name"] for each in _all(things, "Deployment")}
    assert {each["metadata"]["name"] for each in _all(things, "PodDisruptionBudget")} == names
    assert {each["spec"]["scaleTargetRef"]["name"] for each in _all(things, "HorizontalPodAutoscaler")} == names
    assert not any("replicas" in each["spec"] for each in _all(things, "Deployment"))
    assert all(each["spec"]["minReplicas"] >= 2 for each in _all(things, "HorizontalPodAutoscaler"))
    # Without custom metrics nobody scales the controller.
    plain = _all(with_components(), "Deployment")
    assert {each["metadata"]["name"]: each["spec"].get("replicas") for each in plain} == {
        name: 2 if name == "run-controller" else None for name in names
    }


def test_the_connections_that_autoscalers_may_make_of_it_are_what_the_operator_is_told() -> None:
    things = overlay("production")
    most = {each["metadata"]["name"]: each["spec"]["maxReplicas"] for each in _all(things, "HorizontalPodAutoscaler")}
    each = {field.name: field.default for field in msgspec.structs.fields(_struct("run"))}["database_connections"]
    connections = sum((replicas + 1) * each for name, replicas in most.items() if name != "gateway")
    assert f"limits make {connections} of it" in (MANIFESTS / "README.md").read_text()


def test_autoscalers_go_by_figures_that_the_processes_show() -> None:
    for module in ("gateway.app", "services.run.controller"):  # They register their figures when they are imported.
        importlib.import_module(module)
    shown = generate_latest(telemetry.metrics).decode()
    asked: dict[str, set[str]] = {}
    for scaler in _all(overlay("production"), "HorizontalPodAutoscaler"):
        for metric in scaler["spec"]["metrics"]:
            if metric["type"] == "Pods":
                asked.setdefault(metric["pods"]["metric"]["name"], set()).add(scaler["metadata"]["name"])
    assert asked == {
        "headrace_http_requests_in_flight": set(SERVICES),
        "headrace_gateway_requests_in_flight": {"gateway"},
        "headrace_engine_queued_runs": {"run-controller"},
    }
    for name in asked:
        assert f"# TYPE {name} gauge" in shown
    rules = yaml.safe_load((MANIFESTS / "components/custom-metrics/prometheus-adapter.yaml").read_text())
    (rule,) = rules["rules"]["custom"]
    assert set(re.findall(r"headrace_\w+", rule["seriesQuery"])) == set(asked)


def test_images_are_pinned_and_those_of_others_are_what_the_tests_use() -> None:
    version = re.search(r'(?m)^version = "(.+)"$', (PROJECT / "pyproject.toml").read_text())
    assert version is not None
    used = {
        where: {
            container["image"] for workload in _all(overlay(where), *_PODS_OF) for container in _containers(workload)
        }
        for where in OVERLAYS
    }
    assert used["production"] == {f"registry.example/headrace:{version[1]}"}
    assert used["kind"] == {"headrace:local", POSTGRES_IMAGE, NATS_IMAGE, MINIO_IMAGE}


def test_every_pod_is_as_restricted_as_in_compose_and_the_namespace_takes_no_other() -> None:
    things = (*overlay("kind"), *with_components(*COMPONENTS))
    for workload in _all(things, *_PODS_OF):
        pod = workload["spec"]["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["enableServiceLinks"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
        kinds = {kind for volume in pod.get("volumes", ()) for kind in volume if kind != "name"}
        assert kinds <= {"emptyDir", "secret"}
        for container in _containers(workload):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert set(container["resources"]) == {"requests", "limits"}
            if "headrace" in container["image"]:
                user = pod["securityContext"]["runAsUser"], pod["securityContext"]["runAsGroup"]
                assert "USER {}:{}".format(*user) in (PROJECT / "infra/docker/Dockerfile").read_text().splitlines()
    namespace = _one(with_components(), "Namespace", _NAMESPACE)
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


def test_the_run_controller_alone_is_given_a_way_into_the_cluster() -> None:
    things = (*overlay("kind"), *with_components(*COMPONENTS))
    accounts = {each["metadata"]["name"]: each for each in _all(things, "ServiceAccount")}
    for workload in _all(things, *_PODS_OF):
        name, pod = workload["metadata"]["name"], workload["spec"]["template"]["spec"]
        assert pod["serviceAccountName"] == name
        is_mounted = pod.get("automountServiceAccountToken", accounts[name].get("automountServiceAccountToken", True))
        assert is_mounted is (name == "run-controller")
    bound = {
        (subject["namespace"], subject["name"])
        for binding in _all(things, "RoleBinding", "ClusterRoleBinding")
        for subject in binding["subjects"]
    }
    assert bound == {(_NAMESPACE, "run-controller"), ("kubeflow", DEFAULT_SERVICE_ACCOUNT)}


def test_the_run_controllers_rights_are_of_one_namespace_unless_all_are_meant() -> None:
    runs = _settings(with_components())["HEADRACE_NAMESPACE"]
    role = _one(overlay("production"), "Role", "run-controller")
    assert role["metadata"]["namespace"] == runs != _NAMESPACE
    assert _one(overlay("production"), "RoleBinding", "run-controller")["metadata"]["namespace"] == runs
    assert not _all(overlay("production"), "ClusterRole", "ClusterRoleBinding")
    wide = with_components("cluster-wide")
    assert _one(wide, "ClusterRole", "headrace-run-controller")["rules"] == role["rules"]
    assert [
        name_of(each) for each in _all(wide, "Role", "RoleBinding") if each["metadata"]["name"] != "pipeline-runner"
    ] == []


def test_the_run_controllers_rights_are_those_that_its_engine_needs() -> None:
    given = {
        (group, resource): set(rule["verbs"])
        for rule in _one(overlay("production"), "Role", "run-controller")["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }
    assert given == {(rule.group, rule.resource): set(rule.verbs) for rule in RULES}


@pytest.mark.parametrize("where", OVERLAYS)
def test_argo_puts_artifacts_where_our_processes_look_for_them(where: str) -> None:
    things = overlay(where)
    told = _settings(things)
    kept = _one(things, "ConfigMap", "artifact-repositories")
    assert kept["metadata"]["namespace"] == told["HEADRACE_NAMESPACE"]
    (name,) = kept["data"]
    assert kept["metadata"]["annotations"] == {"workflows.argoproj.io/default-artifact-repository": name}
    repository = yaml.safe_load(kept["data"][name])
    assert repository["archiveLogs"] is True
    store = repository["s3"]
    assert store["keyFormat"] == KEY_FORMAT
    assert store["bucket"] == told["HEADRACE_OBJECT_STORE_BUCKET"]
    url = urlsplit(told["HEADRACE_OBJECT_STORE_URL"])
    assert store["insecure"] is (url.scheme == "http")
    # From another namespace a service's name is longer.
    assert store["endpoint"].replace(f".{_NAMESPACE}:", ":") == url.netloc
    secrets = {(store[each]["name"], store[each]["key"]) for each in ("accessKeySecret", "secretKeySecret")}
    assert secrets == {("mlpipeline-minio-artifact", "accesskey"), ("mlpipeline-minio-artifact", "secretkey")}


def test_a_whole_clusters_argo_is_told_the_same() -> None:
    snippet = yaml.safe_load((PROJECT / "infra/argo/workflow-controller-configmap.yaml").read_text())
    assert (
        snippet["data"]["artifactRepository"]
        == _one(with_components(), "ConfigMap", "artifact-repositories")["data"]["headrace"]
    )


def test_steps_run_as_the_account_that_runs_get_and_may_do_nothing_with_workflows() -> None:
    things = overlay("production")
    account = _one(things, "ServiceAccount", DEFAULT_SERVICE_ACCOUNT)
    assert account["metadata"]["namespace"] == _settings(things)["HEADRACE_NAMESPACE"]
    resources = {each for rule in _one(things, "Role", DEFAULT_SERVICE_ACCOUNT)["rules"] for each in rule["resources"]}
    assert resources == {"workflowtaskresults", "pods", "persistentvolumeclaims"}


_KUBERNETES = ("10.96.0.1", 443), ("172.18.0.2", 6443)


def _pods(things: tuple[Object, ...]) -> dict[str, Pod]:
    return {
        workload["metadata"]["name"]: Pod(
            namespace=workload["metadata"]["namespace"],
            labels=workload["spec"]["template"]["metadata"]["labels"],
            ports={
                port["name"]: port["containerPort"]
                for container in _containers(workload)
                for port in container.get("ports", ())
            },
        )
        for workload in _all(things, *_PODS_OF)
    }


def _wanted(name: str) -> set[tuple[str, int]]:
    """Whom the process talks to, as its settings say."""
    if name == "roles":
        return {("postgres", 5432)}
    if name not in _SETTINGS:  # A server.
        return set()
    fields = {field.name for field in msgspec.structs.fields(_struct(name))}
    servers = {
        "database_url": ("postgres", 5432),
        "nats_url": ("nats", 4222),
        "object_store_url": ("object-store", 9000),
    }
    asked = {(each, 8080) for each in SERVICES if f"{each.replace('-', '_')}_upstreams" in fields}
    return {target for field, target in servers.items() if field in fields} | asked


def test_each_pod_reaches_what_its_settings_talk_to_and_no_other() -> None:
    policies, pods = _all(overlay("kind"), "NetworkPolicy"), _pods(overlay("kind"))
    ports = {5432, 4222, 9000, 53, *(port for pod in pods.values() for port in pod.ports.values())}
    # The gateway is open to whoever finds a way to it, but none of ours goes there.
    for name, pod in pods.items():
        reached = {
            (other, port)
            for other, target in pods.items()
            for port in ports
            if other != name and reaches(policies, pod, target, port)
        }
        assert reached == _wanted(name), name


def test_clients_reach_the_gateway_steps_the_object_store_and_prometheus_all_that_show_figures() -> None:
    kind = overlay("kind")
    policies, pods = _all(kind, "NetworkPolicy"), _pods(kind)
    monitored = _all(with_components("service-monitors"), "NetworkPolicy")
    visitors = {
        "client": Pod(namespace="ingress-nginx", labels={}),
        "step": Pod(namespace="kubeflow", labels={}),
        "prometheus": Pod(namespace="monitoring", labels={"app.kubernetes.io/name": "prometheus"}),
    }
    reached = {
        visitor: {
            name
            for name, target in pods.items()
            for port in target.ports.values()
            if reaches(monitored if visitor == "prometheus" else policies, pod, target, port)
        }
        for visitor, pod in visitors.items()
    }
    # Outside of the component's reach are the servers, which are not ours.
    assert reached["prometheus"] & set(_SETTINGS) == {*SERVICES, "gateway", "run-controller"}
    assert reached["client"] == {"gateway"}
    assert reached["step"] == {"gateway", "object-store"}


def test_jobs_that_alerts_ask_for_are_what_prometheus_makes_of_the_services() -> None:
    """A ServiceMonitor calls a job by the name of the Service."""
    things = with_components("service-monitors", "alerts")
    selectors = [monitor["spec"]["selector"] for monitor in _all(things, "ServiceMonitor")]
    services = [service["metadata"] for service in _all(things, "Service")]
    jobs = {each["name"] for each in services if any(selects(selector, each["labels"]) for selector in selectors)}
    (rules,) = _all(things, "PrometheusRule")
    asked = {jobs for found in re.findall(r'job=~"([^"]*)"', yaml.safe_dump(rules)) for jobs in found.split("|")}
    assert jobs == asked - {"step-runner"}, "steps are Argo's there"


def test_a_restore_waits_for_all_that_may_run_on_the_database_and_knows_the_way_to_the_broker() -> None:
    page = (PROJECT / "gateway" / "docs" / "backup.md").read_text()
    (label,) = re.findall(r"wait pod --for=delete --selector=(\S+)", page)
    labelled = {name for name, pod in _pods(overlay("kind")).items() if label in pod.labels}
    assert labelled == {"gateway", *SERVICES, "run-controller"}, "what ends by itself is waited for in vain"
    (secret, key) = re.search(r"get secret (\S+) --output=jsonpath=\{\.data\.(\w+)\}", page).groups()  # type: ignore[union-attr]
    assert key in _SECRETS[secret]


def test_every_pod_may_ask_for_names_and_only_where_they_are_answered() -> None:
    policies, pods = _all(overlay("kind"), "NetworkPolicy"), _pods(overlay("kind"))
    dns = Pod(namespace="kube-system", labels={"k8s-app": "kube-dns"})
    other = Pod(namespace="kube-system", labels={"k8s-app": "metrics-server"})
    for pod in pods.values():
        assert reaches(policies, pod, dns, 53)
        assert not reaches(policies, pod, other, 53)
        assert not reaches(policies, pod, dns, 8080)


_ADDRESSES = (
    *(
        "93.184.216.34",
        "8.8.8.8",
        "1.1.1.1",
        "2606:4700:4700::1111",
        "198.51.99.1",
        "172.32.0.1",
        "100.128.0.1",
        "11.0.0.1",
    ),
    *("10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "169.254.169.254", "100.64.0.1", "127.0.0.1"),
    *(
        "168.63.129.16",
        "192.0.0.192",
        "198.18.0.1",
        "224.0.0.1",
        "240.0.0.1",
        "0.0.0.0",
        "255.255.255.255",
        "192.0.2.1",
        "198.51.100.1",
        "203.0.113.1",
    ),
    *("::1", "fd00::1", "fe80::1", "ff02::1", "2001:db8::1"),
)


def test_those_who_follow_urls_reach_what_is_public_and_the_controller_the_cluster() -> None:
    policies, pods = _all(overlay("kind"), "NetworkPolicy"), _pods(overlay("kind"))
    for name, pod in pods.items():
        follows = name in _SETTINGS and issubclass(_struct(name), ReachSettings)
        for address in _ADDRESSES:
            is_open = follows and is_public(ip_address(address))
            assert reaches_address(policies, pod, address, 8443) is is_open, f"{name} {address}"
        for address, port in _KUBERNETES:
            assert reaches_address(policies, pod, address, port) is (name == "run-controller")


def test_production_says_where_each_server_is_that_the_try_out_brings() -> None:
    policies, pods = _all(overlay("production"), "NetworkPolicy"), _pods(overlay("production"))
    places = {"postgres": ("192.0.2.10", 5432), "nats": ("192.0.2.20", 4222), "object-store": ("192.0.2.30", 443)}
    for name, pod in pods.items():
        reached = {server for server, place in places.items() if reaches_address(policies, pod, *place)}
        assert reached == {server for server, _ in _wanted(name)} & set(places), name
        assert reaches_address(policies, pod, "192.0.2.40", 6443) is (name == "run-controller")
        assert not any(reaches_address(policies, pod, address, port) for address, port in _KUBERNETES)


def test_the_job_prepares_what_the_settings_say() -> None:
    told = load(prepare.Settings, _environment(overlay("production"), "prepare"))
    assert told.stream_replicas == 3
    assert _process(overlay("production"), "prepare")["command"] == ["python", "-m", prepare.__name__]


def test_nothing_is_outside_of_the_two_namespaces() -> None:
    for things in (overlay("kind"), overlay("production"), with_components(*COMPONENTS)):
        for thing in things:
            if thing["kind"] not in ("Namespace", "ClusterRole", "ClusterRoleBinding"):
                assert thing["metadata"]["namespace"] in (_NAMESPACE, "kubeflow"), name_of(thing)
