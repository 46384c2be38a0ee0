"""The command line: help, usage, versions, completion."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch

from bellwether import __version__, cli, version

ROOT = Path(__file__).parents[2]

# The shortest command line of each command.
SHORTEST = {
    "train": ["CONFIG"],
    "launch": ["CONFIG"],
    "status": ["RUN"],
    "logs": ["RUN"],
    "doctor": [],
    "env": ["pack"],
    "data": ["CONFIG"],
    "prepare": ["CONFIG"],
    "lr-find": ["CONFIG"],
    "sweep": ["SWEEP"],
    "report": ["PATH"],
    "evaluate": ["RUN_OR_FOLDER"],
    "predict": ["RUN_OR_FOLDER", "--data=FILE", "--output=FILE"],
    "fit": ["FILE"],
    "convert": ["FROM", "TO"],
    "recipe": [],
    "plan": ["CONFIG", "--gpu=NAME"],
    "compare": ["PATH"],
    "frontier": ["CONFIG", "--from=FILE", "--throughput=1"],
    "branch": ["RUN"],
    "bench": ["data", "CONFIG"],
    "keys": [],
}


@pytest.mark.process
def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys\nfrom bellwether.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'deepspeed', 'transformers', 'datasets', 'pydantic', 'numpy', 'yaml'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT, capture_output=True)


def test_each_command_is_one_module_with_add_and_run() -> None:
    names = {command.__name__.rpartition(".")[2].replace("_", "-") for command in cli.COMMANDS}
    assert names == set(SHORTEST)
    modules = {path.stem for path in (ROOT / "bellwether/commands").glob("*.py")}
    assert modules == {name.replace("-", "_") for name in names} | {"__init__", "arguments"}


@pytest.mark.parametrize("command", SHORTEST)
def test_usage_brackets_exactly_the_optional_arguments(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Everything in brackets can be omitted, and nothing else can."""
    parser = cli.build_parser()
    parser.parse_args([command, *SHORTEST[command]])
    for i in range(len(SHORTEST[command])):
        with pytest.raises(SystemExit):
            parser.parse_args([command, *SHORTEST[command][:i], *SHORTEST[command][i + 1 :]])
    capsys.readouterr()
    with pytest.raises(SystemExit) as done:
        cli.main([command, "--help"])
    assert done.value.code == 0
    usage = " ".join(capsys.readouterr().out.partition("\n\n")[0].split()).removeprefix(f"usage: bellwether {command}")
    required = []
    depth = 0
    for word in usage.split():
        depth += word.count("[")
        if depth == 0 and word != "...":  # what argparse prints for the arguments of an action
            required.append(word)
        depth -= word.count("]")
    assert required == sorted_as_usage(SHORTEST[command])


def sorted_as_usage(words: list[str]) -> list[str]:
    """argparse prints options before positional arguments: ["CONFIG", "--gpu=NAME"] as --gpu NAME CONFIG."""
    options = [part for word in words if word.startswith("-") for part in word.replace("=1", "=X").split("=")]
    return [*options, *(word for word in words if not word.startswith("-"))]


def test_overrides_may_follow_options() -> None:
    parser = cli.build_parser()
    arguments = cli._parse(parser, ["train", "CONFIG", "seed=1", "--nproc", "2", "batch.global=8"])
    assert (arguments.nproc, arguments.overrides) == (2, ["seed=1", "batch.global=8"])


@pytest.mark.parametrize("words", [["train", "CONFIG", "--nprocs", "2"], ["status", "RUN", "more"]])
def test_unrecognized_arguments_are_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        cli.main(words)
    assert done.value.code == 2
    assert f"unrecognized arguments: {' '.join(words[2:])}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "CONFIG", "--nproc", "0"], "argument --nproc: '0': expected a whole number of at least 1"),
        (["recipe", "lamb-bert", "--batch", "1,024"], "argument --batch: '1,024': write numbers without thousands"),
        (["plan", "CONFIG", "--gpu", "h100", "--mfu", "1.5"], "argument --mfu: '1.5': expected a number between 0 and"),
        (["report", "RUN", "--throughput", "64=x"], "argument --throughput: '64=x': expected samples per second"),
    ],
)
def test_wrong_numbers_are_refused(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(words)
    assert message in " ".join(capsys.readouterr().err.split())


def test_version_lists_what_a_bug_report_needs(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        cli.main(["--version"])
    assert done.value.code == 0
    rows = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert rows["bellwether"].startswith(__version__)
    assert rows["Python"] == ".".join(map(str, sys.version_info[:3]))
    assert rows["torch"] == torch.__version__
    assert rows["DeepSpeed"] == metadata.version("deepspeed")
    assert rows.keys() >= {"CUDA", "accelerate", "transformers"}


def test_version_does_not_fail_where_packages_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(version.metadata, "version", missing)
    monkeypatch.setitem(sys.modules, "torch", None)
    rows = dict(line.split(maxsplit=1) for line in version.version_report().splitlines())
    assert {rows[name] for name in ("torch", "DeepSpeed", "accelerate", "transformers")} == {"not installed"}


def test_version_names_a_torch_that_cannot_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "torch":
                raise OSError("libcudart.so.12: cannot open shared object file")

    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    assert "import fails: libcudart.so.12: cannot open" in version.version_report()


def test_commit_is_that_of_the_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package installed inside another repository does not report the commit of that repository."""
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    installed = tmp_path / "venv" / "site-packages" / "bellwether" / "version.py"
    installed.parent.mkdir(parents=True)
    monkeypatch.setattr(version, "__file__", str(installed))
    assert version.code_version() == __version__


def complete(line: str, cwd: Path, tmp_path: Path) -> list[str]:
    """What the shell offers for a line, in the protocol of argcomplete's shell functions."""
    answer = tmp_path / "answer"
    environment = {
        **os.environ, "_ARGCOMPLETE": "1", "_ARGCOMPLETE_IFS": "\n", "_ARGCOMPLETE_STDOUT_FILENAME": str(answer), "COMP_LINE": line,
        "COMP_POINT": str(len(line)), "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    program = "import sys; sys.argv = ['bellwether']; from bellwether.cli import main; main()"
    subprocess.run([sys.executable, "-c", program], env=environment, cwd=cwd, check=True, capture_output=True)
    return [word.strip() for word in answer.read_text().split("\n")]


@pytest.mark.process
def test_shell_completion_offers_commands_options_and_recipes(tmp_path: Path) -> None:
    pytest.importorskip("argcomplete")
    (tmp_path / "bert-mine.yaml").touch()
    assert complete("bellwether la", tmp_path, tmp_path) == ["launch"]
    assert "--dry-run" in complete("bellwether launch --d", tmp_path, tmp_path)
    assert complete("bellwether launch --on s", tmp_path, tmp_path) == ["slurm", "ssh"]
    assert complete("bellwether train CONFIG optimizer.lr", tmp_path, tmp_path) == ["optimizer.lr="]
    assert complete("bellwether keys batch.mi", tmp_path, tmp_path) == ["batch.micro"]
    assert set(complete("bellwether train bert-", tmp_path, tmp_path)) >= {"bert-tiny", "bert-mine.yaml"}


def test_help_tells_how_to_enable_completion(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    assert 'eval "$(register-python-argcomplete bellwether)"' in capsys.readouterr().out


def test_missing_dependencies_are_named_with_the_extra_that_installs_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(arguments: argparse.Namespace) -> int:
        raise ModuleNotFoundError("No module named 'pydantic'", name="pydantic")

    monkeypatch.setattr("bellwether.commands.recipe.run", run)
    assert cli.main(["recipe"]) == 2
    assert "pydantic is not installed; pip install 'bellwether[train]' installs it" in capsys.readouterr().err
