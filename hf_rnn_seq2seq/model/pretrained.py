"""Base class of the models that write: initialization, loading and saving, vocabularies that change their size, and the
check of a model's numbers."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from transformers import initialization as init

from .attention import Attention, NormedAdditiveAttention
from .encoder import RnnPreTrainedModel
from .config_checks import ConfigError
from .configuration_rnn_seq2seq import RnnSeq2SeqConfig
from .entmax import SparseWeights
from .hard_attention import SampledAttention
from .window_attention import Window


class RnnSeq2SeqPreTrainedModel(RnnPreTrainedModel):
    """Base class of the models that write: initialization, tying, loading and device placement."""

    config_class = RnnSeq2SeqConfig
    _no_split_modules = ["RnnEncoderLayer", "RnnDecoder"]
    _base_class = "encoder_decoder.RnnSeq2SeqModel"

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """As of the encoder; and the parameters of attention."""
        super()._init_weights(module)
        width = self.config.initializer_range
        if isinstance(module, NormedAdditiveAttention):
            init.constant_(module.gain, self.config.attention_size**-0.5)
        elif isinstance(module, SampledAttention):
            init.zeros_(module.baseline)
        elif isinstance(module, SparseWeights):
            if module.free is not None:
                init.constant_(module.free, module.start)
        elif isinstance(module, Window):
            init.copy_(module.bias, module.first_bias())
        elif isinstance(module, Attention):
            # A registered attention of the user may have bare parameters.
            for parameter in module.parameters(recurse=False):
                init.uniform_(parameter, -(width or 0.1), width or 0.1)

    def save_pretrained(self, save_directory: str, *args: object, **kwargs: object) -> None:
        """As in transformers; config.json also has the classes that the copier does not write."""
        if self._auto_class == "AutoModelForSeq2SeqLM" and self.config.reads_images:
            # The copier writes one class; captions have a second one, which their pipeline asks for.
            auto_map, file = getattr(self.config, "auto_map", None) or {}, self._base_class.partition(".")[0]
            self.config.auto_map = {**auto_map, "AutoModelForImageTextToText": f"{file}.{type(self).__name__}"}
        super().save_pretrained(save_directory, *args, **kwargs)

    def get_expanded_tied_weights_keys(self, all_submodels: bool = False) -> dict[str, str]:
        """The tied names {target: source}; unlike the default it also ties the two embeddings of an untied output."""
        return dict(self._tied_weights_keys or {})


class VocabularyMixin:
    """Resizes the embeddings, and the output layer of a model that has one."""

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Embedding:
        """As in transformers: `model.resize_token_embeddings(len(tokenizer))` after `tokenizer.add_tokens(...)`.

        Vocabularies of one size, as a joint vocabulary has, both get the new size, tied or not. With two sizes
        `new_num_tokens` is the source's, like `len(tokenizer)`, and the target grows by the same number:
        `RnnSeq2SeqTokenizer` adds the same number of entries to both sides. `resize_source_embeddings` and
        `resize_target_embeddings` set one size each.

        Returns:
            the source's embedding, which is `get_input_embeddings()`.

        Raises:
            ConfigError: vocabularies of two sizes would shrink; the size of the target's is then unknown.
        """
        config = self.config
        if new_num_tokens is None and pad_to_multiple_of is None:
            return self.get_input_embeddings()
        self._require_own_words("call resize_target_embeddings")
        source_size, target_size = config.source_vocab_size, config.vocab_size
        growth = 0 if new_num_tokens is None else new_num_tokens - source_size
        if growth < 0 and source_size != target_size:
            raise ConfigError(
                f"new_num_tokens={new_num_tokens}: two vocabularies, of {source_size} and {target_size} entries, only grow "
                "together; call resize_source_embeddings and resize_target_embeddings, each with its own size"
            )
        self._resize_target(target_size + growth, pad_to_multiple_of, mean_resizing)
        if not config.share_encoder_decoder_embeddings:
            self._resize_source(source_size + growth, pad_to_multiple_of, mean_resizing)
        self.tie_weights()
        return self.get_input_embeddings()

    def resize_source_embeddings(self, new_num_tokens: int, mean_resizing: bool = True) -> nn.Embedding:
        """Resizes the source vocabulary of a model with two; returns its embedding.

        Raises:
            ConfigError: the two vocabularies are shared, or `copy_mechanism` makes them one.
        """
        self._require_own_words("only resize_target_embeddings can be called")
        self._require_two_vocabularies()
        self._resize_source(new_num_tokens, None, mean_resizing)
        return self.base_model.encoder.embed_tokens

    def resize_target_embeddings(self, new_num_tokens: int, mean_resizing: bool = True) -> nn.Embedding:
        """Resizes the target vocabulary of a model with two: the decoder's embedding, which is returned, and the output
        layer.

        Raises:
            ConfigError: the two vocabularies are shared, or `copy_mechanism` makes them one.
        """
        self._require_two_vocabularies()
        self._resize_target(new_num_tokens, None, mean_resizing)
        self.tie_weights()
        return self.base_model.decoder.embed_tokens

    def _require_own_words(self, mend: str) -> None:
        if self.config.encoder is not None:
            raise ConfigError(f"encoder={self.config.encoder.model_type!r}: has a source vocabulary of its own; {mend}")

    def _require_two_vocabularies(self) -> None:
        if self.config.copy_mechanism:
            raise ConfigError("copy_mechanism=True: call resize_token_embeddings, both sides have one vocabulary")
        if self.config.share_encoder_decoder_embeddings:
            raise ConfigError("share_encoder_decoder_embeddings=True: call resize_token_embeddings, there is one table")

    def _resize_source(self, size: int, multiple: int | None, mean_resizing: bool) -> None:
        encoder = self.base_model.encoder
        encoder.embed_tokens = self._get_resized_embeddings(encoder.embed_tokens, size, multiple, mean_resizing)
        self.config.source_vocab_size = encoder.embed_tokens.num_embeddings

    def _resize_target(self, size: int, multiple: int | None, mean_resizing: bool) -> None:
        config, decoder, head = self.config, self.base_model.decoder, self.get_output_embeddings()
        named = {name: getattr(config, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
        for name, token in (named | {"decoder_start_token_id": config.decoder_start_token_id}).items():
            if any(one is not None and one >= size for one in (token if isinstance(token, list) else [token])):
                raise ConfigError(f"new_num_tokens={size}: must be larger than {name}={token}")
        decoder.embed_tokens = self._get_resized_embeddings(decoder.embed_tokens, size, multiple, mean_resizing)
        size = decoder.embed_tokens.num_embeddings
        if head is not None:
            learns = head.weight.requires_grad
            head = self._get_resized_lm_head(head, size, mean_resizing=mean_resizing).requires_grad_(learns)
            self.set_output_embeddings(head)
        if config.share_encoder_decoder_embeddings:
            self.base_model.encoder.embed_tokens = decoder.embed_tokens
            config.source_vocab_size = size
        self.config.vocab_size = self.vocab_size = size


def not_finite(tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    """Describes the first of the named tensors that holds nan or inf; None if all numbers are finite."""
    for name, tensor in tensors:
        if tensor.is_floating_point() and not tensor.is_meta and not bool((finite := torch.isfinite(tensor)).all()):
            count = finite.numel() - int(finite.sum())
            return f"{name}: {count} of its {tensor.numel()} numbers are not finite (nan or inf)"
    return None


def why_not_finite(models: Iterable[nn.Module]) -> str:
    """The error message for scores that are not finite: the tensor that causes them, and how to mend it."""
    for model in models:
        if found := not_finite(model.state_dict().items()):
            return f"{found}, and so are the scores; load a checkpoint from before, or train again at a lower learning_rate"
        dtype = next(model.parameters()).dtype
        if dtype == torch.float16:
            return "scores: not finite, although every weight is: float16 overflows here; load in bfloat16 or float32"
    return "scores: not finite, although every weight is; the weights are too large to compute with"
