"""Every method of the SDK's client that asks the API, of any version. Prints what it saw as JSON.

Usage: sdk_everything.py HOST PACKAGE LABEL
"""

# mypy: ignore-errors
# Written for Python 3.7 too, and for packages that are not in our own environment.

import json
import sys
import warnings

warnings.simplefilter("ignore")

import kfp  # noqa: E402

host, package, label = sys.argv[1:]
# They ask nothing of the API: one keeps a setting, one compiles a function and calls another method with it.
LOCAL = {"set_user_namespace", "get_user_namespace", "create_run_from_pipeline_func"}
real = kfp.Client(host=host)
offered = {name for name in dir(real) if name[0] != "_" and callable(getattr(type(real), name, None))} - LOCAL
called = set()
seen = {}


class Watched:
    def __getattr__(self, name):
        called.add(name)
        return getattr(real, name)


client = Watched()
experiment = client.create_experiment(label)
seen["same experiment"] = client.create_experiment(label).id == experiment.id
seen["experiment"] = client.get_experiment(experiment_name=label).id == experiment.id
seen["experiments"] = label in [each.name for each in client.list_experiments(page_size=100).experiments]
# Versions up to 0.2 return nothing from an upload.
client.upload_pipeline(package, label)
pipeline = next(each for each in client.list_pipelines(page_size=100).pipelines if each.name == label)
seen["pipeline"] = client.get_pipeline(pipeline.id).name == label

run = client.run_pipeline(experiment.id, "by pipeline", pipeline_id=pipeline.id, params={"rows": "100"})
seen["status"] = client.wait_for_run_completion(run.id, 60).run.status
client.create_run_from_pipeline_package(package, {"rows": "100"}, "by package", label)
seen["runs"] = sorted(each.name for each in client.list_runs(experiment_id=experiment.id).runs)
seen["run"] = client.get_run(run.id).run.name
pages, token = [], ""
while token is not None:
    page = client.list_runs(page_token=token, page_size=1, sort_by="name", experiment_id=experiment.id)
    pages.extend(each.name for each in page.runs)
    token = page.next_page_token
seen["paged"] = pages

if "create_recurring_run" in offered:
    job = client.create_recurring_run(
        experiment.id, "yearly", cron_expression="0 0 0 1 1 *", pipeline_id=pipeline.id, enabled=False
    )
    seen["job"] = client.get_recurring_run(job.id).trigger.cron_schedule.cron
    listed = client.list_recurring_runs(experiment_id=experiment.id)
    seen["jobs"] = [each.id for each in listed.jobs] == [job.id]
if "disable_job" in offered:
    client.disable_job(job.id)
    client.delete_job(job.id)
    seen["jobs left"] = client.list_recurring_runs(experiment_id=experiment.id).jobs
if "get_pipeline_id" in offered:
    seen["by name"] = client.get_pipeline_id(label) == pipeline.id
if "upload_pipeline_version" in offered:
    version = client.upload_pipeline_version(package, "second", pipeline_id=pipeline.id)
    seen["versions"] = sorted(each.name for each in client.list_pipeline_versions(pipeline.id).versions)
    client.delete_pipeline_version(version.id)
if "get_kfp_healthz" in offered:
    seen["multi-user"] = client.get_kfp_healthz().multi_user
if "delete_pipeline" in offered:
    client.delete_pipeline(pipeline.id)
if "archive_experiment" in offered:
    client.archive_experiment(experiment.id)
    seen["archived"] = client.get_experiment(experiment_id=experiment.id).storage_state
    client.delete_experiment(experiment.id)

seen["never called"] = sorted(offered - called)
print(json.dumps(seen))
