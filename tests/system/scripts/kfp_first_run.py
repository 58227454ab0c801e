"""The SDK's own way from nothing to metrics. Runs in the SDK's environment, prints what it saw as JSON.

Usage: kfp_first_run.py HOST PACKAGE
"""

import json
import sys

import kfp

host, package = sys.argv[1:]
client = kfp.Client(host=host)
experiment = client.create_experiment("sdk experiment", description="made by the SDK")
pipeline = client.upload_pipeline(package, pipeline_name="sdk pipeline", description="uploaded by the SDK")
run = client.run_pipeline(experiment.id, "sdk run", pipeline_id=pipeline.id, params={"rows": "200"})
detail = client.wait_for_run_completion(run.id, timeout=120)
by_package = client.create_run_from_pipeline_package(
    package, arguments={"rows": "100"}, run_name="from a package", experiment_name="sdk experiment"
)
second = by_package.wait_for_run_completion(timeout=120)

print(
    json.dumps(
        {
            "healthz": client.get_kfp_healthz().multi_user,
            "experiment": client.get_experiment(experiment_name="sdk experiment").id == experiment.id,
            "experiments": [each.name for each in client.list_experiments(page_size=50).experiments],
            "pipeline": client.get_pipeline_id("sdk pipeline") == pipeline.id,
            "pipelines": [each.name for each in client.list_pipelines(page_size=50).pipelines],
            "parameters": [each.name for each in client.get_pipeline(pipeline.id).parameters],
            "status": detail.run.status,
            "second status": second.run.status,
            "created": detail.run.created_at.isoformat(),
            "finished": detail.run.finished_at.isoformat(),
            "metrics": {each.name: each.number_value for each in detail.run.metrics},
            "runs": [each.name for each in client.list_runs(experiment_id=experiment.id, page_size=10).runs],
            "references": [each.key.type for each in detail.run.resource_references],
            "workflow phase": json.loads(detail.pipeline_runtime.workflow_manifest)["status"]["phase"],
        }
    )
)
