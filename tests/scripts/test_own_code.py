"""`--import FILE`: an attention and a model of one's own in every command, and in what is published."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from hf_rnn_seq2seq import command_line
from hf_rnn_seq2seq.errors import ArgumentError
from hf_rnn_seq2seq.hub.upload import plan_upload
from hf_rnn_seq2seq.options import import_code
from hf_rnn_seq2seq.training.arguments import RunOptions
from tests.helpers import warm
from tests.scripts.test_train import TINY

ROOT = Path(__file__).parents[2]
MINE = ",".join(str(ROOT / "tests" / "fixtures" / name) for name in ("my_attention.py", "my_model.py"))


def call(script: str, *words: object, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Runs the script in a new process, since what `--import` registers stays registered."""
    command = [*warm.python(), str(ROOT / "scripts" / script), *map(str, words)]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)


def test_train_translate_and_publish(tmp_path: Path) -> None:
    recipe, run = tmp_path / "recipe.yaml", tmp_path / "run"
    recipe.write_text(yaml.safe_dump({**TINY, "import": MINE, "attention_type": "sharp_cosine", "max_steps": 2}))
    trained = call("train.py", recipe, "--output_dir", run)
    assert trained.returncode == 0, trained.stderr
    assert yaml.safe_load((run / "recipe.yaml").read_text())["imports"] == MINE
    files = plan_upload(run, "ann/mine").files
    assert {"my_attention.py", "my_model.py", "modeling_rnn_seq2seq.py"} <= set(files)
    refused = call("translate.py", run, stdin="one hour\n")
    assert refused.returncode == 2 and "on the command line by --import FILE" in refused.stderr, refused.stderr
    translated = call("translate.py", run, "--import", MINE, stdin="one hour\ntwo hours\n")
    assert translated.returncode == 0 and translated.stdout.count("\n") == 2, translated.stderr
    assert "SharpModel" in translated.stderr  # generate() decodes, because of its score_words


def test_an_import_that_fails_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken, taken = tmp_path / "broken_attention.py", tmp_path / "json.py"
    broken.write_text("raise RuntimeError('no such luck')\n")
    taken.write_text("")
    for name, message in {
        str(broken): "cannot be imported (RuntimeError: no such luck); name a file `mine.py` or a module",
        str(taken): "json is taken or is no name; give the file another name",
        str(tmp_path / "absent.py"): "cannot be imported (FileNotFoundError",
        "no_such_module_": "cannot be imported (ModuleNotFoundError",
    }.items():
        for read in (
            lambda name: command_line.Parser("").parse_args(["--import", name]),
            lambda name: RunOptions.parse(["--import", name, "--output_dir", "x"]),
        ):
            with pytest.raises(ArgumentError) as caught:
                read(name)
            assert f"import={name!r}: " in str(caught.value) and message in str(caught.value)
    assert "broken_attention" not in sys.modules


def test_a_file_is_imported_once(tmp_path: Path) -> None:
    path = tmp_path / "counting_imports.py"
    path.write_text("import sys\nsys.counted_imports = getattr(sys, 'counted_imports', 0) + 1\n")
    import_code(f"{path},{path}")
    assert sys.counted_imports == 1
    del sys.counted_imports
    del sys.modules["counting_imports"]
