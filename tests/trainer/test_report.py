"""The report of a run, from complete, incomplete and hostile run directories."""

from __future__ import annotations

import json
import math
import random
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bellwether.optimizers.noise_scale import HORIZON, SHORT_HORIZON
from bellwether.trainer.report import heatmap, summary, write
from bellwether.trainer.report.chart import PALETTE
from bellwether.trainer.report.curves import SCALE, smoothed
from bellwether.trainer.report.facts import SMOOTHED, SMOOTHED_SHORT, Facts, Noise
from bellwether.trainer.report.html import columns
from bellwether.trainer.report.names import shorten
from tests.tiers import covering

PLOTS = (
    "loss",
    "accuracy",
    "learning-rate",
    "gradient-norm",
    "throughput",
    "trust-ratio",
    "trust-ratio-layers",
)
CONFIG = """\
name: {name}
runs: runs
seed: 1
duration: 900_000 samples
model: {{kind: bert, size: base, dropout: 0.1}}
data: {{kind: text, source: "<wiki> & books", vocabulary_size: 30522, sequence_length: 128}}
batch: {{global: 4096, micro: 32}}
optimizer: {{name: lamb, lr: 0.0025}}
engine: {{stage: 2, precision: bf16, device: auto}}
phases:
- duration: 900_000 samples
- duration: 100_000 samples
  batch: {{global: 2048}}
  optimizer: {{lr: 0.0018}}
  data: {{sequence_length: 512}}
version: 0.1.0+g1a2b3c4
"""


def bert_names(layers: int) -> list[str]:
    """The names of the first `layers` weights of BERT."""
    inside = (
        "attention.self.query",
        "attention.self.key",
        "attention.self.value",
        "attention.output.dense",
        "intermediate.dense",
        "output.dense",
    )
    names = [f"bert.embeddings.{kind}_embeddings.weight" for kind in ("word", "position", "token_type")]
    names += [f"bert.encoder.layer.{i // 6}.{inside[i % 6]}.weight" for i in range(max(0, layers - 4))]
    return [*names, "cls.predictions.transform.dense.weight"][:layers]


class Run:
    """Writes the metrics of a run that learns: two phases, evaluations, checkpoints, and the given launches."""

    def __init__(
        self,
        path: Path,
        *,
        name: str = "bert-base-two-phase",
        layers: int = 120,
        steps: int = 800,
        trust: bool = True,
    ) -> None:
        path.mkdir(parents=True)
        (path / "config.yaml").write_text(CONFIG.format(name=json.dumps(name)), encoding="utf-8")
        self.path, self.steps, self.trust = path, steps, trust
        self.names = bert_names(layers)
        self.change = int(steps * 0.9)
        self.clock = 1_760_000_000.0
        self.random = random.Random(1)
        self.offset = [self.random.gauss(0, 0.5) for _ in self.names]
        self.file = open(path / "metrics.jsonl", "a", encoding="utf-8")  # noqa: SIM115

    def line(self, event: str, **values: Any) -> None:
        self.file.write(json.dumps({"event": event, "time": round(self.clock, 3), **values}) + "\n")
        self.file.flush()

    def samples(self, step: int) -> int:
        return 4096 * min(step, self.change) + 2048 * max(0, step - self.change)

    def launch(
        self, begin: int, end: int, *, reason: str | None = None, losses: dict[int, float | str] | None = None
    ) -> Run:
        """Steps begin+1..end, as one process would log them; `reason` None for a killed process."""
        at = {"step": begin, "samples": self.samples(begin)}
        resumed = f"{self.path}/checkpoints/step-{begin:08d}" if begin else None
        self.line("start", version="0.1.0+g1a2b3c4", world_size=8, device="NVIDIA H100", resumed_from=resumed, **at)
        rows = [
            ("model", "bert base, 109,514,298 parameters"),
            ("vocabulary", "30,522 (WordPiece)"),
            ("unigram loss", "7.2163, the held-out loss of token frequencies alone"),
            ("processes", "8"),
        ]
        first = [
            *rows,
            ("global batch", "4,096 = 8 x 32 x 16"),
            ("learning rate", "2.5e-3"),
            ("sequence length", "128 tokens"),
        ]
        second = [
            *rows,
            ("global batch", "2,048 = 8 x 8 x 32"),
            ("learning rate", "1.8e-3"),
            ("sequence length", "512 tokens"),
        ]
        self.line("plan", phases=[[{"label": a, "value": b} for a, b in rows] for rows in (first, second)])
        for step in range(begin + 1, end + 1):
            self.step(step, (losses or {}).get(step))
        if reason:
            at = {"step": end, "samples": self.samples(end)}
            self.line("end", **at, seconds=1.0, reason=reason)
        return self

    def step(self, step: int, loss: float | str | None) -> None:
        rand, share = self.random, step / self.steps
        phase = int(step > self.change)
        self.clock += (1.9 if phase else 1.1) + (25 if step % 100 == 0 else 0)
        at = {"step": step, "samples": self.samples(step)}
        calm = (
            1.7
            + 8.6 * math.exp(-step / (0.06 * self.steps))
            + 1.3 * math.exp(-step / (0.4 * self.steps))
            - 0.15 * phase
        )
        peak = 2.5e-3 if not phase else 1.8e-3
        inner = step / self.change if not phase else (step - self.change) / (self.steps - self.change)
        values: dict[str, Any] = {
            "phase": phase, "epoch": step / 300,
            "loss": loss if loss is not None else calm + rand.gauss(0, 0.05),
            "lr": peak * min(inner / 0.1, (1 - inner) / 0.9 + 1e-9),
            "grad_norm": 0.4 + 3 * math.exp(-step / 40) + abs(rand.gauss(0, 0.12)),
            "samples_per_s": (3720 if not phase else 1080) * rand.gauss(1, 0.02),
            "tokens_per_s": 480_000 * rand.gauss(1, 0.02),
            "step_time": 1.1, "memory_gib": 41.2 + phase,
        }  # fmt: skip
        if self.trust:
            ratios = [
                0.08
                * math.exp(off + 2.2 * share * (i / len(self.names)) - 1.4 * math.exp(-8 * share) + rand.gauss(0, 0.1))
                for i, off in enumerate(self.offset)
            ]
            ordered = sorted(ratios)
            values["trust_ratio"] = {
                "min": ordered[0],
                "median": ordered[len(ordered) // 2],
                "max": ordered[-1],
            }
            if step % max(1, self.steps // 160) == 0:
                self.line("layers", **at, trust_ratio=dict(zip(self.names, ratios, strict=True)))
        self.line("train", **at, **values)
        if step % 100 == 0:
            guess = 1 / (1 + math.exp(0.9 * (calm - 2.6)))
            self.line("eval", **at, phase=phase, loss=calm + 0.08, accuracy=0.72 * guess, examples=20_480)
            self.line("checkpoint", **at, path=f"{self.path}/checkpoints/step-{step:08d}", seconds=2.31)


class Page(HTMLParser):
    """A parsed page: its tags, which must balance, its texts and references."""

    VOID = ("meta", "link", "br", "hr", "img", "input")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for key, value in attrs:
            if key == "id":
                self.ids.append(value or "")
            if key in ("href", "src", "xlink:href", "action", "data"):
                self.references.append(value or "")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.texts.append(data.strip())

    @property
    def text(self) -> str:
        return "\n".join(text for text in self.texts if text)


NAME = "bert <b>&\"two'</b>"


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two phases, 120 layers, killed at step 230 and resumed from 200; with its report."""
    run = Run(tmp_path_factory.mktemp("runs") / "full", name=NAME, steps=400).launch(0, 230)
    run.clock += 3600
    run.launch(200, 400, reason="finished")
    for step in (300, 400):
        (run.path / "checkpoints" / f"step-{step:08d}").mkdir(parents=True)
    write(run.path)
    return run.path


def test_page_is_self_contained(full: Path) -> None:
    text = (full / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert not re.findall(r"https?:|[\"'(]//|@import|<script[^>]", text)
    assert [ref for ref in page.references if not ref.startswith(("#", "data:"))] == []
    assert page.tags.count("script") == 1  # the tooltips, inline
    assert page.tags.count("svg") == 7
    assert len(page.ids) == len(set(page.ids))
    used = {ref[1:] for ref in page.references if ref.startswith("#")} | set(re.findall(r"url\(#([^)]*)\)", text))
    assert used <= set(page.ids)


def test_page_shows_what_the_run_logged(full: Path) -> None:
    text = Page((full / "report.html").read_text(encoding="utf-8")).text
    for part in (
        NAME, "finished", "1,556,480", "1 restart", "2 launches", "2 phases", "LAMB", "ZeRO-2", "<wiki> & books",
        "guessing: ln 30,522 = 10.33", "token frequencies alone: 7.22", "restart", "held-out", "phase 2", "layer 18", "30,522 (WordPiece)", "128 tokens",
        "512 tokens", "checkpoints/step-00000400", "Bellwether 0.1.0+g1a2b3c4", "2,048", "after 4,096",
    ):  # fmt: skip
        assert part in text, part
    # Every curve marks phase 2 and the restart; the plan has a column for phase 2.
    assert text.split("\n").count("phase 2") == 6 + 1
    assert text.split("\n").count("restart") == 6
    assert text.count("not kept") == 2  # steps 100 and 200
    assert "missing" not in text


def test_tooltips_have_the_measured_values_at_their_places_in_the_chart(full: Path) -> None:
    raw = (full / "report.html").read_text(encoding="utf-8")
    curves = json.loads(re.findall(r"data-tips='([^']*)'", raw)[0])
    assert [(curve["name"], curve["colour"]) for curve in curves] == [("training", "blue"), ("held-out", "orange")]
    history = Facts.load(full).history
    _, width, height = (float(n) for n in re.findall(r'viewBox="0 (\S+) (\S+) (\S+)"', raw)[0])
    for curve, lines in zip(curves, (history.train, history.eval), strict=True):
        last = lines[-1]
        assert curve["points"][-1][2:] == [
            f"step {last['step']:,} · {last['samples']:,} samples",
            (f"{last['loss']:.4g}" if curve["name"] == "training" else f"{last['loss']:.4f}"),
        ]
        xs, ys = ([point[i] for point in curve["points"]] for i in (0, 1))
        assert xs == sorted(xs)
        assert 0 < xs[0] < xs[-1] < width
        assert 0 < min(ys) < max(ys) < height
    # Loss falls, so the curve goes down: y grows in an SVG.
    assert curves[0]["points"][0][1] < curves[0]["points"][-1][1]


def test_text_of_a_run_is_escaped(full: Path) -> None:
    raw = (full / "report.html").read_text(encoding="utf-8")
    assert NAME not in raw
    assert "<wiki>" not in raw
    assert "bert &lt;b&gt;&amp;&#34;two&#39;&lt;/b&gt;" in raw


def test_pictures_use_the_palettes_of_the_page(full: Path) -> None:
    raw = (full / "report.html").read_text(encoding="utf-8")
    for name, (light, dark) in PALETTE.items():
        assert f"--{name}: {light}" in raw
        assert f"--{name}: {dark}" in raw
    pictures = "".join(re.findall(r"<svg.*?</svg>", raw, flags=re.DOTALL))
    assert "var(--blue)" in pictures
    # Every colour of a line or letter is a variable of the page.
    fixed = set(re.findall(r"(?:stroke|fill): (#[0-9a-f]+)", pictures))
    assert fixed <= {SCALE[0], SCALE[-1]}  # the ends of the heat map's scale


def test_png_files_are_not_blank(full: Path) -> None:
    from PIL import Image

    assert sorted(path.stem for path in (full / "plots").iterdir()) == sorted(PLOTS)
    for key in PLOTS:
        with Image.open(full / "plots" / f"{key}.png") as image:
            colours = image.convert("RGB").getcolors(maxcolors=1 << 24) or []
        drawn = 1 - max(count for count, _ in colours) / sum(count for count, _ in colours)
        assert len(colours) > 20, key
        assert drawn > 0.005, key


def test_data_are_shown_with_a_histogram(tmp_path: Path) -> None:
    from bellwether.trainer.data.summary import DataSummary, SourceSummary

    run = Run(tmp_path / "run", name="run", steps=100).launch(0, 100, reason="finished")
    source = SourceSummary(files_read=3, rows=9, histogram_of="images by class", histogram={"cat": 4, "<dog>": 5})
    source.note("hidden folders", "left out", "cats/.git")
    (run.path / "data.json").write_text(json.dumps([DataSummary("images", "cats", source).to_json()]))
    write(run.path)
    page = Page((run.path / "report.html").read_text(encoding="utf-8"))
    for part in ("3 files, 9 rows", "1 hidden folders: left out (cats/.git)", "images by class", "<dog>"):
        assert part in page.text, part
    assert (run.path / "plots" / "data.png").exists()


def test_same_run_gives_the_same_bytes(full: Path) -> None:
    files = [full / "report.html", *(full / "plots").iterdir()]
    before = [path.read_bytes() for path in files]
    write(full)
    assert [path.read_bytes() for path in files] == before


def test_trajectory_is_drawn(tmp_path: Path) -> None:
    run = Run(tmp_path / "walk", layers=30, steps=60).launch(0, 40)
    for step in range(1, 61):  # measured at more steps than the loss
        at = {"step": step, "samples": run.samples(step)}
        run.line("walk", **at, distance=0.1 * step, update_norm=0.1, weight_norm=9.0, cosine=-1 / step)
        run.line("norms", **at, update_norms={"a.weight": 0.1 / step}, weight_norms={"a.weight": 2.0 + step})
    run.line("between", **at, losses=[2.0, 1.0, 1.5])
    run.line("between", step=61, samples=run.samples(61), losses=["nan", 1.0, 1.5])
    text = Page(write(run.path).read_text(encoding="utf-8")).text
    for part in ("Trajectory", "Angle", "Distance", "Between iterates", "step 60", "Update by layer"):
        assert part in text, part
    assert {path.stem for path in (run.path / "plots").iterdir()} == {*PLOTS, "cosine", "distance", "between",
                                                                     "update-norms", "weight-norms"} - {"accuracy"}  # fmt: skip


def incomplete(path: Path, kind: str) -> None:
    """Make a run directory in which something is missing."""
    if kind == "nothing":
        path.mkdir()
    elif kind == "config only":
        Run(path)
    elif kind == "metrics only":
        Run(path, steps=20).launch(0, 5)
        (path / "config.yaml").unlink()
    elif kind == "broken config":
        Run(path, steps=20).launch(0, 5)
        (path / "config.yaml").write_text("name: [<b>\n")
    elif kind == "start only":
        Run(path).launch(0, 0)
    elif kind == "one step":
        Run(path).launch(0, 1)
    elif kind == "no trust ratios":
        Run(path, trust=False).launch(0, 120, reason="stopped")
    elif kind == "all nan":
        Run(path).launch(0, 40, losses=dict.fromkeys(range(1, 41), "nan"))
    elif kind == "some nan":
        Run(path).launch(0, 40, losses={30: "nan", 31: "inf", 32: 1e30})
    elif kind == "cut line":
        run = Run(path).launch(0, 3)
        run.file.write('{"event": "trai')
        run.file.flush()


INCOMPLETE = [
    ("nothing", ["no config.yaml", "no start of a run"]),
    ("config only", ["no start of a run"]),
    ("metrics only", ["no config.yaml", "not ended"]),
    ("broken config", ["not YAML"]),
    ("start only", ["No training step"]),
    ("one step", ["not ended", "No held-out evaluation"]),
    ("no trust ratios", ["No trust ratios"]),
    ("all nan", ["not finite at 40 logged steps"]),
    ("some nan", ["not finite at 2 logged steps"]),
    ("cut line", ["Skipped 1 line"]),
]


@pytest.mark.parametrize(("kind", "expected"), INCOMPLETE, ids=[kind for kind, _ in INCOMPLETE])
def test_report_of_incomplete_run_names_what_is_missing(tmp_path: Path, kind: str, expected: list[str]) -> None:
    path = tmp_path / "run"
    incomplete(path, kind)
    page = Page(write(path).read_text(encoding="utf-8"))
    for part in expected:
        assert part in page.text
    assert summary(path)


@pytest.mark.parametrize(("count", "expected"), [(3, 3), (5, 5), (6, 3), (10, 5), (11, 4)])
def test_no_tile_is_alone_in_a_row(count: int, expected: int) -> None:
    assert columns(count) == expected


def test_outdated_plots_are_removed(tmp_path: Path) -> None:
    run = Run(tmp_path / "run").launch(0, 10)
    write(run.path)
    assert (run.path / "plots" / "trust-ratio.png").exists()
    (run.path / "metrics.jsonl").unlink()
    write(run.path)
    assert not list((run.path / "plots").iterdir())


@covering(lambda layers: layers in (1, 400))
@pytest.mark.parametrize("layers", [1, 20, 400])
def test_any_number_of_layers(tmp_path: Path, layers: int) -> None:
    text = Page(write(Run(tmp_path / "run", layers=layers).launch(0, 12).path).read_text(encoding="utf-8")).text
    assert f"{layers} parameter" in text
    if layers == 20:
        assert "layer 0 · attention.self.query" in text


def test_report_of_long_run_is_small(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", steps=4800).launch(0, 4800)
    assert len((run.path / "metrics.jsonl").read_text().splitlines()) > 5000
    assert write(run.path).stat().st_size < 700_000


def test_held_out_loss_above_that_of_token_frequencies_is_no_learning(full: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(full, run)
    text = (run / "metrics.jsonl").read_text().replace("7.2163,", "1.0163,")
    (run / "metrics.jsonl").write_text(text)
    assert "1.0163   of token frequencies alone: nothing more has been learnt" in summary(run)


def test_summary(full: Path) -> None:
    text = summary(full)
    found = dict(re.findall(r"^  (\S.*?)  +(\S.*)$", text, flags=re.MULTILINE))
    assert text.splitlines()[0] == f"{NAME}: finished"
    assert re.fullmatch(r"1\d\.\d{4}   guessing: ln\(30,522\) = 10\.3262", found["first loss"])
    assert 1 < float(found["last loss"]) < 2.5
    assert 1 < float(found["held-out loss"]) < 2.5
    assert found["unigram loss"] == "7.2163   of token frequencies alone"
    assert re.fullmatch(r"[45]\d\.\d\d %", found["held-out accuracy"])
    assert (found["steps"], found["samples"]) == ("400", "1,556,480")
    assert re.fullmatch(r"3,\d{3} samples/s   \(4\d\d,\d{3} tokens/s\)", found["throughput"])
    assert re.fullmatch(r"0:1\d:\d\d   \(2 launches\)", found["wall time"])
    assert found["report"] == str(full / "report.html")
    assert found["checkpoints"] == str(full / "checkpoints")
    assert "export" not in found


NOISES = [
    ([(12, 0, 23.2)], Noise(23.2, 0.8, 12), "too early to tell: 12 of 200 steps"),
    ([(100, 0, 23.0), (200, 0, 81.4), (210, 0, "nan")], Noise(81.4, 0.8, 200), "about 81 samples over the last 200 steps"),
    ([(400, 0, 50.0), (500, 1, 90.0)], Noise(90.0, 0.8, 100), "too early to tell: 100 of 200 steps"),
]  # fmt: skip


@pytest.mark.parametrize(("logged", "expected", "message"), NOISES, ids=["early", "late", "early in a phase"])
def test_noise_scale_is_reported_once_it_is_smoothed(
    tmp_path: Path, logged: list[tuple[int, int, Any]], expected: Noise, message: str
) -> None:
    run = Run(tmp_path / "run")
    for step, phase, scale in logged:
        run.line("train", step=step, samples=step, phase=phase, loss=1.0, noise_scale=scale, noise_scale_error=0.8)
    assert Facts.load(run.path).noise == expected
    assert re.search(rf"gradient noise +{re.escape(message)}\n", summary(run.path))
    page = Page(write(run.path).read_text(encoding="utf-8")).text
    assert (f"too early: {expected.early}" in page) == (expected.early is not None)
    assert (SMOOTHED, SMOOTHED_SHORT) == (HORIZON, SHORT_HORIZON)
    assert "± 0.8" not in page


def test_recent_noise_scale_and_spikes_are_reported(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    more = {"noise_scale_error": 9.1, "noise_scale_recent": 157.0, "noise_scale_spikes": 3}
    run.line("train", step=300, samples=300, phase=0, loss=1.0, noise_scale=113.0, **more)
    expected = "about 110 samples over the last 200 steps, 160 over the last 50; 3 spikes left out"
    assert expected in summary(run.path)


def test_parameter_groups_are_those_of_the_newest_launch(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    at: dict[str, Any] = {"step": 0, "samples": 0}
    decayed = {"weight_decay": 0.01, "trust_ratio": True, "lr_factor": 1, "parameters": 40, "elements": 4_386_178}
    others = {"weight_decay": 0.0, "trust_ratio": False, "lr_factor": 0.5, "parameters": 2, "elements": 96}
    run.line("groups", **at, phase=0, groups=[{**decayed, "elements": 5}])
    run.line("groups", **at, phase=0, groups=[decayed, others])
    run.line("groups", **at, phase="x", groups=[decayed])  # hostile, as the next ones
    run.line("groups", **at, phase=0)
    page = Page(write(run.path).read_text(encoding="utf-8")).text
    columns = ["weight decay", "trust ratio", "learning rate", "parameters", "elements"]
    cells = ["0.01", "yes", "× 1", "40", "4,386,178", "0", "no", "× 0.5", "2", "96"]
    assert "\n".join([*columns, *cells]) in page
    run.line("groups", **at, phase=1, groups=["hostile", others])
    page = Page(write(run.path).read_text(encoding="utf-8")).text
    assert "\n".join(["phase", *columns, "1", *cells[:5], "1", *cells[5:], "2", *cells[5:]]) in page


def test_evaluation_table_has_a_column_for_each_kind(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    values = {
        "loss": 1.25,
        "accuracy": 0.5,
        "loss_augmented": 1.125,
        "accuracy_augmented": 0.625,
        "loss_averaged": 1.0625,
    }
    run.line("eval", step=1, samples=64, phase=0, examples=9, **values)
    text = Page(write(run.path).read_text(encoding="utf-8")).text
    columns = ["loss", "accuracy", "loss, augmented", "accuracy, augmented", "loss, averaged", "examples"]
    assert "\n".join([*columns, "1", "64", "1.2500", "50.00 %", "1.1250", "62.50 %", "1.0625", "9"]) in text


PLAN_ROWS = [
    ("vocabulary", "30522", (30522, math.log(30522))),
    ("Vocabulary", "30,522 (WordPiece)", (30522, math.log(30522))),
    ("vocabulary", "4_096 entries", (4096, math.log(4096))),
    ("classes", "10", (10, math.log(10))),
    ("vocabulary", "as the tokenizer has", None),
    ("samples", "1000", None),
]


@pytest.mark.parametrize(("label", "value", "expected"), PLAN_ROWS)
def test_loss_of_uniform_guessing(tmp_path: Path, label: str, value: str, expected: tuple[int, float] | None) -> None:
    run = Run(tmp_path / "run")
    run.line("plan", phases=[[{"label": label, "value": value}]])
    assert Facts.load(run.path).expectation == expected


def test_binary_cross_entropy_has_no_loss_of_uniform_guessing(tmp_path: Path) -> None:
    for loss, known in (
        ("bce, classes of a share above 0.2 present", False),
        ("cross-entropy, label smoothing 0.1", True),
    ):
        run = Run(tmp_path / loss[:3])
        run.line("plan", phases=[[{"label": "loss", "value": loss}, {"label": "classes", "value": "10"}]])
        assert (Facts.load(run.path).expectation is not None) == known


def test_smoothing_keeps_lines_up_to_their_ends_and_phase_boundaries() -> None:
    line = np.linspace(10.0, 2.0, 200)
    np.testing.assert_allclose(smoothed(line), line, rtol=1e-9)  # float64 rounding
    step = np.r_[np.full(100, 5.0), np.full(100, 1.0)]
    np.testing.assert_allclose(smoothed(step, [100]), step, rtol=1e-9)
    assert abs(smoothed(step)[100] - 3) < 1
    holes = line.copy()
    holes[50:60] = np.nan
    result = smoothed(holes)
    assert np.isnan(result[50:60]).all()
    np.testing.assert_allclose(result[~np.isnan(result)], holes[~np.isnan(holes)], rtol=1e-9)


NAMES = [
    (["bert.embeddings.word_embeddings.weight", "bert.encoder.layer.0.attention.self.query.weight", "cls.dense.weight", "bert.a.b.bias"],
     [("embeddings", "word_embeddings"), ("layer 0", "attention.self.query"), ("cls", "dense"), ("a", "b.bias")]),
    (["resnet.embedder.embedder.convolution.weight", "resnet.encoder.stages.0.layers.1.layer.2.convolution.weight", "classifier.1.weight"],
     [("resnet", "embedder.embedder.convolution"), ("stage 0 layer 1", "layer.2.convolution"), ("classifier", "1")]),
    (["stem.weight", "stage1.0.conv1.weight", "fc.weight"], [("stem", "stem"), ("stage1 0", "conv1"), ("fc", "fc")]),
    (["0.weight", "2.weight"], [("0", "0"), ("2", "2")]),
    (["weight"], [("weight", "weight")]),
    (["model.bert.embeddings.word.weight", *[f"model.bert.encoder.layer.{i}.output.dense.weight" for i in range(9)], "model.bert.pooler.dense.weight"],
     [("embeddings", "word"), *[(f"layer {i}", "output.dense") for i in range(9)], ("pooler", "dense")]),
    ([], []),
]  # fmt: skip


@pytest.mark.parametrize(("full_names", "expected"), NAMES)
def test_short_parameter_names(full_names: list[str], expected: list[tuple[str, str]]) -> None:
    assert [(name.group, name.short) for name in shorten(full_names)] == expected


def test_heat_map_columns_cover_the_steps_of_their_lines(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    for step, ratio in ((10, 1.0), (20, 4.0), (30, "nan"), (60, 16.0)):
        run.line("layers", step=step, samples=step, trust_ratio={"a.weight": ratio, "b.weight": 1.0})
    names, edges, cells = heatmap.table(Facts.load(run.path).history.layers, "trust_ratio")
    assert [name.full for name in names] == ["a.weight", "b.weight"]
    np.testing.assert_allclose(edges, [0, 10, 20, 30, 40, 50, 60])
    np.testing.assert_allclose(cells[0], [1, 4, math.nan, 16, 16, 16])
    np.testing.assert_allclose(cells[1], 1)
