"""A recurring run as a user of the SDK has one: every two seconds, seen while it fires. Prints what it saw as JSON.

Usage: kfp_recurring.py HOST
"""

# mypy: ignore-errors
# The SDK is not in our own environment.

import json
import sys
import tempfile
import time
import warnings

warnings.simplefilter("ignore")

import kfp  # noqa: E402
from kfp import dsl  # noqa: E402


@dsl.pipeline(name="tick")
def tick(slot: str = "", index: str = ""):
    dsl.ContainerOp(name="say", image="busybox", command=["sh", "-c", 'echo "$0 $1"', slot, index])


client = kfp.Client(host=sys.argv[1])
experiment = client.create_experiment("recurring")
with tempfile.NamedTemporaryFile(suffix=".yaml") as package:
    kfp.compiler.Compiler().compile(tick, package.name)
    job = client.create_recurring_run(
        experiment.id,
        "every two seconds",
        interval_second=2,
        max_concurrency=3,
        pipeline_package_path=package.name,
        params={"slot": "[[ScheduledTime]]", "index": "[[Index]]"},
    )


def runs_of_job():
    listed = client.runs.list_runs(
        resource_reference_key_type="JOB", resource_reference_key_id=job.id, sort_by="created_at", page_size=100
    )
    return listed.runs or []


deadline = time.monotonic() + 60
while len(runs_of_job()) < 3 and time.monotonic() < deadline:
    time.sleep(0.2)
listed = client.list_recurring_runs(experiment_id=experiment.id).jobs
client.disable_job(job.id)
runs = runs_of_job()
details = [client.wait_for_run_completion(run.id, 60) for run in runs[:3]]
workflows = [json.loads(detail.pipeline_runtime.workflow_manifest) for detail in details]
seen = {
    "status": [(each.id == job.id, each.name, each.status, each.enabled) for each in listed],
    "created": job.created_at.timestamp(),
    "slots": [run.scheduled_at.timestamp() for run in runs[:3]],
    "runs": [detail.run.status for detail in details],
    "names": [(run.name.rsplit("-", 2)[0], run.name.rsplit("-", 2)[1]) for run in runs[:3]],
    "parameters": [
        {each["name"]: each["value"] for each in workflow["spec"]["arguments"]["parameters"]} for workflow in workflows
    ],
    "references": [
        sorted((each.key.type, each.name, each.relationship) for each in run.resource_references) for run in runs[:3]
    ],
    "among all": {run.id for run in runs[:3]}
    <= {run.id for run in client.list_runs(experiment_id=experiment.id, page_size=100).runs},
}
client.delete_job(job.id)
seen["references afterwards"] = [each.key.type for each in client.get_run(runs[0].id).run.resource_references]
seen["jobs afterwards"] = client.list_recurring_runs(experiment_id=experiment.id).jobs
print(json.dumps(seen))
