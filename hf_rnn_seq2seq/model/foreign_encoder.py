"""An encoder of transformers in the place of the word vectors: BERT, the encoder of Marian or T5, ViT, ResNet and others.

The recurrent layers of `RnnEncoder` read its states. An image network gives a sequence of regions, row by row: its patches,
or the positions of its last feature map.
"""

import functools
import inspect
import json
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.models.auto.modeling_auto import MODEL_MAPPING, MODEL_MAPPING_NAMES

from .config_checks import ConfigError


class EncoderKind(NamedTuple):
    """What an encoder reads and gives."""

    input_name: str  # `input_ids` or `pixel_values`
    width: int  # of its states


class ForeignEncoder(nn.Module):
    """States of an encoder of transformers, (batch, source, width), with the weights of `config` drawn at random.

    Args:
        config: of any built-in model that reads token ids or pixels.
        frozen: the encoder has no gradient, and stays in evaluation mode.
        levels: which of its hidden states are read, see `EncoderFields`; None: the last one.
    """

    def __init__(self, config: PreTrainedConfig, frozen: bool, levels: Sequence[int] | None = None) -> None:
        super().__init__()
        self.kind, self.frozen, self.levels = encoder_kind(config, levels), frozen, levels
        model = AutoModel.from_config(config, dtype=torch.get_default_dtype(), **_options(config))
        self.use(_half(model))

    @property
    def reads_images(self) -> bool:
        """Whether the encoder reads pixels and not token ids."""
        return self.kind.input_name == "pixel_values"

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights."""
        return next(self.model.parameters()).dtype

    def use(self, model: PreTrainedModel) -> None:
        """Takes `model` as the encoder."""
        self.model = model
        self.choose_trained()
        self.train(self.training)

    def choose_trained(self) -> None:
        """Says which parameters have no gradient; loading a checkpoint makes new ones, which all have."""
        for part in self.model.modules():
            # Positions by a formula are no parameters, though Marian's are stored as one.
            if self.frozen or "Sinusoidal" in type(part).__name__:
                part.requires_grad_(False)

    def load(self, name: str, revision: str | None = None) -> None:
        """Takes the weights of a checkpoint of the same configuration, from a folder or from the Hub."""
        config = self.model.config
        options = {"revision": revision, "dtype": self.dtype, **_options(config)}
        self.use(_half(AutoModel.from_pretrained(name, config=config, **options)))

    def train(self, mode: bool = True) -> "ForeignEncoder":
        return super().train(mode and not self.frozen)

    def mask(self, input_ids: Tensor) -> Tensor:
        """bool (batch, source), True at every word that is not the encoder's own pad token."""
        pad = getattr(self.model.config, "pad_token_id", None)
        return torch.ones_like(input_ids, dtype=torch.bool) if pad is None else input_ids != pad

    def forward(
        self, input_ids: Tensor | None = None, mask: Tensor | None = None, pixel_values: Tensor | None = None
    ) -> Tensor:
        """States (batch, source, width) of words or of regions.

        Args:
            input_ids: (batch, source), words first and padding after them, with
            mask: bool (batch, source), True at words; or
            pixel_values: (batch, channels, height, width).

        Raises:
            ValueError: a source is longer than the positions that the encoder knows.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            if self.reads_images:
                return _sequence(self.model(pixel_values=pixel_values.to(self.dtype)).last_hidden_state)
            longest = getattr(self.model.config, "max_position_embeddings", None)
            if longest and 0 < longest < input_ids.shape[1]:
                raise ValueError(
                    f"input_ids of shape {tuple(input_ids.shape)}: the encoder ({self.model.config.model_type}) reads at most "
                    f"{longest} tokens (max_position_embeddings); cut the source"
                )
            words = {"input_ids": input_ids, "attention_mask": mask.long()}
            if self.levels is None:
                return self.model(**words).last_hidden_state
            found = self.model(**words, output_hidden_states=True).hidden_states
            return torch.cat([found[level] for level in self.levels], -1)


def encoder_config(given: PreTrainedConfig | dict[str, object], words: dict[str, object]) -> PreTrainedConfig:
    """A configuration of its own from that of a built-in model of transformers or its dict.

    Args:
        given: the configuration. Where a dict has no vocab_size, the source has
        words: the size of the vocabulary and the ids of special tokens.

    Raises:
        ConfigError: transformers has no such model, or it can give no sequence of states.
    """
    custom = isinstance(given, PreTrainedConfig) and type(given).__module__.split(".")[0] != "transformers"
    fields = given.to_dict() if isinstance(given, PreTrainedConfig) else dict(given)
    kind = fields.get("model_type")
    if custom or kind not in MODEL_MAPPING_NAMES:
        raise ConfigError(
            f"encoder.model_type={kind!r}: must be a model of transformers itself, such as 'bert', 'marian' or 'resnet'; a "
            "model with code of its own cannot be nested, because its code would not travel with the checkpoint"
        )
    if "vocab_size" not in fields and hasattr(CONFIG_MAPPING[kind], "vocab_size"):
        fields = {**words, **fields}
    config = AutoConfig.for_model(**fields)
    config.dtype = None  # the outer model decides the type of the weights
    encoder_kind(config)
    return config


def read_encoder(name: str, revision: str | None = None, levels: Sequence[int] | None = None) -> dict[str, object]:
    """The configuration of a pretrained encoder, as a dict, from a folder or from the Hub; no code of its own is run.

    Args:
        name: the folder or the repository.
        revision: of a repository of the Hub.
        levels: see `EncoderFields`; layers above the highest one are left out. Levels below 0 count from the top, so with
            them every layer stays.
    """
    fields, _ = PreTrainedConfig.get_config_dict(name, revision=revision)
    fields = {key: value for key, value in fields.items() if key not in ("auto_map", "transformers_version")}
    # What is wrong with `levels` is said when the configuration is made.
    counted = isinstance(levels, list | tuple) and all(isinstance(level, int) and level >= 0 for level in levels)
    return _without_layers_above(max(levels), fields) if counted and levels else fields


@torch.no_grad()
def _without_layers_above(level: int, fields: dict[str, object]) -> dict[str, object]:
    """The configuration with as few layers as give the same states up to `level`.

    Some encoders normalize the states of their last layer or report none without a layer, so random weights decide: the
    layers stay where fewer give other states, or cannot be built.
    """
    for layers in (level, level + 1):
        try:
            whole, part = AutoConfig.for_model(**fields), AutoConfig.for_model(**fields)
            if layers >= whole.num_hidden_layers:
                return fields
            part.num_hidden_layers = layers
            with torch.random.fork_rng(devices=[]):
                models = [_half(AutoModel.from_config(config, **_options(config))).eval() for config in (whole, part)]
            models[1].load_state_dict({name: models[0].state_dict()[name] for name in models[1].state_dict()})
            words = torch.arange(1, 3).unsqueeze(0)
            wanted, found = (model(input_ids=words, output_hidden_states=True).hidden_states for model in models)
            if len(found) > level and all(map(torch.equal, wanted[: level + 1], found)):
                return {**fields, part.attribute_map.get("num_hidden_layers", "num_hidden_layers"): layers}
        except Exception:  # any model of transformers, which fails in its own way; its configuration is judged later
            return fields
    return fields


def encoder_kind(config: PreTrainedConfig, levels: Sequence[int] | None = None) -> EncoderKind:
    """What the encoder reads, and the width of its states, found by a run without weights.

    Raises:
        ConfigError: the model reads something else, gives no sequence of states, or has no states of these levels.
    """
    if levels is not None and not levels:
        raise ConfigError("encoder_levels=[]: no state would be read; name one level or more, or leave it out")
    # What loading and saving write into a configuration changes nothing here.
    fields = {name: value for name, value in config.to_dict().items() if name not in ("architectures", "dtype")}
    return _kind(json.dumps(fields, sort_keys=True), None if levels is None else tuple(levels))


@functools.lru_cache(maxsize=64)
def _kind(text: str, levels: tuple[int, ...] | None) -> EncoderKind:
    config = AutoConfig.for_model(**json.loads(text))
    named = f"encoder.model_type={config.model_type!r}"
    cls = _class(config)
    name = getattr(cls, "main_input_name", None)
    if name not in ("input_ids", "pixel_values"):
        raise ConfigError(f"{named}: reads {name}; must be a model that reads input_ids or pixel_values")
    every = levels is not None
    if every and name == "pixel_values":
        raise ConfigError(
            f"encoder_levels={list(levels)}: {named} reads pictures, whose last states are read; leave it out"
        )
    try:
        states = _run(config, name, "meta", every)
    except Exception:  # some look at the values of their tensors
        try:
            with torch.random.fork_rng(devices=[]), no_init_weights():
                states = _run(config, name, "cpu", every)
        except Exception as error:  # any model of transformers, which fails in its own way
            raise ConfigError(
                f"{named}: gives no states for {name} alone ({type(error).__name__}: {error}); must be an encoder, or one "
                "half of a model with two, such as 'clip_vision_model'"
            ) from error
    if not every:
        return EncoderKind(name, states[-1].shape[-1])
    wrong = [level for level in levels if not -len(states) <= level < len(states)]
    if wrong:
        raise ConfigError(
            f"encoder_levels={list(levels)}: {wrong[0]} is none of the {len(states)} levels of encoder={config.model_type!r}; "
            f"must be between 0 (its word vectors) and {len(states) - 1}, or below 0 to count from the top"
        )
    return EncoderKind(name, sum(states[level].shape[-1] for level in levels))


@torch.no_grad()
def _run(config: PreTrainedConfig, name: str, device: str, every: bool) -> tuple[Tensor, ...]:
    """The last states of two words or of one picture, (1, source, width); of words also those of `every` level."""
    with torch.device(device):
        model = _half(AutoModel.from_config(config, dtype=torch.float32, **_options(config))).eval()
        if name == "input_ids":
            found = model(input_ids=torch.ones(1, 2, dtype=torch.long), output_hidden_states=every)
            return found.hidden_states if every else (found.last_hidden_state,)
        size = getattr(config, "image_size", None) or 64
        size = (size, size) if isinstance(size, int) else tuple(size)
        return (_sequence(model(pixel_values=torch.zeros(1, config.num_channels, *size)).last_hidden_state),)


def _class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """The class without a head; of several the first."""
    found = MODEL_MAPPING[type(config)]
    return found[0] if isinstance(found, tuple) else found


def _options(config: PreTrainedConfig) -> dict[str, bool]:
    """No pooling layer, whose weights nothing would train."""
    takes = inspect.signature(_class(config).__init__).parameters
    return {"add_pooling_layer": False} if "add_pooling_layer" in takes else {}


def _half(model: PreTrainedModel) -> PreTrainedModel:
    """The encoder of an encoder-decoder, and any other model itself."""
    return model.get_encoder() if model.config.is_encoder_decoder else model


def _sequence(states: Tensor) -> Tensor:
    """A feature map (batch, channels, height, width) as regions (batch, height x width, channels)."""
    return states.flatten(2).transpose(1, 2) if states.dim() == 4 else states
