"""The text that is submitted to SLURM: to the letter, and as bash and shellcheck read it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from bellwether.launcher import launch, sbatch, site_config
from bellwether.trainer.config import ConfigError, ConfigErrors, load

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parent / "golden" / "launch.sbatch"
EXAMPLE = ROOT / "slurm" / "site.example.yaml"


def request(*overrides: str, **options: object) -> launch.Request:
    return launch.Request(str(ROOT / "configs/bert-tiny.yaml"), list(overrides), "slurm", **options)  # type: ignore[arg-type]


def rendered(asked: launch.Request) -> str:
    config = load(asked.config, asked.overrides)
    where = site_config.load(asked.site)
    return sbatch.render(launch.job(asked, config, where), where, ["configs/bert-tiny.yaml", *asked.overrides])


def golden() -> str:
    asked = request("name=it's", "data.source=my books/*.txt", nodes=16, time="12:00:00", site=str(EXAMPLE))
    config = load(asked.config, ["name=its"])
    where = site_config.load(asked.site)
    return sbatch.render(launch.job(asked, config, where), where, ["configs/bert-tiny.yaml", *asked.overrides])


def test_the_scripts_in_slurm_are_what_launch_submits() -> None:
    assert (ROOT / "slurm/train.sbatch").read_text() == sbatch.render(sbatch.Job(), site_config.Site())
    assert (ROOT / "slurm/sweep.sbatch").read_text() == sbatch.render(sbatch.Job(sweep=True), site_config.Site())


def test_a_whole_site_to_the_letter() -> None:
    assert golden() == GOLDEN.read_text()


def test_the_body_is_the_same_by_hand_and_by_launch() -> None:
    body = sbatch._body(sbatch.Job())
    assert rendered(request(nodes=2)).endswith(body)
    assert (ROOT / "slurm/train.sbatch").read_text().endswith(body)


SCRIPTS = {
    "train": (ROOT / "slurm/train.sbatch").read_text,
    "sweep": (ROOT / "slurm/sweep.sbatch").read_text,
    "launch": golden,
    "sweep of a file": lambda: sbatch.render(sbatch.Job(sweep=True), site_config.Site(), ["runs.txt"]),
    "sweep of a study": lambda: sbatch.render(
        sbatch.Job(sweep=True, study="/work/it's"), site_config.Site(), ["runs.txt"]
    ),
}


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize("reader", [["bash", "-n"], ["shellcheck", "--shell=bash"]], ids=["bash", "shellcheck"])
def test_bash_and_shellcheck_find_nothing(tmp_path: Path, name: str, reader: list[str]) -> None:
    if shutil.which(reader[0]) is None:
        pytest.skip(f"no {reader[0]} here (scripts/install-system.sh)")
    file = tmp_path / "script"
    file.write_text(SCRIPTS[name]())
    done = subprocess.run([*reader, str(file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_arguments_reach_the_trainer_as_they_were_typed(tmp_path: Path) -> None:
    text = golden()
    line = next(line for line in text.splitlines() if line.startswith("set -- "))
    said = subprocess.run(["bash", "-c", f'{line}\nprintf "%s\\n" "$@"'], capture_output=True, text=True, check=True)
    assert said.stdout.splitlines() == ["configs/bert-tiny.yaml", "name=it's", "data.source=my books/*.txt"]


def test_the_command_line_counts_more_than_the_site_and_the_site_more_than_the_default() -> None:
    text = rendered(request(site=str(EXAMPLE), time="1:00:00", partition="debug", gpus_per_node=4))
    assert "#SBATCH --time=1:00:00\n" in text
    assert "#SBATCH --partition=debug\n" in text
    assert "#SBATCH --account=my-project\n" in text
    assert "#SBATCH --gpus-per-node=4\n" in text
    assert "#SBATCH --ntasks-per-node=4\n" in text
    assert "#SBATCH --exclusive\n" in text
    assert "#SBATCH --nodes=1\n" in text
    bare = rendered(request(gpus_per_node=0, tasks_per_node=2))
    assert "#SBATCH --gpus-per-node" not in bare
    assert "#SBATCH --ntasks-per-node=2\n" in bare


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("partitoin: gpu", ["partitoin", "did you mean 'partition'"]),
        ("gpus_per_node: -1", ["gpus_per_node: -1"]),
        ('modules: "a\\nrm b"', ["modules", "has a form that cannot be used here"]),
        ("environment: {9X: 1}", ["environment.9X", "has a form that cannot be used here"]),
        ("- a", ["site", "is no mapping of keys to values"]),
        ("partition: gpu big", ["partition: 'gpu big'", "has a form that cannot be used here"]),
        ("sbatch: --exclusive", ["sbatch: '--exclusive'", "is no list"]),
        ("sbatch: [exclusive]", ["sbatch.0: 'exclusive'", "has a form"]),
        ("a: [", ["not YAML"]),
    ],
)
def test_a_wrong_site_is_told_by_key(tmp_path: Path, text: str, words: list[str]) -> None:
    file = tmp_path / "site.yaml"
    file.write_text(text)
    with pytest.raises((ConfigError, ConfigErrors)) as caught:
        site_config.load(str(file))
    for word in [*words, str(file)]:
        assert word in str(caught.value)


def test_numbers_lists_and_nothing_are_taken_as_they_are_meant(tmp_path: Path) -> None:
    file = tmp_path / "site.yaml"
    file.write_text("account: 12345\nenvironment: {NCCL_IB_DISABLE: 1}\nmodules: [cuda/12.8, gcc]\nvenv:\nqos:\n")
    found = site_config.load(str(file))
    assert (found.account, found.environment, found.modules) == ("12345", {"NCCL_IB_DISABLE": "1"}, "cuda/12.8 gcc")
    assert (found.venv, found.qos) == ("", None)


def test_a_site_that_is_named_must_be_there_and_none_need_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert site_config.load() == site_config.Site()
    with pytest.raises(ConfigError, match="cannot be read"):
        site_config.load("nowhere.yaml")
    monkeypatch.setenv("BELLWETHER_SITE", str(EXAMPLE))
    assert site_config.load().partition == "gpu"
