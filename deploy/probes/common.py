"""What the probes share: their input, their result, and the judges of pictures."""

import csv
import importlib.util
import json
import os
import random
from pathlib import Path


class Input:
    """What Lethe tells a probe (docs/probes.md)."""

    def __init__(self):
        told = json.loads(Path(os.environ["LETHE_PROBE_INPUT"]).read_text())
        if told["version"] != 1:
            raise SystemExit(f"the input has version {told['version']}, this probe reads version 1")
        self.release, self.output = Path(told["release"]), Path(told["output"])
        self.targets = told["targets"]
        self.removed = {concept["class"]: concept["name"] for concept in told["concepts"] if concept["strength"] > 0}

    def target(self, kind, name):
        """The target of this kind, and the model that it was made from; `name` chooses one of several."""
        found = [target for target in self.targets if target["kind"] == kind and name in (None, target["name"])]
        if len(found) != 1:
            names = ", ".join(target["name"] for target in self.targets) or "none"
            raise SystemExit(f"the release has {len(found)} targets of kind {kind}; --target names one of: {names}")
        if found[0]["base"] is None:
            raise SystemExit(f"the model that target {found[0]['name']} was made from is no longer at its address")
        return Path(found[0]["folder"]), Path(found[0]["base"])


def read_groups(path, column="group"):
    """A CSV file with a column `class` and another one: the retained classes to measure, and what the group of each is called."""
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows or not {"class", column} <= set(rows[0]):
        raise SystemExit(f"{path}: expected a header with the columns class, {column}")
    groups = {}
    for row in rows:
        groups.setdefault(row[column].strip().replace(" ", "_"), []).append(row["class"])
    return groups


def sampled(names, most, seed=0):
    """At most so many of the names, the same ones every time."""
    return sorted(random.Random(seed).sample(sorted(names), most)) if most and len(names) > most else sorted(names)


def load_judge(where):
    """The judge FILE:ARGUMENT: a Python file whose `load(ARGUMENT)` returns a function from pictures to the names of their classes, best
    first."""
    path, _, argument = where.partition(":")
    spec = importlib.util.spec_from_file_location("judge", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.load(argument)


def still_true(before, after):
    """For each hit of the unedited model, whether the edited model has it too."""
    return [hit for known, hit in zip(before, after) if known]


def share(hits):
    return round(sum(hits) / len(hits), 4) if hits else None


def write(output, version, numbers, pictures, notes):
    numbers = {name: value for name, value in numbers.items() if value is not None}
    result = {"version": version, "numbers": numbers, "pictures": pictures[:100], "notes": notes[:20]}
    (output / "result.json").write_text(json.dumps(result, ensure_ascii=False))
