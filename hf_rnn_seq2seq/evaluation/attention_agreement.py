"""How often attention agrees with the word alignments of a test set."""

from collections.abc import Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_rnn_seq2seq.data.pieces import is_unspaced_script
from hf_rnn_seq2seq.data.readers import parse_pharaoh
from hf_rnn_seq2seq.generation.attention import word_pairs
from hf_rnn_seq2seq.generation.encoding import encode_sources
from hf_rnn_seq2seq.generation.scoring import forced_hypotheses


def attention_agreement(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sources: Sequence[str],
    references: Sequence[str],
    alignments: Sequence[str | None],
    batch_size: int = 64,
) -> tuple[int, int]:
    """(agreeing, all): how many aligned words of the references attend most to a word they are aligned to.

    Attention is that of a forward pass over the references, averaged over heads and merged to words. `alignments` are
    in Pharaoh's format and count words between white space. Pairs in a script without spaces are left out.

    Raises:
        AttentionError: the model returns no attention weights.
        DataError: an alignment that cannot be read.
    """
    rows = enumerate(zip(sources, references, alignments, strict=True))
    chosen = [index for index, columns in rows if all(text and text.strip() for text in columns)]
    encoded = encode_sources(tokenizer, [sources[index] for index in chosen])
    texts = [references[index] for index in chosen]
    hypotheses = forced_hypotheses(model, tokenizer, encoded, texts, batch_size=batch_size)
    agreed = aligned = 0
    for index, hypothesis in zip(chosen, hypotheses, strict=True):
        gold: dict[int, set[int]] = {}
        for source, target in parse_pharaoh(alignments[index] or "", f"alignment of row {index}"):
            gold.setdefault(target, set()).add(source)
        if any(map(is_unspaced_script, sources[index] + references[index])):
            continue
        attended = {target: source for source, target in word_pairs(tokenizer, sources[index], hypothesis)}
        agreed += sum(attended.get(target) in places for target, places in gold.items())
        aligned += len(gold)
    return agreed, aligned
