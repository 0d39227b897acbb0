"""The text of each token, and tokens merged into words."""

import pytest
import torch

from hf_rnn_seq2seq.data.pieces import source_pieces, target_pieces, word_groups
from hf_rnn_seq2seq.generation.attention import hard_alignment, merge_words
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
    merged, source_words, target_words = merge_words(weights, source, target)
    assert source_words == ["Thursday,", " 12", " 😀", "</s>"]
    assert target_words == ["jeudi", " 12", "</s>"]
    torch.testing.assert_close(merged[:, 0, 0], weights[:, :2, :3].sum(-1).mean(-1))
    torch.testing.assert_close(merged[:, 1, 2], weights[:, 2, 4:7].sum(-1))
    assert word_groups(["日", "本", "語", " is", " x", "y"]) == [[0], [1], [2], [3], [4, 5]]
    assert hard_alignment(torch.tensor([[0.1, 0.9], [0.8, 0.2]])) == [(1, 0), (0, 1)]
