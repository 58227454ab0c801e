"""Every method of a generated client, of any version. Runs in the client's environment, prints what it saw as JSON.

Usage: generated_everything.py HOST PACKAGE PACKAGE_URL FAILING_MANIFEST WAITING_MANIFEST LABEL
"""

# mypy: ignore-errors
# Written for Python 3.7 too, and for packages that are not in our own environment.

import base64
import json
import sys
import time

import kfp_server_api as kfp
from kfp_server_api.rest import ApiException

host, package, package_url, failing, waiting, label = sys.argv[1:]
with open(package) as file:
    text = file.read()
configuration = kfp.Configuration()
configuration.host = host
client = kfp.ApiClient(configuration)
offered, called = set(), set()
seen = {}


class Watched:
    """An API of the client that remembers which of its methods were used."""

    def __init__(self, api):
        self._api = api
        offered.update(name for name in dir(api) if name[0] != "_" and not name.endswith("_http_info"))
        offered.discard("api_client")

    def __getattr__(self, name):
        method = getattr(self._api, name)
        called.add(name)
        return method

    def __contains__(self, name):
        return hasattr(self._api, name)


experiments = Watched(kfp.ExperimentServiceApi(client))
pipelines = Watched(kfp.PipelineServiceApi(client))
uploads = Watched(kfp.PipelineUploadServiceApi(client))
runs = Watched(kfp.RunServiceApi(client))
jobs = Watched(kfp.JobServiceApi(client))


def reference(kind, id, relationship):
    key = kfp.ApiResourceKey(type=kind, id=id)
    return kfp.ApiResourceReference(key=key, relationship=relationship)


def status_after(call, *arguments):
    try:
        call(*arguments)
    except ApiException as error:
        return error.status
    return 200


def run_when(run_id, *statuses):
    deadline = time.monotonic() + 60
    while True:
        detail = runs.get_run(run_id)
        if detail.run.status in statuses:
            return detail
        assert time.monotonic() < deadline, detail.run.status
        time.sleep(0.05)


def create_run(name, **spec):
    body = kfp.ApiRun(name=name, pipeline_spec=kfp.ApiPipelineSpec(**spec), resource_references=[owner])
    return runs.create_run(body=body).run.id


experiment = experiments.create_experiment(body=kfp.ApiExperiment(name=label, description="of a generated client"))
owner = reference("EXPERIMENT", experiment.id, "OWNER")
seen["experiment"] = experiments.get_experiment(experiment.id).description
seen["experiments"] = label in [each.name for each in experiments.list_experiment(page_size=200).experiments]
if "archive_experiment" in experiments:
    experiments.archive_experiment(experiment.id)
    seen["archived"] = experiments.get_experiment(experiment.id).storage_state
    experiments.unarchive_experiment(experiment.id)
    seen["unarchived"] = experiments.get_experiment(experiment.id).storage_state

pipeline = uploads.upload_pipeline(package, name=label)
url = kfp.ApiUrl(pipeline_url=package_url)
from_url = pipelines.create_pipeline(body=kfp.ApiPipeline(name=label + " by URL", url=url))
version = pipelines.create_pipeline_version(
    body=kfp.ApiPipelineVersion(
        name="second", package_url=url, resource_references=[reference("PIPELINE", from_url.id, "OWNER")]
    )
)
seen["default version"] = pipelines.get_pipeline(from_url.id).default_version.id == version.id
seen["template"] = pipelines.get_template(pipeline.id).template == text
seen["version template"] = pipelines.get_pipeline_version_template(version.id).template == text
seen["version"] = pipelines.get_pipeline_version(version.id).name
listed = pipelines.list_pipeline_versions(resource_key_type="PIPELINE", resource_key_id=from_url.id)
seen["versions"] = [each.name for each in listed.versions]
seen["pipelines"] = label in [each.name for each in pipelines.list_pipelines(page_size=200).pipelines]
if "upload_pipeline_version" in uploads:
    third = uploads.upload_pipeline_version(package, name="third", pipelineid=from_url.id)
    pipelines.update_pipeline_default_version(from_url.id, version.id)
    seen["default set back"] = pipelines.get_pipeline(from_url.id).default_version.id == version.id
    pipelines.delete_pipeline_version(third.id)

run_id = create_run("done", pipeline_id=pipeline.id)
detail = run_when(run_id, "Succeeded", "Failed", "Error")
seen["status"] = detail.run.status
nodes = json.loads(detail.pipeline_runtime.workflow_manifest)["status"]["nodes"].values()
node = next(each for each in nodes if each["displayName"] == "train")
name = next(each["name"] for each in node["outputs"]["artifacts"] if each["name"] != "main-logs")
seen["artifact"] = base64.b64decode(runs.read_artifact(run_id, node["id"], name).data)[:2] == b"\x1f\x8b"
metric = kfp.ApiRunMetric(name="by-hand", node_id=node["id"], number_value=0.5, format="RAW")
request = kfp.ApiReportRunMetricsRequest(metrics=[metric])
seen["reported"] = [
    runs.report_run_metrics(run_id, body=request).results[0].status,
    runs.report_run_metrics(run_id, body=request).results[0].status,
]
seen["metric"] = {each.name: each.number_value for each in runs.get_run(run_id).run.metrics}["by-hand"]
runs.archive_run(run_id)
seen["run archived"] = runs.get_run(run_id).run.storage_state
runs.unarchive_run(run_id)
seen["run unarchived"] = runs.get_run(run_id).run.storage_state
failed_id = create_run("fails", workflow_manifest=failing)
run_when(failed_id, "Failed")
runs.retry_run(failed_id)
seen["retried"] = run_when(failed_id, "Failed").run.status
waiting_id = create_run("waits", workflow_manifest=waiting)
run_when(waiting_id, "Running")
runs.terminate_run(waiting_id)
seen["terminated"] = run_when(waiting_id, "Failed").run.status
listed = runs.list_runs(resource_reference_key_type="EXPERIMENT", resource_reference_key_id=experiment.id)
seen["runs"] = sorted(each.name for each in listed.runs)
runs.delete_run(run_id)
seen["deleted run"] = status_after(runs.get_run, run_id)

body = kfp.ApiJob(
    name=label,
    max_concurrency="1",
    enabled=False,
    pipeline_spec=kfp.ApiPipelineSpec(pipeline_id=pipeline.id),
    resource_references=[owner],
    trigger=kfp.ApiTrigger(cron_schedule=kfp.ApiCronSchedule(cron="0 0 0 1 1 *")),
)
job = jobs.create_job(body=body)
seen["cron"] = jobs.get_job(job.id).trigger.cron_schedule.cron
jobs.enable_job(job.id)
seen["enabled"] = jobs.get_job(job.id).enabled
jobs.disable_job(job.id)
seen["disabled"] = not jobs.get_job(job.id).enabled
listed = jobs.list_jobs(resource_reference_key_type="EXPERIMENT", resource_reference_key_id=experiment.id)
seen["jobs"] = [each.id for each in listed.jobs] == [job.id]
jobs.delete_job(job.id)
seen["deleted job"] = status_after(jobs.get_job, job.id)

pipelines.delete_pipeline_version(version.id)
seen["deleted version"] = status_after(pipelines.get_pipeline_version, version.id)
pipelines.delete_pipeline(pipeline.id)
seen["deleted pipeline"] = status_after(pipelines.get_pipeline, pipeline.id)
experiments.delete_experiment(experiment.id)
seen["deleted experiment"] = status_after(experiments.get_experiment, experiment.id)
if hasattr(kfp, "HealthzServiceApi"):
    seen["multi-user"] = Watched(kfp.HealthzServiceApi(client)).get_healthz().multi_user

seen["never called"] = sorted(offered - called)
print(json.dumps(seen))
