"""A Ray job that executes a manifest on one node and points a channel to its release.

    ray job submit --working-dir FOLDER -- python lethe_job.py MANIFEST STORE CHANNEL [--gpus N]

FOLDER has this file and the manifest. The nodes need the wheel of Lethe (docs/how-to/python.md). All jobs of the run are executed by
the GPUs that Ray reserves for the task. When the node is lost or the store fails, Ray starts the task again, on any node, and the run
continues from the store. The job's exit code is that of `lethe`.
"""

import argparse
import sys

import lethe
import ray


class Temporary(Exception):
    """The same command may succeed later."""


@ray.remote(max_retries=10, retry_exceptions=[Temporary])
def run_and_promote(manifest: str, store: str, channel: str) -> tuple[int, str]:
    """Returns the exit code, and the release or the reasons why there is none."""
    try:
        with lethe.run(manifest, store=store) as run:
            for event in run:
                print(event.message)
            release = run.result().name
        lethe.call("release", "promote", release, channel, "--store", store)
    except lethe.Failure as failure:
        if failure.is_temporary:
            raise Temporary(str(failure)) from failure
        # Bad input (2), a concept that is not removed (3), a missed gate (4), a cancelled run (130): trying again does not help.
        return failure.exit_code, str(failure)
    return lethe.ExitCode.DONE, f"{channel} points to {release}"


def main() -> int:
    parser = argparse.ArgumentParser(description="Executes a manifest on a Ray cluster")
    parser.add_argument("manifest")
    parser.add_argument("store", help="an address that every node reaches")
    parser.add_argument("channel", help="points to the release of a run that succeeds")
    parser.add_argument("--gpus", type=float, default=0, help="GPUs of one node to reserve (default: none)")
    options = parser.parse_args()
    task = run_and_promote.options(num_gpus=options.gpus).remote(options.manifest, options.store, options.channel)
    try:
        code, message = ray.get(task)
    except Temporary as failure:
        code, message = lethe.ExitCode.INFRASTRUCTURE, str(failure)
    print(message, file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
