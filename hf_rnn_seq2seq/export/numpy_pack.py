"""Exports a small model for numpy: its weights in one file, beside a module that reads them and needs only numpy.

`numpy_runtime.py` is that module; it is copied under the name g2p.py. Before the folder gets its name, the module is
compared with the model and with the tokenizer.
"""

import io
import json
import os
import random
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from hf_rnn_seq2seq.errors import ArgumentError
from hf_rnn_seq2seq.export import numpy_runtime
from hf_rnn_seq2seq.export.numpy_runtime import ABOUT, FILE, FORMAT, SCALE, G2p, Network, log_softmax
from hf_rnn_seq2seq.export.onnx import decoding_settings
from hf_rnn_seq2seq.files import whole_folder, write_atomically
from hf_rnn_seq2seq.model.configuration_rnn_seq2seq import RnnSeq2SeqConfig
from hf_rnn_seq2seq.model.dropout import without_noise
from hf_rnn_seq2seq.model.modeling_rnn_seq2seq import RnnSeq2SeqForConditionalGeneration
from hf_rnn_seq2seq.model.readout import Readout
from hf_rnn_seq2seq.model.recurrence import RecurrentLayer

MODULE = "g2p.py"
WEIGHTS = ("int8", "float32")
# The largest difference between the float32 logits of torch and numpy that passes the check.
TOLERANCE = 2e-4
PROBES = 300  # texts that are compared with the tokenizer

# The fields of a config that decide what is computed, with the values that the module computes.
SUPPORTED: dict[str, tuple[Any, ...]] = {
    "cell_type": ("lstm", "gru"),
    "gru_reset": ("after",),
    "layer_norm": (False,),
    "zoneout": (0,),
    "zoneout_cell": (None, 0),
    "encoder_transition_depth": (1,),
    "decoder_transition_depth": (1,),
    "decoder_upper_transition_depth": (1,),
    "bidirectional": ("all", "first", "none"),
    "residual_start": (None,),
    "skip_connections": (False,),
    "context": ("initial_state", "attention"),
    "context_layers": ("first",),
    "readout_state": ("current",),
    "copy_mechanism": (False,),
    "embedding_activation": ("none",),
    "feature_token_ids": (None,),
}
SUPPORTED_ATTENTION: dict[str, tuple[Any, ...]] = {
    "attention_type": ("general", "dot", "additive"),
    "attention_alignment": ("soft",),
    "attention_window": ("global",),
    "attention_normalization": ("softmax",),
    "coverage": ("none",),
    "context_gate": ("none",),
}
FORMS = ("NFC", "NFD", "NFKC", "NFKD")
# How `tokenizers` writes the ways to split a text into characters.
CHARACTERS: tuple[dict[str, Any], ...] = (
    *(
        {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
        for pattern in ({"String": ""}, {"Regex": ""}, {"Regex": "."}, {"Regex": "(?s)."})
    ),
    {"type": "FixedLength", "length": 1},
)
# Of the algorithm `letter`: characters, after features that a tab ends, which two replacements bring into one form.
LETTERS = {"type": "Split", "pattern": {"Regex": r"[^\t]+\t|[^\t]"}, "behavior": "Isolated", "invert": False}
FEATURES = (
    {"type": "Replace", "pattern": {"Regex": r"[;+](?=[^\t]*\t)"}, "content": "\t"},
    {"type": "Replace", "pattern": {"Regex": r"^\t+|(?<=\t)\t+"}, "content": ""},
)
# Of the algorithm `word`: a special token that is written in a text. `G2p` never reads one as special.
WRITTEN_OUT = {"type": "Replace", "pattern": {"Regex": r"(?<!\S)<(pad|s|/s)>(?!\S)"}, "content": "<unk>"}

Arrays = dict[str, np.ndarray]


class Pack(NamedTuple):
    """What the file holds: a description that can be written as JSON, and float32 arrays."""

    about: dict[str, Any]
    arrays: Arrays


def export_numpy(
    model: RnnSeq2SeqForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    output: str | os.PathLike[str],
    weights: str = "int8",
) -> float:
    """Writes OUTPUT/{g2p.npz, g2p.py}.

    Args:
        model: in float32; it is not changed.
        tokenizer: its source and its target are characters, or words between spaces.
        output: a new or empty folder.
        weights: `int8`, one scale for each row of a matrix, or `float32`.

    Returns:
        The largest difference between the log-probabilities of the model and of the file.

    Raises:
        ArgumentError: the model or the tokenizer has an option that the module does not compute, or the results differ.
        FileExistsError: the folder is not empty.
    """
    if weights not in WEIGHTS:
        raise ArgumentError(f"weights={weights!r}: must be one of {', '.join(WEIGHTS)}")
    with whole_folder(output) as folder:
        check_model(model)
        source, target = describe_tokenizer(model, tokenizer)
        pack = Pack({**describe_model(model), "source": source, "target": target}, collect(model))
        difference = compare(model, Network(*pack))[0]
        if not difference <= TOLERANCE:
            raise ArgumentError(f"numpy and torch differ by {difference:.2g} in logits; nothing was written")
        write_atomically(folder / MODULE, Path(numpy_runtime.__file__).read_bytes())
        write(pack, folder / FILE, weights)
        written = G2p(folder)
        check_texts(written, tokenizer)
        return compare(model, written.network)[1]


# ---------------------------------------------------------------- the model


def check_model(model: RnnSeq2SeqForConditionalGeneration) -> None:
    """Raises ArgumentError for a model of another class or type, and for the first field that is not supported."""
    if not isinstance(model, RnnSeq2SeqForConditionalGeneration):
        raise ArgumentError(f"{type(model).__name__}: only RnnSeq2SeqForConditionalGeneration can be exported")
    config = model.config
    if config.encoder is not None:
        raise ArgumentError(
            f"encoder={config.encoder.model_type!r}: the module for numpy computes recurrent encoders of words only; "
            "train one without encoder"
        )
    supported = SUPPORTED | (SUPPORTED_ATTENTION if config.context == "attention" else {})
    for name, values in supported.items():
        if getattr(config, name) not in values:
            allowed = " or ".join(map(repr, values))
            raise ArgumentError(
                f"{name}={getattr(config, name)!r}: the module for numpy computes {allowed} only; export to ONNX, or "
                "train without this option"
            )
    if config.context == "attention" and config.attention_layer != "top" and config.decoder_layers > 1:
        raise ArgumentError(
            f"attention_layer={config.attention_layer!r}: the module for numpy computes 'top' only; export to ONNX, or "
            "train without this option"
        )
    if {parameter.dtype for parameter in model.parameters()} != {torch.float32}:
        raise ArgumentError("the model is not in float32; load it with dtype=torch.float32")


def describe_model(model: RnnSeq2SeqForConditionalGeneration) -> dict[str, Any]:
    """What `Network` is built by, and the settings of the searches."""
    config = model.config
    feeding = "none"
    if config.context == "attention" and config.attention_order == "before_cell":
        feeding = "context"
    elif config.input_feeding:
        feeding = "readout" if model.get_decoder().feeds_readout else "context"
    one_way = "backward" if config.reverse_source else "forward"
    numbers = range(config.encoder_layers)
    both = [config.encoder_directions(number + 1) == 2 for number in numbers]
    return {
        "format": FORMAT,
        "cell": config.cell_type,
        "encoder": [["forward", "backward"] if is_both else [one_way] for is_both in both],
        "decoder_layers": config.decoder_layers,
        "bridge": {
            "kind": config.bridge,
            "layers": [model.model.bridge._encoder_layer(layer) for layer in range(config.decoder_layers)],
        },
        "attention": config.attention_order if config.context == "attention" else None,
        "feeding": feeding,
        "readout": "none" if config.readout_size is None else config.readout,
        "settings": decoding_settings(model),
    }


def collect(model: RnnSeq2SeqForConditionalGeneration) -> Arrays:
    """The arrays of the model by the names that `Network` reads."""
    config, base, decoder = model.config, model.model, model.get_decoder()
    arrays: Arrays = {}

    def put(name: str, tensor: Tensor | None) -> None:
        if tensor is not None:
            arrays[name] = np.ascontiguousarray(tensor.detach().float().cpu().numpy())

    def put_table(name: str, vectors: Tensor, weight: Tensor) -> None:
        """The products of all symbols, or their factors where these are smaller."""
        if len(vectors) * len(weight) <= vectors.numel() + weight.numel():
            put(name, vectors.double() @ weight.double().T)
        else:
            put(f"{name}.vectors", vectors)
            put(f"{name}.weight", weight)

    def put_cell(name: str, layer: RecurrentLayer, vectors: Tensor | None, extra: int = 0) -> None:
        kernel = layer.kernel
        below = gates(kernel.weight_ih_l0, config.cell_type)
        if extra:
            below, feed = below.split([below.shape[1] - extra, extra], 1)
            put("feed", feed)
        if vectors is None:
            put(f"{name}.below", below)
        else:
            put_table(f"{name}.below", vectors, below)
        put(f"{name}.recurrent", gates(kernel.weight_hh_l0, config.cell_type))
        bias, recurrent_bias = gates(kernel.bias_ih_l0, config.cell_type), gates(kernel.bias_hh_l0, config.cell_type)
        if config.cell_type == "gru":
            # The reset gate multiplies the last block of the recurrent bias, which must stay by itself.
            size = 2 * layer.hidden_size
            put(f"{name}.recurrent_bias", recurrent_bias[size:])
            recurrent_bias = torch.cat([recurrent_bias[:size], torch.zeros_like(recurrent_bias[size:])])
        put(f"{name}.bias", bias + recurrent_bias)

    for number, layer in enumerate(base.encoder.layers):
        vectors = None if number else base.encoder.embed_tokens.weight
        ways = {"backward" if config.reverse_source else "forward": layer.forward_layer}
        if layer.backward_layer is not None:
            ways["backward"] = layer.backward_layer
        for way, recurrent in ways.items():
            put_cell(f"encoder.{number}.{way}", recurrent, vectors)
    for number, projections in enumerate(base.bridge.projections):
        for tensor, projection in enumerate(projections):
            put(f"bridge.{number}.{tensor}.weight", projection.weight)
            put(f"bridge.{number}.{tensor}.bias", projection.bias)
    words = decoder.embed_tokens.weight
    for number, layer in enumerate(decoder.layers):
        put_cell(f"decoder.{number}", layer, None if number else words, decoder.extra_size(number))
    if decoder.attention is not None:
        key, query = (getattr(decoder.attention, name, None) for name in ("key", "query"))
        put("attention.key.weight", getattr(key, "weight", None))
        put("attention.key.bias", getattr(key, "bias", None))
        put("attention.query.weight", getattr(query, "weight", None))
        if hasattr(decoder.attention, "energy"):
            put("attention.energy", decoder.attention.energy.weight[0])

    head, readout = model.lm_head, decoder.readout
    last = "output" if readout.project is None else "readout"
    weight = head.weight if readout.project is None else readout.project.weight
    for name, part in parts(readout, config, weight).items():
        put_table(f"{last}.{name}", words, part) if name == "words" else put(f"{last}.{name}", part)
    if readout.project is not None:
        put("readout.bias", readout.project.bias)
        put("output.state", head.weight)
    put("output.bias", head.bias)
    return arrays


def gates(tensor: Tensor, cell_type: str) -> Tensor:
    """A weight or bias (gates, ...) in the module's order, times -1 for sigmoid gates and -2 for an LSTM's new cell."""
    if cell_type == "lstm":
        update, forget, new, output = tensor.chunk(4)
        return torch.cat([-update, -forget, -output, -2 * new])
    reset, update, new = tensor.chunk(3)
    return torch.cat([-reset, -update, new])


def parts(readout: Readout, config: RnnSeq2SeqConfig, weight: Tensor) -> dict[str, Tensor]:
    """The columns of the weight that reads state, context and word, as the readout concatenates them."""
    widths = {"state": config.hidden_size}
    widths |= {"context": config.context_width} if readout.reads_context else {}
    widths |= {"words": config.embedding_size} if readout.reads_embedding else {}
    return dict(zip(widths, weight.split(list(widths.values()), 1), strict=True))


@torch.no_grad()
def compare(model: RnnSeq2SeqForConditionalGeneration, network: Network) -> tuple[float, float]:
    """The largest differences of logits and of log-probabilities, over three symbols of sources of several lengths."""
    generator = torch.Generator().manual_seed(0)
    lengths = [9, 7, 2, 1]
    ids = torch.randint(0, model.config.source_vocab_size, (len(lengths), max(lengths)), generator=generator)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    target = torch.randint(0, model.config.vocab_size, (len(lengths), 3), generator=generator)
    with without_noise(model):
        expected = model(input_ids=ids, attention_mask=mask.long(), decoder_input_ids=target).logits.numpy()
    state, memory = network.encode([row[:length] for row, length in zip(ids.tolist(), lengths, strict=True)])
    logits, probabilities = 0.0, 0.0
    for time in range(target.shape[1]):
        found, state = network.step(target[:, time].numpy(), state, memory)
        logits = max(logits, float(np.abs(expected[:, time] - found).max()))
        differences = np.abs(log_softmax(expected[:, time]) - log_softmax(found))
        probabilities = max(probabilities, float(differences.max()))
    return logits, probabilities


def write(pack: Pack, path: Path, weights: str) -> None:
    """The file, all at once."""
    arrays: Arrays = {}
    for name, array in pack.arrays.items():
        if array.ndim < 2 or weights == "float32":
            arrays[name] = array
        else:
            arrays[name], arrays[name + SCALE] = quantize(array)
    shapes = {name: [str(array.dtype), *array.shape] for name, array in arrays.items()}
    about = json.dumps({**pack.about, "arrays": shapes}, ensure_ascii=False).encode("utf-8", "surrogatepass")
    content = io.BytesIO()
    np.savez(content, **{ABOUT: np.frombuffer(about, dtype=np.uint8)}, **arrays)
    write_atomically(path, content.getvalue())


def quantize(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(rows, columns) -> int8, and the float32 scale of each row."""
    scale = np.abs(matrix).max(1) / np.float32(127)
    safe = np.where(scale > 0, scale, np.float32(1))
    return np.rint(matrix / safe[:, None]).astype(np.int8), scale.astype(np.float32)


# ---------------------------------------------------------------- the tokenizer


def describe_tokenizer(
    model: RnnSeq2SeqForConditionalGeneration, tokenizer: PreTrainedTokenizerBase
) -> tuple[dict, dict]:
    """How `G2p` reads words and writes symbols: the descriptions of the source and of the target.

    Raises:
        ArgumentError: the tokenizer has other pieces than characters or words between spaces, or a step of its own.
    """
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise ArgumentError(
            f"{type(tokenizer).__name__}: the module for numpy needs a tokenizer of the library tokenizers"
        )
    backend = tokenizer.backend_tokenizer
    target_backend = getattr(tokenizer, "target_backend_tokenizer", backend)
    source = _side(backend, "source", model.config.source_vocab_size)
    target = _side(target_backend, "target", model.config.vocab_size)
    special = {*tokenizer.all_special_ids}
    for side in (source, target):
        side["special"] = sorted(special)
    content = json.loads(backend.to_str())
    for token in content["added_tokens"]:
        if not token["special"] and token["id"] not in special:
            raise ArgumentError(
                f"added token {token['content']!r}: the module for numpy reads characters or words between spaces only"
            )
    source["steps"] = _steps(content["normalizer"], source["split"])
    target["form"] = getattr(tokenizer, "output_form", None)
    source["before"], source["after"] = _frame(tokenizer)
    return source, target


def _side(backend: Tokenizer, name: str, size: int) -> dict[str, Any]:
    """Symbols, splitting, and the ids of bytes and of unknown symbols."""
    content = json.loads(backend.to_str())
    kind, splitter, settings = content["model"]["type"], content["pre_tokenizer"], content["model"]
    while splitter is not None and splitter["type"] == "Sequence" and len(splitter["pretokenizers"]) == 1:
        splitter = splitter["pretokenizers"][0]
    split = "letters" if splitter == LETTERS else "characters" if splitter in CHARACTERS else None
    if kind == "WordLevel" and splitter == {"type": "WhitespaceSplit"}:
        split = "between spaces"
    if kind == "BPE":
        changes = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", "merges")
        odd = next((option for option in changes if settings.get(option)), None)
        if odd is not None:
            shown = f"{len(settings[odd])} merges" if odd == "merges" else f"{odd}={settings[odd]!r}"
            raise ArgumentError(_not_read(name, f"BPE with {shown}"))
        split = "characters" if splitter is None else split
    if kind not in ("WordLevel", "BPE") or split is None:
        parts = kind if splitter is None else f"{kind} after {splitter['type']}"
        raise ArgumentError(_not_read(name, parts))
    names = [backend.id_to_token(number) for number in range(size)]
    is_bytes = kind == "BPE" and settings.get("byte_fallback")
    found = [backend.token_to_id(f"<0x{byte:02X}>") for byte in range(256)] if is_bytes else None
    unknown = None if settings["unk_token"] is None else backend.token_to_id(settings["unk_token"])
    if kind == "WordLevel" and unknown is None:
        raise ArgumentError(f"{name} tokenizer: its vocabulary has no unk_token ({settings['unk_token']!r}); add one")
    # An id beyond the vocabulary, in a table that is larger, has no symbol.
    symbols = ["" if each is None else each for each in names]
    return {"symbols": symbols, "split": split, "unknown": unknown, "bytes": None if found and None in found else found}


def _not_read(name: str, parts: str) -> str:
    return (
        f"{name} tokenizer: {parts}; the module for numpy reads characters or words between spaces: train with "
        "tokenizer_algorithm letter, char or word, or export to ONNX"
    )


def _steps(normalizer: dict[str, Any] | None, split: str) -> list[str]:
    """The steps of the source's normalizer in order, each a Unicode form or `lowercase`."""
    steps = [] if normalizer is None else normalizer.get("normalizers", [normalizer])
    if split == "letters" and tuple(steps[-2:]) == FEATURES:
        steps = steps[:-2]
    found = ["lowercase" if step["type"] == "Lowercase" else step["type"] for step in steps if step != WRITTEN_OUT]
    odd = next((step for step in found if step not in ("lowercase", *FORMS)), None)
    if odd is not None:
        raise ArgumentError(
            f"source tokenizer: normalizer {odd}; the module for numpy knows Lowercase, {', '.join(FORMS)}"
        )
    return found


def _frame(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The ids that the tokenizer puts before and after every source."""
    plain = tokenizer("?", add_special_tokens=False)["input_ids"]
    framed = tokenizer("?")["input_ids"]
    for place in range(len(framed) - len(plain) + 1):
        if framed[place : place + len(plain)] == plain:
            return framed[:place], framed[place + len(plain) :]
    raise ArgumentError("source tokenizer: its post-processor changes the symbols; the module for numpy does not")


def check_texts(g2p: G2p, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises ArgumentError if the module reads a text, or writes a target, unlike the tokenizer."""
    generator = random.Random(0)
    special = {*g2p.source["special"]}
    gap = " " if g2p.source["split"] == "between spaces" else ""
    known = [name for number, name in enumerate(g2p.source["symbols"]) if name and number not in special]
    texts = generator.sample(known, min(len(known), PROBES))
    texts += [gap.join(generator.choices(known, k=5)) for _ in range(PROBES)] if known else []
    texts += [text.upper() for text in texts[-20:]]
    texts += [gap.join(odd) for odd in ("\U0001f9ff?", "A\u0308e\u0301", "\ufb01\u00c5", "\u0391\u03a3", " a  b ")]
    texts += [f"{sep}V;PST{sep}{texts[0]};a" for sep in ("\t", "\t\t")]
    wanted = tokenizer(texts)["input_ids"]
    for text, ids in zip(texts, wanted, strict=True):
        if g2p._framed(g2p._read(text)[0]) != ids:
            raise ArgumentError(f"source tokenizer: it splits {text!r} unlike the module for numpy; export to ONNX")
    silent = {*g2p.target["special"], *(g2p.target["bytes"] or [])}
    numbers = [n for n, name in enumerate(g2p.target["symbols"]) if name and n not in silent]
    for _ in range(20 if numbers else 0):
        ids = generator.choices(numbers, k=4)
        text = tokenizer.decode(ids, skip_special_tokens=True)
        if "".join("".join(g2p.symbols(ids)).split()) != "".join(text.split()):
            raise ArgumentError(f"target tokenizer: it writes {text!r} unlike the module for numpy; export to ONNX")
