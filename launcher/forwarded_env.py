"""Environment variables for processes on other machines where no scheduler forwards them: which ones, and how they get there.

A command line is readable by every user of a machine. So mpirun gets names only, and ssh's standard input carries the values: the
remote shell reads lines of NAME=VALUE up to an empty one before it starts the command, to which the rest of the input belongs.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence

from bellwether.trainer.config import ConfigError

EXTRA = "BELLWETHER_FORWARD"  # names that the user adds, separated by spaces or commas

_NAMES = ("CXX", "LD_LIBRARY_PATH", "PATH", "PYTHONPATH", "XDG_CACHE_HOME")
_PREFIXES = ("BELLWETHER_", "DS_", "FI_", "GLOO_", "HF_", "NCCL_", "OMP_", "TORCH_", "UCX_")
_CREDENTIALS = re.compile(
    "TOKEN|SECRET|PASSW|PASSPHRASE|CREDENTIAL|KEY|(?<![A-Z])(AUTH|PASS|PWD)(?![A-Z])", re.IGNORECASE
)
_NAME = re.compile("[A-Za-z_][A-Za-z0-9_]*")

# Nothing in a line is evaluated. Without the empty line the connection broke, and the command must not start with half of them.
_READ = 'while IFS= read -r line; do [ -n "$line" ] || { cd -- "$1" || exit; shift; exec "$@"; }; export "$line"; done; exit 1'


def forwarded_env(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables to forward, sorted by name: those of the allow-list, and those that ``BELLWETHER_FORWARD`` names.

    Credentials, such as HF_TOKEN, are forwarded only if they are named there.

    Raises:
        ConfigError: if it names something that is no variable, or one with a line break.
    """
    extra = environment.get(EXTRA, "").replace(",", " ").split()
    for name in extra:
        if _NAME.fullmatch(name) is None:
            raise ConfigError(EXTRA, name, "is no name of a variable", "write names, separated by spaces")
    found = {}
    for name, value in sorted(environment.items()):
        listed = name in _NAMES or (name.startswith(_PREFIXES) and not _CREDENTIALS.search(name))
        if name in extra or (listed and _NAME.fullmatch(name)):
            if "\n" in value:
                raise ConfigError(name, value, "has a line break, and cannot be forwarded", "unset it")
            found[name] = value
    return found


def remote_command(folder: str, command: Sequence[str]) -> str:
    """What a remote shell of any kind runs: read the variables from standard input, then start the command in a folder."""
    return shlex.join(["exec", "sh", "-c", _READ, "sh", folder, *command])


def header(variables: Mapping[str, str]) -> bytes:
    """The variables as `remote_command` reads them."""
    return "".join(f"{name}={value}\n" for name, value in variables.items()).encode() + b"\n"
