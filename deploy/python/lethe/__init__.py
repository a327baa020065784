"""Runs Lethe, which removes concepts from CLIP models, and reads its releases.

Everything is computed by the program `lethe`. This module starts it, and parses what it prints and writes:

    with lethe.run("manifest.toml", store="store") as run:
        for event in run:
            print(event.message)
        release = run.result().open()
    print(release.digest, [concept.id for concept in release.concepts])

A command that does not end with exit code 0 raises `Failure`.
"""

from ._failure import ExitCode, Failure
from ._release import (
    Accuracy,
    Base,
    Candidates,
    Concept,
    Criterion,
    DataFile,
    FileReference,
    Group,
    Hits,
    Measured,
    Missing,
    NameSearches,
    Probe,
    Recall,
    Recognition,
    Release,
    Target,
    Utility,
    UtilityOn,
    Verdict,
    WorstClass,
)
from ._run import Command, Event, Result, Run, call, run, start

__all__ = [
    "Accuracy",
    "Base",
    "Candidates",
    "Command",
    "Concept",
    "Criterion",
    "DataFile",
    "Event",
    "ExitCode",
    "Failure",
    "FileReference",
    "Group",
    "Hits",
    "Measured",
    "Missing",
    "NameSearches",
    "Probe",
    "Recall",
    "Recognition",
    "Release",
    "Result",
    "Run",
    "Target",
    "Utility",
    "UtilityOn",
    "Verdict",
    "WorstClass",
    "call",
    "run",
    "start",
]
