"""Command lines as people type them: the order of words, their spelling, and paths."""

import importlib
from pathlib import Path

import pytest

from hf_rnn_seq2seq import command_line
from tests.helpers.script_runs import command_of, run

TYPED = {
    ("translate", "--ensemble A B MODEL"): {"model": "MODEL", "ensemble": ["A", "B"]},
    ("translate", "--ensemble A --n_best 2 MODEL"): {"model": "MODEL", "ensemble": ["A"], "n_best": 2},
    ("translate", "--ensemble A MODEL --n_best=2"): {"model": "MODEL", "ensemble": ["A"], "n_best": 2},
    ("translate", "MODEL --ensemble A B"): {"model": "MODEL", "ensemble": ["A", "B"]},
    ("translate", "--replace_unknown MODEL"): {"model": "MODEL", "replace_unknown": ""},
    ("translate", "--replace-unknown words.tsv MODEL"): {"model": "MODEL", "replace_unknown": "words.tsv"},
    ("translate", "--scores true MODEL --disable-tqdm"): {"model": "MODEL", "scores": True, "disable_tqdm": True},
    ("translate", "--alignments=false MODEL --length_penalty -1"): {"alignments": False, "length_penalty": -1.0},
    ("translate", "--output_file=~/out.txt $FOLDER/run"): {"model": "/data/run", "output_file": "/home-me/out.txt"},
    ("evaluate_bleu", "--scores bleu chrf DIR OTHER"): {"models": ["DIR", "OTHER"], "scores": ["bleu", "chrf"]},
    ("evaluate_bleu", "DIR --scores chrf --no-summary"): {"models": ["DIR"], "scores": ["chrf"], "summary": False},
    ("evaluate_bleu", "--scores chrf --test_file ~/a,~/b DIR"): {
        "models": ["DIR"],
        "test_file": "/home-me/a,/home-me/b",
    },
    ("benchmark", "--only vocab_size growth"): {"what": "growth", "only": ["vocab_size"]},
}


@pytest.mark.parametrize(("script", "line"), TYPED)
def test_words_may_stand_in_any_order(script: str, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home-me")
    monkeypatch.setenv("FOLDER", "/data")
    found = vars(command_of(script).parse(line.split()))
    assert {name: found[name] for name in TYPED[script, line]} == TYPED[script, line]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("MODEL --bem_size 4", "--bem_size: no such option; here it is called --num_beams"),
        ("MODEL --use_cpu", "--use_cpu: no such option; here it is called --device"),
        ("MODEL --scoes", "--scoes: no such option; the nearest is --scores"),
        ("--ensemble MODEL", "the following arguments are required: model"),
        ("MODEL --batch_size 20k", "argument --batch_size: '20k' is not a whole number of at least 1"),
        ("MODEL --length_penalty inf", "argument --length_penalty: 'inf' is not a finite number"),
        ("MODEL --coverage_penalty=-1", "argument --coverage_penalty: '-1' is not a finite number of at least 0"),
        ("MODEL --scores=maybe", "scores='maybe': must be true or false"),
        ("MODEL --input_file $NOWHERE/x", "input_file='$NOWHERE/x': $NOWHERE is not set in the environment"),
    ],
)
def test_what_cannot_be_read_is_named_in_one_line(line: str, message: str) -> None:
    done = run("translate.py", *line.split())
    assert done.returncode == 2 and done.stderr.decode().startswith(f"error: {message}"), done.stderr


@pytest.mark.parametrize(
    ("script", "words", "option"),
    [
        ("evaluate_bleu", "", "json"),
        ("evaluate_bleu", "", "translations"),
        ("evaluate_bleu", "", "plot_by_length"),
        ("report", "", "output_file"),
        ("error_analysis", "", "output_file"),
        ("classify", "text", "output_file"),
        ("learn_shortlist", "pairs", "output_file"),
        ("hallucinate", "", "output_file"),
        ("plot_attention", "text", "output_file"),
        ("plot_surprise", "text", "output_file"),
        ("plot_learning_curve", "", "output_file"),
        ("write", "text", "output_file"),
    ],
)
def test_a_file_that_cannot_be_written_is_refused_before_the_work(
    script: str, words: str, option: str, tmp_path: Path
) -> None:
    suffix = ".html" if script in ("report", "classify") else ".png"
    (tmp_path / "input").write_text("")
    (tmp_path / f"folder{suffix}").mkdir()
    for name, message in ((f"folder{suffix}", "is a folder; name a file"), (f"no/x{suffix}", "its folder does not ex")):
        done = run(f"{script}.py", tmp_path / "input", *words.split(), f"--{option}", tmp_path / name)
        message = f"error: {option}='{tmp_path / name}': {message}"
        assert done.returncode == 2 and done.stderr.decode().startswith(message), done.stderr.decode()


@pytest.mark.parametrize("command", ["caption", "classify", "plot_surprise", "write"])
def test_an_obsolete_name_is_read_as_the_new_one(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """In each command that had it, and not offered by its help."""
    module = importlib.import_module(f"hf_rnn_seq2seq.commands.{command}")
    assert module.parse(["DIR", "x", "--output", "a.html"]).output_file == "a.html"
    warning = "warning: --output is called --output_file now; the old name ends with the next release\n"
    assert capsys.readouterr().err == warning
    with pytest.raises(SystemExit):
        module.parse(["--help"])
    shown = capsys.readouterr().out
    assert "--output_file" in shown and "--output " not in shown


def test_every_path_of_a_script_is_one_of_the_paths() -> None:
    """An option FILE or DIR that is missing from `PATHS` would keep its `~`."""
    root = Path(__file__).parents[1]
    files = [*(root / "scripts").glob("*.py"), *(root / "hf_rnn_seq2seq" / "commands").glob("*.py")]
    text = "".join(path.read_text() for path in files)
    for name in ("FILE", "FILE.tsv", "DIR", "MODEL", "TEACHER", "RUN", "PICTURE"):
        for line in text.splitlines():
            if "add_argument(" in line and f'metavar="{name}"' in line:
                assert line.split('"')[1].removeprefix("--") in command_line.PATHS, line
