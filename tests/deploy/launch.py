"""Starts a program as a deployment file says, on this machine: its command line, its environment, its files.

    launch.py compose FILE SERVICE [ARGUMENT…]
    launch.py systemd UNIT INSTANCE
    launch.py kubernetes RENDERED KIND/NAME

LAUNCH in the environment is a JSON object of replacements: what the file says of hosts, ports and folders, and what stands there
on this machine. The process becomes the program, so a signal to it is a signal to the program.
"""

import json
import os
import re
import shlex
import sys
from pathlib import Path

import yaml

REPLACEMENTS = json.loads(os.environ.get("LAUNCH", "{}"))


def here(text: str) -> str:
    for there, local in REPLACEMENTS.items():
        text = text.replace(there, local)
    return text


def become(command: list[str], settings: dict[str, str]) -> None:
    # Only what the file says, and where programs are; else a forgotten variable would not be missed.
    environment = {"PATH": os.environ["PATH"]}
    environment.update({name: here(value) for name, value in settings.items()})
    command = [here(word) for word in command]
    os.execvpe(command[0], command, environment)


def env_file(path: Path) -> dict[str, str]:
    lines = [line.strip() for line in path.read_text().splitlines()]
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def compose(file: str, name: str, *arguments: str) -> None:
    folder, document = Path(file).parent, yaml.safe_load(Path(file).read_text())
    service = document["services"][name]
    settings = {}
    for listed in service.get("env_file", []):
        settings |= env_file(folder / listed)
    settings |= service["environment"]
    for secret in service["secrets"]:
        source = folder / document["secrets"][secret]["file"]
        settings = {key: value.replace(f"/run/secrets/{secret}", str(source)) for key, value in settings.items()}
    become(service.get("entrypoint", []) + (list(arguments) or service["command"]), settings)


def systemd(unit: str, instance: str) -> None:
    lines = [line.split("=", 1) for line in Path(unit).read_text().splitlines() if re.match(r"[A-Za-z]+=", line)]
    credentials = Path(here("%d"))
    credentials.mkdir(parents=True, exist_ok=True)
    settings, command = {}, []
    for key, value in lines:
        value = value.replace("%I", instance)
        if key == "EnvironmentFile":
            settings |= env_file(Path(here(value)))
        elif key == "Environment":
            settings |= dict(word.split("=", 1) for word in shlex.split(value))
        elif key == "LoadCredential":
            name, source = value.split(":", 1)
            (credentials / name).write_bytes(Path(here(source)).read_bytes())
        elif key == "ExecStart":
            command = shlex.split(value)
    become(command, settings)


def kubernetes(rendered: str, what: str) -> None:
    kind, name = what.split("/")
    documents = [document for document in yaml.safe_load_all(Path(rendered).read_text()) if document]
    found = {(document["kind"], document["metadata"]["name"]): document for document in documents}
    container = first_container(found[kind, name])
    settings = {}
    for source in container["envFrom"]:
        if "configMapRef" in source:
            settings |= found["ConfigMap", source["configMapRef"]["name"]]["data"]
        else:
            settings |= env_file(Path(here("secret:" + source["secretRef"]["name"])))
    settings |= {variable["name"]: variable["value"] for variable in container["env"]}
    command = [re.sub(r"\$\((\w+)\)", lambda match: settings[match[1]], word) for word in container.get("command", []) + container["args"]]
    become(command, settings)


def first_container(document: dict) -> dict:
    spec = document["spec"]
    if document["kind"] != "WorkflowTemplate":
        return spec["template"]["spec"]["containers"][0]
    # Argo fills in the workflow's parameters.
    text = json.dumps(spec["templates"][0]["container"])
    for parameter in spec["arguments"]["parameters"]:
        text = text.replace("{{workflow.parameters.%s}}" % parameter["name"], parameter["value"])
    return json.loads(text)


if __name__ == "__main__":
    {"compose": compose, "systemd": systemd, "kubernetes": kubernetes}[sys.argv[1]](*sys.argv[2:])
