"""Finds the programs of this wheel and the libtorch of this environment, and starts them."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from pathlib import Path
from typing import NoReturn

from ._failure import ExitCode, Failure

TORCH = "2.11.0"
HERE = Path(__file__).resolve().parent


def command(name: str) -> tuple[str, dict[str, str]]:
    """Returns the path of a program, and the environment in which it finds libtorch.

    Raises `Failure` when this environment has no torch of the right version.
    """
    environment = dict(os.environ)
    torch = HERE.parent / "torch"
    if not is_torch(torch):
        # Elsewhere on the path, as in a virtual environment that sees the system's packages.
        torch = elsewhere()
        folders = [str(torch / "lib"), environment.get("LD_LIBRARY_PATH", "")]
        environment["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, folders))
    check_version(torch)
    # Where the programs look for the CUDA half.
    environment.setdefault("LETHE_LIBTORCH", str(torch))
    return str(HERE / "bin" / name), environment


def is_torch(folder: Path) -> bool:
    return (folder / "lib" / "libtorch_cpu.so").is_file()


def elsewhere() -> Path:
    # Finds the package without importing it, which takes seconds.
    found = importlib.util.find_spec("torch")
    for folder in map(Path, (found and found.submodule_search_locations) or []):
        if is_torch(folder):
            return folder
    problem = f"this environment has no torch, which brings libtorch; run `pip install torch=={TORCH}`"
    raise Failure(ExitCode.INFRASTRUCTURE, [problem])


def check_version(torch: Path) -> None:
    file = torch / "version.py"
    found = re.search(r"__version__ = '([^']+)'", file.read_text() if file.is_file() else "")
    version = found[1] if found else "of an unknown version"
    # A local version such as +cpu or +cu130 does not change the interface.
    if version.split("+")[0] != TORCH:
        problem = f"{torch} is torch {version}, and this wheel needs {TORCH}; run `pip install torch=={TORCH}`"
        raise Failure(ExitCode.INFRASTRUCTURE, [problem])


def become(name: str) -> NoReturn:
    try:
        program, environment = command(name)
    except Failure as failure:
        print(*(f"error: {message}" for message in failure.messages), sep="\n", file=sys.stderr)
        sys.exit(failure.exit_code)
    os.execve(program, [name, *sys.argv[1:]], environment)


def lethe() -> NoReturn:
    """Becomes `lethe`: signals and the exit code are the program's own."""
    become("lethe")


def lethe_worker() -> NoReturn:
    """Becomes `lethe-worker`."""
    become("lethe-worker")
