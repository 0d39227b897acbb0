"""Recurrent sequence-to-sequence models with attention, as first-class citizens of the Hugging Face ecosystem.

Importing the package registers the models, the configuration, the tokenizer and the pipeline with transformers.
"""

import re
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hf_rnn_seq2seq.model.attention import Attention, register_attention
    from hf_rnn_seq2seq.model.config_checks import ConfigError
    from hf_rnn_seq2seq.model.configuration_rnn_causal import RnnCausalConfig
    from hf_rnn_seq2seq.model.configuration_rnn_classifier import RnnClassifierConfig
    from hf_rnn_seq2seq.model.configuration_rnn_seq2seq import RnnSeq2SeqConfig
    from hf_rnn_seq2seq.model.decoder_state import RnnSeq2SeqCache
    from hf_rnn_seq2seq.model.encoder_decoder import RnnSeq2SeqModel
    from hf_rnn_seq2seq.model.modeling_rnn_causal import RnnCausalModel, RnnForCausalLM
    from hf_rnn_seq2seq.model.modeling_rnn_classifier import RnnClassifierModel, RnnForSequenceClassification
    from hf_rnn_seq2seq.model.configuration_rnn_handwriting import RnnHandwritingConfig
    from hf_rnn_seq2seq.model.modeling_rnn_handwriting import RnnForHandwriting
    from hf_rnn_seq2seq.model.modeling_rnn_seq2seq import RnnSeq2SeqForConditionalGeneration
    from hf_rnn_seq2seq.model.pretrained import RnnSeq2SeqPreTrainedModel
    from hf_rnn_seq2seq.model.search import SearchOutput
    from hf_rnn_seq2seq.model.search_options import SearchError

__version__ = "0.2.0"

__all__ = [
    "Attention",
    "ConfigError",
    "RnnCausalConfig",
    "RnnCausalModel",
    "RnnClassifierConfig",
    "RnnClassifierModel",
    "RnnForCausalLM",
    "RnnForSequenceClassification",
    "RnnForHandwriting",
    "RnnHandwritingConfig",
    "RnnSeq2SeqCache",
    "RnnSeq2SeqConfig",
    "RnnSeq2SeqForConditionalGeneration",
    "RnnSeq2SeqModel",
    "RnnSeq2SeqPreTrainedModel",
    "SearchError",
    "SearchOutput",
    "__version__",
    "register_attention",
]

_MODULES = {
    "Attention": "attention",
    "ConfigError": "config_checks",
    "RnnClassifierConfig": "configuration_rnn_classifier",
    "RnnClassifierModel": "modeling_rnn_classifier",
    "RnnForSequenceClassification": "modeling_rnn_classifier",
    "RnnCausalConfig": "configuration_rnn_causal",
    "RnnCausalModel": "modeling_rnn_causal",
    "RnnForCausalLM": "modeling_rnn_causal",
    "RnnForHandwriting": "modeling_rnn_handwriting",
    "RnnHandwritingConfig": "configuration_rnn_handwriting",
    "RnnSeq2SeqCache": "decoder_state",
    "RnnSeq2SeqConfig": "configuration_rnn_seq2seq",
    "RnnSeq2SeqForConditionalGeneration": "modeling_rnn_seq2seq",
    "RnnSeq2SeqModel": "encoder_decoder",
    "RnnSeq2SeqPreTrainedModel": "pretrained",
    "SearchError": "search_options",
    "SearchOutput": "search",
    "register_attention": "attention",
}


_registered = False


def register() -> None:
    """Registers everything with transformers, which importing the package does; a second call changes nothing.

    The classes also write themselves into the `auto_map` of what they save, so that a checkpoint loads with
    `trust_remote_code=True` where this package is not installed.
    """
    global _registered
    if _registered:  # what a user has registered since then stays
        return
    from hf_rnn_seq2seq.model.configuration_rnn_seq2seq import RnnSeq2SeqConfig  # checks the version of transformers
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers import AutoModelForSeq2SeqLM, AutoModelForSequenceClassification, AutoProcessor, AutoTokenizer

    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    from hf_rnn_seq2seq.generation.pipeline import register as register_pipeline
    from hf_rnn_seq2seq.model.configuration_rnn_causal import RnnCausalConfig
    from hf_rnn_seq2seq.model.configuration_rnn_classifier import RnnClassifierConfig
    from hf_rnn_seq2seq.model.encoder_decoder import RnnSeq2SeqModel
    from hf_rnn_seq2seq.model.modeling_rnn_causal import RnnCausalModel, RnnForCausalLM
    from hf_rnn_seq2seq.model.modeling_rnn_classifier import RnnClassifierModel, RnnForSequenceClassification
    from hf_rnn_seq2seq.model.configuration_rnn_handwriting import RnnHandwritingConfig
    from hf_rnn_seq2seq.model.modeling_rnn_handwriting import RnnForHandwriting
    from hf_rnn_seq2seq.model.modeling_rnn_seq2seq import RnnSeq2SeqForConditionalGeneration
    from hf_rnn_seq2seq.model.processing_rnn_seq2seq import RnnSeq2SeqProcessor
    from hf_rnn_seq2seq.model.tokenization_rnn_seq2seq import RnnSeq2SeqJointTokenizer, RnnSeq2SeqTokenizer

    AutoConfig.register(RnnSeq2SeqConfig.model_type, RnnSeq2SeqConfig, exist_ok=True)
    AutoModel.register(RnnSeq2SeqConfig, RnnSeq2SeqModel, exist_ok=True)
    AutoModelForSeq2SeqLM.register(RnnSeq2SeqConfig, RnnSeq2SeqForConditionalGeneration, exist_ok=True)
    AutoModelForImageTextToText.register(RnnSeq2SeqConfig, RnnSeq2SeqForConditionalGeneration, exist_ok=True)
    AutoProcessor.register(RnnSeq2SeqConfig, RnnSeq2SeqProcessor, exist_ok=True)
    # The files of a tokenizer name one of these classes; elsewhere a joint one loads as a plain fast tokenizer.
    AutoTokenizer.register(RnnSeq2SeqConfig, fast_tokenizer_class=RnnSeq2SeqJointTokenizer, exist_ok=True)
    AutoTokenizer.register(RnnSeq2SeqConfig, fast_tokenizer_class=RnnSeq2SeqTokenizer, exist_ok=True)
    AutoConfig.register(RnnClassifierConfig.model_type, RnnClassifierConfig, exist_ok=True)
    AutoModel.register(RnnClassifierConfig, RnnClassifierModel, exist_ok=True)
    AutoModelForSequenceClassification.register(RnnClassifierConfig, RnnForSequenceClassification, exist_ok=True)
    AutoConfig.register(RnnCausalConfig.model_type, RnnCausalConfig, exist_ok=True)
    AutoModel.register(RnnCausalConfig, RnnCausalModel, exist_ok=True)
    AutoModelForCausalLM.register(RnnCausalConfig, RnnForCausalLM, exist_ok=True)
    # There Trainer finds the models whose labels its label smoothing has to move by one.
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[RnnCausalConfig.model_type] = RnnForCausalLM.__name__
    AutoTokenizer.register(RnnCausalConfig, fast_tokenizer_class=RnnSeq2SeqJointTokenizer, exist_ok=True)
    AutoConfig.register(RnnHandwritingConfig.model_type, RnnHandwritingConfig, exist_ok=True)
    AutoModel.register(RnnHandwritingConfig, RnnForHandwriting, exist_ok=True)
    register_pipeline()
    RnnSeq2SeqConfig.register_for_auto_class()
    RnnSeq2SeqModel.register_for_auto_class("AutoModel")
    RnnSeq2SeqForConditionalGeneration.register_for_auto_class("AutoModelForSeq2SeqLM")
    RnnClassifierConfig.register_for_auto_class()
    RnnClassifierModel.register_for_auto_class("AutoModel")
    RnnForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")
    RnnCausalConfig.register_for_auto_class()
    RnnCausalModel.register_for_auto_class("AutoModel")
    RnnForCausalLM.register_for_auto_class("AutoModelForCausalLM")
    RnnHandwritingConfig.register_for_auto_class()
    RnnForHandwriting.register_for_auto_class("AutoModel")
    RnnSeq2SeqTokenizer.register_for_auto_class("AutoTokenizer")
    RnnSeq2SeqProcessor.register_for_auto_class("AutoProcessor")
    _registered = True


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.model.{_MODULES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _runs_a_command() -> bool:
    """Whether Python was started for a command of this package.

    Commands register when they have read their options: `--help` and a misspelled option then need no torch, whose
    import takes seconds.
    """
    program = Path(sys.argv[0]) if getattr(sys, "argv", None) else Path()
    if program.name == "-m":  # its name until Python has found the module
        module = _module_to_run(sys.orig_argv)
        return module == __name__ or module.startswith(f"{__name__}.commands.")
    scripts = Path(__file__).resolve().parent.parent / "scripts"
    return program.stem == "hf-rnn" or (program.suffix == ".py" and program.resolve().parent == scripts)


def _module_to_run(words: list[str]) -> str:
    """The module that `python ... -m MODULE` names, also written as `-Im MODULE` or `-mMODULE`."""
    for word, following in zip(words[1:], [*words[2:], ""], strict=False):
        option = re.fullmatch(r"-[A-Za-z]*?m([\w.]*)", word)
        if option:
            return option[1] or following
    return ""


if not _runs_a_command():
    register()
