"""Unpacks the wheels of a bundle that this machine lacks, and prints the folder to import them from. Needs the standard library alone.

    python3 scripts/gpu_suite/unpack.py build/gpu-bundle build/gpu-site

A wheel of a package that is installed here in any version is left out: the machine's own fit its torch.
"""

import importlib.metadata
import re
import shutil
import sys
import zipfile
from pathlib import Path


def missing(bundle: Path) -> list[Path]:
    """The wheels of a bundle whose packages are not installed."""
    found = []
    for wheel in sorted(bundle.glob("*.whl")):
        try:
            importlib.metadata.version(wheel.name.split("-")[0].replace("_", "-"))
        except importlib.metadata.PackageNotFoundError:
            found.append(wheel)
    return found


def unpack(wheels: list[Path], site: Path) -> None:
    """Put the contents of wheels into a folder; nothing of an earlier call stays there."""
    shutil.rmtree(site, ignore_errors=True)
    site.mkdir(parents=True)
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            for member in archive.infolist():
                # Files outside of the package's root: NAME.data/purelib/..., NAME.data/scripts/...
                inside = re.fullmatch(r"[^/]+\.data/(\w+)/(.+)", member.filename)
                if inside and inside[1] not in ("purelib", "platlib"):
                    continue
                member.filename = inside[2] if inside else member.filename
                archive.extract(member, site)


def main() -> None:
    bundle, site = Path(sys.argv[1]), Path(sys.argv[2])
    wheels = missing(bundle)
    if wheels:
        unpack(wheels, site)
        print(site.resolve())
    names = ", ".join(wheel.name.split("-")[0] for wheel in wheels) or "nothing"
    print(f"gpu_suite: from the bundle: {names}", file=sys.stderr)


if __name__ == "__main__":
    main()
