"""An Airflow DAG that submits a manifest to a coordinator, follows its run, and points a channel to its release.

The workers of Airflow need the wheel of Lethe (docs/how-to/python.md), `LETHE_NATS` with a client's credentials, and access to the
coordinator's store. A run belongs to the coordinator: a task that is killed or repeated follows the same run, and `lethe cancel` ends it.
"""

from datetime import timedelta

import lethe
from airflow.sdk import Param, dag, task
from airflow.sdk.exceptions import AirflowFailException


def execute(command: lethe.Command) -> dict:
    """Follows a command to its end; tells Airflow to try again only if the same command may succeed later."""
    try:
        with command:
            for event in command:
                print(event.message)
            return dict(command.output())
    except lethe.Failure as failure:
        # Bad input (2), a concept that is not removed (3), a missed gate (4), or a run that somebody cancelled (130).
        if not failure.is_temporary:
            raise AirflowFailException(str(failure)) from failure
        raise


@task(retries=10, retry_delay=timedelta(minutes=1), retry_exponential_backoff=True, max_retry_delay=timedelta(hours=1))
def submit(manifest: str) -> str:
    """Returns the address of the run's release."""
    return execute(lethe.start("submit", manifest, "--watch"))["release"]


@task(retries=10, retry_delay=timedelta(minutes=1))
def promote(address: str, channel: str) -> str:
    """Points the channel to the release, and returns the release's name and number."""
    # …/store/releases/NAME/DIGEST, where DIGEST begins the record's digest.
    store, _, path = address.rstrip("/").rpartition("/releases/")
    name, digest = path.split("/")
    releases = execute(lethe.start("release", "list", name, "--store", store))["releases"]
    number = next(found["number"] for found in releases if found["release"]["record"].startswith(digest))
    execute(lethe.start("release", "promote", f"{name}:{number}", channel, "--store", store))
    return f"{name}:{number}"


@dag(
    schedule=None,
    catchup=False,
    tags=["lethe"],
    params={
        "manifest": Param("/srv/lethe/manifest.toml", type="string", description="a file that Airflow's workers see"),
        "channel": Param("production", type="string", description="points to the release of a run that succeeds"),
    },
)
def lethe_run():
    promote(submit("{{ params.manifest }}"), "{{ params.channel }}")


lethe_run()
