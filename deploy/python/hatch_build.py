"""Adds the programs to the wheel, and names the platform that they need."""

import platform
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PROGRAMS = ("lethe", "lethe-worker")
# From lethe/bin/ to torch/lib/, which pip installs into one site-packages. It replaces the paths of a checkout.
LIBTORCH = "$ORIGIN/../../torch/lib"
# The newest libstdc++ symbols that each glibc's distributions have (PEP 600's policies, as auditwheel lists them).
GLIBCXX = {28: 24, 31: 28, 34: 29, 35: 30, 39: 33}


class Programs(BuildHookInterface):  # type: ignore[type-arg]
    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        built = Path(self.root, "../../target/release").resolve()
        staged = Path(self.root, "../../target/wheel/programs").resolve()
        staged.mkdir(parents=True, exist_ok=True)
        for name in PROGRAMS:
            if not (built / name).is_file():
                raise SystemExit(f"{built / name} is missing; run `make wheel`, which builds it")
            shutil.copy2(built / name, staged / name)
            # Line tables are half of a program; a wheel goes without them.
            subprocess.run(["strip", "--strip-debug", staged / name], check=True)
            subprocess.run(["patchelf", "--force-rpath", "--set-rpath", LIBTORCH, staged / name], check=True)
            build_data["force_include"][str(staged / name)] = f"lethe/bin/{name}"
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platform_tag([staged / name for name in PROGRAMS])}"


def platform_tag(programs: list[Path]) -> str:
    """Returns the manylinux tag of the oldest glibc and libstdc++ that have all symbols of these programs."""
    command = ["readelf", "--version-info", "--wide", *map(str, programs)]
    needs = subprocess.run(command, check=True, capture_output=True, text=True, env={"LC_ALL": "C"}).stdout
    glibc = newest(r"\bGLIBC_2\.(\d+)", needs)
    glibcxx = newest(r"\bGLIBCXX_3\.4\.(\d+)", needs)
    for policy, symbols in GLIBCXX.items():
        if policy >= glibc and symbols >= glibcxx:
            return f"manylinux_2_{policy}_{platform.machine()}"
    raise SystemExit(f"no known distribution has GLIBC_2.{glibc} and GLIBCXX_3.4.{glibcxx}, which the programs need")


def newest(symbol: str, text: str) -> int:
    return max(map(int, re.findall(symbol, text)), default=0)
