"""Recurrent classifiers that show what they read: of sentences (Lin 2017) and of documents made of sentences (Yang 2016).

First come the ways from the states of a sequence to one vector: attention with one or several hops, the maximum, the mean,
or the last states. A row with nothing to read has the vector 0.

Axes: batch (sentences or documents), source (words or sentences), hops, width. Masks are True at what is read.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.utils import ModelOutput, can_return_tuple

from .configuration_rnn_classifier import RnnClassifierConfig
from .dropout import drop
from .encoder import RnnEncoder, RnnEncoderOutput, RnnPreTrainedModel
from .matmul import Linear


class AttentionPooling(nn.Module):
    """Weighted averages of the states, one for each hop.

    A = softmax(W_2 tanh(W_1 H + b));  M = A H (Lin 2017, equations 6 and 7; with one hop, equation 5). With one hop it is
    the attention of Yang 2016, equations 5 to 7 over words and 8 to 10 over sentences: u_t = tanh(W h_t + b),
    a_t = softmax(u_t . u), s = sum_t a_t h_t; the only row of W_2 is their context vector u. (The numbers of these
    equations were not checked against the papers; neither was that Lin 2017 has no b.)

    Args:
        width: of the states.
        size: of the hidden layer, d_a of Lin 2017.
        hops: r of Lin 2017.
    """

    def __init__(self, width: int, size: int, hops: int) -> None:
        super().__init__()
        self.project = Linear(width, size)
        self.context = Linear(size, hops, bias=False)

    def forward(self, states: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """The averages (batch, hops x width), and the weights (batch, hops, source), exactly zero where `mask` is False.

        Args:
            states: (batch, source, width).
            mask: bool (batch, source).
        """
        scores = self.context(torch.tanh(self.project(states))).transpose(1, 2)
        hidden = ~mask.unsqueeze(1)
        weights = scores.masked_fill(hidden, torch.finfo(scores.dtype).min).softmax(-1).masked_fill(hidden, 0.0)
        return (weights @ states).flatten(1), weights


def pool(kind: str, states: Tensor, mask: Tensor, ends: Tensor | None) -> Tensor:
    """One vector without parameters, (batch, width).

    Args:
        kind: `max`, `mean`, or `last`: of each direction the state after its last word.
        states: (batch, source, width).
        mask: bool (batch, source).
        ends: (batch, width), for `last`.
    """
    if kind == "last":
        return ends
    count = mask.sum(1, keepdim=True)
    if kind == "mean":
        return states.masked_fill(~mask.unsqueeze(-1), 0.0).sum(1) / count.clamp(min=1)
    highest = states.masked_fill(~mask.unsqueeze(-1), torch.finfo(states.dtype).min).amax(1)
    return highest.masked_fill(count == 0, 0.0)


def hop_penalty(weights: Tensor, mask: Tensor, rows: "Sentences | None" = None) -> Tensor:
    """||A A^T - I||^2, the squared Frobenius norm (Lin 2017, equation 8), averaged over the batch, ().

    0 if each hop reads one position of its own; hops x (hops - 1) if all read the same one. A text with nothing to read
    counts as 0, so the mean over a batch is the mean of the means over equal parts of it.

    Args:
        weights: (batch, hops, source), A.
        mask: bool (batch, source).
        rows: the sentences whose weights these are: the penalty is averaged over those of a document first.
    """
    excess = weights @ weights.transpose(1, 2) - torch.eye(weights.shape[1], dtype=weights.dtype, device=weights.device)
    each = excess.square().sum((1, 2)) * mask.any(1)
    if rows is None:
        return each.mean()
    total = each.new_zeros(2, rows.documents).index_add(1, rows.document, torch.stack([each, torch.ones_like(each)]))
    return (total[0] / total[1].clamp(min=1)).mean()


@dataclass
class RnnClassifierModelOutput(ModelOutput):
    """The output of the model without classes.

    Args:
        last_hidden_state: (batch, source, width), the states of the words, zero at padding; with `sentence_token_id`
            (batch, sentences, width), those of the sentences.
        pooler_output: (batch, pooled width), the vector of each text.
        hidden_states: what the recurrent layers that gave `last_hidden_state` read, and the states of each, with
            `output_hidden_states`.
        attentions: with attention pooling the weights of the words, (batch, hops, source). With `sentence_token_id` the
            weights of each sentence's words sum to 1, and a second tensor has those of the sentences, (batch, hops,
            sentences). Exactly zero at padding, at sentence tokens and at sentences without words.
        hop_penalty: (), with attention pooling: the mean over the texts; with `sentence_token_id` plus the mean over the
            texts of that over their sentences.
    """

    last_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    hop_penalty: Tensor | None = None


@dataclass
class RnnClassifierOutput(ModelOutput):
    """The output of the classifier.

    Args:
        loss: (), with labels.
        logits: (batch, labels).
        hidden_states, attentions: as in `RnnClassifierModelOutput`.
        figures: (figures, 2), the sum and the number of each of `training_figures`, with `output_figures`.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    figures: Tensor | None = None


class Sentences:
    """The sentences of a batch of documents as rows of their own; those without words are left out.

    Args:
        input_ids: (batch, source).
        mask: bool (batch, source), True at real tokens.
        token: the id that ends a sentence.
    """

    def __init__(self, input_ids: Tensor, mask: Tensor, token: int) -> None:
        ends = mask & (input_ids == token)
        self.words = mask & ~ends  # (batch, source)
        number = (ends.cumsum(1) - ends.long())[self.words]  # (all words,): of its sentence in its document
        self.count = int(number.max()) + 1 if len(number) else 1
        self.documents = len(input_ids)
        document = torch.arange(self.documents, device=mask.device).unsqueeze(1).expand_as(mask)[self.words]
        # The words stand in the order of their sentences.
        self.place, self.row, lengths = torch.unique_consecutive(
            document * self.count + number, return_inverse=True, return_counts=True
        )
        self.document = self.place // self.count  # (rows,)
        starts = lengths.cumsum(0) - lengths
        self.column = torch.arange(len(number), device=mask.device) - starts[self.row]
        longest = int(lengths.max()) if len(number) else 0
        self.ids = input_ids.new_zeros(len(lengths), longest)
        self.ids[self.row, self.column] = input_ids[self.words]
        self.mask = torch.arange(longest, device=mask.device) < lengths.unsqueeze(1)  # (rows, longest)

    def to_documents(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors of the rows as (batch, sentences, width), zero for sentences without words, and their bool mask."""
        flat = vectors.new_zeros(self.documents * self.count, vectors.shape[1]).index_copy(0, self.place, vectors)
        mask = torch.zeros(len(flat), dtype=torch.bool, device=vectors.device).index_fill(0, self.place, True)
        return flat.view(self.documents, self.count, -1), mask.view(self.documents, self.count)

    def to_words(self, weights: Tensor) -> Tensor:
        """Weights (rows, hops, longest) at the places of their words, (batch, hops, source)."""
        placed = weights.new_zeros(*self.words.shape, weights.shape[1])
        placed[self.words] = weights.transpose(1, 2)[self.row, self.column]
        return placed.transpose(1, 2)


class Level(nn.Module):
    """An encoder and the pooling of its states: of words to a sentence, or of sentences to a document.

    Args:
        width: of vectors in the place of words, for the level of sentences.
    """

    def __init__(self, config: RnnClassifierConfig, width: int | None = None) -> None:
        super().__init__()
        self.config = config
        self.encoder = RnnEncoder(config, width)
        self.attention = None
        self.width = config.encoder_output_size if config.encoder_layers or width is None else width
        if config.pooling == "attention":
            self.attention = AttentionPooling(self.width, config.attention_size, config.attention_hops)

    def forward(self, **source: object) -> tuple[RnnEncoderOutput, Tensor, Tensor | None]:
        """The encoder's output; the vectors (rows, pooled width); the weights (rows, hops, source) of attention pooling."""
        states = self.encoder(**source)
        mask = states.source_mask
        if self.attention is not None:
            return states, *self.attention(states.last_hidden_state, mask)
        ends = None
        if states.final_state is not None:
            directions = self.config.encoder_directions(self.config.encoder_layers)
            ends = states.final_state[:, -1, :directions].flatten(1)
        return states, pool(self.config.pooling, states.last_hidden_state, mask, ends), None


class RnnClassifierModel(RnnPreTrainedModel):
    """A vector for each text: the sentence embedding of Lin 2017, or the document vector of Yang 2016."""

    config_class = RnnClassifierConfig
    _base_class = "modeling_rnn_classifier.RnnClassifierModel"

    def __init__(self, config: RnnClassifierConfig) -> None:
        super().__init__(config)
        self.words = Level(config)
        self.sentences = None
        if config.sentence_token_id is not None:
            self.sentences = Level(config, self.words.width * config.attention_hops)
        self.post_init()

    @property
    def encoder(self) -> RnnEncoder:
        """The encoder of the words."""
        return self.words.encoder

    @property
    def pooled_size(self) -> int:
        """Width of the vector of a text."""
        top = self.words if self.sentences is None else self.sentences
        return top.width * self.config.attention_hops

    def get_input_embeddings(self) -> nn.Module:
        return self.encoder.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.encoder.set_input_embeddings(value)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> RnnClassifierModelOutput:
        """Reads a batch of texts.

        Args:
            input_ids: (batch, source), or
            inputs_embeds: (batch, source, width) in the place of the word vectors: of a foreign encoder its states, for
                example computed once and stored. Not with `sentence_token_id`, which is found in the ids.
            attention_mask: (batch, source), nonzero at real tokens. None: every token that is not the pad token.
            token_type_ids: as tokenizers such as BERT's give them for one text; not read.
            output_attentions: also return the weights of the pooling.
            output_hidden_states: also return what the recurrent layers read, and the states of each.

        Raises:
            ValueError: not exactly one source given, or shapes that do not fit.
        """
        config = self.config
        hidden = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        if self.sentences is None:
            source = {"input_ids": input_ids, "inputs_embeds": inputs_embeds, "attention_mask": attention_mask}
            states, pooled, weights = self.words(**source, output_hidden_states=hidden)
            attentions = None if weights is None else (weights,)
            penalty = None if weights is None else hop_penalty(weights, states.source_mask)
        else:
            states, pooled, attentions, penalty = self._read_documents(input_ids, attention_mask, inputs_embeds, hidden)
        shown = config.output_attentions if output_attentions is None else output_attentions
        return RnnClassifierModelOutput(
            last_hidden_state=states.last_hidden_state,
            pooler_output=pooled,
            hidden_states=states.hidden_states if hidden else None,
            attentions=attentions if shown else None,
            hop_penalty=penalty,
        )

    def _read_documents(
        self, input_ids: Tensor | None, attention_mask: Tensor | None, inputs_embeds: Tensor | None, hidden: bool
    ) -> tuple[RnnEncoderOutput, Tensor, tuple[Tensor, Tensor] | None, Tensor | None]:
        """Words to sentences to documents (Yang 2016, section 2.2)."""
        if inputs_embeds is not None or input_ids is None:
            raise ValueError("inputs_embeds: sentence_token_id is found in input_ids; give these alone")
        rows = Sentences(input_ids, self.encoder.mask(input_ids, None, attention_mask), self.config.sentence_token_id)
        weights = penalty = None
        if len(rows.ids):
            words, vectors, weights = self.words(input_ids=rows.ids, attention_mask=rows.mask)
        else:  # no document has a word
            width = self.words.width * self.config.attention_hops
            vectors = next(self.words.parameters()).new_zeros(0, width)
            if self.words.attention is not None:
                weights = vectors.new_zeros(0, self.config.attention_hops, 0)
        vectors, mask = rows.to_documents(vectors)
        states, pooled, above = self.sentences(inputs_embeds=vectors, attention_mask=mask, output_hidden_states=hidden)
        if weights is None:
            return states, pooled, None, None
        penalty = hop_penalty(weights, rows.mask, rows) + hop_penalty(above, mask)
        return states, pooled, (rows.to_words(weights), above), penalty


class RnnForSequenceClassification(RnnPreTrainedModel):
    """A recurrent classifier of texts: `pipeline("text-classification")`, `Trainer`, and readable weights of the pooling."""

    config_class = RnnClassifierConfig
    _base_class = "modeling_rnn_classifier.RnnClassifierModel"
    # The loss is a mean over the rows of the batch, whatever number of them an update has.
    accepts_loss_kwargs = False

    def __init__(self, config: RnnClassifierConfig) -> None:
        super().__init__(config)
        self.model = RnnClassifierModel(config)
        width = self.model.pooled_size
        self.hidden = None if config.classifier_size is None else Linear(width, config.classifier_size)
        self.classifier = Linear(config.classifier_size or width, config.num_labels)
        self.training_figures = ("hop_penalty",) if config.hop_penalty else ()
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        output_figures: bool = False,
    ) -> RnnClassifierOutput:
        """Classifies a batch of texts.

        Args:
            input_ids, attention_mask, inputs_embeds, token_type_ids: as in `RnnClassifierModel.forward`.
            labels: (batch,), the class of each text, -100 for a text that does not count. With `num_labels` of 1, or
                `problem_type`, as in the classifiers of transformers: numbers, or (batch, labels) of 0.0 and 1.0.
            output_attentions: also return the weights of the pooling.
            output_hidden_states: also return the states of the layers.
            output_figures: also return the figures of training.

        Returns:
            `loss`, `logits` and more; in training `hop_penalty` times the penalty on the hops is added to the loss.
        """
        config = self.config
        outputs = self.model(
            input_ids,
            attention_mask,
            inputs_embeds,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        vector = self._dropped(outputs.pooler_output)
        if self.hidden is not None:
            vector = self._dropped(torch.relu(self.hidden(vector)))
        logits = self.classifier(vector)
        loss = None if labels is None else self._loss(logits, labels.to(logits.device))
        if loss is not None and self.training and config.hop_penalty:
            loss = loss + config.hop_penalty * outputs.hop_penalty
        figures = None
        if output_figures and self.training_figures:
            penalty, texts = outputs.hop_penalty.detach(), len(logits)
            figures = torch.stack([penalty * texts, penalty.new_tensor(float(texts))]).unsqueeze(0)
        return RnnClassifierOutput(loss, logits, outputs.hidden_states, outputs.attentions, figures)

    def _dropped(self, vectors: Tensor) -> Tensor:
        return drop(vectors.unsqueeze(1), self.config.dropout, self.training, False).squeeze(1)

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss that `problem_type` names or the labels imply. (That of transformers changes the configuration.)"""
        kind = self.config.problem_type
        if kind is None:
            whole = not labels.is_floating_point()
            kind = "single_label_classification" if whole else "multi_label_classification"
            kind = "regression" if self.config.num_labels == 1 else kind
        if kind == "single_label_classification":
            # Without any label that counts the mean would be 0 / 0.
            labels = labels.view(-1)
            return F.cross_entropy(logits, labels, reduction="sum") / (labels >= 0).sum().clamp(min=1)
        if kind == "multi_label_classification":
            return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
        return F.mse_loss(logits.view(labels.shape), labels.to(logits.dtype))
