#!/usr/bin/env python3
"""Compares the methods of composition on draws of the demo's removable concepts.

usage: margins.py LETHE MODEL [DRAWS [METHOD…]]

Each draw of 100 and 200 concepts, and all 300, is removed by each method (all of METHODS where none is named). Printed per run:
FA@1/FA@5 on the forget images; the share of TA@1/TA@5 that is kept, over validation and test set together, on covered, never seen and
removed classes; how often the removed name is the best of itself and 1 or 19 retained names; R@1 of searching test images by it.
"""
import csv
import json
import pathlib
import random
import subprocess
import sys
import tempfile

JOB = pathlib.Path(__file__).resolve().parents[2] / "jobs" / "emoji"
SEED = 20261129
METHODS = {
    "least-squares": 'method = "least-squares"\ntokens = "read"',
    "preconditioned": 'method = "preconditioned"',
    "margins": 'method = "margins"',
    "margins, both towers": 'method = "margins"\ntowers = "both"',
}


HEADER = (
    "| concepts | method | FA@1/5, % | covered kept, % | never seen kept, % | removed kept, % | against 1, 19, % | search R@1, % | ‖Δ‖/‖W‖ | kB an edit |\n"
    "|---|---|---|---|---|---|---|---|---|---|"
)


def kept(record: dict, group: str) -> str:
    """The share of hits that a group of classes keeps, in percent: top-1 and top-5."""
    sets = [found[group] for found in [record["utility"]["validation"], record["utility"]["test"]]]
    hits = lambda when, k: sum(found["images"] * found[when][k] for found in sets)
    return "/".join(f"{100 * hits('after', k) / hits('before', k):.1f}" for k in ["ta1", "ta5"])


def run(lethe: str, store: str, model: str, rows: list[dict], name: str, method: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        table, manifest = pathlib.Path(folder) / "concepts.csv", pathlib.Path(folder) / "job.toml"
        with table.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows({**row, "forget": str(JOB / row["forget"])} for row in rows)
        text = (JOB / "remove-100.toml").read_text()
        text = text.replace('"model"', json.dumps(str(pathlib.Path(model).resolve())))
        for file in ["retain-*.tar", "retain-texts.txt", "validation.tar", "test.tar", "classes.txt"]:
            text = text.replace(f'"{file}"', f'"{JOB / file}"')
        text = text.replace("concepts-100.csv", str(table)).replace("emoji-100", "draw")
        manifest.write_text(f"{text}\n[composition]\n{METHODS[method]}\n\n[policy]\nrequired = []\n\n[gates]\nutility_kept = 0.0\n")
        done = subprocess.run([lethe, "run", manifest, "--store", store, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            sys.exit(f"{name}, {method}: exit code {done.returncode}: {done.stderr[-2000:]}")
        release = pathlib.Path(json.loads(done.stdout.splitlines()[-1])["release"])
    record = json.loads((release / "composition.json").read_text())
    concepts = record["concepts"]
    found = "/".join(f"{100 * sum(c['composed'][k] for c in concepts) / len(concepts):.1f}" for k in ["fa1", "fa5"])
    size = (release / "edits.safetensors").stat().st_size / len(concepts) / 1000
    changed = ", ".join(f"{change:.1f}" for change in record["layers"].values())
    groups = " | ".join(kept(record, group) for group in ["covered", "never_seen", "removed"])
    few = {one["others"]: 100 * one["after"] for one in record["recognition"]["candidates"]}
    search = next((100 * one["after"]["r1"] for one in record["recognition"]["searches"] if one["set"] == "test"), 0)
    print(f"| {name} | {method} | {found} | {groups} | {few[1]:.0f}, {few[19]:.0f} | {search:.0f} | {changed} | {size:.0f} |", flush=True)


def main() -> None:
    lethe, model, draws = sys.argv[1], sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 3
    methods = sys.argv[4:] or METHODS
    with (JOB / "concepts-300.csv").open() as file:
        rows = list(csv.DictReader(file))
    chooser = random.Random(SEED)
    chosen = [(f"{n}, draw {draw + 1}", sorted(chooser.sample(range(len(rows)), n))) for draw in range(draws) for n in [100, 200]]
    chosen.append((f"all {len(rows)}", range(len(rows))))
    print(HEADER)
    with tempfile.TemporaryDirectory() as store:
        for name, places in chosen:
            for method in methods:
                run(lethe, store, model, [rows[place] for place in places], name, method)


if __name__ == "__main__":
    main()
