"""Other toolkits beside the package: what they are given computes the same, and processes take turns."""

import json
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.helpers.checkpoints import SOURCES, TARGETS, tiny_rnn, tiny_tokenizer
from tests.helpers.script_runs import run, train

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
from benchmarks import handover, toolkits  # noqa: E402  scripts/ is no package
from benchmarks.peers import ctranslate2_transformer  # noqa: E402

WIDTH = 12
SIZES = {"embedding_size": 8, "hidden_size": WIDTH, "encoder_hidden_size": WIDTH // 2, "readout_size": WIDTH}


def logits_of_luong(weights: dict[str, Tensor], source: list[int], words: list[int]) -> Tensor:
    """Luong 2015, equations 4, 5 and 8 with input feeding, for one sentence, from weights with OpenNMT-py's names."""
    encoder = nn.LSTM(SIZES["embedding_size"], WIDTH // 2, bidirectional=True)
    prefix = "encoder.rnn."
    encoder.load_state_dict({name.removeprefix(prefix): weights[name] for name in weights if name.startswith(prefix)})
    states, (hidden, cell) = encoder(weights["source_table"][source])
    hidden, cell, fed = hidden.flatten(), cell.flatten(), torch.zeros(WIDTH)
    gates = [weights[f"decoder.rnn.layers.0.{name}"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    found = []
    for word in words:
        read = torch.cat([weights["target_table"][word], fed])
        hidden, cell = torch.lstm_cell(read[None], (hidden[None], cell[None]), *gates)
        hidden, cell = hidden[0], cell[0]
        attention = (states @ (weights["decoder.attn.linear_in.weight"] @ hidden)).softmax(0)
        fed = torch.tanh(weights["decoder.attn.linear_out.weight"] @ torch.cat([attention @ states, hidden]))
        found.append(F.linear(fed, weights["generator.weight"], weights["generator.bias"]))
    return torch.stack(found)


def test_the_weights_for_peers_compute_the_same_function(tmp_path: Path) -> None:
    """In another order of the vocabulary too."""
    tokenizer = tiny_tokenizer()
    model = tiny_rnn(tokenizer, **{**handover.LUONG, **SIZES})
    source, words = tokenizer(SOURCES[0])["input_ids"], tokenizer(TARGETS[0])["input_ids"]
    weights = handover.luong_weights(model)
    expected = model(input_ids=torch.tensor([source]), decoder_input_ids=torch.tensor([words])).logits[0]
    torch.testing.assert_close(logits_of_luong(weights, source, words), expected)

    from safetensors.torch import save_file

    save_file(weights, tmp_path / "weights.safetensors")
    names = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    (tmp_path / "tokens.json").write_text(json.dumps(names), encoding="utf-8")
    theirs = ["<blank>" if name == "<pad>" else name for name in reversed(names)]
    turned = handover.weights_for(tmp_path, theirs, {"<blank>": "<pad>"})
    last = len(names) - 1
    shown = logits_of_luong(turned, [last - i for i in source], [last - i for i in words])
    torch.testing.assert_close(shown.flip(1), expected)


@pytest.fixture(scope="module")
def luong(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the form that the peers compute."""
    data = {"dataset_name": "cldr", "source_lang": "en", "target_lang": "fr", "max_train_samples": 64}
    data |= {"max_eval_samples": 8, "max_predict_samples": 8, "vocab_size": 300, "max_new_tokens": 12}
    form = {name: str(value).lower() for name, value in handover.LUONG.items()} | SIZES
    folder = tmp_path_factory.mktemp("luong") / "run"
    length = {"max_steps": 2, "eval_steps": 2, "per_device_train_batch_size": 8, "cpu_threads": 1, "report_to": "none"}
    train(None, folder, **data, **form, **length)
    return folder


def test_the_systems_of_this_package_take_turns(luong: Path, tmp_path: Path) -> None:
    given = {"rounds": 1, "updates": 1, "sentences": 6, "one_by_one": 2, "threads": 1, "json": None}
    arguments = Namespace(run=str(luong), environments=str(tmp_path), **given)
    rows = toolkits.run_turns(arguments, toolkits.PACKAGE, tmp_path)
    kinds = ["training", *(name for name, _, _ in toolkits.DECODING)]
    names = [peer.name for peer in toolkits.PACKAGE]
    expected = [(kind, name) for kind in kinds for name in names if (kind, name) != ("training", names[2])]
    assert [(row["work"], row["system"]) for row in rows] == expected
    for row in rows:
        assert row["per_s"] > 0 and row["per_cpu_s"] > 0 and row["peak_mb"] > 100
        decoded = {"greedy": 6, "5 beams": 6}.get(row["work"], 2)
        assert row.get("same") == {"training": None}.get(row["work"], decoded) or row["system"] != names[0]


def test_a_run_that_the_toolkits_cannot_compute_is_for_ctranslate2_alone(tmp_path: Path) -> None:
    recipe = {"dataset_name": "cldr", "source_lang": "en", "target_lang": "fr", "max_train_samples": 8}
    recipe |= {"max_predict_samples": 4}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")  # which YAML reads
    tokenizer = tiny_tokenizer()
    tiny_rnn(tokenizer, **handover.LUONG | {"attention_type": "additive"}).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert len(handover.prepare(str(tmp_path), tmp_path, weights=ctranslate2_transformer.PEER.weights)) == 4
    assert (tmp_path / "test.src").read_text(encoding="utf-8").count("\n") == 4
    assert not (tmp_path / "weights.safetensors").exists()
    refused = run("benchmarks/peers/opennmt_rnn.py", tmp_path)
    assert refused.returncode == 2 and b"its model must have {'attention_type': 'general'" in refused.stderr
