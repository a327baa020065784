"""Lethe against the authors' procedure on the same concepts: the same edits? at what price?

Usage: bench_peer.py LETHE MANIFEST WORK_FOLDER [--concepts N] [--check N] [--evaluations N]
"""

import argparse
import csv
import json
import resource
import statistics
import subprocess
import time
import tomllib
from pathlib import Path

import slug
import torch

STEP_TOLERANCE = 1e-3


def manifest_of(source, method, rows, work, name):
    """The manifest for these concepts by this method, on one worker; every address absolute."""
    settings, folder = tomllib.loads(source.read_text()), source.parent.resolve()
    table = work / f"{name}.csv"
    with open(table, "w", newline="") as file:
        out = csv.DictWriter(file, rows[0].keys())
        out.writeheader()
        out.writerows({**row, "forget": folder / row["forget"]} for row in rows)
    data = settings["data"]
    paths = lambda key: json.dumps([str(folder / path) for path in data.get(key, [])])
    text = f"""version = 1
name = "bench"
[model]
uri = "{folder / settings['model']['uri']}"
[data]
retain = {paths("retain")}
retain_texts = {paths("retain_texts")}
validation = {paths("validation")}
test = {paths("test")}
classes = "{folder / data['classes']}"
[concepts]
table = "{table}"
[composition]
method = "{method}"
[execution]
workers = 1
"""
    manifest = work / f"{name}.toml"
    manifest.write_text(text)
    return manifest


def lethe(binary, manifest, store):
    """Runs it; wall and processor seconds, and the report."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run([binary, "run", manifest, "--store", store, "--json"], check=True, capture_output=True, text=True)
    after, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - began
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return wall, cpu, json.loads(done.stdout.splitlines()[-1])


def measure(arguments, method, rows, work):
    """Seconds that each further concept costs a run, all else of the second run included; its store and report."""
    store = work / f"store-{method}"
    lethe(arguments.lethe, manifest_of(arguments.manifest, method, rows[:1], work, f"{method}-one"), store)
    wall, cpu, report = lethe(arguments.lethe, manifest_of(arguments.manifest, method, rows, work, method), store)
    more = len(rows) - 1
    return wall / more, cpu / more, store, report


def compare(job, record, concepts):
    """Whether the peer finds the edits that Lethe has; one line a concept."""
    same = True
    print("\n| concept | layer | λ | λ, peer | FA@1, FA@5 | peer | utility | peer | same |\n|---|---|---|---|---|---|---|---|---|")
    ours = {concept["id"]: concept for concept in record["concepts"]}
    for name in concepts:
        answer, found = slug.run(job, name, shortcut=True)[0], ours.get(name)
        if answer is None or found is None:
            agree = answer is None and found is None
            print(f"| {name} | none {'of both' if agree else 'of one'} | | | | | | | {'yes' if agree else 'NO'} |")
        else:
            alone = found["alone"]
            agree = answer.name == found["layer"] and abs(answer.step / found["step"] - 1) < STEP_TOLERANCE
            agree &= (answer.fa1, answer.fa5) == (alone["fa1"], alone["fa5"])
            layer = found["layer"] if answer.name == found["layer"] else f"{found['layer']}, peer {answer.name}"
            print(
                f"| {name} | {layer} | {found['step']:.5g} | {answer.step:.5g} | {alone['fa1']:.2f}, {alone['fa5']:.2f} "
                f"| {answer.fa1:.2f}, {answer.fa5:.2f} | {100 * alone['utility']:.2f} | {100 * answer.utility:.2f} | {'yes' if agree else 'NO'} |"
            )
        same &= agree
    return same


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("lethe")
    parser.add_argument("manifest", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--concepts", type=int, default=8, help="concepts that Lethe removes")
    parser.add_argument("--check", type=int, default=4, help="concepts whose edits are compared")
    parser.add_argument("--evaluations", type=int, default=4, help="evaluations that the peer is timed on; 0: a whole concept, an hour")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    settings = tomllib.loads(arguments.manifest.read_text())
    with open(arguments.manifest.parent / settings["concepts"]["table"], newline="") as table:
        rows = list(csv.DictReader(table))[: arguments.concepts]

    full = measure(arguments, "sum", rows, arguments.work)
    default = measure(arguments, "preconditioned", rows, arguments.work)
    record = json.loads((Path(full[3]["release"]) / "composition.json").read_text())
    job = slug.Job(arguments.manifest, slug.retain_gradient(full[2]))
    same = compare(job, record, [row["id"] for row in rows[: arguments.check]])

    first, evaluations = rows[0]["id"], arguments.evaluations
    if evaluations:
        clock, front = slug.price(job, first, evaluations)
        how = f"timed on {evaluations} evaluations"
    else:
        _, clock, front = slug.run(job, first)
        how = "timed on the whole concept"
    # Every evaluation costs the same, so that a concept costs what its fronts are long.
    fronts = [sum(layer["pareto"] for layer in concept["ranking"]) for concept in record["concepts"]]
    share = statistics.mean(fronts) / front
    total = {
        kind: sum(spent * (share if stage == "search" else 1) for stage, spent in seconds.items())
        for kind, seconds in (("wall", clock.wall), ("cpu", clock.cpu))
    }
    print(f"\nPer concept of {len(rows)}, one thread; {statistics.mean(fronts):.1f} layers on a concept's fronts on average, ten steps on each.")
    print(f"The peer is {how}; gradient alone {clock.cpu['gradient']:.2f} s.\n")
    print("| | wall s | CPU s | times faster (CPU) |\n|---|---|---|---|")
    print(f"| authors' procedure, PyTorch {torch.__version__.split('+')[0]} | {total['wall']:.1f} | {total['cpu']:.1f} | 1 |")
    for name, (wall, cpu, *_) in (("Lethe, the same procedure (`sum`)", full), ("Lethe, default (`preconditioned`)", default)):
        print(f"| {name} | {wall:.2f} | {cpu:.2f} | {total['cpu'] / cpu:.0f} |")
    if not same:
        raise SystemExit("the edits are not the same")


if __name__ == "__main__":
    main()
