"""The tokenizer of a pretrained encoder for the source, and one of ours for the target."""

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from hf_rnn_seq2seq.data.arguments import ALGORITHMS
from hf_rnn_seq2seq.data.paired_tokenizer import pair_tokenizer
from hf_rnn_seq2seq.data.pieces import source_pieces, target_pieces
from hf_rnn_seq2seq.data.tokenizer import LOSSLESS, train_tokenizer
from hf_rnn_seq2seq.evaluation.error_analysis import analyze
from hf_rnn_seq2seq.generation.attention import merge_words, word_pairs
from hf_rnn_seq2seq.generation.translate import Hypothesis
from hf_rnn_seq2seq.model.tokenization_rnn_seq2seq import start_token_id
from hf_rnn_seq2seq.run_directory import read_tokenizer

TEXTS = ["le chat dort", "le chien dort sur le lit", "un oiseau chante l’été", "ça va ? oui !"] * 3
SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}


def berts(places: dict[str, int], **more: str) -> PreTrainedTokenizerFast:
    """A tokenizer of BERT's kind, its special tokens at these ids."""
    words = iter(["the", "cat", "sleeps", *(f"word{number}" for number in range(40))])
    at = {number: token for token, number in places.items()}
    vocabulary = {at[number] if number in at else next(words): number for number in range(40)}
    tokenizer = Tokenizer(models.WordPiece(vocab=vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.BertPreTokenizer()
    pairs = [(name, places[name]) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=pairs)
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=4)
    tokens = {**SPECIAL, "eos_token": "[SEP]", **more}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=16, **tokens)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_both_sides_have_the_special_tokens_of_the_source(algorithm: str, tmp_path: Path) -> None:
    places = {"[PAD]": 0, "[UNK]": 6, "[CLS]": 9, "[SEP]": 8}
    source = berts(places)
    options = {"algorithm": algorithm, "vocab_size": 320, "min_frequency": 1}
    made = pair_tokenizer(source, TEXTS, model_max_length=64, **options)
    made.save_pretrained(tmp_path)
    ordinary = train_tokenizer(TEXTS, **options)
    for tokenizer in (made, read_tokenizer(tmp_path)):
        ids = (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id)
        assert ids == (0, 6, 9, 8) == tuple(tokenizer.get_target_vocab()[name] for name in SPECIAL.values())
        assert start_token_id(tokenizer) == 9 and tokenizer.model_max_length == 16
        assert tokenizer.target_vocab_size == ordinary.get_vocab_size()
        text = "The cat sleeps the cat [SEP]"
        wanted = source("The cat sleeps the cat", add_special_tokens=False, truncation=False)["input_ids"]
        found = tokenizer(text)["input_ids"]
        assert found[0] == 9 and found[-1] == 8 and found[1:6] == wanted[:5] and 8 not in found[1:-1]
        for line in TEXTS[:4]:
            labels = tokenizer(text_target=line)["input_ids"]
            assert labels[-1] == 8 and labels.count(8) == 1
            pieces = [ordinary.id_to_token(number) for number in ordinary.encode(line).ids[:-1]]
            assert tokenizer.convert_target_ids_to_tokens(labels)[:-1] == pieces
            assert tokenizer.decode(labels, skip_special_tokens=True) == ordinary.decode(ordinary.encode(line).ids)
        unknown = tokenizer(text_target="語")["input_ids"]
        assert (tokenizer.unk_token_id in unknown) == (algorithm not in LOSSLESS)


@pytest.mark.parametrize("text, words", [("the cat", ["the", " cat"]), ("語 学", ["語", " 学"])])
def test_special_tokens_of_the_source_are_no_part_of_words(text: str, words: list[str]) -> None:
    """Neither of the words beside them nor counted as words, whatever their names are."""
    made = pair_tokenizer(
        berts({"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3}), TEXTS, algorithm="word", model_max_length=9
    )
    read, written = made(text)["input_ids"], made(text_target="le chat")["input_ids"]
    weights = torch.tensor([[0.1, 0.7, 0.1, 0.1], [0.0, 0.0, 0.2, 0.8], [0.9, 0.0, 0.0, 0.1]])
    found = Hypothesis("le chat", tuple(written), tuple(read), attention=weights[None], log_probability=0.0)
    assert word_pairs(made, text, found) == [(0, 0)], "chat looks at the end of the sentence"
    pieces = (source_pieces(made, text, len(read)), target_pieces(made, written))
    merged, source_words, target_words = merge_words(weights, *pieces, {*made.all_special_tokens})
    assert source_words == ["[CLS]", *words, "[SEP]"] and target_words == ["le", " chat", "[SEP]"]
    assert torch.equal(merged, weights)
    (report,) = analyze([text], ["x"], [found], made)
    assert report.coverage == pytest.approx((0.7 + 0.3) / 2)
    weights[:, 0] = 0
    (report,) = analyze([text], ["x"], [found], made)
    assert not report.unread


def test_outputs_are_composed_where_that_is_lossless() -> None:
    source = berts({"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3})
    options = {"algorithm": "letter", "min_frequency": 1, "model_max_length": 9, "unicode_form": "nfd"}
    made = pair_tokenizer(source, ["한국어", "été"], **options)
    labels = made(text_target="한국")["input_ids"]
    assert len(labels) == 7 and made.decode(labels, skip_special_tokens=True) == "한국"
    assert pair_tokenizer(source, ["e\u0301"], **options).output_form is None


def test_a_target_vocabulary_without_the_ids_is_refused() -> None:
    source = berts({"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 39})
    with pytest.raises(ValueError, match=r"special token '\[SEP\]' of the encoder has id 39, beyond the \d+ entries"):
        pair_tokenizer(source, TEXTS, algorithm="letter", min_frequency=1, model_max_length=9)


def test_a_source_without_a_start_token_or_unknown_words() -> None:
    """As T5, which starts with the pad token."""
    source = berts({"[PAD]": 0, "[UNK]": 2, "[CLS]": 3, "[SEP]": 1})
    source.cls_token = source.unk_token = None
    made = pair_tokenizer(source, TEXTS, algorithm="word", min_frequency=1, model_max_length=9)
    assert made.bos_token is None and start_token_id(made) == 0 and "<s>" not in made.get_target_vocab()
    assert made.get_target_vocab()["<unk>"] == 2
    assert made(text_target="le lapin")["input_ids"] == [made.get_target_vocab()["le"], 2, 1]
