"""The wheel, installed where nothing of this checkout can be imported, trains and loads."""

import shlex
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

import hf_rnn_seq2seq
from tests.helpers.toy import TOY_OPTIONS

ROOT = Path(__file__).resolve().parent.parent
TEMPLATE = "hf_rnn_seq2seq/hub/model_card_template.md"
LOAD = """
import sys
import hf_rnn_seq2seq
from hf_rnn_seq2seq.hub.model_card import read_facts, render
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

assert hf_rnn_seq2seq.__file__.startswith(sys.prefix), hf_rnn_seq2seq.__file__
model = AutoModelForSeq2SeqLM.from_pretrained("run")
tokenizer = AutoTokenizer.from_pretrained("run")
output = model.generate(**tokenizer("3 days ago", return_tensors="pt"))
assert output.shape[0] == 1 and type(model).__module__.startswith("hf_rnn_seq2seq.")
assert "## Intended use" in render(read_facts("run"))
print(hf_rnn_seq2seq.__version__)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = folder.glob("*.whl")
    return path


def test_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    assert wheel.name == f"hf_rnn_seq2seq-{hf_rnn_seq2seq.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        template = archive.read(TEMPLATE).decode("utf-8")
    assert template == (ROOT / "model_cards" / "template.md").read_text(encoding="utf-8")
    package = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "hf_rnn_seq2seq").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.name != "README.md"
    }
    described = {name for name in names if ".dist-info/" in name}
    lists = {
        f"hf_rnn_seq2seq/{kind}/{path.name}"
        for kind in ("recipes", "experiments")
        for path in (ROOT / "scripts" / kind).glob("*.yaml")
    }
    assert names - described == package | {TEMPLATE} | lists
    assert any(name.endswith("licenses/LICENSE") for name in described)


@pytest.mark.long
def test_installed_wheel_trains_and_loads(wheel: Path, tmp_path: Path) -> None:
    """The dependencies are those of this environment: their folder is on the path, its .pth files are not read."""
    environment = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    python = environment / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = subprocess.run([python, "-c", ask], check=True, capture_output=True, text=True).stdout.strip()
    (Path(packages) / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")

    train = [environment / "bin" / "hf-rnn", "train", "cldr_en_fr", "--output_dir", "run", *TOY_OPTIONS]
    again = [python, ROOT / "scripts" / "train.py", "cldr_en_fr", "--output_dir", "again", *TOY_OPTIONS]
    for command in (train, again, [python, "-c", LOAD]):
        words = [str(word) for word in command]
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{shlex.join(words)}\n{done.stderr[-4000:]}"
    assert done.stdout.strip() == hf_rnn_seq2seq.__version__
