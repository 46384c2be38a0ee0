"""The sbatch scripts: compared with golden files, and checked by bash and shellcheck."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from bellwether.launcher import launch, sbatch, script_text, site_config
from bellwether.trainer.config import ConfigError, ConfigErrors, load

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parent / "golden" / "launch.sbatch"
EXAMPLE = ROOT / "slurm" / "site.example.yaml"


def request(*overrides: str, **options: object) -> launch.LaunchRequest:
    return launch.LaunchRequest(str(ROOT / "configs/bert-tiny.yaml"), list(overrides), "slurm", **options)  # type: ignore[arg-type]


def rendered(launch_request: launch.LaunchRequest) -> str:
    config = load(launch_request.config, launch_request.overrides)
    site = site_config.load(launch_request.site)
    return sbatch.render(
        launch.sbatch_job(launch_request, config, site), site, ["configs/bert-tiny.yaml", *launch_request.overrides]
    )


def golden() -> str:
    launch_request = request("name=it's", "data.source=my books/*.txt", nodes=16, time="12:00:00", site=str(EXAMPLE))
    config = load(launch_request.config, ["name=its"])
    site = site_config.load(launch_request.site)
    return sbatch.render(
        launch.sbatch_job(launch_request, config, site), site, ["configs/bert-tiny.yaml", *launch_request.overrides]
    )


def test_scripts_in_slurm_are_rendered_by_sbatch() -> None:
    assert (ROOT / "slurm/train.sbatch").read_text() == sbatch.render(sbatch.SbatchJob(), site_config.Site())
    assert (ROOT / "slurm/sweep.sbatch").read_text() == sbatch.render(sbatch.SbatchJob(sweep=True), site_config.Site())


def test_script_of_a_complete_site_equals_the_golden_file() -> None:
    assert golden() == GOLDEN.read_text()


def test_body_is_the_same_when_submitted_by_hand_and_by_launch() -> None:
    body = sbatch._body(sbatch.SbatchJob())
    assert rendered(request(nodes=2)).endswith(body)
    assert (ROOT / "slurm/train.sbatch").read_text().endswith(body)


SCRIPTS = {
    "train": (ROOT / "slurm/train.sbatch").read_text,
    "sweep": (ROOT / "slurm/sweep.sbatch").read_text,
    "launch": golden,
    "sweep of a file": lambda: sbatch.render(sbatch.SbatchJob(sweep=True), site_config.Site(), ["runs.txt"]),
    "sweep of a study": lambda: sbatch.render(
        sbatch.SbatchJob(sweep=True, study="/work/it's"), site_config.Site(), ["runs.txt"]
    ),
}


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize("checker", [["bash", "-n"], ["shellcheck", "--shell=bash"]], ids=["bash", "shellcheck"])
def test_scripts_pass_bash_and_shellcheck(tmp_path: Path, name: str, checker: list[str]) -> None:
    if shutil.which(checker[0]) is None:
        pytest.skip(f"no {checker[0]} here (scripts/install-system.sh)")
    file = tmp_path / "script"
    file.write_text(SCRIPTS[name]())
    done = subprocess.run([*checker, str(file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


RECORD = (
    "JobId=12 ArrayJobId=12 ArrayTaskId=1 JobName={name} UserId=me(1) Restarts=0 BatchFlag=1 BatchHost=n1 NumNodes=1 NumTasks=4 "
    "CPUs/Task=3 NtasksPerN:B:S:C=2:0:*:* Comment=x"
)


@pytest.mark.parametrize(
    "name", ["plain", "two\nlines", 'it\'s "a" $(false) `job`', "x NumTasks=9 CPUs/Task=9 ", "*", "a/b\n\n\\n"]
)
def test_script_reads_its_own_job_whatever_its_name(tmp_path: Path, name: str) -> None:
    other = RECORD.format(name="other").replace("JobId=12", "JobId=11").replace("NumTasks=4", "NumTasks=8")
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(f"#!/bin/sh\ncat <<'END'\n{other}\n{RECORD.format(name=name)}\n{other}\nEND\n")
    scontrol.chmod(0o755)
    done = own_job(f"{tmp_path}:{os.environ['PATH']}", name)
    assert done.stdout == "4 3 2 12_1\n", done.stderr


def test_script_without_scontrol_ends_at_once_with_the_reason(tmp_path: Path) -> None:
    done = own_job(str(tmp_path), "x")
    assert done.returncode == 1
    assert "scontrol is not in the PATH of this batch script on n1" in done.stderr


def own_job(path: str, name: str) -> subprocess.CompletedProcess[str]:
    script = script_text.OWN_JOB + 'echo "$SLURM_NTASKS $SLURM_CPUS_PER_TASK $SLURM_NTASKS_PER_NODE $id"'
    return subprocess.run(
        [shutil.which("bash") or "bash", "-c", script], capture_output=True, text=True, timeout=20,
        env={"PATH": path, "SLURM_JOB_ID": "12", "SLURM_JOB_NAME": name, "SLURMD_NODENAME": "n1", "SLURM_NTASKS": "7"},
    )  # fmt: skip


def test_arguments_are_quoted_for_the_shell(tmp_path: Path) -> None:
    text = golden()
    line = next(line for line in text.splitlines() if line.startswith("set -- "))
    done = subprocess.run(["bash", "-c", f'{line}\nprintf "%s\\n" "$@"'], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["configs/bert-tiny.yaml", "name=it's", "data.source=my books/*.txt"]


def test_command_line_overrides_site_and_site_overrides_default() -> None:
    text = rendered(request(site=str(EXAMPLE), time="1:00:00", partition="debug", gpus_per_node=4))
    assert "#SBATCH --time=1:00:00\n" in text
    assert "#SBATCH --partition=debug\n" in text
    assert "#SBATCH --account=my-project\n" in text
    assert "#SBATCH --gpus-per-node=4\n" in text
    assert "#SBATCH --ntasks-per-node=4\n" in text
    assert "#SBATCH --exclusive\n" in text
    assert "#SBATCH --nodes=3\n" in text  # two of them are spares
    assert "#SBATCH --no-kill\n" in text
    bare = rendered(request(gpus_per_node=0, tasks_per_node=2))
    assert "#SBATCH --gpus-per-node" not in bare
    assert "#SBATCH --ntasks-per-node=2\n" in bare


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("partitoin: gpu", ["partitoin", "did you mean 'partition'"]),
        ("gpus_per_node: -1", ["gpus_per_node: -1"]),
        ('modules: "a\\nrm b"', ["modules", "has characters that are not allowed here"]),
        ("environment: {9X: 1}", ["environment.9X", "has characters that are not allowed here"]),
        ("- a", ["site", "is not a mapping of keys to values"]),
        ("partition: gpu big", ["partition: 'gpu big'", "has characters that are not allowed here"]),
        ("sbatch: --exclusive", ["sbatch: '--exclusive'", "is not a list"]),
        ("sbatch: [exclusive]", ["sbatch.0: 'exclusive'", "has characters"]),
        ("a: [", ["not YAML"]),
    ],
)
def test_invalid_site_is_refused_by_key(tmp_path: Path, text: str, words: list[str]) -> None:
    file = tmp_path / "site.yaml"
    file.write_text(text)
    with pytest.raises((ConfigError, ConfigErrors)) as caught:
        site_config.load(str(file))
    for word in [*words, str(file)]:
        assert word in str(caught.value)


def test_numbers_and_lists_become_text_and_empty_keys_are_defaults(tmp_path: Path) -> None:
    file = tmp_path / "site.yaml"
    file.write_text("account: 12345\nenvironment: {NCCL_IB_DISABLE: 1}\nmodules: [cuda/12.8, gcc]\nvenv:\nqos:\n")
    found = site_config.load(str(file))
    assert (found.account, found.environment, found.modules) == ("12345", {"NCCL_IB_DISABLE": "1"}, "cuda/12.8 gcc")
    assert (found.venv, found.qos) == ("", None)


def test_container_image_becomes_options_of_srun(tmp_path: Path) -> None:
    text = sbatch.render(
        sbatch.SbatchJob(), site_config.Site(image="/shared/my image.sqsh", mounts="/a:/a"), ["c.yaml"]
    )
    assert "export BELLWETHER_IMAGE='/shared/my image.sqsh'\n" in text
    lines = text[text.index("read -ra options") : text.index('python=("${container')]
    settings = "BELLWETHER_IMAGE='/shared/my image.sqsh' BELLWETHER_MOUNTS=/a:/a BELLWETHER_SRUN=--mpi=pmix"
    command = f"{settings}\n{lines}\nprintf '%s\\n' \"${{options[@]}}\""
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stdout.splitlines() == [
        "--mpi=pmix", "--container-image=/shared/my image.sqsh", f"--container-workdir={tmp_path}",
        f"--container-mounts={tmp_path}:{tmp_path},/a:/a",
    ]  # fmt: skip


def test_named_site_must_exist_and_default_site_is_optional(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert site_config.load() == site_config.Site()
    with pytest.raises(ConfigError, match="cannot be read"):
        site_config.load("nowhere.yaml")
    monkeypatch.setenv("BELLWETHER_SITE", str(EXAMPLE))
    assert site_config.load().partition == "gpu"


def test_launch_uses_the_virtual_environment_that_it_runs_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("BELLWETHER_VENV", raising=False)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/activate").touch()
    monkeypatch.setattr("sys.prefix", str(tmp_path))
    assert site_config.Site().with_venv().venv == str(tmp_path)
    assert site_config.Site(venv="/a").with_venv().venv == "/a"
    assert site_config.Site(container="apptainer exec x.sif").with_venv().venv == ""
    monkeypatch.setenv("BELLWETHER_VENV", "/b")
    assert site_config.Site().with_venv().venv == ""
