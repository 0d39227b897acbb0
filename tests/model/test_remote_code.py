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
from tests.helpers.models import SOURCES, batch, decoder_inputs, mask, pad, randomise, tiny_model
from tests.model.test_causal import tiny_lm

# Programs for a process that sees the site packages and the checkpoint, but not this package.
HIDE = """
import sys
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForSeq2SeqLM
folder, out = sys.argv[1:3]
given = load_file(out + "/given.safetensors")
"""
WHOLE = """
config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
model = AutoModelForSeq2SeqLM.from_pretrained(folder, trust_remote_code=True)
base = AutoModel.from_pretrained(folder, trust_remote_code=True)
assert {type(x).__module__.split(".")[0] for x in (config, model, base)} == {"transformers_modules"}
sources = {name: given[name] for name in ("input_ids", "attention_mask")}
with torch.no_grad():
    found = {"logits": model(**given).logits, "readout": base(**given).last_hidden_state}
    found["words"] = model.generate(**sources, num_beams=3, max_new_tokens=5)
    model.save_pretrained(out + "/again")
    again = AutoModelForSeq2SeqLM.from_pretrained(out + "/again", trust_remote_code=True)
    found["again"] = again(**given).logits
save_file({name: tensor.contiguous() for name, tensor in found.items()}, out + "/found.safetensors")
try:
    type(config)(hidden_sise=3)
except ValueError as error:
    print(error)
"""
BASE = """
base = AutoModel.from_pretrained(folder, trust_remote_code=True)
base.save_pretrained(out + "/again")
base = AutoModel.from_pretrained(out + "/again", trust_remote_code=True)
with torch.no_grad():
    save_file({"readout": base(**given).last_hidden_state.contiguous()}, out + "/found.safetensors")
assert not any(name.startswith("hf_rnn_seq2seq") for name, module in sys.modules.items() if module)
"""

CAUSAL = """
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
base = AutoModel.from_pretrained(folder, trust_remote_code=True)
assert {type(x).__module__.split(".")[0] for x in (model, base)} == {"transformers_modules"}
with torch.no_grad():
    found = {"logits": model(**given).logits, "readout": base(**given).last_hidden_state}
    found["words"] = model.generate(**given, num_beams=3, max_new_tokens=5)
    model.save_pretrained(out + "/again")
    found["again"] = AutoModelForCausalLM.from_pretrained(out + "/again", trust_remote_code=True)(**given).logits
save_file({name: tensor.contiguous() for name, tensor in found.items()}, out + "/found.safetensors")
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
    "an encoder of transformers": {
        "encoder": {
            "model_type": "bert",
            "hidden_size": 4,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 6,
        },
    },
    "first order alignment": {"attention_alignment": "monotonic", "alignment_order": 1},
}


def run_elsewhere(program: str, model: PreTrainedModel, given: dict[str, Tensor], folder: Path) -> tuple[Any, str]:
    """What `program` saves of a saved `model`, and prints; with an empty cache of dynamic modules and no network."""
    model.save_pretrained(folder / "checkpoint")
    save_file(given, folder / "given.safetensors")
    command = [*warm.python(package=False), "-c", HIDE + program, str(folder / "checkpoint"), str(folder)]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    return load_file(folder / "found.safetensors"), ended.stdout


@pytest.mark.parametrize("kind", KINDS)
def test_identical_without_the_package(kind: str, tmp_path: Path) -> None:
    model = tiny_model(**KINDS[kind], dtype=torch.float32)
    given = {key: value for key, value in batch().items() if key != "labels"}
    given |= {"decoder_input_ids": pad(decoder_inputs()), "decoder_attention_mask": mask(decoder_inputs())}
    actual, printed = run_elsewhere(WHOLE, model, given, tmp_path)
    with torch.no_grad():
        assert torch.equal(actual["logits"], model(**given).logits)
        assert torch.equal(actual["again"], actual["logits"])
        assert torch.equal(actual["readout"], model.model(**given).last_hidden_state)
    sources = {name: given[name] for name in ("input_ids", "attention_mask")}
    assert torch.equal(actual["words"], model.generate(**sources, num_beams=3, max_new_tokens=5))
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
    randomise(model)
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
    actual, _ = run_elsewhere(BASE, model, given, tmp_path)
    with torch.no_grad():
        assert torch.equal(actual["readout"], model(**given).last_hidden_state)


def test_a_language_model_without_the_package(tmp_path: Path) -> None:
    model = tiny_lm(torch.float32, skip_connections=True, decoder_layers=2)
    given = {"input_ids": batch()["input_ids"], "attention_mask": mask(SOURCES, left=True)}
    actual, _ = run_elsewhere(CAUSAL, model, given, tmp_path)
    with torch.no_grad():
        assert torch.equal(actual["logits"], model(**given).logits)
        assert torch.equal(actual["again"], actual["logits"])
        assert torch.equal(actual["readout"], model.model(**given).last_hidden_state)
    assert torch.equal(actual["words"], model.generate(**given, num_beams=3, max_new_tokens=5))


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
