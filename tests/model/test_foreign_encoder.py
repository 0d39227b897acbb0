"""Encoders of transformers under the recurrent layers, or read raw."""

import torch
from transformers import PreTrainedConfig, ResNetConfig

from hf_rnn_seq2seq import RnnSeq2SeqConfig, RnnSeq2SeqForConditionalGeneration

WORDS = 30
SMALL = dict(vocab_size=20, embedding_size=6, hidden_size=8)


def build(encoder: PreTrainedConfig, **fields: object) -> RnnSeq2SeqForConditionalGeneration:
    torch.manual_seed(0)
    return RnnSeq2SeqForConditionalGeneration(RnnSeq2SeqConfig(encoder=encoder, **SMALL, **fields)).eval()


def test_regions_of_a_picture_read_raw() -> None:
    resnet = ResNetConfig(embedding_size=4, hidden_sizes=[4, 10], depths=[1, 1], layer_type="basic")
    model = build(resnet, encoder_layers=0, bridge="mean")
    pixels = torch.randn(2, 3, 32, 32)
    encoded = model.get_encoder()(pixel_values=pixels)
    alone = model.model.encoder.foreign.model(pixel_values=pixels).last_hidden_state
    assert alone.shape == (2, 10, 4, 4)
    for row, column in ((0, 0), (0, 3), (2, 1)):
        assert torch.equal(encoded.last_hidden_state[:, 4 * row + column], alone[:, :, row, column])
    assert encoded.source_mask.all() and encoded.final_state is None
    assert model.main_input_name == model.get_encoder().main_input_name == "pixel_values"
    found = model.generate(pixel_values=pixels, num_beams=3, max_length=6)
    assert torch.equal(found, model.search(pixels, num_beams=3, max_length=6))
