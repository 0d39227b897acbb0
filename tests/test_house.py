"""The rules of the repository that a machine can check: imports, entries, versions, exports, forbidden words."""

import ast
import re
import subprocess
import sys
import tomllib
from functools import lru_cache
from pathlib import Path

import pytest

import hf_rnn_seq2seq
from tests.helpers import warm

ROOT = Path(__file__).resolve().parent.parent
PACKAGE, MODEL = ROOT / "hf_rnn_seq2seq", ROOT / "hf_rnn_seq2seq" / "model"

ENTRIES = {
    ".ci",
    ".github",
    ".gitignore",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "Makefile",
    "README.md",
    "hf_rnn_seq2seq",
    "model_cards",
    "pyproject.toml",
    "scripts",
    "tests",
}
EXPORTS = {
    "Attention",
    "ConfigError",
    "RnnClassifierConfig",
    "RnnClassifierModel",
    "RnnForSequenceClassification",
    "RnnCausalConfig",
    "RnnCausalModel",
    "RnnForCausalLM",
    "RnnForHandwriting",
    "RnnHandwritingConfig",
    "RnnSeq2SeqCache",
    "RnnSeq2SeqConfig",
    "RnnSeq2SeqForConditionalGeneration",
    "RnnSeq2SeqModel",
    "RnnSeq2SeqPreTrainedModel",
    "SearchError",
    "SearchOutput",
    "__version__",
    "register_attention",
}
# Who may import whom at the top of a file of model/: later rows import earlier rows, never the other way round.
LAYERS = [
    {"departures", "dropout", "matmul", "pen_points", "presets", "search_options"},
    {"config_checks", "mixture_density"},
    {"foreign_encoder", "own_code"},
    {"configuration_recurrence"},
    {"configuration_rnn_decoder", "configuration_rnn_encoder"},
    {"configuration_rnn_causal", "configuration_rnn_classifier"},
    {"configuration_rnn_handwriting", "configuration_rnn_seq2seq"},
    {"coverage", "entmax", "loss", "readout", "scheduled_sampling", "window_attention"},
    {"attention", "recurrence"},
    {"copying", "decoder_state", "encoder", "hard_attention", "scan_steps"},
    {"modeling_rnn_classifier", "pretrained", "scan"},
    {"decoder"},
    {"encoder_decoder", "modeling_rnn_handwriting"},
    {"search_step"},
    {"beam_search", "fused_step"},
    {"constrained_search", "tokenization_rnn_seq2seq"},
    {"processing_rnn_seq2seq", "search"},
    {"modeling_rnn_causal", "modeling_rnn_seq2seq"},
]
CORE = {"torch", "transformers", "huggingface_hub"}
# The rooms of the package and its own files, with what each may import of the others.
_COMMON = {"errors", "files", "command_line", "option_parser", "options", "run_directory"}
_TEXT = {*_COMMON, "data", "generation", "model"}
LAW = {
    "errors": set(),
    "files": {"errors"},
    "model": set(),
    "command_line": {"errors", "files", "option_parser", "options"},
    "option_parser": {"errors", "options"},
    "options": {"errors"},
    "run_directory": {"errors", "files", "model"},
    "data": {*_COMMON, "model"},
    "export": {*_COMMON, "model"},
    "generation": {*_COMMON, "data", "model"},
    "evaluation": _TEXT,
    "training": {*_TEXT, "evaluation"},
    "visualization": {*_TEXT, "evaluation"},
    "hub": {*_TEXT, "evaluation"},
    "__init__": {"model", "generation"},
    "commands": {*_TEXT, "evaluation", "training", "visualization", "hub", "export"},
    "__main__": _COMMON,
}
# import name -> requirement; in brackets: what comes with one of the core requirements
DECLARED = {
    "PIL": "Pillow",
    "accelerate": "accelerate",
    "babel": "Babel",
    "datasets": "datasets",
    "evaluate": "evaluate",
    "jinja2": "Jinja2",
    "jiwer": "jiwer",
    "matplotlib": "matplotlib",
    "onnx": "onnx",
    "onnxruntime": "onnxruntime",
    "onnxscript": "onnxscript",
    "sacrebleu": "sacrebleu",
    "tensorboard": "tensorboard",
    "tokenizers": "tokenizers",
    "tqdm": "tqdm",
    "yaml": "PyYAML",
    "numpy": "(transformers)",
    "safetensors": "(transformers)",
    "pyarrow": "(datasets)",
}


def sources(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.py") if "__pycache__" not in path.parts)


@lru_cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


@lru_cache
def imports(path: Path) -> tuple[tuple[str, ast.stmt], ...]:
    """Every import of a file as an absolute dotted name (`from a import b` gives `a` and `a.b`), with its statement."""
    package = list(path.relative_to(ROOT).with_suffix("").parts[:-1])
    found: list[tuple[str, ast.stmt]] = []
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                found.append((alias.name, node))
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found.append((module, node))
            for alias in node.names:
                found.append((f"{module}.{alias.name}", node))
    return tuple(found)


@lru_cache
def top_level(path: Path) -> set[str]:
    return {name.split(".")[0] for name, _ in imports(path)}


@pytest.mark.parametrize("path", sources(MODEL), ids=lambda path: path.name)
def test_model_folder_can_travel(path: Path) -> None:
    """The Hub's copier reads raw text: one `from .x import y` a line, siblings only, no parent and no sub-folder."""
    assert path.parent == MODEL, "model/ is flat"
    text = path.read_text(encoding="utf-8")
    real = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.ImportFrom) and node.level:
            assert node.level == 1 and node.module and "." not in node.module, ast.unparse(node)
            assert (MODEL / f"{node.module}.py").is_file(), ast.unparse(node)
            assert node.lineno == node.end_lineno, f"on one line: {ast.unparse(node)}"
            real.add(node.lineno)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            for name in names:
                first = name.split(".")[0]
                known = first in CORE or first in sys.stdlib_module_names
                assert known, f"{first} is not in the core"
    looks = {number for number, line in enumerate(text.splitlines(), 1) if re.match(r"\s*(from|import)\s+\.", line)}
    assert looks == real, f"lines that look like relative imports and are none: {sorted(looks - real)}"


def test_model_folder_imports_point_one_way() -> None:
    layer_of = {name: number for number, names in enumerate(LAYERS) for name in names}
    files = {path.stem for path in sources(MODEL)} - {"__init__"}
    assert files <= set(layer_of), f"give these files a layer: {sorted(files - set(layer_of))}"
    for path in sources(MODEL):
        if path.stem == "__init__":
            continue
        for node in tree_of(path).body:
            if isinstance(node, ast.ImportFrom) and node.level:
                assert layer_of[node.module] < layer_of[path.stem], f"{path.stem} imports {node.module}"


def reached_from(name: str) -> set[str]:
    """The files of model/ that a file imports, directly or through others, itself included; they travel with it."""
    reached, waiting = set(), [name]
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            found = re.findall(r"^\s*from\s+\.(\w+)\s+import", (MODEL / f"{name}.py").read_text("utf-8"), re.MULTILINE)
            waiting.extend(found)
    return reached


def test_every_model_file_is_reached_from_a_modeling_file() -> None:
    """A checkpoint of the model carries exactly what its modeling file imports, directly or through others."""
    roots = [path.stem for path in sources(MODEL) if path.stem.startswith("modeling_")]
    reached = set().union(*map(reached_from, roots))
    # The tokenizer's file travels with a tokenizer that needs it, the processor's with a processor.
    others = {"__init__", "tokenization_rnn_seq2seq", "processing_rnn_seq2seq"}
    assert {path.stem for path in sources(MODEL)} - others <= reached


def test_a_classifier_carries_few_files() -> None:
    files = reached_from("modeling_rnn_classifier")
    assert len(files) <= 12, sorted(files)
    own = {"configuration_rnn_classifier", "modeling_rnn_classifier", "pooling"}
    assert not own & reached_from("modeling_rnn_seq2seq"), "a translator carries nothing of a classifier"


def room_of(name: str) -> str:
    """The room of a dotted name of the package; its own files are rooms too."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def arrows() -> set[tuple[str, str, str]]:
    """Which room imports which, with the file that does."""
    found = set()
    for path in sources(PACKAGE):
        room = room_of(".".join(path.relative_to(ROOT).with_suffix("").parts))
        for name, _ in imports(path):
            if name.startswith("hf_rnn_seq2seq."):
                target = "model" if name.removeprefix("hf_rnn_seq2seq.") in EXPORTS else room_of(name)
                if target in LAW and target != room:
                    found.add((room, target, path.name))
    return found


def test_rooms_import_by_the_law() -> None:
    assert {room_of(".".join(path.relative_to(ROOT).with_suffix("").parts)) for path in sources(PACKAGE)} == set(LAW)
    wrong = {(room, target, file) for room, target, file in arrows() if target not in LAW[room]}
    assert not wrong, "\n".join(sorted(f"{room} may not import {target}: {file}" for room, target, file in wrong))


def test_the_rooms_are_empty_at_import() -> None:
    for path in PACKAGE.glob("*/__init__.py"):
        for node in tree_of(path).body:
            light = isinstance(node, ast.Expr | ast.FunctionDef | ast.If) or path.parent == MODEL
            assert light or (isinstance(node, ast.ImportFrom) and node.module in ("__future__", "typing")), path
            assert not isinstance(node, ast.If) or ast.unparse(node.test) == "TYPE_CHECKING", path


def test_the_readme_of_a_room_lists_its_files() -> None:
    missing = [
        str(path.relative_to(ROOT))
        for path in PACKAGE.glob("*/*.py")
        if path.name != "__init__.py" and f"`{path.name}`" not in (path.parent / "README.md").read_text("utf-8")
    ]
    assert not missing


def test_nothing_imports_scripts_or_tests() -> None:
    for path in [*sources(PACKAGE), *sources(ROOT / "scripts")]:
        assert not top_level(path) & {"scripts", "tests"}, path.name
    for path in sources(PACKAGE):
        assert "pytest" not in top_level(path), path.name


def test_third_party_imports_are_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [*project["dependencies"], *(line for group in project["optional-dependencies"].values() for line in group)]
    required = {re.match(r"[\w.-]+", line)[0] for line in lines}
    for path in [*sources(PACKAGE), *sources(ROOT / "scripts")]:
        if path.parent.name == "peers":  # they install what they are compared with
            continue
        for name in top_level(path) - set(sys.stdlib_module_names) - CORE - {"hf_rnn_seq2seq", "benchmarks"}:
            requirement = DECLARED.get(name, name)
            assert requirement.startswith("(") or requirement in required, f"{path.name} imports {name}"


@pytest.mark.parametrize(
    ("modules", "allowed"),
    [
        ("", ""),
        ("evaluation.scores", ""),
        ("visualization.attention_map", ""),
        ("visualization.demo_app visualization.html_report visualization.gradients hub.space", "jinja2"),
    ],
)
def test_imports_are_light(modules: str, allowed: str) -> None:
    """Libraries of plots, data, metrics and pages are imported only where they are used."""
    heavy = {"matplotlib", "datasets", "evaluate", "sacrebleu", "babel", "jiwer", "tensorboard", "gradio", "jinja2"}
    names = ", ".join(["hf_rnn_seq2seq", *(f"hf_rnn_seq2seq.{name}" for name in modules.split())])
    code = f"""
import sys
del sys.modules["hf_rnn_seq2seq"]
sys.path.insert(0, {str(ROOT)!r})
before = set(sys.modules)
import {names}
print(sorted({heavy - set(allowed.split())} & (set(sys.modules) - before)))
"""
    python = warm.python(package=False)
    done = subprocess.run([*python, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def tracked() -> list[Path]:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: what belongs to the project cannot be distinguished from other files")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    return [ROOT / name for name in listed.decode().split("\0") if name and (ROOT / name).is_file()]


def test_top_level_entries() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in tracked()} == ENTRIES


def test_version_is_the_newest_changelog_heading() -> None:
    headings = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert headings[0] == hf_rnn_seq2seq.__version__


def test_public_names() -> None:
    assert set(hf_rnn_seq2seq.__all__) == EXPORTS
    assert all(hasattr(hf_rnn_seq2seq, name) for name in EXPORTS)
    assert (PACKAGE / "py.typed").is_file(), "type hints are part of the interface"


# Written so that this file does not contain what it forbids.
FORBIDDEN = {
    "an open end": re.compile(r"\b(TO[D]O|FIX[M]E|X[X]X|HA[C]K)\b"),
    "a machine path": re.compile(r"(?<![\w./-])/(wo[r]k|ro[o]t|ho[m]e/\w+|fa[r]m|Us[e]rs)/"),
    "a package index": re.compile(r"pypi\.or[g]|pythonhosted\.or[g]|registry\.npmjs\.or[g]"),
}


def test_no_forbidden_words() -> None:
    read = 0
    for path in tracked():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            assert path.suffix in (".png", ".gz", ".safetensors"), f"{path.name} is not UTF-8"
            continue
        read += 1
        for what, pattern in FORBIDDEN.items():
            found = pattern.search(text)
            assert found is None, f"{path.relative_to(ROOT)}: {what}: {found[0]!r}"
    assert read > 30


def test_no_file_is_too_large() -> None:
    for path in tracked():
        assert path.stat().st_size < 1_000_000, f"{path.relative_to(ROOT)}: large files do not belong here"
