"""The tested versions: a lock of every requirement, which is in the sdist and in the README."""

import re
import subprocess
import sys
import tarfile
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / ".ci" / "requirements.lock"
# Installed before the lock, as the build that this machine needs.
APART = re.compile(r"torch|triton|(nvidia|cuda)-.*")
PYTHONS = ("3.11", "3.12", "3.13", "3.14")


def locked(python: str) -> dict[str, str]:
    """The version of each package that the lock installs on Linux with this Python."""
    environment = {"python_version": python, "python_full_version": f"{python}.0"}
    environment |= {"sys_platform": "linux", "platform_machine": "x86_64"}
    versions: dict[str, str] = {}
    for line in LOCK.read_text(encoding="utf-8").splitlines()[1:]:
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate(environment):
            (pin,) = requirement.specifier
            assert pin.operator == "==" and requirement.name not in versions, line
            versions[canonicalize_name(requirement.name)] = pin.version
    return versions


def torch_release() -> str:
    return re.search(r"^TESTED_TORCH := torch==(\S+)$", (ROOT / "Makefile").read_text("utf-8"), re.M)[1]


def declared() -> list[Requirement]:
    """Every requirement of pyproject.toml, extras included but for `notebook`, which no test needs."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = {name: lines for name, lines in project["optional-dependencies"].items() if name != "notebook"}
    groups = [project["dependencies"], *extras.values()]
    lines = [Requirement(line) for group in groups for line in group]
    return [line for line in lines if line.name != project["name"]]


@pytest.mark.parametrize("python", PYTHONS)
def test_the_lock_satisfies_every_requirement(python: str) -> None:
    versions = locked(python) | {"torch": torch_release()}
    wanted = declared()
    assert len(wanted) > 20
    for requirement in wanted:
        version = versions.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement.name} is not locked; `make lock` adds it"
        assert version in requirement.specifier, f"{requirement} is locked at {version}; `make lock` renews it"


def test_the_lock_is_complete() -> None:
    """The lock is installed without resolving dependencies, so it must contain the requirements of its releases."""
    versions = locked(f"{sys.version_info.major}.{sys.version_info.minor}")
    checked = 0
    for name, version in versions.items():
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        if distribution.version != version:  # `make test-latest` and `make test-floor` install others
            continue
        for line in distribution.requires or []:
            requirement = Requirement(line)
            needed = canonicalize_name(requirement.name)
            if requirement.marker and not requirement.marker.evaluate({"extra": ""}) or APART.fullmatch(needed):
                continue
            assert needed in versions, f"{name} requires {requirement.name}, which is not locked"
            assert versions[needed] in requirement.specifier, f"{name} {version} requires {requirement}"
            checked += 1
    assert checked > 50 or metadata.version("transformers") != versions["transformers"]


def test_the_lock_names_no_cuda_package_and_no_address() -> None:
    header, *lines = LOCK.read_text(encoding="utf-8").splitlines()
    assert header.startswith("#") and f"torch=={torch_release()}" in header
    for line in lines:
        assert re.fullmatch(r"[a-z0-9-]+==[a-z0-9.]+( ; [\w '<>=!.()]+)?", line), line
        assert not APART.fullmatch(line.split("==")[0]), line


def test_the_readme_shows_the_lock() -> None:
    versions = locked(PYTHONS[0]) | {"torch": torch_release()}
    floors = {canonicalize_name(line.name): str(line.specifier) for line in declared()}
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    table = re.search(r"^\| \| (.*) \|\n.*\n\| at least \| (.*) \|\n\| tested with \| (.*) \|$", readme, re.M)
    rows = list(zip(*(line.split(" | ") for line in table.groups()), strict=True))
    assert len(rows) >= 6
    for name, lowest, version in rows:
        assert version == versions[canonicalize_name(name)], f"{name}: the README says {version}"
        assert f">={lowest}" in floors[canonicalize_name(name)].split(","), f"{name}: the README says {lowest}"


def test_the_sdist_carries_the_lock(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        assert f"{path.name.removesuffix('.tar.gz')}/.ci/requirements.lock" in archive.getnames()


def test_set_up_installs_torch_and_then_the_lock_alone() -> None:
    planned = subprocess.run(
        ["make", "-n", "setup", "VENV=/nonexistent/venv", "TORCH=torch==1.2.3", "TORCH_INDEX_URL="],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    installs = re.findall(r"pip install +(.*)", planned)
    assert installs == ['"torch==1.2.3"', "--no-deps -r .ci/requirements.lock", "--no-deps --no-build-isolation -e ."]


def test_the_floors_are_the_lowest_versions_declared() -> None:
    """What `make test-floor` installs, by the file that its recipe runs."""
    planned = subprocess.run(["make", "-n", "test-floor"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    (script,) = re.findall(r"(\S+\.py) > \S*constraints\.txt", planned)
    done = subprocess.run([sys.executable, script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pins = {canonicalize_name(name): version for name, version in re.findall(r"^(\S+)==(\S+)$", done.stdout, re.M)}
    assert pins["torch"] == "2.6" and {canonicalize_name(line.name) for line in declared()} <= pins.keys()
    assert all(pins[canonicalize_name(line.name)] in line.specifier for line in declared())
