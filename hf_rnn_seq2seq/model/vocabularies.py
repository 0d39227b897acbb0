"""Resizing the vocabularies of a model that may have two."""

from torch import nn


class VocabularyMixin:
    """Methods of the conditional-generation model that replace its embeddings and output layer."""

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Embedding:
        """Resizes the TARGET vocabulary (decoder embedding and output layer), and the source's where they are shared
        or `copy_mechanism` makes them one vocabulary.

        Returns:
            the decoder's embedding.
        """
        decoder = self.model.decoder
        old = decoder.embed_tokens
        if new_num_tokens is None and pad_to_multiple_of is None:
            return old
        table = self._get_resized_embeddings(old, new_num_tokens, pad_to_multiple_of, mean_resizing)
        size = table.weight.shape[0]
        self.lm_head = self._get_resized_lm_head(self.lm_head, size, mean_resizing=mean_resizing)
        decoder.embed_tokens = table
        if self.config.share_encoder_decoder_embeddings:
            self.model.encoder.embed_tokens = table
            self.config.source_vocab_size = size
        elif self.config.copy_mechanism:
            encoder = self.model.encoder
            encoder.embed_tokens = self._get_resized_embeddings(encoder.embed_tokens, size, None, mean_resizing)
            self.config.source_vocab_size = size
        self.config.vocab_size = size
        self.tie_weights()
        return table

    def resize_source_embeddings(self, new_num_tokens: int, mean_resizing: bool = True) -> nn.Embedding:
        """Resizes the source vocabulary of a model with two.

        Raises:
            ValueError: the two vocabularies are shared, or `copy_mechanism` makes them one.
        """
        if self.config.copy_mechanism:
            raise ValueError("copy_mechanism=True: call resize_token_embeddings, both sides have one vocabulary")
        if self.config.share_encoder_decoder_embeddings:
            raise ValueError("share_encoder_decoder_embeddings=True: call resize_token_embeddings, there is one table")
        encoder = self.model.encoder
        encoder.embed_tokens = self._get_resized_embeddings(
            encoder.embed_tokens, new_num_tokens, mean_resizing=mean_resizing
        )
        self.config.source_vocab_size = new_num_tokens
        return encoder.embed_tokens


__all__ = ["VocabularyMixin"]
