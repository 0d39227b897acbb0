"""Joins the two graphs of `export_onnx` into one that searches: source ids in, target ids out, for other languages.

    input_ids (rows, source) -> output_ids (rows, target), both int64

The graph runs the encoder once, and the decoder in a `Loop` until every row has ended, with the likeliest word at each
position. Source positions of the pad token are padding. The output is that of `generate(num_beams=1)`, with the start
token. It has only operators of the ONNX standard, for onnxruntime in C, C#, Java, JavaScript (`onnxruntime-web`) and
others.
"""

import os
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, compose, helper, numpy_helper, parser

from hf_rnn_seq2seq.errors import ArgumentError
from hf_rnn_seq2seq.export.graphs import Programs
from hf_rnn_seq2seq.export.onnx import export_onnx
from hf_rnn_seq2seq.export.onnx_runtime import DECODER, ENCODER, OnnxTranslator
from hf_rnn_seq2seq.files import whole_folder
from hf_rnn_seq2seq.model.modeling_rnn_seq2seq import RnnSeq2SeqForConditionalGeneration

GREEDY = "greedy.onnx"

# Around the loop, in the text format of ONNX; names of the two graphs begin with `encoder_` and `decoder_`.
BEFORE = """
is_pad = Equal (input_ids, no_word)
is_word = Not (is_pad)
encoder_attention_mask = Cast <to = 7> (is_word)
encoder_input_ids = Identity (input_ids)
rows = Shape <start = 0, end = 1> (input_ids)
first = Expand (start, rows)
open = Expand (true, rows)
"""
AFTER = """
column = Unsqueeze (first, one)
in_order = Transpose <perm = [1, 0]> (words)
output_ids = Concat <axis = 1> (column, in_order)
"""
# At each position; `is_open` (rows) is true where no end token was written before.
CHOOSE = """
likeliest = ArgMax <axis = 1, keepdims = 0> (decoder_logits)
word = Where (is_open, likeliest, pad)
words_column = Unsqueeze (word, one)
is_which_end = Equal (words_column, ends)
is_which_end_number = Cast <to = 7> (is_which_end)
is_end = ReduceMax <keepdims = 0> (is_which_end_number, one)
is_no_end = Equal (is_end, zero)
still_open = And (is_open, is_no_end)
open_rows = Cast <to = 7> (still_open)
any_row = ReduceMax <keepdims = 0> (open_rows)
again = Cast <to = 9> (any_row)
written = Identity (word)
"""


def export_onnx_greedy(
    model: RnnSeq2SeqForConditionalGeneration, output: str | os.PathLike[str], programs: Programs | None = None
) -> float:
    """Writes OUTPUT/greedy.onnx in float32, if it writes what the files of `export_onnx` write.

    Arguments, result and errors are those of `export_onnx`.
    """
    with whole_folder(output) as folder, TemporaryDirectory() as place:
        parts = Path(place) / "parts"
        difference = export_onnx(model, parts, programs)
        translator = OnnxTranslator(parts)
        onnx.save(join(parts, translator), str(folder / GREEDY))
        generator = np.random.default_rng(0)
        pad = translator.settings["pad_token_id"]
        for lengths in (4, 4, 4) if pad is None else (9, 2, 7), (4,):
            ids = generator.integers(0, model.config.source_vocab_size, (len(lengths), max(lengths)))
            ids = np.where(np.arange(max(lengths)) < np.array(lengths)[:, None], ids, pad or 0)
            if search(folder / GREEDY, ids).tolist() != translator.generate(ids, num_beams=1).tolist():
                raise ArgumentError("one ONNX graph and two write different words; nothing was written")
    return difference


def search(path: str | os.PathLike[str], input_ids: np.ndarray) -> np.ndarray:
    """The target ids (rows, target) that the graph writes for source ids (rows, source)."""
    from onnxruntime import InferenceSession

    session = InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {"input_ids": input_ids.astype(np.int64)})[0]


def join(folder: Path, translator: OnnxTranslator) -> ModelProto:
    """The one graph, from the files of `export_onnx` in `folder`, which `translator` has loaded."""
    encoder = compose.add_prefix(onnx.load(folder / ENCODER), "encoder_")
    decoder = compose.add_prefix(onnx.load(folder / DECODER), "decoder_")
    given = {each.name.removeprefix("decoder_"): each for each in decoder.graph.input}
    # A state that no step reads is no input of a step.
    states = [name for name in translator.state_names if name in given]
    memory = [name for name in given if name not in (*states, "words")]
    results = {each.name: each for each in decoder.graph.output}

    int64, boolean = TensorProto.INT64, TensorProto.BOOL
    body = helper.make_graph(
        [
            # The memory is read from the graph around the loop.
            *_nodes("".join(f"decoder_{name} = Identity (encoder_{name})\n" for name in memory)),
            *decoder.graph.node,
            *_nodes(CHOOSE),
        ],
        "step",
        [
            _tensor("position", int64),
            _tensor("went_on", boolean),
            _tensor("decoder_words", int64, "rows"),
            _tensor("is_open", boolean, "rows"),
            *(given[name] for name in states),
        ],
        [
            _tensor("again", boolean),
            _tensor("word", int64, "rows"),
            _tensor("still_open", boolean, "rows"),
            *(results[f"decoder_next_{name}"] for name in states),
            _tensor("written", int64, "rows"),
        ],
    )
    carried = ["first", "open", *(f"encoder_{name}" for name in states)]
    ended = ["last", "closed", *(f"last_{name}" for name in states)]
    loop = helper.make_node("Loop", ["limit", "true_scalar", *carried], [*ended, "words"], body=body)
    graph = helper.make_graph(
        [*_nodes(BEFORE), *encoder.graph.node, loop, *_nodes(AFTER)],
        "greedy",
        [_tensor("input_ids", int64, "rows", "source")],
        [_tensor("output_ids", int64, "rows", "target")],
        [*encoder.graph.initializer, *decoder.graph.initializer, *_constants(translator.settings)],
    )
    opsets = {each.domain: each for each in (*encoder.opset_import, *decoder.opset_import)}
    functions = [*encoder.functions, *decoder.functions]
    model = helper.make_model(
        graph, opset_imports=list(opsets.values()), functions=functions, ir_version=encoder.ir_version
    )
    onnx.checker.check_model(model)
    return model


def _constants(settings: dict) -> list[TensorProto]:
    pad, ends = settings["pad_token_id"], settings["eos_token_id"]
    fill = pad if pad is not None else ends[0] if ends else -1
    values = {"start": [settings["decoder_start_token_id"]], "pad": [fill], "no_word": [-1 if pad is None else pad]}
    values |= {"ends": ends or [-1], "limit": settings["max_new_tokens"], "true_scalar": True, "true": [True]}
    values |= {"zero": [0], "one": [1]}
    return [numpy_helper.from_array(np.array(value), name) for name, value in values.items()]


def _nodes(text: str) -> list[NodeProto]:
    return [parser.parse_node(line) for line in text.splitlines() if line]


def _tensor(name: str, kind: int, *axes: str) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, axes)


__all__ = ["GREEDY", "export_onnx_greedy", "join", "search"]
