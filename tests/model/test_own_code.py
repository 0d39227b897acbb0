"""A checkpoint carries the file of an attention or a model of one's own, and loads where nothing of it is installed."""

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM

from hf_rnn_seq2seq import Attention, ConfigError, RnnSeq2SeqConfig, register_attention
from hf_rnn_seq2seq.model import config_checks, own_code
from tests.helpers.checkpoints import translator_files
from tests.helpers.models import batch, decoder_inputs, mask, pad, tiny_config, tiny_model
from tests.model.test_remote_code import run_elsewhere

FIXTURES = Path(__file__).parents[1] / "fixtures"
MODEL = Path(own_code.__file__).parent

LOAD = """
config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder, trust_remote_code=True)
model.save_pretrained(out + "/again")
again = transformers.AutoModelForSeq2SeqLM.from_pretrained(out + "/again", trust_remote_code=True)
assert [type(one).__name__ for one in (again, again.model.decoder.attention)] == ["SharpModel", "CosineAttention"]
with torch.no_grad():
    save_file({"logits": model(**given).logits, "again": again(**given).logits}, out + "/found.safetensors")
model.train()(**given, labels=given["decoder_input_ids"]).loss.backward()
"""


@pytest.fixture
def own() -> Iterator[None]:
    """The two modules of tests/fixtures, imported for one test."""
    mapping, names = AutoModelForSeq2SeqLM._model_mapping, ("my_attention", "my_model")
    models, attentions = dict(mapping._extra_content), dict(config_checks.REGISTERED)
    for name in names:
        spec = importlib.util.spec_from_file_location(name, FIXTURES / f"{name}.py")
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    yield
    mapping._extra_content = models
    config_checks.REGISTERED.clear()
    config_checks.REGISTERED.update(attentions)
    for name in names:
        del sys.modules[name]


def test_an_attention_and_a_model_load_where_nothing_is_installed(own: None, tmp_path: Path) -> None:
    model = AutoModelForSeq2SeqLM.from_config(tiny_config(attention_type="sharp_cosine")).eval()
    assert type(model).__name__ == "SharpModel"
    given = {key: value for key, value in batch().items() if key != "labels"}
    given |= {"decoder_input_ids": pad(decoder_inputs()), "decoder_attention_mask": mask(decoder_inputs())}
    found, _ = run_elsewhere(LOAD, model, given, tmp_path)
    with torch.no_grad():
        assert torch.equal(found["logits"], model(**given).logits) and torch.equal(found["again"], found["logits"])
    first, second = tmp_path / "checkpoint", tmp_path / "again"
    codes = {path.name: path.read_bytes() for path in first.glob("*.py")}
    assert codes == {path.name: path.read_bytes() for path in second.glob("*.py")}
    assert set(codes) - {path.name for path in MODEL.glob("*.py")} == {"my_attention.py", "my_model.py"}
    assert all(code == (MODEL / name).read_bytes() for name, code in codes.items() if not name.startswith("my_"))
    maps = [json.loads((folder / "config.json").read_text())["auto_map"] for folder in (first, second)]
    expected = {
        "AutoConfig": "my_attention.RnnSeq2SeqConfig",
        "AutoModel": "my_attention.RnnSeq2SeqModel",
        "AutoModelForSeq2SeqLM": "my_model.SharpModel",
    }
    assert maps == [expected, expected]


def test_a_config_alone_carries_its_attention(own: None, tmp_path: Path) -> None:
    tiny_config(attention_type="sharp_cosine").save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["auto_map"]["AutoConfig"].startswith("my_attention.")
    text = (tmp_path / "my_attention.py").read_text()
    assert "from .attention import Attention\nfrom .attention import register_attention\n" in text
    assert text.endswith("from .configuration_rnn_seq2seq import RnnSeq2SeqConfig\n")
    assert (tmp_path / "attention.py").is_file() and not (tmp_path / "search.py").is_file()


def test_a_checkpoint_without_own_code_carries_the_files_of_the_package(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.glob("*.py")} == translator_files()


REFUSED: dict[str, tuple[str, str]] = {
    "package": ("import hf_rnn_seq2seq\n", "must be `from hf_rnn_seq2seq import ...`"),
    "room": ("from hf_rnn_seq2seq.data import text\n", "must name classes of hf_rnn_seq2seq, or something in"),
    "version": ("from hf_rnn_seq2seq import __version__\n", "must name classes of hf_rnn_seq2seq, or something in"),
    "neighbor": ("from .helper import f\n", "a checkpoint carries one file; write the code into it"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_imports_that_a_checkpoint_does_not_carry_are_refused(case: str, tmp_path: Path) -> None:
    text, message = REFUSED[case]
    path = tmp_path / "mine.py"
    path.write_text("# mine\n" + text)
    with pytest.raises(ConfigError) as caught:
        own_code.relative_imports(path)
    assert f"mine.py:2: `{text.strip()}`: {message}" in str(caught.value)


class Homeless(Attention):
    """The class has no source file, like one that is defined at the prompt."""

    def score(self, query: Any, keys: Any, source_positions: Any) -> Any:
        return query @ keys.transpose(1, 2).unsqueeze(1)


Homeless.__module__ = "__main__"


def test_a_class_without_a_file_is_saved_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    register_attention("homeless", Homeless)
    tiny_config(attention_type="homeless").save_pretrained(tmp_path)
    assert "class Homeless of __main__: has no file; define it in a file" in caplog.text
    assert RnnSeq2SeqConfig.from_pretrained(tmp_path).attention_type == "homeless"
