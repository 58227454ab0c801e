"""The generated client over everything a run's life needs. Runs in its own environment, prints what it saw as JSON.

Usage: kfp_server_api_tour.py HOST PACKAGE
"""

import base64
import json
import sys
import time

import kfp_server_api as kfp

host, package = sys.argv[1:]
client = kfp.ApiClient(kfp.Configuration(host=host))
experiments = kfp.ExperimentServiceApi(client)
pipelines = kfp.PipelineServiceApi(client)
uploads = kfp.PipelineUploadServiceApi(client)
runs = kfp.RunServiceApi(client)

experiment = experiments.create_experiment(body=kfp.ApiExperiment(name="generated client"))
pipeline = uploads.upload_pipeline(package, name="generated client", description="by kfp-server-api")
template = pipelines.get_template(pipeline.id)
reference = kfp.ApiResourceReference(
    key=kfp.ApiResourceKey(type=kfp.ApiResourceType.EXPERIMENT, id=experiment.id),
    relationship=kfp.ApiRelationship.OWNER,
)
created = runs.create_run(
    body=kfp.ApiRun(
        name="generated run",
        pipeline_spec=kfp.ApiPipelineSpec(pipeline_id=pipeline.id),
        resource_references=[reference],
    )
)
run_id = created.run.id
deadline = time.monotonic() + 120
while (detail := runs.get_run(run_id)).run.status not in ("Succeeded", "Failed", "Error"):
    assert time.monotonic() < deadline, detail.run.status
    time.sleep(0.1)

workflow = json.loads(detail.pipeline_runtime.workflow_manifest)
node = next(each for each in workflow["status"]["nodes"].values() if each["displayName"] == "train")
name = next(each["name"] for each in node["outputs"]["artifacts"] if each["name"] != "main-logs")
artifact = runs.read_artifact(run_id, node["id"], name)
reported = runs.report_run_metrics(
    run_id,
    body=kfp.ApiReportRunMetricsRequest(
        metrics=[
            kfp.ApiRunMetric(name="by-hand", node_id=node["id"], number_value=0.5, format=kfp.RunMetricFormat.RAW),
            kfp.ApiRunMetric(name="not a name", node_id=node["id"], number_value=1),
        ]
    ),
)
listed = runs.list_runs(resource_reference_key_type="EXPERIMENT", resource_reference_key_id=experiment.id)
metrics = {each.name: each.number_value for each in runs.get_run(run_id).run.metrics}
runs.delete_run(run_id)
try:
    runs.get_run(run_id)
    gone = 200
except kfp.ApiException as error:
    gone = error.status
pipelines.delete_pipeline(pipeline.id)
print(
    json.dumps(
        {
            "status": detail.run.status,
            "template": "own-ml-train-deploy" in template.template,
            "artifact is a tgz": base64.b64decode(artifact.data)[:2] == b"\x1f\x8b",
            "reported": [each.status for each in reported.results],
            "metrics": metrics,
            "listed": [each.id for each in listed.runs] == [run_id],
            "total": listed.total_size,
            "experiments": [each.name for each in experiments.list_experiment(page_size=100).experiments],
            "after deletion": gone,
        }
    )
)
