"""What every model of the family shares with transformers."""

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init

from .attention import Attention, NormedAdditiveAttention
from .configuration_rnn_seq2seq import RnnSeq2SeqConfig
from .entmax import SparseWeights
from .recurrence import TransitionCell


class RnnSeq2SeqPreTrainedModel(PreTrainedModel):
    """What the recurrent models share with transformers: initialisation, tying, loading and device placement."""

    config_class = RnnSeq2SeqConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _no_split_modules = ["RnnEncoderLayer", "RnnDecoder"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Uniform in plus or minus one over the square root of the fan-in, or in plus or minus `initializer_range`."""
        width = self.config.initializer_range
        if isinstance(module, nn.Linear):
            self._uniform(module, width or module.in_features**-0.5)
        elif isinstance(module, nn.RNNBase):
            self._uniform(module, width or module.hidden_size**-0.5)
        elif isinstance(module, nn.Embedding):
            # Small word vectors leave a recurrence almost blind at first: with a deviation of 0.1 the attention takes
            # twice the updates to form. With one of 1, the rare words keep the noise they started with.
            deviation = 0.2 if self.config.tie_word_embeddings else 0.3
            init.uniform_(module.weight, -width, width) if width else init.normal_(module.weight, 0.0, deviation)
            if module.padding_idx is not None and not getattr(module.weight, "_is_hf_initialized", False):
                init.zeros_(module.weight[module.padding_idx])
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, TransitionCell):
            init.zeros_(module.bias)
        elif isinstance(module, NormedAdditiveAttention):
            init.constant_(module.gain, self.config.attention_size**-0.5)
        elif isinstance(module, SparseWeights):
            if module.free is not None:
                init.constant_(module.free, module.start)
        elif isinstance(module, Attention):
            # A registered attention of the user's may hold bare parameters.
            for parameter in module.parameters(recurse=False):
                init.uniform_(parameter, -(width or 0.1), width or 0.1)

    @staticmethod
    def _uniform(module: nn.Module, width: float) -> None:
        for parameter in module.parameters(recurse=False):
            init.uniform_(parameter, -width, width)

    @classmethod
    def from_pretrained(cls, *args: object, **kwargs: object) -> "RnnSeq2SeqPreTrainedModel":
        """As transformers does it.

        Raises:
            ValueError: `device_map` leaves weights on the disk or in another memory than that of the device they
                compute on. They would be brought in whenever a module is called, but a recurrence reads its weights
                at every position without calling one.
        """
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        absent = [name for name, parameter in model.named_parameters() if parameter.is_meta]
        if absent:
            raise ValueError(
                f"device_map={kwargs.get('device_map')!r}: leaves {absent[0]} (one of {len(absent)} weights) outside its "
                "device's memory; a recurrent model is loaded whole, on one device or over several with room for it"
            )
        return loaded

    def save_pretrained(self, save_directory: str, *args: object, **kwargs: object) -> None:
        """As transformers does it; the checkpoint also says how `AutoModel` loads it with `trust_remote_code=True`."""
        if self._auto_class is not None:
            base = f"{type(self).__module__.rpartition('.')[2]}.RnnSeq2SeqModel"
            self.config.auto_map = {**(getattr(self.config, "auto_map", None) or {}), "AutoModel": base}
        super().save_pretrained(save_directory, *args, **kwargs)

    def get_expanded_tied_weights_keys(self, all_submodels: bool = False) -> dict[str, str]:
        """The tied names {target: source}; unlike the default it also ties the two embeddings of an untied output."""
        return dict(self._tied_weights_keys or {})


__all__ = ["RnnSeq2SeqPreTrainedModel"]
