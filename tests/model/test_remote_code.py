"""A checkpoint loads with `trust_remote_code=True` where this package is not installed, and gives identical logits."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from hf_rnn_seq2seq import RnnForHandwriting, RnnHandwritingConfig
from hf_rnn_seq2seq.model.config_checks import LOWEST_TRANSFORMERS
from tests.helpers import warm
from tests.helpers.models import SMALL_BERT, SOURCES, batch, decoder_inputs, mask, pad, randomize, tiny_model
from tests.model.test_causal import tiny_lm

# Programs for a process that sees the site packages and the checkpoint, but not this package.
HIDE = """
import sys
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel
folder, out = sys.argv[1:3]
given = load_file(out + "/given.safetensors")
"""
LOADED = """
auto = getattr(transformers, sys.argv[3])
config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
model = auto.from_pretrained(folder, trust_remote_code=True)
base = AutoModel.from_pretrained(folder, trust_remote_code=True)
assert {type(x).__module__.split(".")[0] for x in (config, model, base)} == {"transformers_modules"}
with torch.no_grad():
    model.save_pretrained(out + "/again")
    again = auto.from_pretrained(out + "/again", trust_remote_code=True)
    found = {"first": model(**given)[0], "readout": base(**given)[0], "again": again(**given)[0]}
    if model.can_generate():
        sources = {name: given[name] for name in ("input_ids", "attention_mask")}
        found["words"] = model.generate(**sources, num_beams=3, max_new_tokens=5)
save_file({name: tensor.contiguous() for name, tensor in found.items()}, out + "/found.safetensors")
assert not any(name.startswith("hf_rnn_seq2seq") for name, module in sys.modules.items() if module)
try:
    type(config)(hidden_sise=3)
except ValueError as error:
    print(error)
"""
OLD = """
import transformers
transformers.__version__ = "5.23.9"
try:
    LOAD
except ImportError as error:
    print(error)
"""

TOO_OLD = "transformers 5.23.9: hf_rnn_seq2seq needs 5.24 or newer; pip install 'transformers>=5.24'\n"
ROOT = Path(__file__).resolve().parents[2]

KINDS: dict[str, dict[str, Any]] = {
    "two vocabularies": {
        "attention_type": "additive",
        "attention_order": "before_cell",
        "cell_type": "gru",
        "attention_normalization": "entmax",
        "entmax_learned": True,
        "coverage": "gru",
        "context_gate": "both",
    },
    "one vocabulary, copying": {
        "share_encoder_decoder_embeddings": True,
        "tie_word_embeddings": True,
        "readout_size": 5,
        "copy_mechanism": True,
    },
    "an encoder of transformers": {"encoder": {"model_type": "bert", **SMALL_BERT}},
    "first order alignment": {"attention_alignment": "monotonic", "alignment_order": 1},
}


def run_elsewhere(
    program: str, model: PreTrainedModel, given: dict[str, Tensor], folder: Path, *words: str
) -> tuple[Any, str]:
    """What `program` saves of a saved `model`, and prints; with an empty cache of dynamic modules and no network."""
    model.save_pretrained(folder / "checkpoint")
    save_file(given, folder / "given.safetensors")
    command = [*warm.python(package=False), "-c", HIDE + program, str(folder / "checkpoint"), str(folder), *words]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    return load_file(folder / "found.safetensors"), ended.stdout


def check_loaded_elsewhere(kind: str, model: PreTrainedModel, given: dict[str, Tensor], folder: Path) -> str:
    """Loads the checkpoint by the auto class `kind` and by AutoModel; returns the message for an unknown field."""
    found, printed = run_elsewhere(LOADED, model, given, folder, kind)
    with torch.no_grad():
        assert torch.equal(found["first"], model(**given)[0]) and torch.equal(found["again"], found["first"])
        assert torch.equal(found["readout"], model.base_model(**given)[0])
    if model.can_generate():
        sources = {name: given[name] for name in ("input_ids", "attention_mask")}
        assert torch.equal(found["words"], model.generate(**sources, num_beams=3, max_new_tokens=5))
    return printed


@pytest.mark.parametrize("kind", KINDS)
def test_identical_without_the_package(kind: str, tmp_path: Path) -> None:
    model = tiny_model(**KINDS[kind], dtype=torch.float32)
    given = {key: value for key, value in batch().items() if key != "labels"}
    given |= {"decoder_input_ids": pad(decoder_inputs()), "decoder_attention_mask": mask(decoder_inputs())}
    printed = check_loaded_elsewhere("AutoModelForSeq2SeqLM", model, given, tmp_path)
    assert printed == "'hidden_sise' is not a field of RnnSeq2SeqConfig; did you mean 'hidden_size'?\n"


HANDWRITING = """
model = AutoModel.from_pretrained(folder, trust_remote_code=True)
assert type(model).__module__.split(".")[0] == "transformers_modules"
with torch.no_grad():
    found = {"mean": model(**given).mixture.mean.contiguous()}
model.save_pretrained(out + "/again")
again = AutoModel.from_pretrained(out + "/again", trust_remote_code=True)
written = again.write("abba", max_points=6, generator=torch.Generator().manual_seed(0))
found["points"] = written.points
save_file(found, out + "/found.safetensors")
assert not any(name.startswith("hf_rnn_seq2seq") for name, module in sys.modules.items() if module)
"""


def test_a_network_that_writes_by_hand(tmp_path: Path) -> None:
    config = RnnHandwritingConfig(alphabet="abc", hidden_size=4, mixture_components=2, window_components=2)
    model = RnnForHandwriting(config).eval()
    randomize(model)
    given = {"points": torch.randn(2, 3, 3), "input_ids": torch.tensor([[1, 2], [3, 0]])}
    actual, _ = run_elsewhere(HANDWRITING, model, given, tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(actual["mean"], model(**given).mixture.mean)
    written = model.write("abba", max_points=6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(actual["points"], written.points)


def test_the_base_model_by_itself(tmp_path: Path) -> None:
    """A saved RnnSeq2SeqModel carries its code, also if it is saved again from that code."""
    model = tiny_model(share_encoder_decoder_embeddings=True, dtype=torch.float32).model
    given = {"input_ids": batch()["input_ids"], "decoder_input_ids": pad(decoder_inputs())}
    check_loaded_elsewhere("AutoModel", model, given, tmp_path)


def test_a_language_model_without_the_package(tmp_path: Path) -> None:
    model = tiny_lm(torch.float32, skip_connections=True, decoder_layers=2)
    given = {"input_ids": batch()["input_ids"], "attention_mask": mask(SOURCES, left=True)}
    check_loaded_elsewhere("AutoModelForCausalLM", model, given, tmp_path)


@pytest.mark.parametrize("kind", ["AutoConfig", "AutoModel", "AutoModelForSeq2SeqLM"])
def test_a_checkpoints_code_names_the_required_transformers(kind: str, tmp_path: Path) -> None:
    load = OLD.replace("LOAD", f"transformers.{kind}.from_pretrained(folder, trust_remote_code=True)")
    given = {"input_ids": batch()["input_ids"]}
    _, printed = run_elsewhere(load + "save_file(given, out + '/found.safetensors')", tiny_model(), given, tmp_path)
    assert printed == TOO_OLD


def test_importing_the_package_names_the_required_transformers() -> None:
    program = OLD.replace("LOAD", "import hf_rnn_seq2seq")
    actual = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert actual.stdout == TOO_OLD
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (needed,) = [line for line in project["dependencies"] if line.startswith("transformers")]
    assert re.fullmatch(r"transformers>=([\d.]+),<\d+", needed)[1] == LOWEST_TRANSFORMERS
