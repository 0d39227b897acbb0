"""Resizing the vocabularies of a model that may have two."""

from torch import nn

from .config_errors import ConfigError


class VocabularyMixin:
    """Methods of both models that replace the embeddings, and the output layer where there is one."""

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Embedding:
        """As transformers documents it: `model.resize_token_embeddings(len(tokenizer))` behind `tokenizer.add_tokens(...)`.

        Vocabularies of one size, which one joint vocabulary has, both get the new size, whether their tables are tied or
        not. Of two sizes, `new_num_tokens` is the source's, as `len(tokenizer)` is, and the target grows by as many:
        `RnnSeq2SeqTokenizer` gives both sides as many new entries. `resize_source_embeddings` and
        `resize_target_embeddings` set one size each.

        Returns:
            the source's embedding, which is `get_input_embeddings()`.

        Raises:
            ConfigError: vocabularies of two sizes would shrink; nothing says what would be left of the target's.
        """
        config = self.config
        if new_num_tokens is None and pad_to_multiple_of is None:
            return self.get_input_embeddings()
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


__all__ = ["VocabularyMixin"]
