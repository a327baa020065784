#!/usr/bin/env python3
"""How many concepts a model has room for: the same model with MLPs of several widths, and several numbers of concepts.

usage: width.py LETHE MODEL…

Each MODEL is a CLIP folder. One draw of each number of the demo's removable concepts is removed from each, by each method of
`margins.py`, whose columns the table has.
"""
import csv
import random
import sys
import tempfile

from margins import HEADER, JOB, METHODS, SEED, run

COUNTS = [25, 50, 100, 200, 300]


def main() -> None:
    lethe, models = sys.argv[1], sys.argv[2:]
    with (JOB / "concepts-300.csv").open() as file:
        rows = list(csv.DictReader(file))
    chooser = random.Random(SEED)
    draws = {count: sorted(chooser.sample(range(len(rows)), count)) for count in COUNTS}
    print(HEADER)
    for model in models:
        with tempfile.TemporaryDirectory() as store:
            for count, places in draws.items():
                for method in METHODS:
                    run(lethe, store, model, [rows[place] for place in places], f"{model}, {count} concepts", method)


if __name__ == "__main__":
    main()
