"""The export for numpy: without torch it writes what `generate()` and `search` of the model write."""

import json
import random
import re
import subprocess
import sys
import unicodedata
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from hf_rnn_seq2seq.commands import export as command
from hf_rnn_seq2seq.data.tokenizer import SPECIAL_TOKENS, build_tokenizer
from hf_rnn_seq2seq.errors import ArgumentError
from hf_rnn_seq2seq.export import numpy_pack
from hf_rnn_seq2seq.export.numpy_pack import export_numpy
from hf_rnn_seq2seq.export.numpy_runtime import G2p, PackError
from hf_rnn_seq2seq.generation.encoding import encode_sources
from hf_rnn_seq2seq.model.tokenization_rnn_seq2seq import RnnSeq2SeqJointTokenizer, RnnSeq2SeqTokenizer
from tests.helpers.checkpoints import save_checkpoint
from tests.helpers.models import config_fields, tiny_model

LETTERS, PHONES = "abcdefghij", [f"P{number}" for number in range(9)]
WORDS = ["abc", "a", "jihgfedcba", "dad", "cab", "fghhgf", "bb", "", "egad"]
Options = dict[str, Any]
MODELS: dict[str, Options] = {
    "LSTM, general, feeding": {},
    "LSTM, two layers, dot, no feeding": {
        "attention_type": "dot",
        "encoder_layers": 2,
        "decoder_layers": 2,
        "input_feeding": False,
        "bridge": "copy",
        "embedding_size": 3,
    },
    "GRU, additive, context fed": {
        "cell_type": "gru",
        "attention_type": "additive",
        "attention_size": 6,
        "readout": "linear",
        "output_bias": False,
    },
    "GRU, additive, before the cell": {
        "cell_type": "gru",
        "attention_type": "additive",
        "attention_order": "before_cell",
        "bridge": "backward_tanh",
        "readout": "maxout",
        "decoder_layers": 2,
    },
    "GRU, one way, no attention": {
        "cell_type": "gru",
        "context": "initial_state",
        "bidirectional": "none",
        "encoder_layers": 2,
        "readout_embedding": True,
        "embedding_size": 2,
    },
    "LSTM, reversed, no attention": {
        "context": "initial_state",
        "bidirectional": "none",
        "reverse_source": True,
        "readout": "linear",
        "readout_embedding": True,
        "readout_size": 5,
    },
    "LSTM, first layer both ways, mean": {
        "bidirectional": "first",
        "encoder_layers": 3,
        "bridge": "mean",
        "tie_word_embeddings": True,
        "readout_size": 5,
    },
    "GRU, uneven layers, zero": {
        "cell_type": "gru",
        "bridge": "zero",
        "attention_type": "general",
        "encoder_hidden_size": 3,
        "decoder_layers": 3,
    },
}

# For each model two seeds and biases of the end of sentence with which outputs end at several lengths.
LIVELY: dict[str, list[tuple[int, float]]] = {
    "LSTM, general, feeding": [(1, 4.0), (1, 2.0)],
    "LSTM, two layers, dot, no feeding": [(5, 0.0), (4, 2.0)],
    "GRU, additive, context fed": [(1, 0.0), (5, 0.0)],
    "GRU, additive, before the cell": [(2, 0.0), (1, 4.0)],
    "GRU, one way, no attention": [(0, 4.0), (5, 0.0)],
    "LSTM, reversed, no attention": [(3, 2.0), (1, 4.0)],
    "LSTM, first layer both ways, mean": [(1, 2.0), (5, 2.0)],
    "GRU, uneven layers, zero": [(2, 0.0), (3, 2.0)],
}


def side(symbols: list[str], splitter: Any, normalizer: Any = None) -> Tokenizer:
    """A vocabulary of whole symbols that ends a text with `</s>`."""
    names = [*SPECIAL_TOKENS.values(), *symbols]
    backend = Tokenizer(models.WordLevel({name: number for number, name in enumerate(names)}, unk_token="<unk>"))
    backend.pre_tokenizer = splitter
    if normalizer is not None:
        backend.normalizer = normalizer
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    backend.add_special_tokens(list(SPECIAL_TOKENS.values()))
    return backend


def letters_to_phones(normalizer: Any = None, letters: str = LETTERS) -> RnnSeq2SeqTokenizer:
    source = side(list(letters), pre_tokenizers.Split("", "isolated"), normalizer)
    target = side(PHONES, pre_tokenizers.WhitespaceSplit())
    return RnnSeq2SeqTokenizer(tokenizer_object=source, target_tokenizer_object=target, **SPECIAL_TOKENS)


def pronouncer(seed: int = 1, bias: float = 4.0, tokenizer: Any = None, **options: Any) -> Any:
    """A random model; `bias` makes its outputs end."""
    tokenizer = tokenizer or letters_to_phones()
    sizes = {"vocab_size": getattr(tokenizer, "target_vocab_size", len(tokenizer)), "source_vocab_size": len(tokenizer)}
    model = tiny_model(dtype=torch.float32, seed=seed, **{"deviation": 1.0, **sizes, **options})
    if model.lm_head.bias is not None:
        model.lm_head.bias.data[2] += bias
    model.generation_config.update(max_new_tokens=9, max_length=None)
    return model


def written_by(model: Any, tokenizer: Any, word: str, **options: Any) -> list[list[str]]:
    """The symbols of each hypothesis of the model, by `generate` for one and `search` for several."""
    given = tokenizer(word, return_tensors="pt")
    given = {name: given[name] for name in ("input_ids", "attention_mask")}
    return phones(tokenizer, (model.search if options else model.generate)(**given, **options))


def phones(tokenizer: Any, ids: torch.Tensor) -> list[list[str]]:
    return [[name for name in tokenizer.convert_target_ids_to_tokens(row) if name in PHONES] for row in ids.tolist()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first model, exported in float32."""
    output = tmp_path_factory.mktemp("pack") / "pack"
    assert export_numpy(pronouncer(), letters_to_phones(), output, "float32") < 1e-5
    return output


@pytest.mark.parametrize("name", MODELS)
def test_it_writes_what_the_model_writes(name: str, tmp_path: Path) -> None:
    tokenizer, lengths = letters_to_phones(), set()
    for seed, bias in LIVELY[name]:
        model = pronouncer(seed, bias, **MODELS[name])
        model.generation_config.length_penalty = 1.0 + bias / 4
        assert export_numpy(model, tokenizer, tmp_path / f"{seed} {bias}", "float32") < 1e-4
        g2p = G2p(tmp_path / f"{seed} {bias}")
        given = tokenizer([word for word in WORDS if word], return_tensors="pt", padding=True)
        written = iter(phones(tokenizer, model.generate(given["input_ids"], attention_mask=given["attention_mask"])))
        expected = [next(written) if word else [] for word in WORDS]
        assert [g2p(word) for word in WORDS] == expected
        assert g2p.batch(WORDS) == expected and g2p.batch(WORDS, batch_size=2) == expected
        lengths |= set(map(len, expected))
        for word in WORDS[:2]:
            given = dict(tokenizer(word, return_tensors="pt"))
            found = model.search(**given, num_beams=4, num_return_sequences=4, return_dict_in_generate=True)
            best = g2p.n_best(word, n=4, num_beams=4)
            assert [symbols for symbols, _ in best] == phones(tokenizer, found.sequences)
            assert [probability for _, probability in best] == pytest.approx(
                found.log_probabilities.exp().tolist(), rel=1e-4
            )
    assert len(lengths) > 2, "all outputs are of one length"


@pytest.mark.parametrize(
    "options", [{"early_stopping": True}, {"early_stopping": "never", "length_penalty": 1.5}], ids=str
)
@pytest.mark.parametrize("limit", [1, 3, 9])
def test_the_generation_config_rules(options: Options, limit: int, tmp_path: Path) -> None:
    model, tokenizer = pronouncer(), letters_to_phones()
    model.generation_config.update(**options, num_beams=3, max_new_tokens=limit)
    export_numpy(model, tokenizer, tmp_path / "pack", "float32")
    g2p = G2p(tmp_path / "pack")
    for word in WORDS[:6]:
        expected = written_by(model, tokenizer, word, num_beams=3, num_return_sequences=3)
        assert [symbols for symbols, _ in g2p.n_best(word, n=3)] == expected
        assert g2p.n_best(word, n=1) == g2p.n_best(word, n=3)[:1]


def test_n_best_takes_five_beams_or_more(folder: Path) -> None:
    g2p, model, tokenizer = G2p(folder), pronouncer(), letters_to_phones()
    for n, beams in ((2, 5), (5, 5), (7, 7)):
        expected = written_by(model, tokenizer, "cab", num_beams=beams, num_return_sequences=n)
        assert [symbols for symbols, _ in g2p.n_best("cab", n)] == expected
    assert g2p.n_best("", 3) == [([], 1.0)]
    with pytest.raises(ValueError, match="n=0, num_beams=None: must be whole numbers, at least 1"):
        g2p.n_best("cab", 0)


def test_int8_is_nearly_the_same(tmp_path: Path) -> None:
    model, tokenizer = pronouncer(deviation=0.3, hidden_size=32, embedding_size=16), letters_to_phones()
    assert 1e-5 < export_numpy(model, tokenizer, tmp_path / "small") < 0.05
    export_numpy(model, tokenizer, tmp_path / "large", "float32")
    small, large = G2p(tmp_path / "small"), G2p(tmp_path / "large")
    for word in WORDS[:7]:
        row = large._framed(large.ids(word))
        scores = {tuple(ids): total for _, total, ids in large._beams(row, 9)}
        common = [(total, scores[tuple(ids)]) for _, total, ids in small._beams(row, 5) if tuple(ids) in scores]
        assert len(common) > 1 and all(total == pytest.approx(other, abs=0.1) for total, other in common)
    with np.load(tmp_path / "small" / "g2p.npz") as file:
        assert all(file[name].dtype == np.int8 for name in file.files if f"{name}:scale" in file.files)
        assert sum(file[name].size for name in file.files if file[name].dtype == np.int8) > 10_000
    sizes = [(tmp_path / name / "g2p.npz").stat().st_size for name in ("small", "large")]
    assert sizes[0] < 0.45 * sizes[1]


def test_rows_of_zeros_stay_zero() -> None:
    matrix = np.array([[0, 0], [1, -2]], dtype=np.float32)
    numbers, scale = numpy_pack.quantize(matrix)
    assert numbers.tolist() == [[0, 0], [64, -127]] and scale[0] == 0


PROCESS = """
import sys
for name in ("torch", "transformers", "tokenizers", "onnxruntime", "hf_rnn_seq2seq"):
    sys.modules[name] = None
from g2p import G2p
g2p = G2p()
print(g2p.batch(["abc", "dad"]), g2p("cab"), len(g2p.n_best("cab", n=2)))
print(sorted({name.partition(".")[0] for name, module in sys.modules.items() if module} - sys.stdlib_module_names))
"""


def test_numpy_is_enough(folder: Path) -> None:
    """Only the folder is used, in a process that can import none of the libraries of training."""
    done = subprocess.run([sys.executable, "-c", PROCESS], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    g2p, (results, imported) = G2p(folder), done.stdout.splitlines()
    assert results == f"{g2p.batch(['abc', 'dad'])} {g2p('cab')} 2"
    assert "numpy" in imported and "torch" not in imported and "hf_rnn_seq2seq" not in imported
    assert sorted(path.name for path in folder.iterdir() if path.is_file()) == ["g2p.npz", "g2p.py"]
    assert "import hf_rnn" not in (folder / "g2p.py").read_text(encoding="utf-8")


def test_an_unknown_symbol_gives_one_warning(folder: Path) -> None:
    g2p, model, tokenizer = G2p(folder), pronouncer(), letters_to_phones()
    with pytest.warns(UserWarning, match=r"word='caß': the vocabulary has no 'ß'; it is read as unknown") as warned:
        assert g2p("caß") == written_by(model, tokenizer, "caß")[0]
    assert len(warned) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        g2p.batch(["ß", "ñaß", "abc"])
    assert g2p.unknown == {"ß", "ñ"}
    with pytest.raises(ValueError, match="words='abc': must be a list of words"):
        g2p.batch("abc")
    with pytest.raises(ValueError, match="word=3: must be a string"):
        g2p(3)  # type: ignore[arg-type]


def test_text_becomes_what_the_tokenizer_makes_of_it(tmp_path: Path) -> None:
    forms = {
        "NFC": normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()]),
        "NFD": normalizers.Sequence([normalizers.Lowercase(), normalizers.NFD()]),
        "NFKC": normalizers.NFKC(),
        None: normalizers.Lowercase(),
    }
    texts = ["äß", "a\u0308", "ÄB", "ΑΣ", "ﬁa", "İ"]
    for form, normalizer in forms.items():
        tokenizer = letters_to_phones(normalizer, LETTERS + "äß\u0308ςσ")
        export_numpy(pronouncer(tokenizer=tokenizer), tokenizer, tmp_path / str(form), "float32")
        g2p = G2p(tmp_path / str(form))
        assert (g2p.source_form, g2p.target_form) == (form, None)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert [g2p._framed(g2p.ids(text)) for text in texts] == tokenizer(texts)["input_ids"]


def test_results_are_composed_as_the_tokenizer_composes_them(tmp_path: Path) -> None:
    for algorithm, texts in (("letter", ["éä", "äé"]), ("word", ["é ä kʰ", "kʰ ö"])):
        tokenizer = build_tokenizer(
            texts,
            texts,
            source_algorithm="letter",
            target_algorithm=algorithm,
            target_unicode_form="nfd",
            joint=False,
            min_frequency=1,
            vocab_size=60,
        )
        export_numpy(pronouncer(tokenizer=tokenizer), tokenizer, tmp_path / algorithm, "float32")
        g2p = G2p(tmp_path / algorithm)
        assert g2p.target_form == "NFC" and g2p.source_form is None
        ids = tokenizer(text_target=texts[0])["input_ids"]
        gap = " " if algorithm == "word" else ""
        assert gap.join(g2p.symbols(ids)) == tokenizer.decode(ids, skip_special_tokens=True) == texts[0]
        assert g2p.symbols(ids)[:2] == ["é", "ä"] and g2p.symbols([1, 2]) == []


@pytest.mark.parametrize("lowercase", [True, False])
def test_features_before_a_word_are_symbols(lowercase: bool, tmp_path: Path) -> None:
    texts = ["V;PST\tab", "\tV\t\tPST\tcad;", "ab;c", "V+PST\t", "a\t\t", "V;PST;ab"]
    tokenizer = build_tokenizer(
        texts[:2], texts[:2], algorithm="letter", joint=False, vocab_size=60, min_frequency=1, lowercase=lowercase
    )
    export_numpy(pronouncer(bias=-9.0, tokenizer=tokenizer), tokenizer, tmp_path / "pack", "float32")
    g2p = G2p(tmp_path / "pack")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert [g2p._framed(g2p.ids(text)) for text in texts] == tokenizer(texts)["input_ids"]
    assert len(g2p.ids(texts[0])) == 4 and 3 not in g2p.ids(texts[0])
    # As `encode_sources`: nothing is made of features alone, nor of white space.
    empty = ["", "  ", "V;PST\t", "V;PST\t "]
    assert encode_sources(tokenizer, empty).ids == [[]] * len(empty)
    assert g2p.batch([*empty, "V;PST\tab"])[:-1] == [[]] * len(empty)
    assert all(g2p(text) == [] and g2p.n_best(text) == [([], 1.0)] for text in empty)


@pytest.mark.parametrize(("algorithm", "lowercase"), [("word", True), ("char", False), ("char", True)])
def test_tokenizers_of_our_own(algorithm: str, lowercase: bool, tmp_path: Path) -> None:
    """Characters missing from a `char` vocabulary are read as bytes, and bytes of an output form characters."""
    words = ["né Ah", "été Bé", "où ça"] * 2
    tokenizer = build_tokenizer(words, words, algorithm=algorithm, vocab_size=300, min_frequency=1, lowercase=lowercase)
    model = pronouncer(tokenizer=tokenizer)
    export_numpy(model, tokenizer, tmp_path / "pack", "float32")
    g2p = G2p(tmp_path / "pack")
    gap = " " if algorithm == "word" else ""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for text in ("été où", "Ah 語", "</s> né <unk>"):
            ids = model.generate(**tokenizer(text, return_tensors="pt"))[0]
            assert g2p._framed(g2p.ids(text)) == tokenizer(text)["input_ids"]
            assert gap.join(g2p(text)) == tokenizer.decode(ids, skip_special_tokens=True)
    if algorithm == "char":
        ids = [tokenizer.convert_tokens_to_ids(f"<0x{byte:02X}>") for byte in ("é語".encode() + b"\xff\xc3")]
        assert g2p.symbols([1, *ids[:5], 2]) == ["é", "語"]
        between = [ids[0], tokenizer.unk_token_id, ids[1]]
        assert g2p.symbols(between) == ["é"] == [tokenizer.decode(between, skip_special_tokens=True)]
        assert "".join(g2p.symbols(ids[5:])) == tokenizer.decode(ids[5:], skip_special_tokens=True) == "\ufffd" * 2


TINY = {"hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 4}
REFUSED: list[tuple[Options, str]] = [
    ({"cell_type": "rnn_tanh"}, "cell_type='rnn_tanh': the module for numpy computes 'lstm' or 'gru' only"),
    ({"cell_type": "gru", "gru_reset": "before"}, "gru_reset='before'"),
    ({"layer_norm": True}, "layer_norm=True: .* export to ONNX, or train without"),
    ({"zoneout": 0.1}, "zoneout=0.1"),
    ({"encoder_transition_depth": 2}, "encoder_transition_depth=2"),
    ({"decoder_transition_depth": 2}, "decoder_transition_depth=2"),
    ({"bidirectional": "alternating"}, "bidirectional='alternating'"),
    ({"residual_start": 2, "encoder_layers": 2}, "residual_start=2"),
    ({"skip_connections": True, "decoder_layers": 2}, "skip_connections=True"),
    ({"context": "every_step"}, "context='every_step'"),
    ({"attention_type": "location", "max_source_positions": 9}, "attention_type='location'"),
    ({"attention_type": "multi_head"}, "attention_type='multi_head'"),
    ({"attention_type": "window"}, "attention_type='window'"),
    ({"attention_alignment": "hard"}, "attention_alignment='hard'"),
    ({"attention_window": "local_m"}, "attention_window='local_m'"),
    ({"attention_normalization": "entmax"}, "attention_normalization='entmax'"),
    ({"coverage": "sum", "attention_type": "additive"}, "coverage='sum'"),
    ({"context_gate": "both"}, "context_gate='both'"),
    ({"attention_layer": "bottom", "decoder_layers": 2}, "attention_layer='bottom'"),
    ({"embedding_activation": "relu"}, "embedding_activation='relu'"),
    ({"readout_state": "previous", "attention_order": "before_cell"}, "readout_state='previous'"),
    ({"feature_token_ids": [4]}, r"feature_token_ids=\[4\]: the module for numpy computes None only; export to ONNX"),
    ({"encoder": {"model_type": "bert", **TINY}}, "encoder='bert': the module for numpy computes recurrent encoders"),
]


@pytest.mark.thinned(3)
@pytest.mark.parametrize(("options", "message"), REFUSED, ids=lambda value: value if isinstance(value, str) else "")
def test_other_models_are_refused(options: Options, message: str, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=message):
        export_numpy(pronouncer(**options), letters_to_phones(), tmp_path / "new" / "pack")
    assert list(tmp_path.iterdir()) == []


# Fields whose every value is exported, and those that a trained model does not read.
EXPORTED = {"vocab_size", "source_vocab_size", "embedding_size", "hidden_size", "encoder_hidden_size", "encoder_layers"}
EXPORTED |= {
    "decoder_layers",
    "reverse_source",
    "attention_order",
    "attention_layer",
    "attention_size",
    "input_feeding",
}
EXPORTED |= {"bridge", "readout", "readout_size", "readout_embedding", "readout_context", "output_bias", "pad_token_id"}
EXPORTED |= {"tie_word_embeddings", "share_encoder_decoder_embeddings", "bos_token_id", "eos_token_id"}
EXPORTED |= {"decoder_start_token_id"}
# Of an option that is refused itself.
REFUSED_BY = {"context_size", "num_attention_heads", "attention_window_size", "max_source_positions", "alignment_order"}
REFUSED_BY |= {"sampled_attention_reward", "sampled_attention_entropy"}
REFUSED_BY |= {"window_components"}
REFUSED_BY |= {"entmax_alpha", "entmax_learned", "coverage_size", "encoder", "encoder_levels"}
REFUSED_BY |= {"freeze_encoder"}
UNREAD = {
    "coverage_loss",
    "doubly_stochastic",
    "guided_alignment_weight",
    "dropout",
    "recurrent_dropout",
    "variational_dropout",
}
UNREAD |= {"weight_drop", "word_dropout", "word_dropout_unit", "label_smoothing", "teacher_forcing_ratio", "use_cache"}
UNREAD |= {"teacher_forcing_unit", "scheduled_sampling", "scheduled_sampling_decay", "scheduled_sampling_floor"}
UNREAD |= {"scheduled_sampling_words", "initializer_range", "decoder_recurrence", "logits_memory_mb"}
UNREAD |= {"is_encoder_decoder"}


def test_every_field_of_a_config_is_computed_or_refused() -> None:
    """A new field must be in one of the lists."""
    fields = {name for name in config_fields() if name != "model_type"}
    checked = {*numpy_pack.SUPPORTED, *numpy_pack.SUPPORTED_ATTENTION}
    assert fields == EXPORTED | REFUSED_BY | UNREAD | checked


def test_other_settings_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = pronouncer(), letters_to_phones()
    with pytest.raises(ArgumentError, match="weights='int4': must be one of int8, float32"):
        export_numpy(model, tokenizer, tmp_path / "pack", "int4")
    with pytest.raises(ArgumentError, match="the model is not in float32"):
        export_numpy(pronouncer().double(), tokenizer, tmp_path / "pack")
    model.generation_config.no_repeat_ngram_size = 2
    with pytest.raises(ArgumentError, match="no_repeat_ngram_size=2 in the generation config: an exported model has"):
        export_numpy(model, tokenizer, tmp_path / "pack")
    monkeypatch.setattr(numpy_pack, "TOLERANCE", -1.0)
    with pytest.raises(ArgumentError, match="numpy and torch differ by .* in logits; nothing was written"):
        export_numpy(pronouncer(), tokenizer, tmp_path / "pack")
    assert list(tmp_path.iterdir()) == []


def test_other_tokenizers_are_refused(tmp_path: Path) -> None:
    def refusal(change: Any, **options: Any) -> str:
        tokenizer = letters_to_phones(**options)
        change(tokenizer)
        with pytest.raises(ArgumentError) as error:
            export_numpy(pronouncer(tokenizer=tokenizer), tokenizer, tmp_path / "pack")
        return str(error.value)

    def set_source(name: str, value: Any) -> Any:
        return lambda tokenizer: setattr(tokenizer.backend_tokenizer, name, value)

    assert "source tokenizer: WordLevel after Whitespace; the module for numpy reads characters or words" in refusal(
        set_source("pre_tokenizer", pre_tokenizers.Whitespace())
    )
    assert "source tokenizer: normalizer StripAccents" in refusal(set_source("normalizer", normalizers.StripAccents()))
    assert "added token '<x>'" in refusal(lambda tokenizer: tokenizer.add_tokens(["<x>"]))
    merged = models.BPE({"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "a": 4, "b": 5, "ab": 6}, [("a", "b")])
    assert "BPE with 1 merges" in refusal(set_source("model", merged))
    # A reader that the description does not cover is found by reading.
    tokenizer = letters_to_phones()
    monkey = type("Odd", (RnnSeq2SeqTokenizer,), {"__call__": lambda self, *a, **k: self.odd(*a, **k)})
    tokenizer.__class__ = monkey
    tokenizer.odd = lambda text, **options: (
        {"input_ids": [[4, 2]] * len(text)} if isinstance(text, list) else {"input_ids": [4, 2][: 1 + (not options)]}
    )
    with pytest.raises(ArgumentError, match="source tokenizer: it splits .* unlike the module for numpy"):
        export_numpy(pronouncer(), tokenizer, tmp_path / "pack")
    assert list(tmp_path.iterdir()) == []


def test_a_joint_vocabulary_of_transformers_works(tmp_path: Path) -> None:
    """A plain fast tokenizer whose target is joined with spaces, since it has no decoder."""
    backend = side(list(LETTERS), pre_tokenizers.Split("", "isolated"))
    tokenizer = RnnSeq2SeqJointTokenizer(tokenizer_object=backend, **SPECIAL_TOKENS)
    model = pronouncer(tokenizer=tokenizer)
    export_numpy(model, tokenizer, tmp_path / "pack", "float32")
    ids = model.generate(**tokenizer("cab", return_tensors="pt"))[0]
    assert " ".join(G2p(tmp_path / "pack")("cab")) == tokenizer.decode(ids, skip_special_tokens=True)


def rewritten(path: Path, target: Path, **changes: Any) -> Path:
    """The file with another description, or with other arrays."""
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    about = json.loads(arrays.pop("about").tobytes())
    for name, value in changes.items():
        (about if name in about else arrays)[name] = value
    np.savez(target, about=np.frombuffer(json.dumps(about).encode(), dtype=np.uint8), **arrays)
    return target


def test_a_damaged_file_has_one_error(folder: Path, tmp_path: Path) -> None:
    whole = (folder / "g2p.npz").read_bytes()
    with pytest.raises(FileNotFoundError, match=r"no-such.npz': no such file; `hf-rnn export RUN --format numpy`"):
        G2p(tmp_path / "no-such.npz")
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path / "g2p.npz"))):
        G2p(tmp_path)
    generator = random.Random(0)
    middle = zipfile.ZipFile(folder / "g2p.npz").getinfo("about.npy")
    broken = {
        "empty": b"",
        "cut": whole[: len(whole) // 2],
        "text": b"abc",
        "flipped": whole[: middle.header_offset + 200] + b"\0" * 20 + whole[middle.header_offset + 220 :],
        "noise": bytes(generator.choices(range(256), k=999)),
    }
    for name, content in broken.items():
        path = tmp_path / f"{name}.npz"
        path.write_bytes(content)
        with pytest.raises(PackError, match=f"{name}.npz': damaged, or not a file of the export"):
            G2p(path)
    np.savez(tmp_path / "other.npz", weights=np.zeros(3))
    np.savez(tmp_path / "objects.npz", about=np.array([{}], dtype=object))
    for name in ("other", "objects"):
        with pytest.raises(PackError, match="damaged, or not a file of the export"):
            G2p(tmp_path / f"{name}.npz")
    with pytest.raises(PackError, match="has format 2, this module reads 1; use the g2p.py beside it"):
        G2p(rewritten(folder / "g2p.npz", tmp_path / "new.npz", format=2))
    wrong = rewritten(folder / "g2p.npz", tmp_path / "wrong.npz", **{"output.bias": np.zeros(3)})
    with pytest.raises(PackError, match="the array 'output.bias' is not the one described"):
        G2p(wrong)


def test_an_export_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    with pytest.raises(FileExistsError, match="must be a new or an empty folder"):
        export_numpy(pronouncer(), letters_to_phones(), tmp_path / "mine")

    def fail(*_: Any) -> None:
        raise OSError("no space")

    monkeypatch.setattr(numpy_pack, "write", fail)
    with pytest.raises(OSError, match="no space"):
        export_numpy(pronouncer(), letters_to_phones(), tmp_path / "new" / "pack")
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "file"]


def test_the_command_exports_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["né Ah", "été Bé", "où ça"] * 2
    tokenizer = build_tokenizer(words, words, algorithm="char", vocab_size=300, min_frequency=1, joint=False)
    model = pronouncer(tokenizer=tokenizer)
    run, pack = save_checkpoint(tmp_path / "run", model, tokenizer), tmp_path / "pack"
    options = [str(run), "--output_dir", str(pack), "--format", "numpy", "--weights", "float32", "--text", "été"]
    assert command.main(options) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in lines[:2]] == ["g2p.npz", "g2p.py"]
    assert re.fullmatch(r"largest difference of the log-probabilities from the model: \d\.\de-\d\d", lines[2])
    assert lines[3] == "".join(G2p(pack)("été"))
    with np.load(pack / "g2p.npz") as file:
        assert file["output.state"].dtype == np.float32
    beams = [*options[:2], str(tmp_path / "beams"), *options[3:], "--num_beams", "3"]
    beams.remove("float32")
    beams.remove("--weights")
    assert command.main(beams) == 0
    with np.load(tmp_path / "beams" / "g2p.npz") as file:
        assert file["output.state"].dtype == np.int8
    assert capsys.readouterr().out.splitlines()[3] == "".join(
        G2p(tmp_path / "beams").n_best("été", 1, num_beams=3)[0][0]
    )
    with pytest.raises(ArgumentError, match="weights='int8': only --format numpy has a choice of weights"):
        command.main([str(run), "--output_dir", str(tmp_path / "onnx"), "--weights", "int8"])
    assert unicodedata.is_normalized("NFC", lines[3]) and not (tmp_path / "onnx").exists()
