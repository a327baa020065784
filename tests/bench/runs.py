"""Runs of lethe to be timed: manifests with every address absolute, on stores of their own."""

import csv
import json
import os
import resource
import subprocess
import time
import tomllib


def rows_of(source):
    """The concepts of a manifest's table."""
    settings = tomllib.loads(source.read_text())
    with open(source.parent / settings["concepts"]["table"], newline="") as table:
        return list(csv.DictReader(table))


def manifest_of(source, rows, work, name, method="preconditioned", workers=1, device="cpu", precision="float32", model=None, composition="", more="", **data):
    """Writes the manifest `source` for these concepts, its method's other settings by default; `data` takes the place of single entries of its section [data], `composition` adds to that section, and `more` comes last."""
    settings, folder = tomllib.loads(source.read_text()), source.parent.resolve()
    table = work / f"{name}.csv"
    with open(table, "w", newline="") as file:
        out = csv.DictWriter(file, rows[0].keys())
        out.writeheader()
        out.writerows({**row, "forget": folder / row["forget"]} for row in rows)
    absolute = lambda value: [str(folder / one) for one in value] if isinstance(value, list) else str(folder / value)
    entries = {key: value if key == "template" else absolute(value) for key, value in {**settings["data"], **data}.items()}
    lines = ["version = 1", 'name = "bench"', "[model]", f"uri = {json.dumps(str(model or folder / settings['model']['uri']))}", "[data]"]
    lines += [f"{key} = {json.dumps(value)}" for key, value in entries.items()]
    lines += ["[method]", f'precision = "{precision}"', "[concepts]", f"table = {json.dumps(str(table))}", "[composition]", f'method = "{method}"', composition]
    lines += ["[execution]", f"workers = {workers}", f'device = "{device}"', more]
    manifest = work / f"{name}.toml"
    manifest.write_text("\n".join(lines) + "\n")
    return manifest


def call(binary, store, *arguments):
    """Calls a command of lethe: its last line, the processor seconds and the largest memory in MB of its process. A run that a gate or the policy
    stops (3) has a release all the same."""
    with subprocess.Popen([binary, *arguments, "--store", store, "--json"], stdout=subprocess.PIPE, text=True) as process:
        said = process.stdout.read()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in (0, 3):
        raise SystemExit(f"{arguments}: exit code {process.returncode}")
    return json.loads(said.splitlines()[-1]), used.ru_utime + used.ru_stime, used.ru_maxrss / 1024


def lethe(binary, manifest, store, cores=None):
    """Runs a manifest, pinned to so many cores where that is asked for: wall seconds, processor seconds, and the report."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    pinned = lambda: cores and os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    done = subprocess.run([binary, "run", manifest, "--store", store, "--json"], capture_output=True, text=True, preexec_fn=pinned)
    after, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - began
    # 3: not every concept found an edit; what that took is as interesting.
    if done.returncode not in (0, 3):
        raise SystemExit(f"{manifest}: {done.stderr}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return wall, cpu, json.loads(done.stdout.splitlines()[-1])


def phases(report):
    """Seconds by phase."""
    return {phase["name"]: phase["seconds"] for phase in report["summary"]["phases"]}
