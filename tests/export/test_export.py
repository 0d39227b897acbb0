"""torch.export and ONNX: the exported graphs compute what the model computes, and decode what `generate()` decodes."""

import importlib.util
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hf_rnn_seq2seq.errors import ArgumentError
from hf_rnn_seq2seq.export.graphs import DecoderGraph, EncoderGraph, Programs, export_programs, present
from tests.helpers.models import batch, tiny_model

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "hf_rnn_seq2seq" / "export" / "README.md").read_text(encoding="utf-8")
NEWER_TORCH = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2]) >= (2, 9)
OLD_TORCH = "torch.export leaves sizes free, and torch.onnx takes what it made, as needed here from torch 2.9 on"
needs_torch = pytest.mark.skipif(not NEWER_TORCH, reason=OLD_TORCH)
MODELS: dict[str, dict[str, Any]] = {
    "general, LSTM, feeding": {"attention_type": "general", "cell_type": "lstm", "input_feeding": True},
    "additive, GRU, before the cell": {
        "attention_type": "additive",
        "attention_order": "before_cell",
        "cell_type": "gru",
        "encoder_layers": 2,
        "copy_mechanism": True,
    },
    "dot, LSTM, no feeding": {
        "attention_type": "dot",
        "cell_type": "lstm",
        "input_feeding": False,
        "decoder_layers": 2,
        "bridge": "zero",
    },
    "multi_head, ReLU, one way": {
        "attention_type": "multi_head",
        "attention_size": 4,
        "num_attention_heads": 2,
        "cell_type": "rnn_relu",
        "bidirectional": "none",
    },
    "features": {"feature_token_ids": [4, 7], "input_feeding": False},
    "drawn, before the cell": {
        "attention_type": "additive",
        "attention_alignment": "sampled",
        "attention_order": "before_cell",
        "context_gate": "scalar",
    },
    "hard alignment": {"attention_type": "additive", "cell_type": "gru", "attention_alignment": "hard"},
    "monotonic alignment": {
        "attention_type": "additive",
        "cell_type": "gru",
        "attention_alignment": "monotonic",
        "alignment_order": 1,
    },
    "entmax, coverage, gate": {
        "attention_type": "additive",
        "attention_normalization": "entmax",
        "coverage": "gru",
        "context_gate": "both",
        "readout": "maxout",
    },
}


# Of random weights whose sentences end at different places.
SEEDS = {"features": 1, "drawn, before the cell": 9}
# Tracing takes seconds a model; `test_the_loops_decode_what_generate_does` takes all of them.
TRACED: list[str] = []


@pytest.fixture(
    scope="module", params=[name if name in TRACED else pytest.param(name, marks=pytest.mark.long) for name in MODELS]
)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Programs, Any]:
    """A model, its exported programs and, where onnxruntime is there, its ONNX form."""
    if not NEWER_TORCH:
        pytest.skip(OLD_TORCH)
    model = tiny_model(dtype=torch.float32, seed=SEEDS.get(request.param, 0), **MODELS[request.param])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    programs = export_programs(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    if any(importlib.util.find_spec(name) is None for name in ("onnxruntime", "onnxscript")):
        return model, programs, None
    from hf_rnn_seq2seq.export.onnx import export_onnx
    from hf_rnn_seq2seq.export.onnx_runtime import OnnxTranslator

    folder = tmp_path_factory.mktemp("onnx") / "out"
    assert export_onnx(model, folder, programs) < 1e-5
    return model, programs, OnnxTranslator(folder)


def sources() -> dict[str, torch.Tensor]:
    """Three ragged rows, one row, and rows that are padded at the left."""
    given = batch()
    return {name: given[name] for name in ("input_ids", "attention_mask")}


def test_exported_programs_equal_the_model(exported: tuple[Any, Programs, Any]) -> None:
    """The inputs have other sizes, lengths and padding than the traced example."""
    model, programs, _ = exported
    encoder, decoder = programs.encoder.module(), programs.decoder.module()
    left = batch(left=True)
    words = torch.tensor([[1, 4, 3], [1, 9, 9], [1, 3, 3]])
    for given in (sources(), {name: left[name] for name in ("input_ids", "attention_mask")}):
        with torch.no_grad():
            expected = model(**given, decoder_input_ids=words, output_attentions=True)
            start = encoder(given["input_ids"], given["attention_mask"])
            state, memory = start[: len(programs.state)], start[len(programs.state) :]
            for time in range(words.shape[1]):
                logits, *rest = decoder(words[:, time], *state, *memory)
                weights, *state = rest if programs.has_weights else (None, *rest)
                torch.testing.assert_close(logits, expected.logits[:, time], atol=1e-5, rtol=1e-4)
                torch.testing.assert_close(weights, expected.cross_attentions[0][:, :, time], atol=1e-5, rtol=1e-4)
    with torch.no_grad():
        alone = encoder(*(tensor[:2] for tensor in sources().values()))
        torch.testing.assert_close(alone[0], encoder(*sources().values())[0][:2], atol=1e-6, rtol=1e-5)


OPTIONS: list[dict[str, Any]] = [
    {"num_beams": 1},
    {"num_beams": 3},
    {"num_beams": 4, "early_stopping": True, "length_penalty": 0.4},
    {"num_beams": 2, "early_stopping": "never", "length_penalty": 1.5},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_onnx_decodes_what_generate_does(exported: tuple[Any, Programs, Any], options: dict[str, Any]) -> None:
    model, _, translator = exported
    if translator is None:
        pytest.skip("onnxruntime or onnxscript is not installed")
    given = sources()
    lengths = set()
    for limit in (2, 9):
        expected = model.generate(**given, max_new_tokens=limit, **options)
        found = translator.generate(*(tensor.numpy() for tensor in given.values()), max_new_tokens=limit, **options)
        assert found.tolist() == expected.tolist()
        lengths.add(found.shape[1])
        for row in range(len(expected)):
            alone = {name: tensor[row : row + 1] for name, tensor in given.items()}
            single = translator.generate(
                *(tensor.numpy() for tensor in alone.values()), max_new_tokens=limit, **options
            )
            assert single.tolist() == model.generate(**alone, max_new_tokens=limit, **options).tolist()
    assert len(lengths) == 2


def equals_generate(folder: Path, model: Any, tmp_path: Path) -> None:
    """The files of `export_onnx` in `folder`, joined, write what `generate()` writes, at every limit."""
    import onnx

    from hf_rnn_seq2seq.export.onnx_greedy import join, search
    from hf_rnn_seq2seq.export.onnx_runtime import OnnxTranslator

    translator, given, pads = OnnxTranslator(folder), sources(), set()
    free = model.generate(**given, num_beams=1, max_new_tokens=9)
    for ends in ([2], [int(free[1, 2]), int(free[2, -2])]):  # with these two words, rows end at different places
        translator.settings["eos_token_id"] = ends
        for limit in (1, 9):
            translator.settings["max_new_tokens"] = limit
            onnx.save(join(folder, translator), tmp_path / "one.onnx")
            for rows in (slice(0, 3), slice(1, 2)):
                part = {name: tensor[rows] for name, tensor in given.items()}
                wanted = model.generate(**part, num_beams=1, max_new_tokens=limit, eos_token_id=ends)
                assert search(tmp_path / "one.onnx", part["input_ids"].numpy()).tolist() == wanted.tolist()
                pads |= {*(wanted[:, 1:] == 0).sum(1).tolist()}
    # The model with dot scores repeats one word in every row.
    assert len(pads) > 1 or model.config.attention_type == "dot"


def test_one_graph_writes_what_generate_does(exported: tuple[Any, Programs, Any], tmp_path: Path) -> None:
    model, programs, translator = exported
    if translator is None:
        pytest.skip("onnxruntime or onnxscript is not installed")
    from hf_rnn_seq2seq.export.onnx import export_onnx
    from hf_rnn_seq2seq.export.onnx_greedy import export_onnx_greedy

    export_onnx_greedy(model, tmp_path / "one", programs)
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["greedy.onnx"]
    export_onnx(model, tmp_path / "two", programs)
    equals_generate(tmp_path / "two", model, tmp_path)


@pytest.mark.thinned(3)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("model", MODELS)
def test_the_loops_decode_what_generate_does(model: str, options: dict[str, Any]) -> None:
    """Many models and limits; torch computes the steps instead of onnxruntime."""
    from hf_rnn_seq2seq.export.onnx import decoding_settings
    from hf_rnn_seq2seq.export.onnx_runtime import OnnxTranslator

    class TorchTranslator(OnnxTranslator):
        def __init__(self, model: Any) -> None:
            self.model, self.settings, self.graph = model, decoding_settings(model), EncoderGraph(model)

        @torch.no_grad()
        def encode(self, input_ids: np.ndarray, attention_mask: np.ndarray) -> Any:
            state, memory = self.graph.start(torch.from_numpy(input_ids), torch.from_numpy(attention_mask))
            self.decoder = DecoderGraph(self.model, state, memory)
            parts = (state.tensors(), present(memory))
            return tuple({str(place): tensor.numpy() for place, tensor in enumerate(part)} for part in parts)

        @torch.no_grad()
        def step(self, words: np.ndarray, state: Any, memory: Any) -> Any:
            tensors = [torch.from_numpy(np.ascontiguousarray(t)) for t in (words, *state.values(), *memory.values())]
            logits, weights, *after = self.decoder(*tensors)
            return logits.numpy(), weights.numpy(), {str(place): t.numpy() for place, t in enumerate(after)}

    given, short = sources(), 0
    arrays = [tensor.numpy() for tensor in given.values()]
    for seed in range(3):
        found = tiny_model(dtype=torch.float32, seed=seed, **MODELS[model])
        with torch.no_grad():
            found.lm_head.bias[2] += 1.5  # sentences end, some at once and some later
        translator = TorchTranslator(found)
        for limit in (1, 2, 9):
            expected = found.generate(**given, max_new_tokens=limit, **options)
            written = translator.generate(*arrays, max_new_tokens=limit, **options)
            assert written.tolist() == expected.tolist()
            short += int((expected[:, 1:] == 2).any(1).sum())
    assert short, "no sentence ended before the limit"


def test_models_that_cannot_be_exported_are_refused() -> None:
    from transformers import BartConfig, BartForConditionalGeneration

    for options, reason in (
        ({"layer_norm": True}, "layer_norm: encoder layer .* has no kernel of dynamic length"),
        ({"cell_type": "gru", "gru_reset": "before"}, "gru_reset='before'"),
        ({"encoder_transition_depth": 2}, "encoder_transition_depth above 1"),
        ({"zoneout_cell": 0.1}, "zoneout"),
        (
            {"encoder": {"model_type": "bert", "hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 1}},
            "encoder='bert': only models whose encoder is recurrent and reads words",
        ),
    ):
        with pytest.raises(ArgumentError, match=reason):
            export_programs(tiny_model(dtype=torch.float32, **options))
    sizes = dict.fromkeys(("encoder_layers", "decoder_layers", "encoder_attention_heads", "decoder_attention_heads"), 1)
    with pytest.raises(ArgumentError, match="BartForConditionalGeneration: only RnnSeq2SeqForConditionalGeneration"):
        export_programs(BartForConditionalGeneration(BartConfig(vocab_size=9, d_model=4, **sizes)))


def test_settings_that_the_loop_does_not_know_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime (of the extra `onnx`) is not installed")
    from hf_rnn_seq2seq.export.onnx import decoding_settings, export_onnx
    from hf_rnn_seq2seq.export.onnx_runtime import OnnxTranslator

    model = tiny_model(dtype=torch.float32)
    model.generation_config.no_repeat_ngram_size = 3
    with pytest.raises(ArgumentError, match="no_repeat_ngram_size=3 in the generation config"):
        decoding_settings(model)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    with pytest.raises(FileExistsError, match="must be a new or an empty folder"):
        export_onnx(tiny_model(dtype=torch.float32), tmp_path / "mine")
    with pytest.raises(ArgumentError, match="not in float32"):
        export_onnx(tiny_model(), tmp_path / "new")
    with pytest.raises(FileNotFoundError, match=r"has no encoder\.onnx"):
        OnnxTranslator(tmp_path / "mine")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine"]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_onnx_refuses_an_empty_batch(exported: tuple[Any, Programs, Any], options: dict[str, Any]) -> None:
    """Without this check, onnxruntime would end the process."""
    if exported[2] is None:
        pytest.skip("onnxruntime or onnxscript is not installed")
    for shape in ((0, 4), (2, 0)):
        with pytest.raises(ValueError, match=rf"input_ids of shape \({shape[0]}, {shape[1]}\): a batch needs at least"):
            exported[2].generate(np.zeros(shape, dtype=np.int64), **options)


def test_an_old_torch_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime (of the extra `onnx`) is not installed")
    from hf_rnn_seq2seq.export.onnx import export_onnx

    monkeypatch.setattr(torch, "__version__", "2.8.1+cpu")
    with pytest.raises(ArgumentError, match=r"torch 2\.8\.1\+cpu: the export to ONNX needs torch 2\.9 or newer"):
        export_onnx(tiny_model(dtype=torch.float32), tmp_path / "out")


@pytest.mark.long
@needs_torch
def test_a_graph_that_computes_something_else_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime (of the extra `onnx`) is not installed")
    from hf_rnn_seq2seq.export import onnx as onnx_export

    monkeypatch.setattr(onnx_export, "TOLERANCE", -1.0)
    with pytest.raises(ArgumentError, match="ONNX and torch differ by .* in logits; nothing was written"):
        onnx_export.export_onnx(tiny_model(dtype=torch.float32, attention_type="dot"), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@needs_torch
def test_the_script_exports_and_translates(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime (of the extra `onnx`) is not installed")
    from tests.helpers.checkpoints import save_checkpoint, tiny_rnn, tiny_tokenizer

    spec = importlib.util.spec_from_file_location("export_onnx", ROOT / "scripts" / "export_onnx.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    tokenizer = tiny_tokenizer()
    model = tiny_rnn(tokenizer)
    folder, output = save_checkpoint(tmp_path / "run", model, tokenizer), tmp_path / "runs" / "demo-onnx"
    command = [str(folder), "--output_dir", str(output), "--text", "three days ago", "--num_beams", "3"]
    assert script.main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    expected = model.generate(**tokenizer("three days ago", return_tensors="pt"), num_beams=3)
    assert lines[-1] == tokenizer.batch_decode(expected, skip_special_tokens=True)[0]
    names = {path.name for path in output.iterdir()}
    assert {"encoder.onnx", "decoder.onnx", "decoding.json", "tokenizer.json"} <= names
    settings = json.loads((output / "decoding.json").read_text())
    assert settings["max_new_tokens"] == 12 and settings["eos_token_id"] == [2]
    equals_generate(output, model, tmp_path)
    with pytest.raises(FileExistsError, match=f"output_dir='{output}': must be a new or an empty folder"):
        script.main(command)

    monkeypatch.chdir(tmp_path)
    exec(README.partition("```python\n")[2].partition("```")[0], {})
    texts = tokenizer(["3 days ago", "in an hour"], return_tensors="pt", padding=True)
    expected = tokenizer.batch_decode(model.generate(**texts, num_beams=5), skip_special_tokens=True)
    assert capsys.readouterr().out == f"{expected}\n"


def npm_package(name: str) -> Path | None:
    """The folder with a Node package that this machine has, from NODE_PATH or `npm root -g`; None without Node."""
    folders = [Path(folder) for folder in os.environ.get("NODE_PATH", "").split(os.pathsep) if folder]
    if shutil.which("node") is None:
        return None
    if shutil.which("npm") is not None:
        folders.append(Path(subprocess.run(["npm", "root", "-g"], capture_output=True, text=True).stdout.strip()))
    return next((folder for folder in folders if (folder / name).is_dir()), None)


@pytest.mark.long
@needs_torch
def test_one_graph_runs_in_node(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime (of the extra `onnx`) is not installed")
    modules = npm_package("onnxruntime-web")
    if modules is None:
        pytest.skip(
            "no Node with onnxruntime-web: `npm install -g onnxruntime-web`, or NODE_PATH names its node_modules"
        )
    from hf_rnn_seq2seq.commands.export import main
    from tests.helpers.checkpoints import SOURCES, save_checkpoint, tiny_rnn, tiny_tokenizer

    tokenizer = tiny_tokenizer()
    model = tiny_rnn(tokenizer)
    folder = save_checkpoint(tmp_path / "run", model, tokenizer)
    assert main([str(folder), "--output_dir", str(tmp_path / "one"), "--format", "onnx_greedy"]) == 0
    assert {"greedy.onnx", "tokenizer.json"} <= {path.name for path in (tmp_path / "one").iterdir()}
    ids = tokenizer(SOURCES)["input_ids"]
    snippet = README.partition("```js\n")[2].partition("```")[0]
    every = "(async () => { for (const row of %s) console.log(JSON.stringify(await translate(row))); })();"
    (tmp_path / "one" / "run.cjs").write_text(snippet + every % json.dumps(ids), encoding="utf-8")
    environment = {**os.environ, "NODE_PATH": str(modules)}
    done = subprocess.run(
        ["node", "run.cjs"], cwd=tmp_path / "one", env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert found == [model.generate(torch.tensor([row]), num_beams=1)[0].tolist() for row in ids]


def test_the_helpers_of_the_loop() -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime (of the extra `onnx`) is not installed")
    from hf_rnn_seq2seq.export.numpy_runtime import log_softmax
    from hf_rnn_seq2seq.export.onnx_runtime import top

    values = np.random.default_rng(0).normal(size=(4, 20)).astype(np.float32)
    for count in (1, 7, 20):
        expected = torch.from_numpy(values).topk(count)
        best, index = top(values, count)
        assert best.tolist() == expected.values.tolist() and index.tolist() == expected.indices.tolist()
    expected = torch.from_numpy(values).log_softmax(-1)
    np.testing.assert_allclose(log_softmax(values), expected.numpy(), atol=1e-6)
