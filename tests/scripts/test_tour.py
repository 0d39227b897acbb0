"""The tour's cells run in order, at toy size, and draw their pictures."""

import ast
import json
from pathlib import Path
from typing import Any

import pytest

TOUR = Path(__file__).resolve().parents[2] / "scripts" / "tour.ipynb"
TOY = {"ROWS": 64, "STEPS": 4, "HIDDEN": 12, "EVERY": 2, "TEST": 12}


def cells() -> list[dict[str, Any]]:
    return json.loads(TOUR.read_text(encoding="utf-8"))["cells"]


def is_parameters(cell: dict[str, Any]) -> bool:
    return "parameters" in cell["metadata"].get("tags", [])


def test_notebook_is_well_formed() -> None:
    notebook = json.loads(TOUR.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["metadata"]["kernelspec"]["language"]) == (4, "python")
    assert len({cell["id"] for cell in cells()}) == len(cells())
    (parameters,) = filter(is_parameters, cells())
    names: dict[str, Any] = {}
    exec("".join(parameters["source"]), names)
    assert {name for name in names if name.isupper()} == set(TOY)


def test_stored_outputs_are_those_of_one_run_from_the_top() -> None:
    code = [cell for cell in cells() if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} == {"stream", "execute_result"}
    assert all(output["name"] == "stdout" for output in outputs if "name" in output)
    assert sum("image/png" in output.get("data", ()) for output in outputs) == 5


@pytest.mark.slow
def test_every_cell_runs_and_the_story_has_its_pictures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    names: dict[str, Any] = {"__name__": "tour"}
    figures = []
    for number, cell in enumerate(cell for cell in cells() if cell["cell_type"] == "code"):
        tree = ast.parse("".join(cell["source"]), filename=f"cell {number}")
        # As a notebook does it: the value of a last expression is what the cell shows.
        last = ast.Expression(tree.body.pop().value) if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, f"cell {number}", "exec"), names)
        shown = eval(compile(last, f"cell {number}", "eval"), names) if last else None
        if is_parameters(cell):
            names |= TOY
        if hasattr(shown, "savefig"):
            figures.append(shown._repr_png_()[0])  # what a notebook shows, which imports no pyplot
    assert set(names["systems"]) == {"fixed vector", "every step", "attention", "input feeding"}
    contexts = [model.config.context for model in names["systems"].values()]
    assert contexts == ["initial_state", "every_step", "attention", "attention"]
    assert [model.config.input_feeding for model in names["systems"].values()][2:] == [False, True]
    assert len(figures) == 5
    assert all(picture.startswith(b"\x89PNG") and len(picture) > 3000 for picture in figures)
