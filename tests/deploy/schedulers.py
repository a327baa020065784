"""Executes what deploy/ has for Airflow and Ray, with the real programs.

    schedulers.py dags                       the real Airflow finds the DAG, and no problem in it
    schedulers.py airflow MANIFEST STORE     submits to the coordinator of LETHE_NATS, follows, promotes; then the exit codes
    schedulers.py ray MANIFEST STORE         runs the job on this machine; then the exit codes

The module `lethe` is on the path, and so are Airflow and Ray, or their stand-ins in tests/deploy/stubs.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import lethe

DEPLOY = Path("deploy").resolve()


def check(what: str, holds: bool, found: object = "") -> None:
    if not holds:
        sys.exit(f"deploy: error: {what}: {found}")


def channels(store: str, name: str) -> list[str]:
    [release] = lethe.call("release", "list", name, "--store", store)["releases"]
    return release["channels"]


def dags() -> None:
    from airflow.dag_processing.dagbag import DagBag

    bag = DagBag(DEPLOY / "airflow")
    check("Airflow parses the DAG", not bag.import_errors, bag.import_errors)
    dag = bag.dags["lethe_run"]
    check("it submits, then promotes", dag.task_dict["submit"].downstream_task_ids == {"promote"} and len(dag.tasks) == 2, dag.tasks)
    check("both are tried again", all(task.retries == 10 for task in dag.tasks), dag.tasks)


def airflow(manifest: str, store: str) -> None:
    sys.path.insert(0, str(DEPLOY / "airflow"))
    import lethe_dag
    from airflow.sdk.exceptions import AirflowFailException

    address = lethe_dag.submit.function(manifest)
    check("the task returns the run's release", address.startswith(f"{store}/releases/"), address)
    check("the release gets the channel", lethe_dag.promote.function(address, "by-airflow") == "emoji-8:1")
    check("it points to the release", "by-airflow" in channels(store, "emoji-8"), channels(store, "emoji-8"))

    with tempfile.TemporaryDirectory() as folder:
        bad = Path(folder, "bad.toml")
        bad.write_text("version = 0\n")
        check("bad input is not repeated", raised(lethe_dag.submit.function, str(bad)) is AirflowFailException)
    os.environ |= {"LETHE_NATS": "nats://127.0.0.1:9", "LETHE_GIVE_UP": "1"}
    check("an unreachable queue is", raised(lethe_dag.submit.function, manifest) is lethe.Failure)
    gated = lethe.Failure(lethe.ExitCode.GATE_MISSED, ["a gate is not met"])
    check("a missed gate is not repeated", raised(lethe_dag.execute, Failing(gated)) is AirflowFailException)


class Failing(lethe.Command):
    """A command that has failed in this way."""

    def __init__(self, failure: lethe.Failure) -> None:
        self.failure = failure

    def __next__(self) -> lethe.Event:
        raise self.failure

    def cancel(self) -> None:
        pass


def raised(function, *arguments: object) -> type[BaseException] | None:
    try:
        function(*arguments)
    except Exception as error:
        return type(error)
    return None


def ray(manifest: str, store: str) -> None:
    def job(manifest: str, store: str) -> tuple[int, str]:
        command = [sys.executable, str(DEPLOY / "ray/lethe_job.py"), manifest, store, "by-ray"]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        return done.returncode, done.stdout

    code, said = job(manifest, store)
    check("the job succeeds", code == 0 and "by-ray points to emoji-8:1" in said, said)
    check("the release gets the channel", "by-ray" in channels(store, "emoji-8"), channels(store, "emoji-8"))
    gated = Path(manifest).with_name("gated.toml")
    # A bound that no release meets.
    gated.write_text(Path(manifest).read_text().replace("emoji-8", "gated") + "\n[gates]\nchange = 0.001\n")
    code, said = job(str(gated), store)
    check("a missed gate ends the job with 4, without another attempt", code == 4 and "retried" not in said, said)
    check("and no channel moves", not channels(store, "gated"))
    # Nobody can make a folder there.
    code, said = job(manifest, "/proc/store")
    check("a store that fails ends it with 5, after other attempts", code == 5 and "will be retried" in said, said)


if __name__ == "__main__":
    {"dags": dags, "airflow": airflow, "ray": ray}[sys.argv[1]](*sys.argv[2:])
