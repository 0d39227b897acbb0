"""`generate()` with the state of a recurrent decoder in the place of keys and values."""

from transformers import GenerationConfig, GenerationMixin

from .decoder_state import RnnSeq2SeqCache


class CachedGenerationMixin(GenerationMixin):
    """`generate()` over an `RnnSeq2SeqCache`; assisted decoding takes tokens back exactly."""

    # A recurrent state cannot be cropped like a Transformer's keys, but the cache can record earlier states.
    _is_stateful = False

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        """The default cache is for keys and values of self-attention; ours is created below."""
        return False

    def _prepare_cache_for_generation(
        self, generation_config: GenerationConfig, model_kwargs: dict[str, object], *args: object, **kwargs: object
    ) -> None:
        """Creates an `RnnSeq2SeqCache` before the first step, unless the caller gave one or disabled it."""
        super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)
        if model_kwargs.get("cache") is None and generation_config.use_cache is not False:
            model_kwargs["cache"] = RnnSeq2SeqCache()
            # Wrong proposals of an assistant are taken back. transformers activates recording for the assisted model.
            if generation_config.is_assistant:
                model_kwargs["cache"].activate_past_recording()
