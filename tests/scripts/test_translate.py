"""scripts/translate.py as a user runs it."""

import gzip
import json
import os
import shlex
import subprocess
from pathlib import Path

import pytest
import torch

from hf_rnn_seq2seq.generation import translate as evaluation
from hf_rnn_seq2seq.generation.lines import LineReader, LineWriter
from hf_rnn_seq2seq.generation.translate_lines import identity
from hf_rnn_seq2seq.run_directory import load_checkpoint
from tests.helpers import warm
from tests.helpers.checkpoints import SOURCES, TARGETS, save_checkpoint, tiny_rnn, tiny_tokenizer
from tests.helpers.script_runs import ROOT, run, run_alone


def test_one_line_out_for_each_line_in_and_equal_to_generate(checkpoint: Path) -> None:
    odd = "a\u2028b\x0bc\x1cd\x85e\rf".encode()
    lines = [SOURCES[0].encode(), b"", b" \t", SOURCES[1].encode() + b"\r", b"b\xff\xfed", odd, b"w " * 400, b"2 kg"]
    result = run_alone("translate.py", checkpoint, "--window", 3, stdin=b"\n".join(lines))
    found = result.stdout.split(b"\n")
    assert result.returncode == 0, result.stderr
    assert found.pop() == b""
    assert len(found) == len(lines)
    assert found[1] == found[2] == b""
    model, tokenizer = load_checkpoint(checkpoint)
    for index in (0, 3, 7):
        source = lines[index].decode().rstrip("\r")
        ids = model.generate(**tokenizer([source], return_tensors="pt"))
        expected = tokenizer.batch_decode(ids, skip_special_tokens=True)[0]
        assert found[index].decode() == " ".join(expected.splitlines() or [""])
    errors = result.stderr.decode()
    assert "warning: 1 of 8 sources are longer than the limit and were cut" in errors
    assert "warning: 1 line(s) could not be read whole (first: line 5)" in errors
    assert "8 lines" in errors


def test_beams_scores_alignments_and_n_best_in_columns(checkpoint: Path) -> None:
    text = f"{SOURCES[0]}\n\n{SOURCES[1]}\n".encode()
    options = ("--num_beams", 3, "--n_best", 2, "--scores", "--alignments", "--disable_tqdm")
    result = run("translate.py", checkpoint, *options, stdin=text)
    lines = result.stdout.decode().split("\n")
    assert result.returncode == 0
    assert len(lines) == 4 and lines[1] == lines[3] == ""
    model, tokenizer = load_checkpoint(checkpoint)
    expected = evaluation.translate_n_best(model, tokenizer, SOURCES[:1], n_best=2, num_beams=3, progress=False)[0]
    columns = lines[0].split("\t")
    assert len(columns) == 6
    for position, hypothesis in enumerate(expected):
        assert columns[3 * position] == " ".join(hypothesis.text.replace("\t", " ").split("\n"))
        assert float(columns[3 * position + 1]) == pytest.approx(hypothesis.log_probability, abs=1e-3)
        pairs = [tuple(map(int, pair.split("-"))) for pair in columns[3 * position + 2].split()]
        assert all(0 <= source < 3 for source, _ in pairs)
    as_json = run("translate.py", checkpoint, *options, "--output_format", "jsonl", stdin=text)
    rows = [json.loads(line) for line in as_json.stdout.decode().splitlines()]
    assert [row["source"] for row in rows] == [SOURCES[0], "", SOURCES[1]]
    assert rows[1]["translations"] == [] and len(rows[2]["translations"]) == 2


def test_word_alignment_counts_words(checkpoint: Path) -> None:
    """Attention that points from each target word to one source word is printed as those pairs."""
    import torch

    from hf_rnn_seq2seq.generation.attention import word_pairs

    tokenizer = tiny_tokenizer("word")
    source, target = "three days ago", "il y a trois"
    ids = tokenizer(source)["input_ids"], tokenizer(target)["input_ids"]
    weights = torch.zeros(1, len(ids[1]), len(ids[0]))
    for row, column in enumerate((2, 2, 1, 0, 3)):  # the end of sentence attends to the end of sentence
        weights[0, row, column] = 1
    hypothesis = evaluation.Hypothesis(target, tuple(ids[1]), tuple(ids[0]), 0.0, weights)
    assert word_pairs(tokenizer, source, hypothesis) == [(2, 0), (2, 1), (1, 2), (0, 3)]


def test_files_plain_gzip_and_jsonl_give_the_same_lines(checkpoint: Path, tmp_path: Path) -> None:
    text = "".join(f"{source}\n" for source in SOURCES)
    (tmp_path / "in.txt").write_text(text)
    with gzip.open(tmp_path / "in.txt.gz", "wt") as file:
        file.write(text)
    rows = "".join(json.dumps({"de": source}) + "\n" for source in SOURCES)
    (tmp_path / "in.jsonl").write_text(rows + '{"de": 3}\nnot json\n')
    outputs = []
    for name in ("in.txt", "in.txt.gz", "in.jsonl"):
        target = tmp_path / f"{name}.out"
        options = (*(["--source_column", "de"] if name.endswith(".jsonl") else []), "--output_file", target)
        result = run("translate.py", checkpoint, "--input_file", tmp_path / name, *options)
        assert result.returncode == 0, result.stderr
        outputs.append(target.read_text().split("\n"))
    assert outputs[0] == outputs[1]
    assert outputs[2] == [*outputs[0][:-1], "", "", ""]
    assert "2 line(s) could not be read whole" in result.stderr.decode()
    assert sorted(path.name for path in tmp_path.iterdir() if "part" in path.name) == []


def test_a_data_set_is_read_row_by_row(checkpoint: Path, tmp_path: Path) -> None:
    import datasets

    rows = [{"translation": {"en": source, "fr": "x"}, "text": source} for source in SOURCES[:3]]
    rows.insert(1, {"translation": {"en": None, "fr": "x"}, "text": None})
    datasets.DatasetDict({"test": datasets.Dataset.from_list(rows)}).save_to_disk(tmp_path / "data")
    text = "".join(f"{source}\n" for source in (SOURCES[0], "", *SOURCES[1:3]))
    expected = run("translate.py", checkpoint, stdin=text.encode()).stdout
    for options in (("--source_lang", "en"), ("--source_column", "text")):
        found = run("translate.py", checkpoint, "--dataset_name", tmp_path / "data", *options)
        assert found.stdout == expected, found.stderr
        assert b"1 line(s) could not be read whole (first: line 2)" in found.stderr
    for options, message in (
        (("--source_column", "nothing"), b"has no column 'nothing'; it has translation, text"),
        (("--source_lang", "de"), b"source_lang 'de': the data set"),
        (("--split", "dev"), b"split 'dev': the data set"),
        (("--input_file", tmp_path / "x"), b"--text, --input_file and --dataset_name: give one of them"),
    ):
        refused = run("translate.py", checkpoint, "--dataset_name", tmp_path / "data", *options)
        assert refused.returncode == 2 and message in refused.stderr, refused.stderr
    corpus = ("--dataset_name", "cldr", "--dataset_config_name", "en-fr", "--max_new_tokens", 1)
    assert run("translate.py", checkpoint, *corpus).stdout.count(b"\n") == 1000


def test_options_of_the_models_own_search(checkpoint: Path, tmp_path: Path) -> None:
    model, tokenizer = load_checkpoint(checkpoint)
    text = "".join(f"{source}\n" for source in SOURCES[:4]).encode()
    plain = run("translate.py", checkpoint, "--num_beams", 3, stdin=text).stdout.decode()

    def expected(**options: object) -> str:
        found = evaluation.translate(model, tokenizer, SOURCES[:4], num_beams=3, progress=False, **options)
        return "".join(" ".join(line.splitlines() or [""]) + "\n" for line in found)

    assert plain == expected()
    for chosen, options in (
        (("--gnmt_alpha", 1.5, "--coverage_penalty", 2), {"gnmt_alpha": 1.5, "coverage_penalty": 2.0}),
        (("--stop_at_top",), {"stop_at_top": True}),
        (("--weight_type", "bfloat16"), {"weight_type": "bfloat16"}),
        (("--ensemble", checkpoint), {"ensemble": [model]}),
    ):
        result = run("translate.py", checkpoint, "--num_beams", 3, *chosen, stdin=text)
        assert result.stdout.decode() == expected(**options), result.stderr
    rich = run("translate.py", checkpoint, "--num_beams", 3, "--scores", "--gnmt_alpha", 1.5, stdin=text)
    assert [line.split("\t")[0] for line in rich.stdout.decode().splitlines()] == expected(gnmt_alpha=1.5).splitlines()
    (tmp_path / "pairs.tsv").write_text("".join(f"{s}\t{t}\n" for s, t in zip(SOURCES, TARGETS, strict=False)))
    learned = run("learn_shortlist.py", checkpoint, tmp_path / "pairs.tsv", "--output_file", tmp_path / "words.json")
    assert b"6 pairs" in learned.stdout, learned.stderr
    again = run("learn_shortlist.py", checkpoint, tmp_path / "pairs.tsv", "--output_file", tmp_path / "words.json")
    assert again.returncode == 2 and b"words.json': exists; choose another name, or --overwrite" in again.stderr
    (tmp_path / "three.tsv").write_text("a\tb\nc\td\tCC-BY\n")
    wide = run("learn_shortlist.py", checkpoint, tmp_path / "three.tsv", "--output_file", tmp_path / "three.json")
    assert wide.returncode == 2 and b"line 2 has further columns; give source, tab, target alone" in wide.stderr
    assert run("translate.py", checkpoint, "--text", "").stdout == b"\n", "an empty line gives an empty line"
    for more in ((), ("--scores",)):
        short = run("translate.py", checkpoint, "--shortlist", tmp_path / "words.json", *more, stdin=text)
        assert short.returncode == 0 and short.stdout.count(b"\n") == 4, short.stderr
        lines = [line.split("\t")[0] for line in short.stdout.decode().splitlines()]
        assert lines != plain.splitlines()
    for chosen, message in (
        (("--gnmt_alpha", -1), b"argument --gnmt_alpha: '-1' is not a finite number of at least 0"),
        (
            ("--gnmt_alpha", 1, "--no_repeat_ngram_size", 2),
            b"gnmt_alpha: cannot be combined with no_repeat_ngram_size=2",
        ),
        (("--search", "generate", "--weight_type", "int8"), b"--search: does not go with --weight_type"),
        (("--shortlist", tmp_path / "pairs.tsv"), b"not a shortlist"),
    ):
        refused = run("translate.py", checkpoint, *chosen, stdin=text)
        assert refused.returncode == 2 and message in refused.stderr, refused.stderr


def test_unknown_words_are_replaced(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer("word")
    model = tiny_rnn(tokenizer)
    with torch.no_grad():
        model.lm_head.bias[tokenizer.unk_token_id] += 100
    directory = save_checkpoint(tmp_path / "unknown", model, tokenizer)
    (tmp_path / "words.tsv").write_text("three\ttrois\n", encoding="utf-8")
    call = ("translate.py", directory, "--max_new_tokens", 1, "--replace_unknown")
    assert run(*call, stdin=b"three\n").stdout == b"three\n"
    assert run(*call, tmp_path / "words.tsv", stdin=b"three\n\n").stdout == b"trois\n\n"
    assert run(*call[:-1], stdin=b"three\n").stdout != b"three\n"
    warnings = run(*call[:-1], stdin=b"qqq zzz\nthree\n\nqqq three\n").stderr
    assert b"warning: 1 of 4 sources hold nothing but unknown tokens" in warnings


@pytest.mark.slow
def test_memory_does_not_grow_with_the_input(checkpoint: Path, tmp_path: Path) -> None:
    """Ten times the lines take less than a tenth more memory."""
    peaks = []
    for count in (2_000, 20_000):
        (tmp_path / "in.txt").write_text("in an hour\n" * count)
        result = run_alone(
            "translate.py", checkpoint, "--input_file", tmp_path / "in.txt", "--output_file", tmp_path / f"{count}.txt",
            "--max_new_tokens", 1, "--batch_size", 512, "--window", 1024,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        assert (tmp_path / f"{count}.txt").read_bytes().count(b"\n") == count
        peaks.append(int(result.stderr.decode().split("memory: ")[1].split(" MiB")[0]))
    assert peaks[1] < 1.1 * peaks[0]


def test_an_interrupted_file_is_continued_and_never_mixed(checkpoint: Path, tmp_path: Path) -> None:
    source, target = tmp_path / "in.txt", tmp_path / "out.txt"
    source.write_text("".join(f"{line}\n" for line in SOURCES * 2))
    command = ("translate.py", checkpoint, "--input_file", source, "--output_file", target)
    assert run(*command).returncode == 0
    whole = target.read_text()
    again = run(*command)
    assert (again.returncode, target.read_text()) == (2, whole)
    assert b"error: output_file" in again.stderr and b"exists" in again.stderr

    class Killed(Exception):
        pass

    lines = whole.splitlines(keepends=True)
    identity = json.loads(json.dumps(_identity(checkpoint, source)))
    target.unlink()
    with pytest.raises(Killed), LineWriter(str(target), identity=identity) as writer:
        writer.write([lines[0].rstrip("\n"), "marked"])
        writer._file.write(b"half a li")
        raise Killed
    part = tmp_path / "out.txt.part"
    refused = run(*command)
    assert refused.returncode == 2 and b"--resume continues it" in refused.stderr
    other = run(*command, "--resume", "--num_beams", 2)
    assert other.returncode == 2 and b"was made with another num_beams (None)" in other.stderr
    note, text = tmp_path / "out.txt.part.json", source.read_text()
    written = json.loads(note.read_text())
    for name in ("input", "model", "tokenizer"):
        note.write_text(json.dumps({key: value for key, value in written.items() if key != name}))
        other = run(*command, "--resume")
        assert other.returncode == 2 and f"does not say with which {name} it was made".encode() in other.stderr
        assert b"start again with --overwrite" in other.stderr
    note.write_text(json.dumps(written))
    source.write_text(text.replace("2 kg", "3 kg"))  # another text under the same name
    other = run(*command, "--resume")
    assert other.returncode == 2 and b"was made with another input; give that again, or" in other.stderr
    source.write_text(text)
    model, tokenizer = load_checkpoint(checkpoint)
    model.generation_config.length_penalty, model.generation_config.num_beams = 0.5, 2
    changed = save_checkpoint(tmp_path / "changed", model, tokenizer)
    other = run("translate.py", changed, *command[2:], "--resume")
    assert other.returncode == 2 and b"was made with another model; give that again, or" in other.stderr
    assert (
        b"--resume: needs --input_file or --dataset_name"
        in run("translate.py", checkpoint, *command[4:], "--resume").stderr
    )
    assert part.read_bytes().endswith(b"half a li")
    result = run(*command, "--resume")
    assert result.returncode == 0, result.stderr
    assert target.read_text() == lines[0] + "marked\n" + "".join(lines[2:])
    assert not part.exists()


def _identity(checkpoint: Path, source: Path) -> dict[str, object]:
    from hf_rnn_seq2seq.commands.translate import parse

    options = vars(parse([str(checkpoint), "--input_file", str(source)]))
    return identity(options, LineReader(str(source)), *load_checkpoint(checkpoint))


def test_half_characters_in_json_are_replaced_and_counted(checkpoint: Path, tmp_path: Path) -> None:
    rows = [b'{"source": "3 days ago"}', b'{"source": "3 days \\ud83d ago"}', b'{"source": "\\ud83d\\ude00 three"}']
    (tmp_path / "in.jsonl").write_bytes(b"\xef\xbb\xbf" + b"\n".join([*rows, b"[" * 100_000]))
    for options in ((), ("--output_format", "jsonl"), ("--alignments",)):
        result = run("translate.py", checkpoint, "--input_file", tmp_path / "in.jsonl", *options)
        assert result.returncode == 0 and result.stdout.count(b"\n") == 4, result.stderr
        assert b"warning: 2 line(s) could not be read whole (first: line 2, 4)" in result.stderr
        result.stdout.decode()


def test_a_damaged_archive_names_its_line_after_the_lines_before_it(checkpoint: Path, tmp_path: Path) -> None:
    text = "".join(f"{number} days ago\n" for number in range(300))
    whole = gzip.compress(text.encode(), mtime=0)
    for content, first in ((whole[:300], 1), (whole[:-8], 1), (text.encode(), 0), (whole[:200] + bytes(50), 0)):
        (tmp_path / "in.txt.gz").write_bytes(content)
        result = run("translate.py", checkpoint, "--input_file", tmp_path / "in.txt.gz", "--max_new_tokens", 1)
        lines = result.stdout.count(b"\n")
        assert result.returncode == 2 and (lines > 0) == bool(first), result.stderr
        message = result.stderr.decode().splitlines()[-1]
        assert message.startswith("error: input ") and f"in.txt.gz', line {lines + 1}: not a whole gzip file" in message
        assert message.endswith(f". {lines} lines were written")
    target = tmp_path / "out.txt"
    result = run("translate.py", checkpoint, "--input_file", tmp_path / "in.txt.gz", "--output_file", target)
    assert result.returncode == 2 and not target.exists()


def test_what_cannot_be_written_to_is_named(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("2 kg\n")
    for place, message in (
        (tmp_path, "is not a regular file; name one"),
        ("/dev/full", "is not a regular file; name one"),
        (tmp_path / "no" / "out", "its folder does not exist; make it, or name another one"),
    ):
        result = run("translate.py", checkpoint, "--input_file", tmp_path / "in.txt", "--output_file", place)
        assert result.returncode == 2 and message in result.stderr.decode().splitlines()[-1], result.stderr


def test_an_output_that_cannot_be_written_is_one_line(checkpoint: Path) -> None:
    command = [str(ROOT / "scripts" / "translate.py"), str(checkpoint), "--disable_tqdm"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    # A closed stream cannot be handed to a waiting process, so it closes its own as `>&-` does.
    closed = "import os, runpy, sys; os.close(1); sys.stdout = None; del sys.argv[0]; "
    for first, place, message in (
        (
            [],
            "> /dev/full",
            "error: standard output: cannot be written (No space left on device). 0 lines were written",
        ),
        (
            ["-c", closed + "runpy.run_path(sys.argv[0], run_name='__main__')"],
            "",
            "error: standard output is closed; give --output_file, or let something read the output",
        ),
    ):
        shell = f"{shlex.join([*warm.python(), *first, *command])} {place}"
        done = subprocess.run(shell, shell=True, input=b"2 kg\n", capture_output=True, env=environment)
        assert (done.returncode, done.stderr.decode().splitlines()) == (2, [message])


BAD = {
    "no such GPU": (("DIR", "--device", "cuda:99"), "device='cuda:99': cannot be used ("),
    "no such device": (("DIR", "--device", "toaster"), "device='toaster': cannot be used ("),
    "a device without numbers": (("DIR", "--device", "meta"), "); this machine has cpu"),
    "not UTF-8": (("DIR", "--source_lang", "e\udcffn"), r"source_lang='e\udcffn': holds bytes that are not UTF-8"),
    "no such directory": (("missing-run",), "no such directory"),
    "misspelt option": (("DIR", "--num_beam", "2"), "--num_beam: no such option; the nearest is --num_beams"),
    "out of range": (("DIR", "--num_beams", "0"), "'0' is not a whole number of at least 1"),
    "n_best above beams": (("DIR", "--n_best", "2"), "n_best=2: must be from 1 to num_beams=1"),
    "unknown search": (("DIR", "--search", "nothing:here"), "--search 'nothing:here': neither a method of"),
    "no data set for a split": (("DIR", "--split", "dev"), "split='dev': needs --dataset_name; leave it out"),
    "none for a configuration": (("DIR", "--dataset_config_name", "en-fr"), "dataset_config_name='en-fr': needs --da"),
    "no fields": (("DIR", "--source_lang", "en"), "source_lang='en': a line of text has no fields; leave it out"),
    "no column": (("DIR", "--source_column", "a"), "source_column='a': a line of text has no fields; leave it out"),
    "no lexicon": (("DIR", "--lexicon_format", "ipa"), "--lexicon_format ipa: needs --lexicon; leave it out"),
    "mass too large": (("DIR", "--mass", "2"), "--mass: '2' is not a finite number above 0 and of at most 1"),
    "mass too small": (("DIR", "--mass", "0"), "--mass: '0' is not a finite number above 0 and of at most 1"),
    "a search that none can call": (("DIR", "--search", "config"), "--search 'config': neither a method of"),
    "two lines": (("DIR", "--text", "a\nb"), "text='a\\nb': is one line"),
    "search with scores": (("DIR", "--search", "os:getcwd", "--scores"), "--search returns sequences alone"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_exit_code_2(case: str, checkpoint: Path) -> None:
    arguments, message = BAD[case]
    result = run("translate.py", *(checkpoint if one == "DIR" else one for one in arguments), stdin=b"a\n")
    assert result.returncode == 2
    assert result.stdout == b""
    errors = [line for line in result.stderr.decode().splitlines() if not line.startswith("\rtranslating")]
    assert errors[-1].startswith("error: ") and message in errors[-1]
    assert "Traceback" not in result.stderr.decode()


def constant_search(input_ids: torch.Tensor, attention_mask: torch.Tensor, **_: object) -> torch.Tensor:
    return torch.tensor([[1, *tiny_tokenizer()("heure")["input_ids"]]] * len(input_ids))


def test_a_search_from_a_module_is_used(checkpoint: Path) -> None:
    result = run("translate.py", checkpoint, "--search", f"{__name__}:constant_search", stdin=b"a\n\nb\n")
    assert result.stdout == b"heure\n\nheure\n", result.stderr
    method = run("translate.py", checkpoint, "--search", "generate", stdin=b"2 kg\n")
    assert method.stdout == run("translate.py", checkpoint, stdin=b"2 kg\n").stdout != b"\n"
