"""Runs commands and snippets one after the other in one process, since each of its own would take seconds to import.

As a program, `python tests/helpers/command_runs.py STEPS.json RESULTS.json`. A step is {"script", "arguments",
"stdin"}, {"script", "parse"}, which reads the arguments only, or {"code"}; a result is {"status", "output", "errors"}.
The steps after a failed one still run.
"""

import contextlib
import io
import json
import sys
import traceback
from pathlib import Path
from typing import Any

from accelerate.state import AcceleratorState, GradientState, PartialState

from tests.helpers import script_runs


def execute(step: dict[str, Any]) -> dict[str, Any]:
    if "code" in step:
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            exec(step["code"], {"__name__": "snippet"})
        return {"status": 0, "output": output.getvalue(), "errors": ""}
    if "parse" in step:
        script_runs.command_of(step["script"].removesuffix(".py").replace("/", ".")).parse(step["parse"])
        return {"status": 0, "output": "", "errors": ""}
    done = script_runs.run(step["script"], *step["arguments"], stdin=step["stdin"].encode())
    for state in (AcceleratorState, PartialState, GradientState):
        state._reset_state(*[True] * (state is AcceleratorState))
    return {"status": done.returncode or 0, "output": done.stdout.decode(), "errors": done.stderr.decode()}


def attempt(step: dict[str, Any]) -> dict[str, Any]:
    try:
        return execute(step)
    except (Exception, SystemExit):  # whatever a command raises is its result
        return {"status": 1, "output": "", "errors": traceback.format_exc()}


if __name__ == "__main__":
    steps, results = map(Path, sys.argv[1:])
    found = [attempt(step) for step in json.loads(steps.read_text(encoding="utf-8"))]
    results.write_text(json.dumps(found), encoding="utf-8")
