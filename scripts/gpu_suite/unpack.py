"""Unpacks the wheels of a bundle that this machine lacks, and prints the folder to import them from. Needs the standard library alone.

    python3 scripts/gpu_suite/unpack.py build/gpu-bundle build/gpu-site

A package that is installed here stays as it is, because it fits the machine's torch, unless one that is unpacked needs another version.
"""

import importlib.metadata
import re
import shutil
import sys
import zipfile
from pathlib import Path
from typing import Any


def missing(bundle: Path) -> "tuple[list[Path], list[str]]":
    """The wheels of a bundle whose packages are not installed or too old, and what is too old and has no wheel there."""
    wheels = {normal(wheel.name.split("-")[0]): wheel for wheel in sorted(bundle.glob("*.whl"))}
    if "packaging" in wheels:
        sys.path.append(str(wheels["packaging"]))  # Python imports from a wheel as it is, where there is none
    waiting = [name for name in wheels if installed(name) is None]
    found, lacking = [], []
    while waiting:
        name = waiting.pop()
        if wheels[name] in found:
            continue
        found.append(wheels[name])
        for other, specifier in requirements(wheels[name]):
            version = installed(other)
            if version is None or specifier.contains(version, prereleases=True):
                continue
            if other in wheels:
                waiting.append(other)
            else:
                lacking.append(f"{name} needs {other}{specifier}, and {version} is installed")
    return sorted(found), lacking


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def installed(name: str) -> "str | None":
    """The version of a package here, or None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def requirements(wheel: Path) -> "list[tuple[str, Any]]":
    """Name and versions of each package that a wheel needs on this machine."""
    from packaging.requirements import Requirement

    with zipfile.ZipFile(wheel) as archive:
        metadata = next((name for name in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", name)), None)
        text = archive.read(metadata).decode() if metadata else ""
    found = []
    for line in re.findall(r"^Requires-Dist: (.*)$", text, re.M):
        requirement = Requirement(line.strip())
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            found.append((normal(requirement.name), requirement.specifier))
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
    wheels, lacking = missing(bundle)
    if wheels:
        unpack(wheels, site)
        print(site.resolve())
    names = ", ".join(wheel.name.split("-")[0] for wheel in wheels) or "nothing"
    print(f"gpu_suite: from the bundle: {names}", file=sys.stderr)
    for line in lacking:
        print(f"gpu_suite: {line}; it may fail", file=sys.stderr)


if __name__ == "__main__":
    main()
