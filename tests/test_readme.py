"""Every snippet and command of the documents runs: at toy size, against the loopback Hub, in the order of the README.

A command is a target of make or one of our scripts; those that train get the options of a toy run behind theirs.
"""

import gzip
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.commands.launch import launch_command_parser

from hf_rnn_seq2seq.options import parse_arguments
from tests.export.test_export import NEWER_TORCH, OLD_TORCH
from tests.helpers.hub import Hub
from tests.helpers.hub_store import USER_TOKEN

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = ("README.md", "CONTRIBUTING.md")
TOY = {
    "max_train_samples": 64,
    "max_eval_samples": 8,
    "max_predict_samples": 8,
    "vocab_size": 300,
    "embedding_size": 12,
    "hidden_size": 12,
    "max_steps": 2,
    "eval_steps": 2,
    "max_new_tokens": 12,
    "per_device_train_batch_size": 8,
    "mixed_precision": "no",
    "report_to": "none",
    "cpu_threads": 1,
}
TOY_OPTIONS = [word for name, value in TOY.items() for word in (f"--{name}", str(value))]


def blocks(language: str) -> list[str]:
    found = []
    for document in DOCUMENTS:
        text = (ROOT / document).read_text(encoding="utf-8")
        found += re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return found


def commands(program: str = "") -> list[str]:
    lines = [line.split("  # ")[0].strip() for block in blocks("bash") for line in block.splitlines() if line.strip()]
    return [line for line in lines if program in line]


def needs_gpus(command: str) -> bool:
    return "scripts/accelerate/" in command


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory like the repository's root: the scripts, and three small files of sentence pairs."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "scripts").symlink_to(ROOT / "scripts")
    numbers = ["zéro", "un", "deux", "trois", "quatre", "cinq", "six", "sept", "huit", "neuf"]
    for name in ("train", "dev", "test"):
        rows = [f"{word} et {other}\t{word} and {other}" for word in numbers for other in numbers]
        (folder / f"{name}.tsv").write_text("\n".join(["fr\ten", *rows]) + "\n", encoding="utf-8")
    shutil.copyfile(folder / "train.tsv", folder / "domain.tsv")
    (folder / "words.txt").write_text("douze\ntwelve\n", encoding="utf-8")
    vectors = "".join(f"{word}{' 0.1' * TOY['embedding_size']}\n" for word in numbers)
    (folder / "fr.vec.gz").write_bytes(gzip.compress(f"{len(numbers)} {TOY['embedding_size']}\n{vectors}".encode()))
    return folder


@pytest.fixture(scope="module")
def environment(hub: Hub, place: Path) -> dict[str, str]:
    found = hub.environment(cache=place / "cache", token=USER_TOKEN)
    path = f"{Path(sys.executable).parent}{os.pathsep}{found['PATH']}"
    return found | {"PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def run(command: str, place: Path, environment: dict[str, str]) -> str:
    done = subprocess.run(
        ["bash", "-ec", command], cwd=place, env=environment, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def trained(place: Path, environment: dict[str, str]) -> Path:
    """`place` after every training command that one CPU can run, at toy size; the first run serves as runs/demo.

    Between them a corpus is distilled, which the next one reads.
    """
    for command in commands("scripts/"):
        if "scripts/distill.py" in command:
            run(command, place, environment)
        elif "scripts/train.py" in command and not needs_gpus(command):
            run(f"{command} {shlex.join(TOY_OPTIONS)}", place, environment)
    shutil.copytree(place / "runs" / "korean", place / "runs" / "demo")
    return place


def test_every_command_is_accounted_for() -> None:
    """A command is a target of make, or one of our scripts; every line of code stands in a block that is read."""
    names = {path.name for path in (ROOT / "scripts").glob("*.py")}
    for line in commands():
        found = re.findall(r"scripts/(\w+\.py)", line)
        assert line.startswith("make ") or (len(found) == 1 and found[0] in names), (
            f"a command that no test runs: {line}"
        )
    fences = sum((ROOT / name).read_text(encoding="utf-8").count("\n```") for name in DOCUMENTS)
    trees = sum(len(re.findall(r"^```\n[^`]*?^```$", (ROOT / name).read_text("utf-8"), re.M)) for name in DOCUMENTS)
    assert fences == 2 * (len(blocks("bash")) + len(blocks("python")) + trees) and trees == 1


def test_results_are_those_of_the_cards() -> None:
    rows = re.findall(r"^\| `(\w+)` \|(.*)\|$", (ROOT / "README.md").read_text(encoding="utf-8"), re.M)
    shown = dict(reversed(rows))
    for card in (ROOT / "model_cards").glob("*.json"):
        facts = json.loads(card.read_text(encoding="utf-8"))["summary"]
        assert f"{facts['bleu']:.2f}" in shown[card.stem]
        assert f"{facts['parameters'] / 1e6:.1f} M" in shown[card.stem] or "the same" in shown[card.stem]


def test_make_targets_exist() -> None:
    targets = [line.split()[1] for line in commands() if line.startswith("make ")]
    assert {"demo", "test"} <= set(targets)
    for target in targets:
        done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    ignored = re.findall(r"`make [\w-]+", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert {word.split()[1] for word in ignored} <= set(
        re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    )


def test_demo_and_ci_run_what_the_readme_says() -> None:
    planned = subprocess.run(["make", "-n", "demo"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for part in (
        "scripts/train.py scripts/recipes/cldr_en_fr.yaml --output_dir runs/demo",
        "scripts/evaluate_bleu.py runs/demo",
        "scripts/translate.py runs/demo",
        "--output runs/demo/attention.png",
    ):
        assert part in planned
    assert "make test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


@pytest.mark.slow
def test_training_commands(trained: Path) -> None:
    for name in ("korean", "mine", "vectors", "adapted", "student", "two"):
        summary = json.loads((trained / "runs" / name / "summary.json").read_text(encoding="utf-8"))
        assert summary["steps"] == 2
        assert summary["processes"] == (2 if name == "two" else 1)


def test_training_commands_for_gpus_are_well_formed(monkeypatch: pytest.MonkeyPatch) -> None:
    """No such machines here: accelerate's own parser and the script's read the lines, and the config files exist."""
    spec = importlib.util.spec_from_file_location("train_script", ROOT / "scripts" / "train.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.chdir(ROOT)
    lines = [command for command in commands("scripts/train.py") if needs_gpus(command)]
    assert len(lines) == 2
    for line in lines:
        words = shlex.split(line)
        assert words[:2] == ["accelerate", "launch"]
        launch = launch_command_parser().parse_args(words[2:])
        assert Path(launch.config_file).is_file() and launch.training_script == "scripts/train.py"
        parse_arguments(launch.training_script_args, script.GROUPS, script.model_options())


def others() -> list[str]:
    """Commands of our scripts on a model that is there, but for those of `trained` and those that wait for the Hub."""
    return [line for line in commands("scripts/") if not re.search(r"scripts/(train|distill|push_to_hub)\.py", line)]


@pytest.mark.slow
@pytest.mark.parametrize("command", others())
def test_command_on_a_trained_model(command: str, trained: Path, environment: dict[str, str]) -> None:
    if "export_onnx" in command and not NEWER_TORCH:
        pytest.skip(OLD_TORCH)
    toy = f" {shlex.join(TOY_OPTIONS)}" if "scripts/compare.py" in command else ""
    shown = run(command + toy, trained, environment)
    if "scripts/evaluate_bleu.py" in command:
        assert "BLEU" in shown
    for file in re.findall(r"--output (\S+)", command):
        assert (trained / file).exists()


@pytest.mark.slow
def test_python_snippets_and_publishing(hub: Hub, trained: Path, environment: dict[str, str]) -> None:
    """Snippets run in the order of the documents, each in names of its own, in one process for the sake of time."""
    code = "\n".join(f"exec({block!r}, {{'__name__': 'snippet'}})\nprint('--')" for block in blocks("python"))
    (trained / "snippets.py").write_text(code, encoding="utf-8")
    shown = run(f"{shlex.quote(sys.executable)} snippets.py", trained, environment).split("--\n")
    assert len(shown) == len(blocks("python")) + 1
    sums = [float(number) for number in re.findall(r"\d\.\d+|\d\.", next(text for text in shown if "tensor" in text))]
    assert sums == pytest.approx([1.0] * len(sums)) and sums
    assert any("user/name/commit" in path for _, path, status in hub.log() if status == 200)
    for command in commands("scripts/push_to_hub.py"):
        assert "model.safetensors" in run(command, trained, environment)
