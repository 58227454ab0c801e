"""The SDK with a token: every word of what it meets is printed as JSON. Arguments: the host, the token."""

import json
import sys

import kfp
from kfp_server_api.exceptions import ApiException

host, token = sys.argv[1:]
seen: dict[str, object] = {}

client = kfp.Client(host=host, existing_token=token)
seen["healthz"] = client.get_kfp_healthz().multi_user
seen["experiment"] = client.create_experiment("with a token").name
seen["listed"] = [each.name for each in client.list_experiments().experiments]

for name, further in {"without": {}, "wrong": {"existing_token": "nobody's"}}.items():
    other = kfp.Client(host=host, **further)
    try:
        other.list_pipelines()
    except ApiException as refusal:
        seen[name] = [refusal.status, refusal.headers.get("WWW-Authenticate"), json.loads(refusal.body)["code"]]

print(json.dumps(seen))
