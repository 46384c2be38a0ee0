"""Makes .venv hold exactly what requirements/ says. Every make target calls it; it needs only Python itself.

    python3 scripts/setup.py
    BELLWETHER_TORCH=cuda python3 scripts/setup.py    # or cpu: says which torch, instead of looking for a GPU

torch comes first and the lock after it without dependencies, so that nothing can bring a second torch. An
environment is either finished, and then carries its stamp, or it is built again from nothing: a setup that
was killed is mended by calling it again.
"""

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

if sys.version_info < (3, 10):  # noqa: UP036 - this is the one file that an older Python comes to read
    sys.exit(
        f"setup: Bellwether needs Python 3.10 or newer, and {sys.executable} is {sys.version.split()[0]}. "
        "Name a newer one, for instance: make train PYTHON=python3.11"
    )
if os.name != "posix":
    sys.exit("setup: Bellwether runs on Linux and macOS; on Windows, use WSL.")

import fcntl  # Windows has none

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = ROOT / "pyproject.toml"
LOCK = ROOT / "requirements" / "lock.txt"
CUDA_LOCK = ROOT / "requirements" / "cuda.txt"
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
LOG = VENV / "setup.log"
# Two stamps, because pyproject.toml changes often and the rest seldom.
ENVIRONMENT_STAMP = VENV / "environment.stamp"
PROJECT_STAMP = VENV / "project.stamp"

PYTHON_VERSION = sys.version.split()[0]


class SetupError(Exception):
    """Something the user can mend. The text says how."""


class CommandError(SetupError):
    """A command failed; `output` is what it printed."""

    def __init__(self, output: str) -> None:
        end = "\n".join("    " + line[:200] for line in output.splitlines()[-12:])
        super().__init__(f"a step failed; this is the end of {LOG}\n{end}")
        self.output = output


def main() -> None:
    started = time.monotonic()
    asked = os.environ.get("BELLWETHER_TORCH", "")
    if asked not in ("", "cpu", "cuda"):
        raise SetupError(f"BELLWETHER_TORCH={asked} is not known: write cpu or cuda, or unset it.")

    with only_setup():
        found, key = read_stamp(ENVIRONMENT_STAMP)
        # A build that is there stays until another is asked for by name: a login node without a GPU often
        # shares its checkout with the GPU nodes, and must not take their CUDA away.
        build = asked or found or ("cuda" if has_nvidia_gpu() else "cpu")
        environment_key = digest(LOCK, CUDA_LOCK, Path(__file__), made_by=where_and_by_what())
        project_key = digest(PYPROJECT)

        if (found, key) != (build, environment_key) or not PYTHON.exists():
            make_environment(build)
            write_stamp(ENVIRONMENT_STAMP, build, environment_key)
        elif read_stamp(PROJECT_STAMP) == (build, project_key):
            say("setup: .venv is up to date")
            if build == "cpu" and not asked and has_nvidia_gpu():
                say("setup: its torch is the CPU build; BELLWETHER_TORCH=cuda make setup brings the other")
            return

        say("[4/4] installing bellwether itself")
        pip("install", "--no-deps", "--no-build-isolation", "--editable", str(ROOT))
        pip("check")
        write_stamp(PROJECT_STAMP, build, project_key)
    say(f"setup: .venv is ready after {time.monotonic() - started:.0f} s")


def only_setup() -> IO[str]:
    """Waits until no other setup works on this checkout; closing what it returns lets the next one in.

    Every command that is run inherits the lock: a setup after a killed one also waits for the orphaned pip.
    """
    lock = open(ROOT / ".setup.lock", "w")  # noqa: SIM115 - the caller's `with` closes it
    os.set_inheritable(lock.fileno(), True)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say("setup: waiting for another setup of this checkout to end")
        fcntl.flock(lock, fcntl.LOCK_EX)
    except OSError:  # some parallel file systems are mounted without locks
        say("setup: this file system knows no locks; see to it that no other setup of this checkout runs now")
    return lock


def make_environment(build: str) -> None:
    if importlib.util.find_spec("ensurepip") is None:
        package = "python{}.{}-venv".format(*sys.version_info)
        raise SetupError(
            f"{sys.executable} cannot make virtual environments, as it has no ensurepip. "
            f"On Debian and Ubuntu: apt-get install {package}"
        )

    say(f"[1/4] making .venv with Python {PYTHON_VERSION}")
    for stamp in (ENVIRONMENT_STAMP, PROJECT_STAMP):
        stamp.unlink(missing_ok=True)
    home = VENV.resolve()  # .venv may be a link to a larger disk
    if home.exists():
        shutil.rmtree(home)
    home.mkdir(parents=True)
    # sys.executable lies inside .venv when the user has activated it.
    run(getattr(sys, "_base_executable", sys.executable), "-m", "venv", str(home))

    locked = requirements(LOCK)
    torch = next(line for line in locked if line.startswith("torch=="))
    deepspeed = next(line for line in locked if line.startswith("deepspeed=="))
    install_torch(build, torch)
    say(f"[3/4] installing the rest of {LOCK.relative_to(ROOT)}, about a minute")
    pip("install", "--no-deps", *(line for line in locked if line != deepspeed))
    # DeepSpeed comes as source only. Its setup.py imports torch and others of the lock; an isolated build
    # would not have them, or would bring a torch of its own.
    pip("install", "--no-deps", "--no-build-isolation", deepspeed)


def install_torch(build: str, torch: str) -> None:
    """Installs the pinned `torch`, a line like torch==2.13.0, as the build `cpu` or `cuda`."""
    if build == "cuda":
        say(f"[2/4] installing {torch} with CUDA, several GB")
        pip("install", "--no-deps", torch, *requirements(CUDA_LOCK))
        return
    if sys.platform != "linux":  # elsewhere the one build there is has no CUDA
        say(f"[2/4] installing {torch}")
        pip("install", "--no-deps", torch)
        return
    say(f"[2/4] installing {torch}+cpu (BELLWETHER_TORCH=cuda asks for the CUDA build)")
    try:
        pip("install", "--no-deps", f"{torch}+cpu")
    except CommandError as error:
        if "No matching distribution found" not in error.output:
            raise
        raise SetupError(
            f"{error}\n"
            f"Where pip looks there is no CPU build of {torch} for Python {PYTHON_VERSION}. Either\n"
            "  - tell it where one is: set PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS to PyTorch's index of CPU\n"
            "    wheels, whose address is on PyTorch's install page; or\n"
            "  - take the default build, with several GB of CUDA libraries: set BELLWETHER_TORCH=cuda\n"
            "and call the same again."
        ) from error


def has_nvidia_gpu() -> bool:
    if any(Path("/proc/driver/nvidia/gpus").glob("*")):
        return True
    nvidia_smi = shutil.which("nvidia-smi")  # all that WSL and some containers have
    if nvidia_smi is None:
        return False
    try:
        listing = subprocess.run([nvidia_smi, "-L"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return listing.stdout.startswith("GPU ")


def pip(command: str, *arguments: str) -> None:
    run(str(PYTHON), "-m", "pip", command, "--disable-pip-version-check", *arguments)


def run(*command: str) -> None:
    """Runs a command with its output in LOG."""
    environment = dict(os.environ)
    # Cluster modules set it, and pip would count what lies there as installed.
    environment.pop("PYTHONPATH", None)
    environment["PIP_USER"] = "0"
    # DeepSpeed names other dependencies when it is built in sight of a GPU, and pip keeps what it built:
    # build it alike everywhere. Its kernels are compiled at run time, for whatever is there then.
    environment.setdefault("DS_ACCELERATOR", "cpu")
    with open(LOG, "a+", errors="replace") as log:
        log.write(f"\n$ {' '.join(command)}\n")
        log.flush()
        start = log.tell()
        # close_fds=False hands on the lock.
        ended = subprocess.run(command, cwd=ROOT, env=environment, stdout=log, stderr=log, close_fds=False)
        if ended.returncode != 0:
            log.seek(start)
            raise CommandError(log.read())


def requirements(lock: Path) -> list[str]:
    """What a lock asks for, as pip's command line takes it; pip passes over what is for another Python."""
    lines = (line.partition("#")[0].strip() for line in lock.read_text().splitlines())
    return [line for line in lines if line]


def digest(*files: Path, made_by: str = "") -> str:
    content = hashlib.sha256(made_by.encode())
    for file in files:
        content.update(file.read_bytes())
    return content.hexdigest()


def where_and_by_what() -> str:
    """A virtual environment holds absolute paths, to itself and to the Python that made it."""
    return f"{ROOT} {sys.base_prefix} {sys.version_info[:2]}"


def read_stamp(stamp: Path) -> tuple[str, str]:
    """The build of torch and the digest it was written with, both empty where there is no stamp."""
    build, _, key = (stamp.read_text() if stamp.exists() else "").partition(" ")
    return build, key.strip()


def write_stamp(stamp: Path, build: str, key: str) -> None:
    stamp.write_text(f"{build} {key}\n")


def say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\nsetup: interrupted; call the same again to finish it")
    except (SetupError, OSError) as error:
        sys.exit(f"setup: {error}")
