"""The record of a release, `composition.json`, as docs/record.md documents it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ._failure import ExitCode, Failure
from ._fields import members

RECORD = "composition.json"


@dataclass(frozen=True)
class FileReference:
    """A file by its content."""

    digest: str
    bytes: int


@dataclass(frozen=True)
class DataFile:
    """A file of data by its content."""

    digest: str
    bytes: int
    items: int


@dataclass(frozen=True)
class Base:
    """The model that was edited."""

    address: str
    digest: str


@dataclass(frozen=True)
class Hits:
    """Top predictions for `n` images of one class."""

    n: int
    top1: int
    top5: int


@dataclass(frozen=True)
class Measured:
    """How well a model knows a concept: top-k accuracy on its forget images, from 0 to 1."""

    fa1: float
    fa5: float
    within: float | None = None
    held_out: Hits | None = None
    utility: float | None = None


@dataclass(frozen=True)
class Criterion:
    """When a concept counts as forgotten."""

    stop: Any
    tolerance: float


@dataclass(frozen=True)
class Verdict:
    """A concept's status (`removed`, `showing`, …) and the reason for it."""

    status: str
    reason: str


@dataclass(frozen=True)
class Concept:
    """A concept that has an edit."""

    id: str
    name: str
    class_name: str = field(metadata={"key": "class"})
    tower: str
    layer: str
    step: float
    relative_step: float
    strength: float
    coefficient: float = field(metadata={"key": "dose"})
    importance: float
    alignment: float
    pairs: int
    direction: FileReference
    before: Measured
    """Of the base model."""
    alone: Measured | None = None
    """With this edit alone, at strength 1."""
    composed: Measured | None = None
    """Of the released model; `None` until it is measured."""
    verdict: Verdict | None = None
    criterion: Criterion | None = None
    group: str | None = None
    layers: tuple[str, ...] = ()
    run: str | None = None
    target: float | None = None
    by_others: float | None = None
    rank: int | None = None
    residual: float | None = None
    forget: tuple[DataFile, ...] = ()


@dataclass(frozen=True)
class Missing:
    """A concept without an edit."""

    id: str
    reason: str


@dataclass(frozen=True)
class Accuracy:
    """Zero-shot accuracy, from 0 to 1."""

    ta1: float
    ta5: float


@dataclass(frozen=True)
class Group:
    """Accuracy over a group of classes, of the base model and of the release."""

    classes: int
    images: int
    before: Accuracy
    after: Accuracy


@dataclass(frozen=True)
class WorstClass:
    """A retained class that lost much."""

    class_name: str = field(metadata={"key": "class"})
    before: Hits
    after: Hits


@dataclass(frozen=True)
class UtilityOn:
    """Accuracy on one set of images: over retained classes, and over groups of classes."""

    images: int
    before: Accuracy
    after: Accuracy
    worst: tuple[WorstClass, ...]
    covered: Group | None = None
    never_seen: Group | None = None
    removed: Group | None = None


@dataclass(frozen=True)
class Utility:
    """Accuracy on retained classes."""

    retained_classes: int | None = None
    validation: UtilityOn | None = None
    test: UtilityOn | None = None


@dataclass(frozen=True)
class Candidates:
    """How often a removed name scores highest beside `others` retained names."""

    others: int
    before: float
    after: float


@dataclass(frozen=True)
class Recall:
    """The share of searches that find an image of the concept first, in the first 5, in the first 20."""

    r1: float
    r5: float
    r20: float


@dataclass(frozen=True)
class NameSearches:
    """Searches by the names of removed concepts in a set of images."""

    set: str
    names: int
    before: Recall
    after: Recall


@dataclass(frozen=True)
class Recognition:
    """What can still be told of removed concepts."""

    candidates: tuple[Candidates, ...] = ()
    searches: tuple[NameSearches, ...] = ()


@dataclass(frozen=True)
class Probe:
    """What a probe measured."""

    name: str
    version: str
    exit_code: int
    numbers: Mapping[str, float]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Target:
    """Another model that received the edits; its files are in `targets/NAME`."""

    name: str
    kind: str
    address: str
    pass_through: str
    source: Mapping[str, FileReference]
    changed: Mapping[str, FileReference]
    without: tuple[str, ...] = ()
    """Ids of concepts whose edit cannot act in it."""
    left_out: tuple[str, ...] = ()
    tolerance: float | None = None


@dataclass(frozen=True, init=False)
class Release:
    """A release in a folder of this machine, by its record.

    `Release(path)` reads the record and checks nothing else: `lethe.call("verify", path)` checks every file.
    """

    name: str
    run: str
    digest: str
    """SHA-256 over the released weights."""
    method: str
    base: Base
    concepts: tuple[Concept, ...]
    missing: tuple[Missing, ...]
    utility: Utility
    files: Mapping[str, FileReference]
    recognition: Recognition | None = None
    gates: Mapping[str, Any] | None = None
    """The manifest's gates."""
    targets: tuple[Target, ...] = ()
    probes: tuple[Probe, ...] = ()
    layers: Mapping[str, float] = field(default_factory=dict)
    """‖Δ‖/‖θ‖ of every changed layer."""
    near_duplicates: tuple[tuple[str, ...], ...] = ()
    parent: Mapping[str, Any] | None = None
    origin: Mapping[str, Any] | None = None
    path: Path = field(init=False)
    record: str = field(init=False)
    """SHA-256 of `composition.json`, which identifies the release."""
    document: Mapping[str, Any] = field(init=False, repr=False)
    """Everything that the record holds, as JSON."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        file = Path(path) / RECORD
        try:
            data = file.read_bytes()
            document = json.loads(data)
            version = document["version"]
        except OSError as error:
            problem = f"{path} is not a release in a folder of this machine: {error.strerror} reading {file}"
            raise Failure(ExitCode.BAD_INPUT, [problem]) from error
        except (ValueError, TypeError, KeyError) as error:
            raise Failure(ExitCode.BAD_INPUT, [f"{file} is not the record of a release: {error!r}"]) from error
        if version != 1:
            problem = f"{file} has format version {version}, and this version of Lethe reads version 1"
            raise Failure(ExitCode.BAD_INPUT, [problem])
        found = {"path": Path(path), "record": hashlib.sha256(data).hexdigest(), "document": document}
        try:
            found |= members(Release, document)
        except (KeyError, TypeError) as error:
            raise Failure(ExitCode.BAD_INPUT, [f"{file} lacks a field, or has one of another type: {error}"]) from error
        for name, value in found.items():
            object.__setattr__(self, name, value)

    def concept(self, id: str) -> Concept:
        """Returns the concept of this id. Raises `KeyError` when the release has no edit for it."""
        for concept in self.concepts:
            if concept.id == id:
                return concept
        raise KeyError(id)
