"""Weights and scores that are not finite: every reader raises an error that names the tensor."""

import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import pipeline

from hf_rnn_seq2seq import SearchError
from hf_rnn_seq2seq.errors import ArgumentError, CheckpointError
from hf_rnn_seq2seq.generation.scoring import score_texts
from hf_rnn_seq2seq.generation.translate import translate, translate_n_best
from hf_rnn_seq2seq.hub.upload import plan_upload
from hf_rnn_seq2seq.training.averaging import average_checkpoints
from tests.helpers.checkpoints import SOURCES, TARGETS, save_checkpoint, tiny_rnn, tiny_tokenizer
from tests.helpers.models import tiny_model
from tests.helpers.script_runs import run

WORDS = torch.tensor([[5, 7, 3, 2], [4, 6, 2, 0]])
MODES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "scores": {"return_dict_in_generate": True},
    "beams": {"num_beams": 3},
    "groups": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5},
    "phrases": {"num_beams": 2, "must_contain": [[[5]], [[6]]]},
    "int8": {"weight_type": "int8"},
    "bfloat16": {"weight_type": "bfloat16", "num_beams": 2},
}


@pytest.fixture(scope="module")
def spoiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with nan in one weight, a whole one, and two files of text."""
    folder, tokenizer = tmp_path_factory.mktemp("spoiled"), tiny_tokenizer()
    save_checkpoint(folder / "whole", tiny_rnn(tokenizer), tokenizer)
    shutil.copytree(folder / "whole", folder / "nan")
    weights = load_file(folder / "nan" / "model.safetensors")
    weights["lm_head.weight"][3, 1] = math.nan
    save_file(weights, folder / "nan" / "model.safetensors", metadata={"format": "pt"})
    (folder / "t.en").write_text("three days ago\n")
    (folder / "t.fr").write_text("il y a trois jours\n")
    return folder


MESSAGE = re.compile(rb"lm_head\.weight: 1 of its \d+ numbers are not finite \(nan or inf\)")


SCRIPTS = {
    "translate": "translate.py NAN",
    "ensemble": "translate.py WHOLE --ensemble NAN",
    "n-best": "translate.py NAN --num_beams 4 --n_best 2 --scores --dtype bfloat16",
    "score": "score.py NAN IN/t.en --targets IN/t.fr",
    "export": "export_onnx.py NAN --output_dir IN/onnx",
    "report": "report.py NAN --test_file IN/t.en,IN/t.fr --source_lang en --target_lang fr --output_file IN/r.html",
    "average": "average_checkpoints.py WHOLE NAN --output_dir IN/mean",
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_end_with_the_name_of_the_tensor(name: str, spoiled: Path) -> None:
    before = {*spoiled.iterdir()}
    places = {"NAN": spoiled / "nan", "WHOLE": spoiled / "whole", "IN": spoiled}
    words = SCRIPTS[name]
    for place, folder in places.items():
        words = words.replace(place, str(folder))
    ended = run(*words.split(), stdin=b"three days ago\n")
    assert ended.returncode == 2 and ended.stdout == b"", ended.stderr
    (line,) = [line for line in ended.stderr.splitlines() if line.startswith(b"error: ")]
    assert MESSAGE.search(line) and str(spoiled / "nan").encode() in line, line
    assert {*spoiled.iterdir()} == before


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("mode", MODES)
def test_a_search_names_the_weight(mode: str, value: float) -> None:
    model = tiny_model(dtype=torch.float32)
    options = {"max_new_tokens": 4, "eos_token_id": 2, **MODES[mode]}
    model.search(WORDS, **options)
    with torch.no_grad():
        model.lm_head.weight[:, 0] = value
    with pytest.raises(SearchError, match=r"^lm_head\.weight: 11 of its \d+ numbers are not finite"):
        model.search(WORDS, **options)


@pytest.mark.parametrize(("dtype", "large"), [(torch.float16, 6e4), (torch.float32, 3e38)])
def test_weights_that_are_finite_and_too_large(dtype: torch.dtype, large: float) -> None:
    model = tiny_model(dtype=dtype)
    with torch.no_grad():  # whatever sign the sum of the readout has, some scores overflow
        model.lm_head.bias.fill_(large)
        model.lm_head.weight[::2] = large
        model.lm_head.weight[1::2] = -large
    reason = (
        "every weight is: float16 overflows" if dtype == torch.float16 else "every weight is; the weights are too large"
    )
    with pytest.raises(SearchError, match=f"^scores: not finite, although {reason}"):
        model.search(WORDS, max_new_tokens=3)


def test_functions_of_the_package_name_it_too(spoiled: Path) -> None:
    tokenizer = tiny_tokenizer()
    model, kept = tiny_rnn(tokenizer), tiny_rnn(tokenizer)
    with torch.no_grad():
        model.lm_head.bias[5] = math.nan
    for call in (
        lambda: translate(model, tokenizer, SOURCES, progress=False),
        lambda: translate(kept, tokenizer, SOURCES[:2], progress=False, ensemble=[model]),
        lambda: translate_n_best(model, tokenizer, SOURCES, n_best=2, num_beams=2, progress=False),
        lambda: score_texts(model, tokenizer, SOURCES[:2], TARGETS[:2]),
        lambda: pipeline("rnn-translation", model=model, tokenizer=tokenizer)(SOURCES[0]),
        lambda: pipeline("rnn-translation", model=model, tokenizer=tokenizer)(SOURCES[0], no_repeat_ngram_size=2),
    ):
        with pytest.raises((SearchError, ArgumentError, ValueError), match=r"^lm_head\.bias: 1 of its \d+ numbers are"):
            call()
    with pytest.raises(CheckpointError, match=r"nan: lm_head\.weight: 1 of its"):
        average_checkpoints([spoiled / "whole", spoiled / "nan"], spoiled / "mean")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: lm_head\.weight: 1 of its"):
        plan_upload(spoiled / "nan", "user/name")
