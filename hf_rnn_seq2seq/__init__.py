"""Recurrent sequence-to-sequence models with attention, as first-class citizens of the Hugging Face ecosystem.

Importing the package registers the models, the configuration, the tokenizer and the pipeline with transformers.
"""

from transformers import AutoConfig, AutoModel, AutoModelForSeq2SeqLM, AutoTokenizer

from hf_rnn_seq2seq.model.attention import Attention, register_attention
from hf_rnn_seq2seq.model.decoder_state import RnnSeq2SeqCache
from hf_rnn_seq2seq.model.config_checks import ConfigError
from hf_rnn_seq2seq.model.configuration_rnn_seq2seq import RnnSeq2SeqConfig
from hf_rnn_seq2seq.model.encoder_decoder import RnnSeq2SeqModel
from hf_rnn_seq2seq.model.modeling_rnn_seq2seq import RnnSeq2SeqForConditionalGeneration
from hf_rnn_seq2seq.model.pretrained import RnnSeq2SeqPreTrainedModel
from hf_rnn_seq2seq.model.search import SearchOutput
from hf_rnn_seq2seq.model.search_options import SearchError
from hf_rnn_seq2seq.model.tokenization_rnn_seq2seq import RnnSeq2SeqJointTokenizer, RnnSeq2SeqTokenizer
from hf_rnn_seq2seq.generation.pipeline import register as register_pipeline

__version__ = "0.2.0"

__all__ = [
    "Attention",
    "ConfigError",
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

AutoConfig.register(RnnSeq2SeqConfig.model_type, RnnSeq2SeqConfig, exist_ok=True)
AutoModel.register(RnnSeq2SeqConfig, RnnSeq2SeqModel, exist_ok=True)
AutoModelForSeq2SeqLM.register(RnnSeq2SeqConfig, RnnSeq2SeqForConditionalGeneration, exist_ok=True)
# The files of a tokenizer name one of these classes; without this package a joint one loads as a plain fast tokenizer.
AutoTokenizer.register(RnnSeq2SeqConfig, fast_tokenizer_class=RnnSeq2SeqJointTokenizer, exist_ok=True)
AutoTokenizer.register(RnnSeq2SeqConfig, fast_tokenizer_class=RnnSeq2SeqTokenizer, exist_ok=True)
register_pipeline()

# The classes write themselves into the `auto_map` of what they save, so that a checkpoint loads with
# `trust_remote_code=True` where this package is not installed.
RnnSeq2SeqConfig.register_for_auto_class()
RnnSeq2SeqModel.register_for_auto_class("AutoModel")
RnnSeq2SeqForConditionalGeneration.register_for_auto_class("AutoModelForSeq2SeqLM")
RnnSeq2SeqTokenizer.register_for_auto_class("AutoTokenizer")
