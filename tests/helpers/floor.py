"""Print pip constraints that pin every requirement of pyproject.toml to the lowest version it allows.

python tests/helpers/floor.py > constraints.txt
"""

import re
import tomllib
from pathlib import Path


def floors(pyproject: Path) -> list[str]:
    """Return one `name==version` line for each requirement written as `name>=version[,...]`, extras included."""
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    requirements = [
        *project["dependencies"],
        *(line for group in project["optional-dependencies"].values() for line in group),
    ]
    pins = set()
    for requirement in requirements:
        if requirement.startswith(project["name"]):
            continue
        match = re.fullmatch(r"([A-Za-z0-9_.-]+)>=([0-9][0-9a-z.]*)(,.*)?", requirement)
        if match is None:
            raise SystemExit(f"error: requirement {requirement!r} declares no lowest version; write name>=version")
        pins.add(f"{match[1]}=={match[2]}")
    return sorted(pins, key=str.lower)


if __name__ == "__main__":
    print("\n".join(floors(Path(__file__).parents[2] / "pyproject.toml")))
