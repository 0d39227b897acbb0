"""Label smoothing for sequence-to-sequence models of transformers, whose loss has none."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from hf_rnn_seq2seq.errors import ArgumentError


class SmoothedCrossEntropy(nn.Module):
    """Trains a model on smoothed labels (Szegedy 2016, section 7); evaluation keeps the model's own loss.

    Args:
        model: makes the inputs of its decoder from labels, as `DataCollatorForSeq2Seq` asks for.
        smoothing: share of the probability spread over the vocabulary.
    """

    figures: tuple[str, ...] = ()

    def __init__(self, model: PreTrainedModel, smoothing: float) -> None:
        super().__init__()
        self.model, self.smoothing = model, smoothing

    def forward(self, labels: Tensor, **inputs: Tensor) -> tuple[Tensor, None]:
        """The mean loss over the label tokens of a batch, (), and no figures; labels are (batch, target)."""
        words = self.model.prepare_decoder_input_ids_from_labels(labels=labels)
        logits = self.model(**inputs, decoder_input_ids=words, use_cache=False).logits
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), label_smoothing=self.smoothing), None


def smoothed_objective(model: PreTrainedModel, smoothing: float | None) -> SmoothedCrossEntropy | None:
    """The objective that smooths the labels of a model whose own loss does not; None if there is nothing to do.

    Raises:
        ArgumentError: `smoothing` is no share, or the model does not make its decoder's input from labels.
    """
    if not smoothing or hasattr(model.config, "label_smoothing"):
        return None
    if not 0 <= smoothing < 1:
        raise ArgumentError(f"label_smoothing={smoothing}: must be at least 0 and below 1")
    if not hasattr(model, "prepare_decoder_input_ids_from_labels"):
        raise ArgumentError(
            f"label_smoothing={smoothing}: a {model.config.model_type} does not name its decoder's input; leave it out"
        )
    return SmoothedCrossEntropy(model, smoothing)
