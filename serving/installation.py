"""Where Triton is on this machine, and whether it can run with this Python.

On a machine of one's own the server comes inside the wheel of nvidia-pytriton, in an environment of its own (it pins
numpy < 2). Its Python backend starts one *stub* process per worker; the stub embeds libpython and becomes whatever
interpreter comes first on PATH, which is how models run in the environment that launched the server.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from crystalforge.common.errors import InputError, one_of

ENVIRONMENT_VARIABLE = "CRYSTALFORGE_TRITON_VENV"
OFFICIAL = Path("/opt/tritonserver")  # in the vendor's container image; its stub belongs to the image's own Python
ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Installation:
    """The parts of a Triton installation that a launch needs."""

    server: Path
    backend: tuple[Path, ...]

    def make_backend_folder(self, folder: Path) -> Path:
        """Lay out `folder/python` as Triton wants a backend: library, utilities and the stub side by side."""
        target = folder / "python"
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        for source in self.backend:
            (target / source.name).symlink_to(source)
        return folder

    def environment(self) -> dict[str, str]:
        """Environment variables for the server: our interpreter first, its libpython, one thread each."""
        environment = dict(os.environ)
        # Not resolved: the folder of a virtual environment's own python selects that environment.
        environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", "")])
        environment["LD_LIBRARY_PATH"] = library_path()
        environment.pop("PYTHONHOME", None)
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            environment[name] = "1"
        return environment


def library_path() -> str:
    """LD_LIBRARY_PATH with this interpreter's libpython in front."""
    folders = [str(sysconfig.get_config_var("LIBDIR") or ""), os.environ.get("LD_LIBRARY_PATH", "")]
    return os.pathsep.join(folder for folder in folders if folder)


def find() -> Installation:
    """The installation to use; InputError with reason and remedy when none works here."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    if platform.system() != "Linux":
        raise InputError(
            f"the inference server has no build for {platform.system()}",
            remedy="let the reward run in process, or give the address of a server elsewhere",
        )
    venv = Path(os.environ.get(ENVIRONMENT_VARIABLE, ROOT / ".venv-triton"))
    roots = sorted(venv.glob("lib/python*/site-packages/pytriton/tritonserver"))
    if not roots and ENVIRONMENT_VARIABLE not in os.environ and (OFFICIAL / "bin" / "tritonserver").exists():
        return Installation(OFFICIAL / "bin" / "tritonserver", tuple((OFFICIAL / "backends" / "python").iterdir()))
    if not roots:
        raise InputError(
            f"no inference server (nvidia-pytriton) for {platform.machine()}",
            source=venv,
            remedy=f"run `make install`, or set {ENVIRONMENT_VARIABLE} to an environment that has it",
        )
    root = roots[-1]
    stub = root / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.exists():
        there = stub.parent.parent
        known = sorted(path.name for path in there.iterdir()) if there.is_dir() else []
        raise InputError(
            f"the inference server cannot run models under Python {version}",
            source=root,
            remedy=one_of("use one of", known, nothing="install the inference server anew"),
        )
    missing = _missing_libraries(stub)
    if missing:
        raise InputError(
            f"the inference server's Python worker lacks {', '.join(missing)}",
            source=stub,
            remedy=f"install it (on Debian: apt-get install libpython{version})",
        )
    return Installation(root / "bin" / "tritonserver", (*(root / "backends" / "python").iterdir(), stub))


def available() -> tuple[bool, str]:
    """Whether a server can be started here, and if not, why.

    >>> usable, reason = available()
    >>> usable or bool(reason)
    True
    """
    try:
        find()
    except InputError as error:
        return False, str(error)
    return True, ""


def _missing_libraries(binary: Path) -> list[str]:
    environment = {**os.environ, "LD_LIBRARY_PATH": library_path()}
    try:
        listing = subprocess.run(["ldd", str(binary)], env=environment, capture_output=True, text=True, timeout=30)
    except FileNotFoundError:
        return []  # no ldd on this system: the start itself will tell
    return [line.split()[0] for line in listing.stdout.splitlines() if line.rstrip().endswith("not found")]
