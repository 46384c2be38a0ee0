"""Which variables processes on other machines get, and that no command line shows their values."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bellwether.launcher.forwarded_env import forwarded_env, header, remote_command
from bellwether.trainer.config import ConfigError

ODD = "a 'b' \"c\" $HOME `id` \\n ;*?[x] é"


def test_variables_are_forwarded_from_an_allow_list_which_the_user_extends() -> None:
    environment = {
        "NCCL_DEBUG": "INFO", "PYTHONPATH": "/a", "HOME": "/home/me", "AWS_PROFILE": "p", "HF_TOKEN": "t", "HF_HOME": "/h",
        "BELLWETHER_SECRET": "s", "TORCH_API_KEY": "k", "NCCL_X%%": "()", "HF_token": "t", "HF_AUTH": "a", "BELLWETHER_PASS": "p",
        "DS_PWD": "p", "HF_AUTHOR": "me",
    }  # fmt: skip
    assert forwarded_env(environment) == {"HF_AUTHOR": "me", "HF_HOME": "/h", "NCCL_DEBUG": "INFO", "PYTHONPATH": "/a"}
    more = forwarded_env({**environment, "BELLWETHER_FORWARD": "HF_TOKEN,AWS_PROFILE MISSING"})
    assert more["HF_TOKEN"] == "t"
    assert more["AWS_PROFILE"] == "p"
    assert "MISSING" not in more
    assert "TORCH_API_KEY" not in more
    with pytest.raises(ConfigError, match="BELLWETHER_FORWARD: 'A=1': is no name of a variable"):
        forwarded_env({"BELLWETHER_FORWARD": "A=1"})
    with pytest.raises(ConfigError, match="line break"):
        forwarded_env({"NCCL_DEBUG": "a\nb"})


@pytest.mark.process
def test_remote_shell_reads_the_variables_from_standard_input(tmp_path: Path) -> None:
    folder = tmp_path / ODD.replace("/", "")
    folder.mkdir()
    program = "import os, sys; print(repr((os.environ['NCCL_DEBUG'], os.getcwd(), sys.argv[1:], sys.stdin.readline())))"
    command = remote_command(str(folder), [sys.executable, "-c", program, ODD, ""])
    data = header({"NCCL_DEBUG": ODD, "PYTHONUTF8": "1"}) + b"15\n"
    for shell in ("sh", "bash"):
        done = subprocess.run([shell, "-c", command], input=data, capture_output=True)
        assert done.stderr == b""
        assert done.stdout.decode().strip() == repr((ODD, str(folder), [ODD, ""], "15\n"))
    assert ODD not in command.replace(str(folder), "")
    # A connection that breaks before all variables have arrived starts nothing.
    done = subprocess.run(["sh", "-c", command], input=data[:20], capture_output=True)
    assert (done.returncode, done.stdout) == (1, b"")
