"""Every command and snippet of the documents runs: at toy size, against the loopback Hub, in one process.

Training and distillation go first, in the order of the documents, since the other commands read what they write. What
needs GPUs, several machines or hours is parsed by its launcher and goes as far as --dry_run.
"""

import gzip
import json
import random
import re
import shlex
import subprocess
import zipfile
from dataclasses import dataclass
from pathlib import Path

import datasets
import pytest
import yaml
from accelerate.commands.launch import launch_command_parser
from transformers import MobileNetV2Config, MobileNetV2Model

from hf_rnn_seq2seq.data import hershey, shapes
from tests.helpers import warm
from tests.helpers.checkpoints import save_encoder
from tests.helpers.hub import Hub
from tests.helpers.hub_store import USER_TOKEN
from tests.helpers.toy import TOY, TOY_OF_CLASSES, TOY_OF_POINTS, TOY_OF_TEXT, TOY_OPTIONS

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("hf_rnn_seq2seq", "scripts", "model_cards", "tests")
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
DOCUMENTS += sorted(path for folder in FOLDERS for path in (ROOT / folder).glob("**/README.md"))
LONGEST_README = 200
LINE = 120
DEMO = "accelerate launch scripts/train.py scripts/recipes/cldr_en_fr.yaml --output_dir runs/demo"
BENCHMARK = "--vocab_size 40 --embedding_size 8 --hidden_size 8 --batch_size 2 --source_length 4 --target_length 4"
OF_POINTS = ("scripts/recipes/hershey_handwriting.yaml", "scripts/recipes/unipen_words.yaml")
SMALL = {
    "train.py": TOY_OPTIONS,
    "train_tokenizer.py": ["--max_train_samples", "64"],
    "benchmark.py": [*BENCHMARK.split(), "--rounds", "1", "--no_memory"],
    "compare.py": ["--dry_run"],
}


@dataclass(frozen=True)
class Command:
    """A line of a document: what a shell does before `script` gets its `arguments`, and what that feeds it."""

    line: str

    @property
    def _words(self) -> list[str]:
        return shlex.split(self.line.rpartition(" | ")[2])

    @property
    def _place(self) -> int:
        return next(place for place, word in enumerate(self._words) if re.fullmatch(r"scripts/[\w/]+\.py", word))

    @property
    def script(self) -> str:
        return self._words[self._place].removeprefix("scripts/")

    @property
    def launcher(self) -> list[str]:
        return self._words[: self._place]

    @property
    def several(self) -> bool:
        """Whether it is for more processes than one."""
        return "--num_processes" in self.launcher or "--config_file" in self.launcher

    @property
    def makes_data(self) -> bool:
        return self.script in ("train.py", "distill.py", "hallucinate.py", "pen_tokens.py") and not self.several

    @property
    def task(self) -> str | None:
        recipes = [word for word in self._words if word.startswith("scripts/recipes/")]
        return next((yaml.safe_load(text(ROOT / word)).get("task") for word in recipes), None)

    @property
    def stdin(self) -> str:
        fed = self.line.rpartition(" | ")[0]
        words = shlex.split(fed)
        assert not words or words[0] == "echo", f"what feeds the script is no echo: {fed}"
        return " ".join(words[1:]) + "\n" if words else ""

    def step(self) -> dict[str, object]:
        given = self._words[self._place + 1 :]
        of_task = {"classification": TOY_OF_CLASSES, "text": TOY_OF_TEXT}
        small = of_task.get(self.task) or SMALL.get(self.script, [])
        small = small + ["--dry_run"] * self.several
        if self.script == "train.py" and given[0] in OF_POINTS:
            small = TOY_OF_POINTS
        if self.script == "write.py":
            small = ["--max_points", "20"]
        if given[:1] == ["growth"]:
            small = [*small, "--only", "decoder_layers"]
        # A peer is another package; the others take a quarter of a minute each, and tests of their own run them.
        if (
            self.script.startswith("benchmarks/peers/")
            or given[:1] == ["train"]
            or (self.script == "export_onnx.py" and "numpy" not in given)
        ):
            return {"script": self.script, "parse": [*given, *small]}
        return {"script": self.script, "arguments": [*given, *small], "stdin": self.stdin}


def text(document: Path) -> str:
    return document.read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    pattern = re.compile(rf"^```{language}\n(.*?)^```$", re.DOTALL | re.MULTILINE)
    return [block for document in DOCUMENTS for block in pattern.findall(text(document))]


def snippets() -> list[str]:
    """The Python blocks but that of ONNX, which tests/export/test_export.py runs on what it exports."""
    return [block for block in blocks("python") if "OnnxTranslator" not in block]


def lines() -> list[str]:
    found = [line.split("  # ")[0].strip() for block in blocks("bash") for line in block.splitlines() if line.strip()]
    return list(dict.fromkeys(found))


def commands() -> list[Command]:
    """Each command of a script once: those that others wait for, the rest, and at the end those that push."""
    found = [Command(line) for line in lines() if not line.startswith("make ")]
    rank = {True: 0, False: 1}
    return sorted(found, key=lambda command: 2 if command.script == "push_to_hub.py" else rank[command.makes_data])


# ---------------------------------------------------------------------------------------- what the documents say


def test_every_room_has_a_sign_and_the_readme_is_short() -> None:
    rooms = {path.parent for path in (ROOT / "hf_rnn_seq2seq").glob("*/__init__.py")}
    assert len(rooms) == 9
    assert {room / "README.md" for room in (*rooms, ROOT / "scripts", ROOT / "model_cards")} <= set(DOCUMENTS)
    assert len(text(ROOT / "README.md").splitlines()) <= LONGEST_README


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_lines_are_short_and_links_lead_somewhere(document: Path) -> None:
    code = False
    for line in text(document).splitlines():
        code ^= line.startswith("```")
        assert code or line.startswith("|") or len(line) <= LINE, line
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", text(document)):
        path, _, anchor = target.partition("#")
        aim = (document.parent / path).resolve() if path else document
        assert aim.exists(), f"{document}: {target} leads nowhere"
        if anchor:
            titles = re.findall(r"^#+ (.*)$", text(aim), re.M)
            assert anchor in {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}, target


def test_every_command_is_accounted_for() -> None:
    """A command is a target of make or one of our scripts, every script has one, and no block goes unread."""
    folder = ROOT / "scripts"
    scripts = [path for part in (".", "experiments", "benchmarks/peers") for path in (folder / part).glob("*.py")]
    assert {command.script for command in commands()} == {path.relative_to(folder).as_posix() for path in scripts}
    assert len(commands()) >= 35
    fences = sum(len(re.findall("^ *```", text(document), re.M)) for document in DOCUMENTS)
    counts = {language: len(blocks(language)) for language in ("bash", "python", "yaml", "text", "tree", "js")}
    assert fences == 2 * sum(counts.values())
    assert counts["python"] >= 8 and counts["yaml"] == 1 and counts["tree"] == 1
    assert counts["python"] == len(snippets()) + 1 and counts["js"] == 1  # tests/export/test_export.py runs those two


def test_files_that_a_room_lists_are_there() -> None:
    for document in DOCUMENTS:
        listed = re.findall(r"^\| ((?:`[\w./]+`(?:, )?)+) \|", text(document), re.M)
        for name in re.findall(r"`([\w./]+(?:\.py|/))`", " ".join(listed)):
            assert (document.parent / name).exists() or (ROOT / name).exists(), f"{document}: {name} is not there"


def test_results_are_those_of_the_cards() -> None:
    rows = re.findall(r"^\| `(\w+)` \|(.*)\|$", text(ROOT / "README.md"), re.M)
    shown = dict(reversed(rows))
    others = {
        "sequence_error": ".2f",
        "accuracy": ".2f",
        "bits_per_character": ".3f",
        "nats_per_row": ".2f",
        "bleu": ".2f",
    }
    for card in (ROOT / "model_cards").glob("*.json"):
        facts = json.loads(text(card))["summary"]
        if card.stem not in shown or "bleu" not in facts:
            name = next(name for name in others if name in facts)
            assert format(facts[name], others[name]) in text(ROOT / "model_cards" / "README.md"), card.stem
            continue
        assert f"{facts['bleu']:.2f}" in shown[card.stem]
        assert f"{facts['parameters'] / 1e6:.1f} M" in shown[card.stem] or "the same" in shown[card.stem]


def test_make_targets_exist() -> None:
    targets = [line.split()[1] for line in lines() if line.startswith("make ")]
    assert {"demo", "test"} <= set(targets)
    for target in targets:
        done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    named = {name for document in DOCUMENTS for name in re.findall(r"`make ([\w-]+)", text(document))}
    makefile = text(ROOT / "Makefile")
    assert named <= set(re.findall(r"^([\w-]+):", makefile, re.M))
    files = re.findall(r"(?:scripts|tests)/[\w/]+\.\w+", makefile)
    assert "tests/helpers/floor.py" in files and all((ROOT / file).is_file() for file in files), files


DEMOS = {
    "translation": (
        DEMO.removeprefix("accelerate launch "),
        "scripts/evaluate_bleu.py runs/demo",
        "scripts/translate.py runs/demo",
        "--output_file runs/demo/attention.png",
    ),
    "captioning": (
        "scripts/train.py scripts/recipes/shapes_captions.yaml --output_dir runs/captioning",
        "scripts/evaluate_bleu.py runs/captioning",
        "scripts/caption.py runs/captioning runs/captioning/picture.png --output_file runs/captioning/attention.png",
    ),
    "handwriting": (
        "scripts/train.py scripts/recipes/hershey_handwriting.yaml --output_dir runs/handwriting",
        "scripts/evaluate_bleu.py runs/handwriting",
        "--output_file runs/handwriting/hand.svg --window runs/handwriting/window.png",
    ),
    "text": (
        "scripts/train.py scripts/recipes/graves2013_text.yaml --output_dir runs/text",
        "scripts/evaluate_bleu.py runs/text",
        "scripts/plot_surprise.py runs/text",
    ),
}


@pytest.mark.parametrize("task", DEMOS)
def test_the_demo_of_a_task_is_that_of_the_documents(task: str) -> None:
    words = ["make", "-n", "demo", *([] if task == "translation" else [f"TASK={task}"])]
    planned = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for part in DEMOS[task]:
        assert part in planned
    assert ("cldr" in planned) == (task == "translation")
    assert "make test" in text(ROOT / ".ci" / "run")


def test_the_demo_has_five_tasks() -> None:
    refused = subprocess.run(["make", "-n", "demo", "TASK=poetry"], cwd=ROOT, capture_output=True, text=True)
    tasks = "translation, captioning, classification, handwriting or text"
    assert refused.returncode and f"TASK=poetry: must be {tasks}" in refused.stderr


def test_launch_commands_are_well_formed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Accelerate's own parser reads them, and their config files exist."""
    monkeypatch.chdir(ROOT)
    launched = [command for command in commands() if "launch" in command.launcher]
    assert sum(command.several for command in launched) == 3
    for command in launched:
        words = command.launcher[command.launcher.index("launch") + 1 :]
        launch = launch_command_parser().parse_args([*words, f"scripts/{command.script}"])
        assert launch.config_file is None or Path(launch.config_file).is_file()
        assert launch.training_script == "scripts/train.py"


# ---------------------------------------------------------------------------------------- what the commands do


@dataclass(frozen=True)
class Result:
    status: int
    output: str
    errors: str


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory like the repository's root, with the files that a reader would have."""
    folder = tmp_path_factory.mktemp("readme")
    for name in ("scripts", "hf_rnn_seq2seq", "tests"):
        (folder / name).symlink_to(ROOT / name)
    numbers = ["zéro", "un", "deux", "trois", "quatre", "cinq", "six", "sept", "huit", "neuf"]
    rows = [f"{word} et {other}\t{word} and {other}" for word in numbers for other in numbers]
    for name in ("train", "dev", "test", "domain"):
        (folder / f"{name}.tsv").write_text("\n".join(["fr\ten", *rows]) + "\n", encoding="utf-8")
    sounds = [f"{word}\t{' '.join(word)}\n" for word in numbers]
    for name in ("fre_train", "fre_dev", "fre_test", "ar_train", "ar_dev"):
        (folder / f"{name}.tsv").write_text("".join(sounds), encoding="utf-8")
    for name in ("train", "dev", "test"):
        (folder / f"cmudict.{name}").write_text("".join(sounds).replace("\t", "  "), encoding="utf-8")
    for name in ("kat_large.train", "kat.dev"):
        forms = [f"{word}\t{word}{end}\tN;{number}\n" for word in numbers for end, number in (("s", "PL"), ("", "SG"))]
        (folder / name).write_text("".join([*forms, "grand\tgrands\tADJ;PL\n"]), encoding="utf-8")
    one = hershey.write("sea", "roman", random.Random(0))
    row = json.dumps({"text": one.text, "strokes": one.strokes})
    (folder / "mine.jsonl").write_text(row + "\n", encoding="utf-8")
    writers = ("anna", "bob", "carol", "ape", "kai", "hpb")  # three are in the recipe unipen_words
    rows = "".join(row.replace("}", f', "writer": "{name}"}}') + "\n" for name in writers)
    (folder / "words.jsonl.gz").write_bytes(gzip.compress(rows.encode()))
    (folder / "french.dict").write_text("deux\td ø\n", encoding="utf-8")
    for name in ("train", "dev", "test"):
        opinions = [(number % 2, f"{word} is {('bad', 'good')[number % 2]}") for number, word in enumerate(numbers)]
        (folder / f"{name}.txt").write_text("".join(f"{c} {line}\n" for c, line in opinions), encoding="utf-8")
        rows = "".join(f"{c}\t5\t1\t{line}. The end.\n" for c, line in opinions)
        (folder / f"reviews_{name}.tsv").write_text(rows, encoding="utf-8")
    (folder / "input.txt").write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
    (folder / "pairs.tsv").write_text("3 days ago\til y a 3 jours\n", encoding="utf-8")
    (folder / "sources.txt").write_text("3 days ago\n", encoding="utf-8")
    (folder / "words.txt").write_text("douze\ntwelve\n", encoding="utf-8")
    vectors = "".join(f"{word}{' 0.1' * TOY['embedding_size']}\n" for word in numbers)
    save_encoder(folder / "sentence-transformers" / "all-MiniLM-L6-v2", numbers)
    (folder / "fr.vec.gz").write_bytes(gzip.compress(f"{len(numbers)} {TOY['embedding_size']}\n{vectors}".encode()))
    save_pictures(folder)
    for recipe in blocks("yaml"):
        name = re.match(r"# ([\w.]+)\n", recipe)
        (folder / name[1]).write_text(recipe, encoding="utf-8")
    return folder


def save_pictures(folder: Path) -> None:
    """Two pictures with their captions as Flickr8k has them, in a data set too, and an encoder of pictures."""
    shapes.draw("shapes/test/0/1").save(folder / "picture.png")
    rows = {"image": [str(folder / "picture.png")] * 2, "captions": [["a red square", "a square"]] * 2}
    photos = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    datasets.DatasetDict(dict.fromkeys(("train", "validation", "test"), photos)).save_to_disk(folder / "photos")
    names = ["one.png", "two.png"]
    with zipfile.ZipFile(folder / "images.zip", "w") as archive:
        for name in names:
            archive.write(folder / "picture.png", name)
    captions = "".join(f"{name}#{number}\ta red square\n" for name in names for number in range(5))
    (folder / "Flickr8k.token.txt.gz").write_bytes(gzip.compress(captions.encode()))
    for split in ("train", "dev", "test"):
        (folder / f"Flickr_8k.{split}Images.txt").write_text("\n".join(names), encoding="utf-8")
    config = MobileNetV2Config(depth_multiplier=0.1, min_depth=2, image_size=32)
    MobileNetV2Model(config, add_pooling_layer=False).save_pretrained(folder / "mobilenet_v2")


@pytest.fixture(scope="module")
def results(hub: Hub, place: Path) -> dict[str, Result]:
    """Every command and snippet, by its text, with what it did; runs/demo is trained before them."""
    ordered = {DEMO: Command(DEMO).step()} | {command.line: command.step() for command in commands()}
    pushing = [line for line in ordered if "scripts/push_to_hub.py" in line]
    ordered |= {block: {"code": block} for block in snippets()}
    ordered |= {line: ordered.pop(line) for line in pushing}  # after the snippet that makes the repository
    steps, found = place / "steps.json", place / "results.json"
    steps.write_text(json.dumps(list(ordered.values())), encoding="utf-8")
    environment = hub.environment(cache=place / "cache", token=USER_TOKEN)
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [*warm.python(environment), str(ROOT / "tests" / "helpers" / "command_runs.py"), str(steps), str(found)]
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-4000:]
    values = [Result(**result) for result in json.loads(text(found))]
    return dict(zip(ordered, values, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("command", [command.line for command in commands()])
def test_command_runs(command: str, results: dict[str, Result], place: Path) -> None:
    result = results[command]
    assert result.status == 0, f"{command}\n{result.output[-2000:]}\n{result.errors[-4000:]}"
    if "--dry_run" in Command(command).step().get("arguments", ["--dry_run"]):
        return
    for file in re.findall(r"--output(?:_dir|_file)? (\S+)", command):
        assert (place / file).exists()
    if Command(command).script == "train.py":
        run = place / re.search(r"--output_dir (\S+)", command)[1]
        run = run / "seed-1" if "--num_seeds" in command else run
        summary = json.loads(text(run / "summary.json"))
        assert summary["steps"] == TOY["max_steps"]


@pytest.mark.slow
def test_snippets_run(results: dict[str, Result], hub: Hub) -> None:
    for block in snippets():
        assert results[block].status == 0, f"{block}\n{results[block].errors[-4000:]}"
    shown = next(results[block].output for block in snippets() if "first_step" in block)
    sums = [float(number) for number in re.findall(r"\d\.\d+|\d\.", shown)]
    assert sums == pytest.approx([1.0] * len(sums)) and sums
    assert any("user/name/commit" in path for _, path, status in hub.log() if status == 200)


@pytest.mark.slow
def test_shown_outputs_have_the_form_of_real_ones(results: dict[str, Result]) -> None:
    """The README shows the output of a trained model; a toy writes other words in the same columns."""
    pairs = [
        pair
        for document in DOCUMENTS
        for pair in re.findall(r"^```bash\n(.*)\n```\n\n```text\n(.*)\n", text(document), re.M)
    ]
    assert len(pairs) == len([block for block in blocks("text") if not block.startswith("{")]) == 1
    for command, shown in pairs:
        real = results[command].output.splitlines()[0]
        columns = re.compile(r"\t| {2,}")
        assert len(columns.split(shown)) == len(columns.split(real)), (shown, real)
