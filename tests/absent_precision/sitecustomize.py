"""Python executes this at the start of a subprocess of a test, see `tests.precision.subprocess_path`."""

import runpy
import sys
from pathlib import Path

HERE = Path(__file__).parent

sys.path.append(str(HERE.parents[1]))
from tests.precision import report_absent  # noqa: E402

report_absent()
for folder in map(Path, sys.path):
    if folder != HERE and (folder / "sitecustomize.py").is_file():
        runpy.run_path(str(folder / "sitecustomize.py"))
        break
