"""Creates .venv with exactly the versions of requirements/. Every make target calls it; it needs only the standard library.

    python3 scripts/setup.py
    BELLWETHER_TORCH=cuda python3 scripts/setup.py    # or cpu: chooses torch's build, instead of looking for a GPU

torch is installed first, then the lock without dependencies, so that nothing can install a second torch. A finished
environment has a stamp; one without a stamp is built again from scratch, so calling setup again repairs one that was killed.
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

if sys.version_info < (3, 10):  # noqa: UP036 - an older Python runs this file
    sys.exit(
        f"setup: Bellwether needs Python 3.10 or newer, but {sys.executable} is {sys.version.split()[0]}. "
        "Choose a newer one, for example: make train PYTHON=python3.11"
    )
if os.name != "posix":
    sys.exit("setup: Bellwether runs on Linux and macOS; on Windows, use WSL.")

import fcntl  # not available on Windows

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = ROOT / "pyproject.toml"
LOCK = ROOT / "requirements" / "lock.txt"
CUDA_LOCK = ROOT / "requirements" / "cuda.txt"
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
LOG = VENV / "setup.log"
# Two stamps: pyproject.toml changes often, and then bellwether alone is installed again.
ENVIRONMENT_STAMP = VENV / "environment.stamp"
PROJECT_STAMP = VENV / "project.stamp"

PYTHON_VERSION = sys.version.split()[0]


class SetupError(Exception):
    """A problem that the user can fix. The message says how."""


class CommandError(SetupError):
    """A command that failed, with its output."""

    def __init__(self, output: str) -> None:
        end = "\n".join("    " + line[:200] for line in output.splitlines()[-12:])
        super().__init__(f"a step failed; the end of {LOG}:\n{end}")
        self.output = output


def main() -> None:
    started = time.monotonic()
    requested = os.environ.get("BELLWETHER_TORCH", "")
    if requested not in ("", "cpu", "cuda"):
        raise SetupError(f"BELLWETHER_TORCH={requested} is unknown: set it to cpu or cuda, or unset it.")

    with setup_lock():
        installed, key = read_stamp(ENVIRONMENT_STAMP)
        # Keep an installed build unless another is requested: a login node without a GPU often shares its
        # checkout with the GPU nodes, and must not replace their CUDA build.
        build = requested or installed or ("cuda" if has_nvidia_gpu() else "cpu")
        environment_key = digest(LOCK, CUDA_LOCK, Path(__file__), extra=location_and_python())
        project_key = digest(PYPROJECT)

        if (installed, key) != (build, environment_key) or not PYTHON.exists():
            create_environment(build)
            write_stamp(ENVIRONMENT_STAMP, build, environment_key)
        elif read_stamp(PROJECT_STAMP) == (build, project_key):
            say("setup: .venv is up to date")
            if build == "cpu" and not requested and has_nvidia_gpu():
                say("setup: its torch is the CPU build; BELLWETHER_TORCH=cuda make setup installs the CUDA build")
            return

        say("[4/4] installing bellwether")
        pip("install", "--no-deps", "--no-build-isolation", "--editable", str(ROOT))
        pip("check")
        write_stamp(PROJECT_STAMP, build, project_key)
    say(f"setup: .venv is ready after {time.monotonic() - started:.0f} s")


def setup_lock() -> IO[str]:
    """Waits until no other setup runs in this checkout, and locks it until the returned file is closed.

    Child processes inherit the lock, so that a setup started after a killed one also waits for its orphaned pip.
    """
    lock = open(ROOT / ".setup.lock", "w")  # noqa: SIM115 - the caller's `with` closes it
    os.set_inheritable(lock.fileno(), True)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say("setup: waiting for another setup in this checkout to end")
        fcntl.flock(lock, fcntl.LOCK_EX)
    except OSError:  # some parallel file systems are mounted without locks
        say("setup: this file system has no locks; make sure that no other setup runs in this checkout")
    return lock


def create_environment(build: str) -> None:
    if importlib.util.find_spec("ensurepip") is None:
        package = "python{}.{}-venv".format(*sys.version_info)
        raise SetupError(
            f"{sys.executable} cannot create virtual environments, because ensurepip is missing. "
            f"On Debian and Ubuntu: apt-get install {package}"
        )

    say(f"[1/4] creating .venv with Python {PYTHON_VERSION}")
    for stamp in (ENVIRONMENT_STAMP, PROJECT_STAMP):
        stamp.unlink(missing_ok=True)
    home = VENV.resolve()  # .venv may be a symbolic link to a larger disk
    if home.exists():
        shutil.rmtree(home)
    home.mkdir(parents=True)
    # sys.executable is inside .venv if the user has activated it.
    run(getattr(sys, "_base_executable", sys.executable), "-m", "venv", str(home))

    locked = requirements(LOCK)
    torch = next(line for line in locked if line.startswith("torch=="))
    deepspeed = next(line for line in locked if line.startswith("deepspeed=="))
    install_torch(build, torch)
    say(f"[3/4] installing the rest of {LOCK.relative_to(ROOT)}, about a minute")
    pip("install", "--no-deps", *(line for line in locked if line != deepspeed))
    # DeepSpeed is distributed as source only. Its setup.py imports torch and other packages of the lock; an isolated
    # build would lack them, or download another torch.
    pip("install", "--no-deps", "--no-build-isolation", deepspeed)


def install_torch(build: str, torch: str) -> None:
    """Installs the pinned `torch`, such as torch==2.13.0, in the build `cpu` or `cuda`."""
    if build == "cuda":
        say(f"[2/4] installing {torch} with CUDA, several GB")
        pip("install", "--no-deps", torch, *requirements(CUDA_LOCK))
        return
    if sys.platform != "linux":  # other platforms have one build, without CUDA
        say(f"[2/4] installing {torch}")
        pip("install", "--no-deps", torch)
        return
    say(f"[2/4] installing {torch}+cpu (BELLWETHER_TORCH=cuda selects the CUDA build)")
    try:
        pip("install", "--no-deps", f"{torch}+cpu")
    except CommandError as error:
        if "No matching distribution found" not in error.output:
            raise
        raise SetupError(
            f"{error}\n"
            f"pip's package indexes have no CPU build of {torch} for Python {PYTHON_VERSION}. Either\n"
            "  - set PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS to PyTorch's index of CPU wheels, whose address is on\n"
            "    PyTorch's install page; or\n"
            "  - use the default build, with several GB of CUDA libraries: set BELLWETHER_TORCH=cuda\n"
            "and run the same command again."
        ) from error


def has_nvidia_gpu() -> bool:
    if any(Path("/proc/driver/nvidia/gpus").glob("*")):
        return True
    nvidia_smi = shutil.which("nvidia-smi")  # WSL and some containers have no /proc entry
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
    """Runs a command; its output goes to LOG."""
    environment = dict(os.environ)
    # Cluster modules set PYTHONPATH, and pip would count the packages there as installed.
    environment.pop("PYTHONPATH", None)
    environment["PIP_USER"] = "0"
    # DeepSpeed declares other dependencies when built on a machine with a GPU, and pip caches the wheel: build it the
    # same way everywhere. Its kernels are compiled at run time, for the machine's hardware.
    environment.setdefault("DS_ACCELERATOR", "cpu")
    with open(LOG, "a+", errors="replace") as log:
        log.write(f"\n$ {' '.join(command)}\n")
        log.flush()
        start = log.tell()
        # close_fds=False: the child inherits the lock.
        done = subprocess.run(command, cwd=ROOT, env=environment, stdout=log, stderr=log, close_fds=False)
        if done.returncode != 0:
            log.seek(start)
            raise CommandError(log.read())


def requirements(lock: Path) -> list[str]:
    """The requirements in a lock file, as arguments for pip, which skips those for another Python or platform."""
    lines = (line.partition("#")[0].strip() for line in lock.read_text().splitlines())
    return [line for line in lines if line]


def digest(*files: Path, extra: str = "") -> str:
    content = hashlib.sha256(extra.encode())
    for file in files:
        content.update(file.read_bytes())
    return content.hexdigest()


def location_and_python() -> str:
    """What a virtual environment depends on: it contains absolute paths to itself and to its Python."""
    return f"{ROOT} {sys.base_prefix} {sys.version_info[:2]}"


def read_stamp(stamp: Path) -> tuple[str, str]:
    """The build of torch and the digest in a stamp; both empty if there is no stamp."""
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
        sys.exit("\nsetup: interrupted; run the same command again to finish")
    except (SetupError, OSError) as error:
        sys.exit(f"setup: {error}")
