"""Lethe against the authors' procedure on the same concepts: the same edits? at what price?

Usage: bench_peer.py LETHE MANIFEST WORK_FOLDER [--concepts N] [--check N] [--evaluations N]
"""

import argparse
import json
import statistics
from pathlib import Path

import slug
import torch
from runs import lethe, manifest_of, rows_of

STEP_TOLERANCE = 1e-3


def measure(arguments, method, rows):
    """Seconds that each further concept costs a run, all else of the second run included; its store and report."""
    work, store = arguments.work, arguments.work / f"store-{method}"
    lethe(arguments.lethe, manifest_of(arguments.manifest, rows[:1], work, f"{method}-one", method), store)
    wall, cpu, report = lethe(arguments.lethe, manifest_of(arguments.manifest, rows, work, method, method), store)
    more = len(rows) - 1
    return wall / more, cpu / more, store, report


def validation_pass(store):
    """Seconds of one pass over validation images and class texts: the evaluation of the unedited model did it."""
    outcomes = (json.loads(path.read_text()) for path in (store / "outcomes").rglob("*.json"))
    looks = (outcome["execution"]["stages"] for outcome in outcomes if "validation" in outcome["output"].get("items", {}))
    return max(stages["images"] + stages["classes"] for stages in looks)


def shares(name, summary, store):
    """What a concept's jobs cost, and the bound: three times its forget gradient and one pass over validation images and class texts.
    What jobs set up for all that come after them in their process is not charged to any concept."""
    stages, count = summary["stages"], summary["seconds_per_concept"]["count"]
    once, one_pass = stages["validation"] + stages["classes"], validation_pass(store)
    gradient = stages["gradient"] / count
    search = sum(spent for stage, spent in stages.items() if stage.startswith(("search", "choice"))) / count
    whole = summary["seconds_per_concept"]["mean"] - once / count
    bound = gradient + one_pass
    print(f"| {name} | {gradient:.2f} | {stages['ranking'] / count:.2f} | {search:.2f} | {whole:.2f} | {one_pass:.2f} | {whole / bound:.2f} |")


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
    rows = rows_of(arguments.manifest)[: arguments.concepts]

    full, default = measure(arguments, "sum", rows), measure(arguments, "preconditioned", rows)
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
    for name, (wall, cpu, *_) in (("Lethe, the same procedure (`sum`)", full), ("Lethe, `preconditioned`", default)):
        print(f"| {name} | {wall:.2f} | {cpu:.2f} | {total['cpu'] / cpu:.0f} |")
    print("\n| per concept, s | gradient | ranking | search | whole job | one validation pass | whole of gradient and pass |\n|---|---|---|---|---|---|---|")
    for name, (*_, store, report) in (("`sum`", full), ("`preconditioned`", default)):
        shares(name, report["summary"], store)
    if not same:
        raise SystemExit("the edits are not the same")


if __name__ == "__main__":
    main()
