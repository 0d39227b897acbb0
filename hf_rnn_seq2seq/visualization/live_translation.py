"""Translation token by token, with the attention so far, for the demo.

Works with any sequence-to-sequence model of transformers: each step reads the whole prefix again, without a cache.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_rnn_seq2seq.errors import ArgumentError, AttentionError
from hf_rnn_seq2seq.evaluation.error_analysis import translate_with_attention
from hf_rnn_seq2seq.generation.attention import stack_layer
from hf_rnn_seq2seq.generation.encoding import encoded_sources
from hf_rnn_seq2seq.generation.translate import Hypothesis
from hf_rnn_seq2seq.model.search_options import longest_output


def stream_translation(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    source: str,
    *,
    num_beams: int = 1,
    temperature: float = 0.0,
) -> Iterator[Hypothesis]:
    """Yields the translation after each token; attention is averaged over heads, and None if the model has none.

    Temperature 0 takes the most probable token; above 0 each token is sampled. A beam search (`num_beams` above 1 at
    temperature 0) yields its result only.

    Raises:
        ArgumentError: the source has no text, or an option is out of range.
    """
    if temperature < 0 or num_beams < 1:
        raise ArgumentError(
            f"temperature={temperature}, num_beams={num_beams}: must be at least 0 and at least 1, in this order"
        )
    (ids,) = encoded_sources(tokenizer, [source]).ids
    if not ids:
        raise ArgumentError("source: must contain text")
    limit = longest_output(model.generation_config) or 128
    model.eval()
    if num_beams > 1 and temperature == 0:
        yield _beam_search(model, tokenizer, source, num_beams, limit)
    else:
        yield from _token_by_token(model, tokenizer, ids, temperature, limit)


@torch.no_grad()
def _token_by_token(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, ids: list[int], temperature: float, limit: int
) -> Iterator[Hypothesis]:
    inputs = torch.tensor([ids], device=model.device)
    mask = torch.ones_like(inputs)
    encoded = model.get_encoder()(inputs, attention_mask=mask)
    config = model.generation_config
    start = config.decoder_start_token_id
    start = model.config.decoder_start_token_id if start is None else start
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    prefix: list[int] = []
    total = 0.0
    while len(prefix) < limit and not (prefix and prefix[-1] in ends):
        output = model(
            encoder_outputs=encoded,
            attention_mask=mask,
            decoder_input_ids=torch.tensor([[start, *prefix]], device=model.device),
            output_attentions=True,
            use_cache=False,
        )
        log_probabilities = output.logits[0, -1].float().log_softmax(-1).cpu()
        if temperature > 0:
            token = int(torch.multinomial((log_probabilities / temperature).softmax(-1), 1))
        else:
            token = int(log_probabilities.argmax())
        prefix.append(token)
        total += float(log_probabilities[token])
        try:
            attention = stack_layer(output.cross_attentions)[0].float().mean(0, keepdim=True).cpu()
        except AttentionError:
            attention = None
        text = tokenizer.decode(prefix, skip_special_tokens=True)
        yield Hypothesis(text, tuple(prefix), tuple(ids), total, attention)


def _beam_search(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, source: str, num_beams: int, limit: int
) -> Hypothesis:
    options = {"num_beams": num_beams, "max_new_tokens": limit, "do_sample": False, "progress": False}
    (best,) = translate_with_attention(model, tokenizer, [source], **options)
    return best if best.attention is None else replace(best, attention=best.attention.mean(0, keepdim=True))
