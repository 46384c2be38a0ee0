"""A virtual environment as one file, unpacked on each node's own disk at a job's start.

From a file system that all nodes share, each rank of a run opens thousands of small files of the environment when it starts;
packed, each node reads one large file. ``python -m bellwether.launcher.packed_env ARCHIVE FOLDER`` is what the batch script runs
on each node.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from bellwether.trainer.config import ConfigError
from bellwether.trainer.run_paths import replacing

SUFFIXES = (".tar", ".tar.gz", ".tar.zst")
_BASE_PYTHON = "python"  # folder in an archive; an environment may have bin, lib, include and share beside it
_NODE_LOCAL = ("/usr/", "/bin/")  # where each node has an installation of its own
_UNUSED = ("site-packages", "test", "idlelib")  # folders of the base Python


def pack(environment: Path, archive: Path) -> int:
    """Write an environment, with its Python where that is not below /usr, to an archive. Returns the archive's bytes.

    A tar file is the fastest to write and unpack; ``.tar.gz`` and ``.tar.zst`` are smaller.

    Raises:
        ConfigError: if this is no virtual environment, or the archive cannot be written.
    """
    if (environment / "conda-meta").is_dir():
        fix = "pack it with conda-pack; the job unpacks that archive too"
        raise ConfigError("--venv", str(environment), "is a conda environment", fix)
    if not (environment / "pyvenv.cfg").is_file():
        raise ConfigError("--venv", str(environment), "is not a virtual environment", "name one, or activate it")
    if not archive.name.endswith(SUFFIXES):
        raise ConfigError("--output", str(archive), "has an unknown suffix", f"end it in {' or '.join(SUFFIXES)}")
    if archive.exists():
        raise ConfigError("--output", str(archive), "exists", "remove it, or name another file")
    if archive.name.endswith(".zst") and shutil.which("zstd") is None:
        raise ConfigError("--output", str(archive), "needs the program zstd", "install it, or end the name in .tar")
    base, config = _base_python(environment), (environment / "pyvenv.cfg").read_text()
    unused = _UNUSED[1:] if re.search(r"^include-system-site-packages *= *true", config, re.MULTILINE) else _UNUSED
    try:
        with tempfile.TemporaryDirectory() as folder, replacing(archive) as partial:
            # tar chooses the compression by the name's end, which the name of a file in writing lacks.
            suffix = next(s for s in SUFFIXES if archive.name.endswith(s))
            link = Path(folder, f"archive{suffix}")
            link.symlink_to(partial.absolute())
            command = [
                "tar",
                "--auto-compress",
                "--create",
                "--verbose",
                f"--file={link}",
                f"--directory={environment}",
                ".",
            ]
            if base is not None:
                renamed = rf"--transform=s|^{re.escape(str(base).lstrip('/'))}|{_BASE_PYTHON}|S"
                excluded = [f"--exclude={str(base).lstrip('/')}/*/{folder}" for folder in unused]
                command = [*command[:-2], *excluded, "--directory=/", renamed, str(base).lstrip("/"), *command[-2:]]
            _run_with_bar(command, _count(environment) + (0 if base is None else _count(base, unused)))
            return partial.stat().st_size
    except OSError as error:
        raise ConfigError("--output", str(archive), f"cannot be written: {error.strerror or error}") from None


def unpack(archive: Path, folder: Path) -> None:
    """Unpack an archive for the processes of this user on this machine. Does nothing where that is done already.

    Raises:
        OSError: if the folder belongs to somebody else, the disk is full, or the environment does not run here.
    """
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Renamed when complete: an interrupted job leaves no half of it, and nodes may turn out to share the folder.
        partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f"{folder.name}.partial-"))
        try:
            _unpack(archive, partial, folder)
            partial.rename(folder)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # another node was quicker
                raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to another user")
    _check(subprocess.run([folder / "bin/python", "-c", ""], stderr=subprocess.PIPE, text=True))


def _unpack(archive: Path, partial: Path, final: Path) -> None:
    """Unpack into one folder for use in another."""
    tar: list[str | Path] = ["tar", "-xf", archive, "-C", partial, "--no-same-owner", "--no-overwrite-dir"]
    _check(subprocess.run(tar, stderr=subprocess.PIPE, text=True))
    if (partial / _BASE_PYTHON).is_dir():
        _point_to(partial, final / _BASE_PYTHON / "bin")
    packages = next((partial / "lib").glob("python3*/site-packages"), None)
    if packages is not None and not any(packages.glob("*/__pycache__")):
        # uv installs without bytecode; compiled here, once for all ranks of the node.
        compile_all = [sys.executable, "-m", "compileall", "-q", "-j", "0"]
        subprocess.run([*compile_all, "-s", partial, "-p", final, packages], stdout=subprocess.DEVNULL)


def _base_python(environment: Path) -> Path | None:
    """The installation that an environment was made from; None where each node has its own."""
    home = re.search(r"^home *= *(.+)$", (environment / "pyvenv.cfg").read_text(), re.MULTILINE)
    if home is None:
        raise ConfigError("--venv", str(environment), "its pyvenv.cfg has no line home = ...", "create it again")
    bin_folder = Path(home[1].strip())
    return None if f"{bin_folder}/".startswith(_NODE_LOCAL) else bin_folder.resolve().parent


def _point_to(environment: Path, bin_folder: Path) -> None:
    """Let an environment use the Python in this folder."""
    config = environment / "pyvenv.cfg"
    config.write_text(re.sub(r"^home *=.*$", f"home = {bin_folder}", config.read_text(), flags=re.MULTILINE))
    for link in (environment / "bin").iterdir():
        # bin/python may link to bin/python3, and that to the installation.
        if link.is_symlink() and os.path.isabs(target := os.readlink(link)):
            link.unlink()
            link.symlink_to(bin_folder / Path(target).name)


def _count(root: Path, without: Sequence[str] = ()) -> int:
    """The number of files and folders below a folder, without the folders of these names."""
    total = 0
    for _, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name not in without]
        total += len(folders) + len(files)
    return total


def _run_with_bar(command: list[str], files: int) -> None:
    last = ""
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as tar:
        assert tar.stdout is not None
        for line in tqdm(tar.stdout, "pack", files, unit=" files", mininterval=1 if sys.stderr.isatty() else 10):
            last = line.strip()
    if tar.returncode:
        raise OSError(last or f"tar exits with {tar.returncode}")


def _check(done: subprocess.CompletedProcess[str]) -> None:
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise OSError(f"{done.args[0]}: {lines[-1]}")


def main() -> int:
    archive, folder = sys.argv[1:]
    try:
        unpack(Path(archive), Path(folder))
    except OSError as error:
        print(f"bellwether: {socket.gethostname()}: {archive} cannot be unpacked: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
