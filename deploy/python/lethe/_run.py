"""Runs commands of `lethe` and reads what they say."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ._failure import Failure
from ._programs import command
from ._release import Release

if TYPE_CHECKING:
    from typing_extensions import Self

Argument = str | os.PathLike[str]


@dataclass(frozen=True)
class Event:
    """One line that a command logs."""

    level: str
    """`INFO`, `WARN`, `WARNING` or `ERROR`."""
    message: str
    phase: str | None = None
    """The phase of the run that the line reports; `done` and `total` count its jobs."""
    done: int | None = None
    total: int | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)
    """Everything that the line holds."""

    @classmethod
    def of(cls, line: str) -> Event:
        try:
            fields = json.loads(line)
        except ValueError:
            fields = None
        if not isinstance(fields, dict):
            # Problems of the command line come before logging begins.
            return cls("ERROR", line.removeprefix("error: "))
        known = {name: fields.get(name) for name in ("phase", "done", "total")}
        return cls(fields.get("level", "INFO"), fields.get("message", ""), **known, fields=fields)


@dataclass(frozen=True)
class Result:
    """What a run printed last."""

    run: str
    release: str
    """The address of the release."""
    number: int
    digest: str
    """SHA-256 over the released weights."""
    status: str
    missed: tuple[str, ...]
    """Gates that are not met."""
    warnings: tuple[str, ...]
    unmoved: str | None
    """The reason why `latest` does not point to the release, if it does not."""
    summary: Mapping[str, Any]
    """The numbers, as docs/record.md lists them."""

    @classmethod
    def of(cls, output: Mapping[str, Any]) -> Result:
        return cls(
            run=output["run"],
            release=output["release"],
            number=output["number"],
            digest=output["digest"],
            status=output["status"],
            missed=tuple(output["missed"]),
            warnings=tuple(output["warnings"]),
            unmoved=output.get("unmoved"),
            summary=output["summary"],
        )

    @property
    def name(self) -> str:
        """The release's name and number, such as `emoji-8:1`, as commands on releases take them."""
        return f"{release_name(self.release)}:{self.number}"

    def open(self) -> Release:
        """Reads the release's record. The store must be a folder of this machine."""
        return Release(self.release)


def release_name(address: str) -> str:
    """Returns the name in a release's address, `…/releases/NAME/DIGEST`."""
    return address.rstrip("/").split("/")[-2]


def last_object(text: str) -> Mapping[str, Any] | None:
    """Returns the JSON object of the last line; `None` when it is something else, such as a help text."""
    try:
        found = json.loads(text.rstrip("\n").rpartition("\n")[2])
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


class Command(Iterator[Event]):
    """A command that is being executed.

    Iterating gives its events. Where the events end, a command that failed raises `Failure`.
    Ctrl-C stops the command at its next safe point, and then raises `KeyboardInterrupt`; a second Ctrl-C stops it at once.
    Leaving a `with` block before the end cancels the command.
    """

    def __init__(self, arguments: list[Argument]) -> None:
        program, environment = command("lethe")
        environment["LETHE_LOG_FORMAT"] = "json"
        with ExitStack() as files:
            # A file, because a pipe that nobody reads would fill up and stop the command.
            self._stdout = files.enter_context(tempfile.TemporaryFile())
            # In a session of its own: a terminal sends Ctrl-C to this process alone, which passes it on once.
            self._process = subprocess.Popen(
                [program, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=self._stdout,
                stderr=subprocess.PIPE,
                env=environment,
                encoding="utf-8",
                errors="replace",
                start_new_session=True,
            )
            assert self._process.stderr is not None
            self._lines = files.enter_context(self._process.stderr)
            self._files = files.pop_all()
        self._errors: list[str] = []
        self._output: Mapping[str, Any] | None = None

    def __next__(self) -> Event:
        line = self._line()
        if line:
            event = Event.of(line.rstrip("\n"))
            if event.level == "ERROR" and event.message:
                self._errors += event.message.split("\nerror: ")
            return event
        self._end()
        raise StopIteration

    def _line(self) -> str:
        if self._lines.closed:
            return ""
        try:
            return self._lines.readline()
        except KeyboardInterrupt:
            self.cancel()
            raise

    def cancel(self) -> None:
        """Stops the command at its next safe point, and waits until it has stopped."""
        while self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            try:
                # Its last lines are read, lest it wait for a reader.
                self._process.communicate()
            except KeyboardInterrupt:
                continue
        self._files.close()

    def _end(self) -> None:
        code = self._process.wait()
        if not self._stdout.closed:
            self._stdout.seek(0)
            self._output = last_object(self._stdout.read().decode())
            self._files.close()
        if code != 0:
            raise Failure(code, self._errors, self._output)

    def output(self) -> Mapping[str, Any]:
        """Waits for the end, and returns the JSON object that the command printed. Raises `Failure`."""
        for _ in self:
            pass
        if self._output is None:
            raise Failure(0, ["the command printed no JSON object"])
        return self._output

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()


class Run(Command):
    """A run that is being executed, see `Command`."""

    def result(self) -> Result:
        """Waits for the end, and returns what the run printed. Raises `Failure`."""
        return Result.of(self.output())


def run(
    manifest: Argument,
    *options: Argument,
    store: Argument | None = None,
    nats: str | None = None,
    gates: Argument | None = None,
) -> Run:
    """Starts `lethe run MANIFEST`; `options` are any others of that command.

    Without `nats` all jobs are executed by the new process; with it, by workers elsewhere.
    """
    named = {"--store": store, "--nats": nats, "--gates": gates}
    given = [word for name, value in named.items() if value is not None for word in (name, value)]
    return Run(["run", manifest, "--json", *given, *options])


def start(*arguments: Argument) -> Command:
    """Starts any command that has `--json`.

    Example: `lethe.start("submit", "manifest.toml", "--watch")`
    """
    return Command([*arguments, "--json"])


def call(*arguments: Argument) -> Mapping[str, Any]:
    """Executes any command that has `--json`, and returns the object that it prints. Raises `Failure`.

    Example: `lethe.call("release", "promote", "emoji-8:1", "production", "--store", "store")`
    """
    return start(*arguments).output()
