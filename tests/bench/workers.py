"""The demo with one worker on one core and with two on two, each from an empty store; then what one removal costs.

Usage: workers.py LETHE MANIFEST WORK_FOLDER [PAIRS]
"""

import sys
from pathlib import Path

from runs import lethe, manifest_of, phases, rows_of


def main():
    binary, manifest, work = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    pairs = int(sys.argv[4]) if len(sys.argv) > 4 else 1
    rows = rows_of(manifest)
    for pair in range(pairs):
        reports = []
        for workers in (1, 2):
            name = f"{workers}-{pair}"
            described = manifest_of(manifest, rows, work, name, workers=workers)
            reports.append(lethe(binary, described, work / f"store-{name}", cores=workers)[2])
        one, two = map(phases, reports)
        print(f"\n| {len(rows)} concepts: phase | one worker, one core: s | two, two: s | times as fast |\n|---|---|---|---|")
        for phase, seconds in one.items():
            if seconds >= 0.5:
                print(f"| {phase} | {seconds:.1f} | {two[phase]:.1f} | {seconds / two[phase]:.2f} |")
        same = reports[0]["digest"] == reports[1]["digest"]
        print(f"\nThe releases are {'the same, byte for byte' if same else 'NOT the same'}.")
        if not same:
            raise SystemExit(1)
    stages = reports[0]["summary"]["stages"]
    whole = sum(stages.values())
    print("\n| stage of one worker's jobs | s | ms per concept | share |\n|---|---|---|---|")
    for stage, seconds in sorted(stages.items(), key=lambda entry: -entry[1]):
        print(f"| {stage} | {seconds:.2f} | {1000 * seconds / len(rows):.0f} | {seconds / whole:.1%} |")


if __name__ == "__main__":
    main()
