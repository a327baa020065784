"""Uses the module `lethe` as installed from its wheel: a run, its release, failures, Ctrl-C, and the documentation's examples.

    check_module.py DEMO PAGE     DEMO: a folder with small.toml, whose store is written there; PAGE: docs/how-to/python.md
"""

import contextlib
import dataclasses
import importlib.metadata
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import lethe
from lethe import _programs

BIN = Path(sys.executable).parent


def check(what: str, holds: bool, *found: object) -> None:
    print(f"  {'ok  ' if holds else 'FAIL'} {what}", *([] if holds else found))
    if not holds:
        sys.exit(1)


def interrupted(command: list[str], until: str) -> subprocess.Popen[str]:
    """Starts a command, and sends it SIGINT as soon as it has printed this."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    for line in process.stdout:
        if until in line:
            process.send_signal(signal.SIGINT)
            return process
    raise AssertionError(f"{command} did not say {until}")


def programs_run() -> bool:
    links = [Path(f"/proc/{process}/exe") for process in os.listdir("/proc") if process.isdigit()]
    own = str(_programs.HERE / "bin/lethe")
    return any(os.path.exists(link) and os.readlink(link) == own for link in links)


def ctrl_c() -> None:
    process = interrupted([BIN / "lethe", "run", "small.toml", "--store", "interrupted"], "8 concepts")
    check("the script becomes the program", os.readlink(f"/proc/{process.pid}/exe") == str(_programs.HERE / "bin/lethe"))
    process.communicate()
    check("SIGINT stops the program, whose exit code passes through", process.returncode == 130, process.returncode)
    script = "import lethe\nfor event in lethe.run('small.toml', store='interrupted'): print(event.message, flush=True)"
    process = interrupted([sys.executable, "-c", script], "8 concepts")
    said, _ = process.communicate()
    check("Ctrl-C in Python is a KeyboardInterrupt", process.returncode == -signal.SIGINT and "KeyboardInterrupt" in said, said)
    check("the run has stopped then", not programs_run())
    process = subprocess.Popen([sys.executable, "-c", f"{script.splitlines()[0]}\nwith lethe.run('small.toml', store='left'): pass"])
    check("leaving a with block cancels the run", process.wait() == 0 and not programs_run() and not list(Path("left").glob("releases")))


def same(read: object, given: object) -> bool:
    """Whether a dataclass holds what the JSON object does."""
    if dataclasses.is_dataclass(read):
        fields = [field for field in dataclasses.fields(read) if field.init]
        return all(same(getattr(read, field.name), given.get(field.metadata.get("key", field.name), field.default)) for field in fields)
    if isinstance(read, dict):
        return read.keys() == given.keys() and all(same(read[key], given[key]) for key in read)
    if isinstance(read, tuple):
        return len(read) == len(given) and all(map(same, read, given))
    return read == given


def run_and_release() -> lethe.Result:
    start = time.monotonic()
    with lethe.run("small.toml", store="store") as run:
        events = list(run)
        result = run.result()
    phases = {event.phase: (event.done, event.total) for event in events if event.phase}
    check("events count the jobs of phases", phases.get("concepts") == (8, 8) and "evaluate" in phases, events)
    check(f"a run completes ({time.monotonic() - start:.0f} s)", (result.status, result.name) == ("complete", "emoji-8:1"), result)
    release = result.open()
    record = json.loads((Path(result.release) / "composition.json").read_text())
    check("the release is the one that the run printed", release.digest == result.digest and result.release.endswith(release.record[:12]))
    check("concepts, verdicts and numbers are those of the record", same(release, record) and len(release.concepts) == 8, release)
    concept = release.concepts[0]
    check("a concept is removed", concept == release.concept(concept.id) and concept.verdict.status == "removed", concept)
    check("its numbers are numbers", concept.before.fa5 > concept.composed.fa5 and release.utility.test.after.ta1 > 0.3, concept)
    check("the files are as released", not lethe.call("verify", result.release)["problems"])
    return result


def failure(what: str, code: int, command: lethe.Command) -> lethe.Failure:
    try:
        command.output()
    except lethe.Failure as problem:
        check(f"{what} is exit code {code}", problem.exit_code == code and bool(problem.messages), repr(problem))
        return problem
    raise AssertionError(f"{what}: no failure")


def failures(result: lethe.Result) -> None:
    Path("bad.toml").write_text(Path("small.toml").read_text().replace("version = 1", "version = 1\nnonsense = 2"))
    problem = failure("a bad manifest", lethe.ExitCode.BAD_INPUT, lethe.run("bad.toml", store="store"))
    check("the message names file and field", "bad.toml" in problem.messages[0] and "nonsense" in problem.messages[0], problem)
    problem = failure("an unknown option", lethe.ExitCode.BAD_INPUT, lethe.run("small.toml", "--nonsense"))
    check("neither is temporary", not problem.is_temporary and "--nonsense" in problem.messages[0], problem)
    Path("gates.toml").write_text("[gates]\nchange = 0.001\n")
    problem = failure("a missed gate", lethe.ExitCode.GATE_MISSED, lethe.run("small.toml", store="store", gates="gates.toml"))
    check("it comes with the release", problem.output["digest"] == result.digest and not problem.is_temporary, problem.output)
    failure("a command without an object", 0, lethe.start("run", "--help"))
    unreachable = lethe.start("status", "--nats", "nats://127.0.0.1:9", "--give-up", "1")
    check("an unreachable queue is temporary", failure("an unreachable queue", lethe.ExitCode.INFRASTRUCTURE, unreachable).is_temporary)
    try:
        lethe.Release("store")
    except lethe.Failure as problem:
        check("a folder that is no release says so", problem.exit_code == 2 and "store is not a release" in problem.messages[0], problem)
    else:
        raise AssertionError("store was read as a release")


def page(file: Path) -> None:
    """Executes the page's examples, one after another."""
    blocks = re.findall(r"^```python\n(.*?)^```", file.read_text(), re.MULTILINE | re.DOTALL)
    check("the page has its examples", len(blocks) == 4, blocks)
    names: dict[str, object] = {}
    with contextlib.redirect_stdout(io.StringIO()) as said:
        for block in blocks:
            exec(compile(block, str(file), "exec"), names)
    words = ["emoji-8:1 complete", "removed 1.0 0.0", "retained classes: TA@1 ", "True ('missing.toml: "]
    check("they print what the page says", all(word in said.getvalue() for word in words), said.getvalue())
    channels = lethe.call("release", "list", "--store", "store")["releases"][0]["channels"]
    check("they promoted the release", "production" in channels, channels)


def main() -> None:
    demo, file = Path(sys.argv[1]), Path(sys.argv[2]).resolve()
    os.chdir(demo)
    required = importlib.metadata.requires("lethe")
    check("the wheel requires the torch that its programs need", required == [f"torch=={_programs.TORCH}"], required)
    ctrl_c()
    failures(run_and_release())
    page(file)


main()
