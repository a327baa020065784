"""Holds a running coordinator to the OpenAPI document that it serves.

    openapi.py ADDRESS RUN

The document must be one by OpenAPI's own rules; every path in it must answer as it says; nothing but reading may be allowed.
"""

import http.client
import json
import sys

from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

address, run = sys.argv[1:]


def ask(path, method="GET", most=None):
    connection = http.client.HTTPConnection(address, timeout=30)
    connection.request(method, path)
    answer = connection.getresponse()
    if most is None:
        return answer.status, answer.getheader("content-type") or "", answer.read().decode()
    # A stream does not end: up to the first event's end.
    text = ""
    while most not in text:
        text += answer.readline().decode()
    return answer.status, answer.getheader("content-type") or "", text


status, media, text = ask("/openapi.json")
assert (status, media) == (200, "application/json"), (status, media)
document = json.loads(text)
OpenAPIV31SpecValidator(document).validate()

registry = Registry().with_resource("urn:api", Resource(contents=document, specification=DRAFT202012))


def fits(value, *pointer):
    escaped = "/".join(part.replace("~", "~0").replace("/", "~1") for part in pointer)
    Draft202012Validator({"$ref": f"urn:api#/{escaped}"}, registry=registry).validate(value)


checked = 0
for path, item in document["paths"].items():
    assert set(item) <= {"get", "parameters"}, path
    stream = "text/event-stream"
    answers = item["get"]["responses"]
    asked = [path.replace("{run}", run)] + ([path.replace("{run}", "none")] if "{run}" in path else [])
    for one in asked:
        streams = stream in answers["200"].get("content", {})
        status, media, text = ask(one, most="\n\n" if streams else None)
        assert str(status) in answers, f"{one}: {status} is not documented"
        kinds = answers[str(status)]["content"]
        kind = media.split(";")[0]
        assert kind in kinds, f"{one}: {media} is not documented"
        where = ["paths", path, "get", "responses", str(status)]
        if kind == "application/json":
            fits(json.loads(text), *where, "content", kind, "schema")
            checked += 1
        elif kind == stream:
            data = next(line for line in text.splitlines() if line.startswith("data:"))
            fits(json.loads(data[5:]), *where, "x-event-data")
            checked += 1
    for method in ["POST", "PUT", "PATCH", "DELETE"]:
        status, _, _ = ask(asked[0], method)
        assert status == 405, f"{method} {path}: {status}"
assert checked >= 5, checked

# A validator that lets everything pass would find nothing here either.
_, _, text = ask(f"/api/v1/runs/{run}")
broken = json.loads(text)
broken["state"] = "asleep"
schema = Draft202012Validator({"$ref": "urn:api#/components/schemas/Run"}, registry=registry)
assert list(schema.iter_errors(broken)) and not list(schema.iter_errors(json.loads(text)))
del broken["exit_code"]
broken["state"] = "queued"
assert list(schema.iter_errors(broken)), "every field is there"
print(json.dumps({"paths": len(document["paths"]), "checked": checked}))
