"""Holds deployment files against what they speak of: programs, metrics, permissions, each other.

    check.py metrics                   dashboard and alerts name metrics and labels that are exported
    check.py dashboard OUT             the dashboard is sound; its queries go to OUT as rules for promtool
    check.py images                    what is fetched is pinned
    check.py permissions               the NATS accounts are those that docs/security.md lists
    check.py programs RENDERED…        command lines, variables, probes and references, in every file that starts Lethe
    check.py argo RENDERED             the WorkflowTemplate fits Argo's schema, and starts Lethe as the Job does
    check.py keda RENDERED… [URL]      ScaledObjects fit KEDA's schema, and the running server's monitoring port (URL)

From the root of the repository; LETHE_BIN is the folder of lethe and lethe-worker. Says what is wrong, one line each.
"""

import functools
import json
import os
import re
import shlex
import subprocess
import sys
import urllib.request
from pathlib import Path

import yaml

DEPLOY = Path("deploy")
DASHBOARD = DEPLOY / "monitoring/grafana.json"
ALERTS = DEPLOY / "monitoring/alerts.yml"
# What Prometheus and histograms add.
ADDED_LABELS = {"instance", "job", "le"}
# Exit codes after which the same command fails again: bad input, a concept that is not removed, a missed gate.
PERMANENT = [2, 3, 4]
problems: list[str] = []


def wrong(where: object, what: str) -> None:
    problems.append(f"{where}: {what}")


# --- Metrics: docs/monitoring.md names exactly what is exported (a unit test beside the code sees to it).


def exported() -> dict[str, dict[str, set[str]]]:
    """From metrics to their labels, and to the values of labels that have few."""
    table = {}
    for line in Path("docs/monitoring.md").read_text().splitlines():
        if found := re.match(r"\| `(lethe_\w+)` \|([^|]*)\|([^|]*)\|", line):
            name, kind, labels = found.groups()
            told = re.findall(r"`(\w+)`(?:: ([^`]*))?", re.sub(r"\(.*?\)", "", labels))
            # What `stage` may be is left open.
            values = {label: set() if label == "stage" else set(re.findall(r"[\w-]+", listed)) for label, listed in told}
            for suffix in ["_bucket", "_sum", "_count"] if kind.strip() == "histogram" else [""]:
                table[name + suffix] = values
    return table


def queries() -> list[tuple[str, str]]:
    """Every query, and where it stands."""
    found = [(f"{ALERTS} {rule['alert']}", rule["expr"]) for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return found + [(f"{DASHBOARD} {panel['title']}", target["expr"]) for panel in panels for target in panel.get("targets", [])]


def misnamed(expression: str, table: dict[str, dict[str, set[str]]]) -> list[str]:
    said = []
    for name, selector in re.findall(r"\b(lethe_\w+)(?:\{([^}]*)\})?", expression):
        if name not in table:
            said.append(f"no metric is called {name}")
            continue
        for label, value in re.findall(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"([^\"]*)\"", selector):
            if label not in table[name].keys() | ADDED_LABELS:
                said.append(f"{name} has no label {label}")
            elif table[name].get(label) and not set(value.split("|")) <= table[name][label]:
                said.append(f"{name}: {label} is never {value}")
    labels = set().union(*(table.get(name, {}).keys() for name in re.findall(r"lethe_\w+", expression))) | ADDED_LABELS
    for grouping in re.findall(r"\bby \(([^)]*)\)", expression):
        said += [f"nothing in it has a label {label.strip()}" for label in grouping.split(",") if label.strip() not in labels]
    return said


def metrics() -> None:
    table = exported()
    assert "lethe_jobs_total" in table and table["lethe_queue_jobs"]["state"] == {"waiting", "in-hand", "dead"}, "docs/monitoring.md reads differently"
    # What this is here to find, it finds.
    for mistake in ["lethe_jobs", "lethe_job_seconds", 'lethe_runs{state="lost"}', 'lethe_runs{run="x"}', "sum by (run) (lethe_runs)"]:
        assert misnamed(mistake, table), f"{mistake} was not found out"
    for where, expression in queries():
        for what in misnamed(expression, table):
            wrong(where, what)


def dashboard(out: str) -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    if len({panel["id"] for panel in panels}) != len(panels):
        wrong(DASHBOARD, "two panels have one id")
    taken: dict[tuple[int, int], str] = {}
    for panel in panels:
        at = panel["gridPos"]
        if at["x"] + at["w"] > 24:
            wrong(DASHBOARD, f"{panel['title']} reaches beyond the grid")
        for cell in ((x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])):
            if cell in taken:
                wrong(DASHBOARD, f"{panel['title']} lies over {taken[cell]}")
                break
            taken[cell] = panel["title"]
    expressions = [expression.replace("$__rate_interval", "1m") for where, expression in queries() if where.startswith(str(DASHBOARD))]
    rules = [{"record": f"dashboard:{number}", "expr": expression} for number, expression in enumerate(expressions)]
    Path(out).write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))


# --- Images and permissions.


def images() -> None:
    files = [DEPLOY / "Dockerfile", *sorted(DEPLOY.glob("compose/*.yaml")), *sorted(DEPLOY.glob("kubernetes/**/*.yaml"))]
    for file in files:
        text = file.read_text()
        arguments = dict(re.findall(r"^ARG (\w+)=(\S+)", text, re.MULTILINE))
        stages = set(re.findall(r"^FROM \S+ AS (\w+)", text, re.MULTILINE))
        for image in re.findall(r"^(?:FROM|\s*image:)\s+(\S+)", text, re.MULTILINE):
            if argument := re.fullmatch(r"\$\{(\w+)\}", image):
                image = arguments.get(argument[1], image)
            if image in stages:
                continue
            own = re.fullmatch(r"(\$\{\w+:-)?lethe(:[\w.-]+)?\}?", image)
            if not own and not re.search(r":[\w.-]*\d[\w.-]*@sha256:[0-9a-f]{64}$", image):
                wrong(file, f"{image} has no version and digest")


def listed(text: str) -> tuple[set[str], set[str]]:
    lists = []
    for verb in ["publish", "subscribe"]:
        found = re.search(rf"{verb} = \[(.*?)\]", text, re.DOTALL)
        lists.append({word for line in (found[1] if found else "").splitlines() for word in re.findall(r'"([^"]+)"', line)})
    return lists[0], lists[1]


def permissions() -> None:
    documented = Path("docs/security.md").read_text()
    configured = (DEPLOY / "nats/nats.conf").read_text()

    def told(opening: str) -> tuple[set[str], set[str]]:
        block = re.search(re.escape(opening) + r".*?```\n(.*?)```", documented, re.DOTALL)
        assert block, f"docs/security.md: no list after '{opening}'"
        return tuple(
            {subject.replace("LETHE_*", f"LETHE_{stream}") for subject in subjects for stream in ["JOBS", "DEAD", "LEDGER", "LEASES"]} for subjects in listed(block[1])
        )

    coordinator, serve = told("A coordinator may"), told("`lethe serve` may do that, and")
    expected = {
        "worker": told("A worker may"),
        "coordinator": (coordinator[0] | serve[0], coordinator[1] | serve[1]),
        "client": told("Whoever submits"),
    }
    for role, (publish, subscribe) in expected.items():
        block = re.search(rf"^{role} = \{{(.*?)^\}}", configured, re.DOTALL | re.MULTILINE)
        assert block and publish and subscribe, role
        for verb, should, does in zip(["publish", "subscribe"], [publish, subscribe], listed(block[1])):
            if should != does:
                wrong(DEPLOY / "nats/nats.conf", f"{role}, {verb}: not as in docs/security.md: {sorted(should ^ does)}")


# --- Programs.


def says(*command: str) -> tuple[int, str]:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout + done.stderr


def started(where: object, command: list[str], variables: set[str]) -> None:
    """A command line that starts Lethe: every option exists, and every variable that is set is read by one of its programs."""
    if command[0] == "sh" and command[1].startswith("/etc/lethe/promote/"):
        script = DEPLOY / "kubernetes/promote" / Path(command[1]).name
        # Its own commands, without what the shell does with their output.
        lines = re.findall(r"^lethe [^>&|\n]*", script.read_text().replace("$release", "name:1"), re.MULTILINE)
        assert len(lines) == 2, f"{script} reads differently"
        for line in lines:
            started(script, shlex.split(line), variables)
        return
    if command[0].split("/")[-1] not in ("lethe", "lethe-worker"):
        return wrong(where, f"starts {command[0]}, not Lethe")
    program = str(Path(os.environ["LETHE_BIN"]) / command[0].split("/")[-1])
    code, said = says(program, *command[1:], "--help")
    if code != 0:
        return wrong(where, f"{shlex.join(command)}: {said.splitlines()[0]}")
    for name in sorted(name for name in variables if name.startswith("LETHE_") and name not in every_variable()):
        wrong(where, f"{name} is read by nothing")


@functools.cache
def every_variable() -> set[str]:
    """Variables that any of the programs reads."""
    folder = Path(os.environ["LETHE_BIN"])
    helps = [says(str(folder / words[0]), *words[1:], "--help")[1] for words in [["lethe", "run"], ["lethe", "serve"], ["lethe-worker"]]]
    # Not in the help: secrets are read from the environment only (docs/security.md), and what is logged.
    return set(re.findall(r"\[env: (\w+)", "".join(helps))) | {"LETHE_NATS_USER", "LETHE_NATS_PASSWORD", "LETHE_NATS_TOKEN", "LETHE_LOG"}


def programs(*rendered: str) -> None:
    compose = yaml.safe_load((DEPLOY / "compose/compose.yaml").read_text())["services"]
    for name in ["coordinator", "worker", "lethe"]:
        service = compose[name]
        started(f"compose, {name}", service.get("entrypoint", []) + service["command"], set(service["environment"]))
    gpu = yaml.safe_load((DEPLOY / "compose/gpu.yaml").read_text())["services"]
    started("compose, gpu", gpu["worker"]["command"], set())
    grace, wait = int(compose["worker"]["environment"]["LETHE_GRACE"]), int(compose["worker"]["stop_grace_period"].removesuffix("s"))
    if wait <= grace:
        wrong("compose, worker", f"stop_grace_period {wait} s is not longer than LETHE_GRACE {grace} s")

    for unit in sorted(DEPLOY.glob("systemd/*.service")):
        text = unit.read_text()
        variables = {word.split("=")[0] for line in re.findall(r"^Environment=(.*)$", text, re.MULTILINE) for word in line.split()}
        started(unit, re.search(r"^ExecStart=(.*)$", text, re.MULTILINE)[1].replace("%I", "cpu").split(), variables)
        if found := re.search(r"LETHE_GRACE=(\d+)", text):
            if int(re.search(r"^TimeoutStopSec=(\d+)", text, re.MULTILINE)[1]) <= int(found[1]):
                wrong(unit, "TimeoutStopSec is not longer than LETHE_GRACE")

    readme = (DEPLOY / "README.md").read_text()
    for file in rendered:
        documents = [document for document in yaml.safe_load_all(Path(file).read_text()) if document]
        kinds = {(document["kind"], document["metadata"]["name"]): document for document in documents}
        for (kind, name), document in kinds.items():
            where = f"{file}, {kind}/{name}"
            if kind == "ScaledObject" and ("Deployment", document["spec"]["scaleTargetRef"]["name"]) not in kinds:
                wrong(where, "scales what is not there")
            if kind == "PodDisruptionBudget":
                matched = [pod for pod in pods(kinds) if fits(document["spec"]["selector"]["matchLabels"], pod)]
                if len(matched) != 1:
                    wrong(where, f"is about {len(matched)} kinds of pods")
            if kind not in ("Deployment", "StatefulSet", "Job"):
                continue
            template = document["spec"]["template"]
            container = template["spec"]["containers"][0]
            for what, reference in references(template["spec"], container):
                if what == "Secret" or reference == "lethe-manifest":
                    if f" {reference}" not in readme:
                        wrong(where, f"deploy/README.md does not say how {reference} is made")
                elif (what, reference) not in kinds:
                    wrong(where, f"there is no {what} {reference}")
            if container["name"] == "nats":
                continue
            settings = dict(kinds["ConfigMap", container["envFrom"][0]["configMapRef"]["name"]]["data"])
            started(where, container["args"], set(settings) | {variable["name"] for variable in container["env"]})
            if container["args"][0] == "lethe-worker" and template["spec"]["terminationGracePeriodSeconds"] <= int(settings["LETHE_GRACE"]):
                wrong(where, "terminationGracePeriodSeconds is not longer than LETHE_GRACE")
            port = container["ports"][0]["containerPort"]
            if not settings["LETHE_HTTP"].endswith(f":{port}"):
                wrong(where, f"listens on {settings['LETHE_HTTP']}, but its port is {port}")
            if kind == "Job":
                rules = [rule["onExitCodes"] for rule in document["spec"]["podFailurePolicy"]["rules"] if rule["action"] == "FailJob"]
                if [rule["values"] for rule in rules] != [PERMANENT] or rules[0]["containerName"] != container["name"]:
                    wrong(where, f"exit codes {PERMANENT} have to end the Job, and no others")
            probes = {container[probe]["httpGet"]["path"] for probe in ["livenessProbe", "readinessProbe"]}
            if probes != {"/healthz", "/readyz"}:
                wrong(where, f"probes {sorted(probes)}")


def pods(kinds: dict) -> list[dict[str, str]]:
    return [document["spec"]["template"]["metadata"]["labels"] for (kind, _), document in kinds.items() if kind in ("Deployment", "StatefulSet")]


def fits(selector: dict[str, str], labels: dict[str, str]) -> bool:
    return selector.items() <= labels.items()


def references(pod: dict, container: dict) -> list[tuple[str, str]]:
    found = []
    for source in container.get("envFrom", []):
        found += [("ConfigMap", source["configMapRef"]["name"])] if "configMapRef" in source else [("Secret", source["secretRef"]["name"])]
    for volume in pod["volumes"]:
        found += [("Secret", volume["secret"]["secretName"])] if "secret" in volume else []
        found += [("ConfigMap", volume["configMap"]["name"])] if "configMap" in volume else []
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    for volume in {volume["name"] for volume in pod["volumes"]} - mounted:
        wrong(container["name"], f"volume {volume} is mounted nowhere")
    return found


# --- KEDA.


def lost(given: object, kept: object, at: str = "") -> list[str]:
    """Fields that the schema does not know: it drops them."""
    if isinstance(given, dict) and isinstance(kept, dict):
        return [f"{at}.{key}" for key in given if key not in kept] + [field for key in given if key in kept for field in lost(given[key], kept[key], f"{at}.{key}")]
    if isinstance(given, list) and isinstance(kept, list):
        return [field for number, (one, other) in enumerate(zip(given, kept)) for field in lost(one, other, f"{at}[{number}]")]
    return []


def argo(rendered: str) -> None:
    from hera.workflows.models import WorkflowTemplate

    documents = [document for document in yaml.safe_load_all(Path(rendered).read_text()) if document]
    [template] = [document for document in documents if document["kind"] == "WorkflowTemplate"]
    kept = WorkflowTemplate.model_validate(template).model_dump(by_alias=True, exclude_unset=True)
    for field in lost(template, json.loads(json.dumps(kept, default=str))):
        wrong(rendered, f"WorkflowTemplate: Argo knows no {field}")
    configured = {document["metadata"]["name"] for document in documents if document["kind"] == "ConfigMap"}
    spec, [run] = template["spec"], template["spec"]["templates"]
    container = run["container"]
    for what, reference in references(spec, container):
        if what == "ConfigMap" and not reference.startswith("{{") and reference not in configured:
            wrong(rendered, f"there is no {what} {reference}")
    if run["retryStrategy"]["expression"] != f"asInt(lastRetry.exitCode) not in {PERMANENT}":
        wrong(rendered, f"exit codes {PERMANENT} have to end the workflow, and no others")
    # Except for the script, the container is the Job's.
    [job] = yaml.safe_load_all((DEPLOY / "kubernetes/job/job.yaml").read_text())
    pod = job["spec"]["template"]["spec"]
    for field in ["envFrom", "env", "resources", "securityContext"]:
        given = [dict(source, configMapRef={"name": "lethe"}) if "configMapRef" in source else source for source in container["envFrom"]] if field == "envFrom" else container[field]
        if given != pod["containers"][0][field]:
            wrong(rendered, f"{field} is not as in job.yaml")
    if spec["securityContext"] != pod["securityContext"]:
        wrong(rendered, "the pod's securityContext is not as in job.yaml")


def keda(*arguments: str) -> None:
    from cloudcoil.models.keda.v1alpha1 import ScaledObject

    url = arguments[-1] if arguments[-1].startswith("http") else None
    objects = [
        (file, document)
        for file in arguments
        if file != url
        for document in yaml.safe_load_all(Path(file).read_text())
        if document and document["kind"] == "ScaledObject"
    ]
    assert objects, "there is no ScaledObject"
    for file, document in objects:
        kept = ScaledObject.model_validate(document).model_dump(by_alias=True, exclude_unset=True, mode="json")
        for field in lost(document, kept):
            wrong(file, f"ScaledObject: KEDA knows no {field}")
        trigger = document["spec"]["triggers"][0]
        known = {"natsServerMonitoringEndpoint", "account", "stream", "consumer", "lagThreshold", "activationLagThreshold", "useHttps"}
        for field in trigger["metadata"].keys() - known:
            wrong(file, f"ScaledObject: nats-jetstream knows no {field}")
        if url:
            # What KEDA's scaler does: the account's streams and their consumers, by name.
            with urllib.request.urlopen(f"{url}/jsz?acc={trigger['metadata']['account']}&consumers=true&config=true", timeout=10) as answer:
                account = json.load(answer)["account_details"][0]
            streams = {stream["name"]: [consumer["name"] for consumer in stream.get("consumer_detail", [])] for stream in account["stream_detail"]}
            if account["name"] != trigger["metadata"]["account"] or trigger["metadata"]["consumer"] not in streams.get(trigger["metadata"]["stream"], []):
                wrong(file, f"ScaledObject: the server of account {account['name']} has {streams}")


if __name__ == "__main__":
    checks = {"metrics": metrics, "dashboard": dashboard, "images": images, "permissions": permissions, "programs": programs, "argo": argo, "keda": keda}
    checks[sys.argv[1]](*sys.argv[2:])
    for problem in problems:
        print(f"deploy: error: {problem}", file=sys.stderr)
    sys.exit(1 if problems else 0)
