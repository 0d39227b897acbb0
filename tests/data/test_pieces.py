"""The text of each token, and tokens merged into words."""

import pytest
import torch

from hf_rnn_seq2seq.data.pieces import source_pieces, target_pieces, word_groups
from hf_rnn_seq2seq.data.tokenizer import build_tokenizer
from hf_rnn_seq2seq.generation.attention import hard_alignment, merge_words, word_pairs
from hf_rnn_seq2seq.generation.translate import Hypothesis
from hf_rnn_seq2seq.generation.unknown_words import replace_unknown
from tests.helpers.checkpoints import SOURCES, TARGETS, tiny_tokenizer


@pytest.mark.parametrize("algorithm", ["bpe", "unigram", "wordpiece", "word", "char"])
@pytest.mark.parametrize("joint", [True, False])
def test_pieces_spell_the_sentence_on_both_sides(algorithm: str, joint: bool) -> None:
    tokenizer = tiny_tokenizer(algorithm, joint=joint)
    for source, target in zip(SOURCES, TARGETS, strict=False):
        source_ids = tokenizer(source)["input_ids"]
        pieces = source_pieces(tokenizer, source, len(source_ids))
        assert len(pieces) == len(source_ids)
        assert pieces[-1] == "</s>"
        assert "".join("".join(pieces[:-1]).split()) == "".join(source.split())
        encoding = tokenizer(text_target=target)
        target_ids = encoding["labels"] if "labels" in encoding else encoding["input_ids"]
        pieces = target_pieces(tokenizer, target_ids)
        assert len(pieces) == len(target_ids)
        assert "".join("".join(pieces[:-1]).split()) == "".join(target.split())


def test_words_are_merged_by_sum_over_source_and_mean_over_target() -> None:
    source, target = ["Thu", "rsday", ",", " 12", " ", "", "😀", "</s>"], ["jeu", "di", " 12", "</s>"]
    weights = torch.rand(2, 4, 8, generator=torch.Generator().manual_seed(0))
    merged, source_words, target_words = merge_words(weights, source, target, {"</s>"})
    assert source_words == ["Thursday,", " 12", " 😀", "</s>"]
    assert target_words == ["jeudi", " 12", "</s>"]
    torch.testing.assert_close(merged[:, 0, 0], weights[:, :2, :3].sum(-1).mean(-1))
    torch.testing.assert_close(merged[:, 1, 2], weights[:, 2, 4:7].sum(-1))
    assert word_groups(["日", "本", "語", " is", " x", "y"], ()) == [[0], [1], [2], [3], [4, 5]]
    assert hard_alignment(torch.tensor([[0.1, 0.9], [0.8, 0.2]])) == [(1, 0), (0, 1)]


def test_a_letter_that_is_read_as_several_tokens_is_one_of_an_alignment(caplog: pytest.LogCaptureFixture) -> None:
    options = {"joint": False, "min_frequency": 1, "source_unicode_form": "nfd", "target_unicode_form": "nfd"}
    tokenizer = build_tokenizer(["éaê"], ["한가나"], algorithm="letter", **options)
    source, target = tokenizer("éaê")["input_ids"], tokenizer(text_target="한나가")["input_ids"]
    assert (len(source), len(target)) == (6, 8) and tokenizer.decode(target, skip_special_tokens=True) == "한나가"
    weights = torch.zeros(8, 6)
    # The marks are what is attended to; 나 attends a little more to ê in all, but to no single token of it.
    for row, columns in enumerate(((1,), (1,), (1,), (2, 3, 4), (2, 3, 4), (4,), (4,), (5,))):
        weights[row, list(columns)] = torch.tensor([0.4, 0.3, 0.3] if len(columns) == 3 else [1.0])
    found = Hypothesis("한나가", tuple(target), tuple(source), attention=weights[None])
    assert word_pairs(tokenizer, "éaê", found) == [(0, 0), (2, 1), (2, 2)]
    unknown = [*target[:5], tokenizer.unk_token_id, target[-1]]
    assert replace_unknown(tokenizer, "éaê", unknown, weights[[0, 1, 2, 3, 4, 2, 7]]) == "한나 é"
    assert not caplog.records and tokenizer.output_form == "NFC"
    other = build_tokenizer(["éaê"], ["한가나", "\u1112\u1161"], algorithm="letter", **options)
    assert other.output_form is None and "target_unicode_form='nfd': outputs stay in this form" in caplog.text
