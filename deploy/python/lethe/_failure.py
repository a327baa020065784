"""How a command fails."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Any


class ExitCode(IntEnum):
    """The exit codes of `lethe`."""

    DONE = 0
    BAD_INPUT = 2
    """Bad manifest or arguments; the same command fails again."""
    INCOMPLETE = 3
    """Finished, but a required concept has no edit or is still recognised."""
    GATE_MISSED = 4
    """A gate is not met, or a release differs from what was released."""
    INFRASTRUCTURE = 5
    """The store, the queue or the machine failed; the same command continues."""
    CANCELLED = 130
    """Stopped; the same command continues."""


class Failure(Exception):
    """A command that did not end with exit code 0."""

    def __init__(self, exit_code: int, messages: Sequence[str], output: Mapping[str, Any] | None = None) -> None:
        self.exit_code = exit_code
        """One of `ExitCode`; negative when a signal ended the program."""
        self.messages = tuple(messages)
        """The errors that the command reported."""
        self.output = output
        """The JSON object that the command printed: a run whose release misses a gate has one."""
        super().__init__(exit_code, self.messages, output)

    @property
    def is_temporary(self) -> bool:
        """Whether the same command may succeed later: the infrastructure failed, or a signal ended the program."""
        return self.exit_code == ExitCode.INFRASTRUCTURE or self.exit_code < 0

    def __str__(self) -> str:
        return f"exit code {self.exit_code}: {'; '.join(self.messages) or 'no error was reported'}"
