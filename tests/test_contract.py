"""What the package overrides or calls of other libraries without their promise: private names, and undocumented ones.

Each stands here with its reason. A test fails by name when the library drops it, gives it other parameters, or uses it
no longer; another one when the package comes to lean on a name that is missing here.
"""

import ast
import functools
import importlib
import inspect
import operator
import pkgutil
import pydoc
import re
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
import torch

import hf_rnn_seq2seq

LIBRARIES = {"accelerate", "datasets", "evaluate", "sacrebleu", "tokenizers", "torch", "transformers"}
GENERATION, MODEL = "transformers.generation.utils.GenerationMixin", "transformers.modeling_utils.PreTrainedModel"
TOKENIZER = "transformers.tokenization_utils_tokenizers.TokenizersBackend"
TOKENIZER_BASE = "transformers.tokenization_utils_base.PreTrainedTokenizerBase"
CACHE, PIPELINE = "transformers.cache_utils.Cache", "transformers.pipelines.base.Pipeline"
MODULE = "torch.nn.Module"
PARSER = "argparse.ArgumentParser"
METRIC, SACREBLEU = "evaluate.EvaluationModule", "sacrebleu.metrics.base.Metric"


@dataclass(frozen=True)
class Hook:
    """A name of `owner`, or of its instances; `users` are the functions (or classes) of the library that use it."""

    owner: str
    name: str
    why: str
    users: tuple[str, ...] = ()
    parameters: str | None = None

    def __str__(self) -> str:
        return f"{self.owner.rpartition('.')[2]}.{self.name}"


def by(owner: str, *names: str) -> tuple[str, ...]:
    return tuple(f"{owner}.{name}" for name in names)


HOOKS = [
    # generate()
    Hook(
        GENERATION,
        "_supports_default_dynamic_cache",
        "the default cache holds keys and values, ours a state",
        by(GENERATION, "_prepare_cache_for_generation"),
        "",
    ),
    Hook(
        GENERATION,
        "_prepare_cache_for_generation",
        "assisted decoding wants a cache before the first step",
        by(GENERATION, "generate"),
        "self generation_config model_kwargs generation_mode batch_size max_cache_length",
    ),
    Hook(
        GENERATION,
        "_expand_inputs_for_generation",
        "it writes into the caller's encoder outputs; we hand it a copy",
        by(GENERATION, "generate"),
        "self expand_size is_encoder_decoder input_ids model_kwargs",
    ),
    Hook(
        GENERATION,
        "prepare_inputs_for_generation",
        "a state is not cut: only words new to the cache are read",
        by(GENERATION, "_prefill", "_sample", "_beam_search", "_assisted_decoding"),
    ),
    Hook(
        GENERATION,
        "_prepare_generation_config",
        "a max_length of the call counts more than the max_new_tokens of a language model",
        by(GENERATION, "generate"),
        "self generation_config kwargs",
    ),
    Hook(
        GENERATION,
        "_get_stopping_criteria",
        "stop strings are text of the target's vocabulary",
        by(GENERATION, "generate"),
        "self generation_config stopping_criteria tokenizer",
    ),
    Hook(
        GENERATION,
        "_validate_generation_mode",
        "guidance calls a model with target words as the source",
        by(GENERATION, "generate"),
        "self generation_mode generation_config generation_mode_kwargs",
    ),
    Hook(
        "transformers.utils.hub.PushToHubMixin",
        "_upload_modified_files",
        "save_pretrained uploads before it returns; the search as custom_generate goes too",
        (*by("transformers.utils.hub.PushToHubMixin", "push_to_hub"), *by(MODEL, "save_pretrained")),
    ),
    Hook(
        MODEL,
        "_keys_to_ignore_on_save",
        "the weights that checkpoints lack: constants, which are not trained",
        by(MODEL, "save_pretrained"),
    ),
    Hook(
        MODEL,
        "_is_stateful",
        "assisted decoding refuses stateful models; our cache can go back",
        by(GENERATION, "_validate_generation_mode"),
    ),
    Hook(
        "transformers.GenerationConfig",
        "_get_default_generation_params",
        "the defaults of what nobody has set",
        by(GENERATION, "_prepare_generation_config"),
        "",
    ),
    # The cache.
    Hook(
        CACHE, "crop", "tokens to remove, negative or 0", by(GENERATION, "_assisted_decoding"), "self tokens_to_remove"
    ),
    Hook(
        CACHE, "activate_past_recording", "states are kept from then on", by(GENERATION, "_assisted_decoding"), "self"
    ),
    Hook(CACHE, "reorder_cache", "beams", by(GENERATION, "_beam_search"), "self beam_idx"),
    Hook(CACHE, "is_compileable", "no: it would compile every length", by(GENERATION, "_valid_auto_compile_criteria")),
    Hook(CACHE, "is_croppable", "yes, once it records", ("transformers.generation.utils.DeferredStopCheck",)),
    Hook(
        "transformers.cache_utils.LinearAttentionLayer",
        "update_recurrent_state",
        "what `cache.layers` shows a state as",
        by(CACHE, "update_recurrent_state"),
    ),
    # Weights.
    Hook(
        MODEL,
        "_init_weights",
        "each kind of layer starts as the papers say",
        by(MODEL, "_initialize_weights"),
        "self module",
    ),
    Hook(MODEL, "_no_split_modules", "a layer stays on one device", by(MODEL, "post_init")),
    Hook(
        MODEL,
        "_tied_weights_keys",
        "names of the one table under all its ties",
        by(MODEL, "get_expanded_tied_weights_keys"),
    ),
    Hook(
        MODEL,
        "get_expanded_tied_weights_keys",
        "the default ties nothing where the output layer is untied",
        by(MODEL, "post_init"),
        "self all_submodels",
    ),
    Hook(
        MODEL,
        "_get_resized_embeddings",
        "two vocabularies are resized one by one",
        by(MODEL, "_resize_token_embeddings"),
        "self old_embeddings new_num_tokens pad_to_multiple_of mean_resizing",
    ),
    Hook(
        MODEL,
        "_get_resized_lm_head",
        "as the embeddings",
        by(MODEL, "_resize_token_embeddings"),
        "self old_lm_head new_num_tokens transposed mean_resizing",
    ),
    Hook(
        MODEL,
        "_auto_class",
        "whether a checkpoint carries its code",
        ("transformers.dynamic_module_utils.custom_object_save",),
    ),
    Hook("", "_is_hf_initialized", "loaded rows are left alone", by(MODEL, "_initialize_weights")),
    # Tokenizers.
    Hook(
        TOKENIZER,
        "convert_to_native_format",
        "the default rebuilds a model from parts and drops the merges of BPE",
        by(TOKENIZER_BASE, "_from_pretrained"),
        "trust_remote_code kwargs",
    ),
    Hook(TOKENIZER, "_tokenizer", "there are two, of which one is at work", by(TOKENIZER, "_decode")),
    Hook(
        TOKENIZER,
        "_add_tokens",
        "both sides get a new token",
        by(TOKENIZER_BASE, "add_tokens"),
        "self new_tokens special_tokens",
    ),
    Hook(TOKENIZER, "_decode", "the target's vocabulary decodes", by(TOKENIZER_BASE, "decode")),
    Hook(
        TOKENIZER,
        "_save_pretrained",
        "a second file",
        by(TOKENIZER_BASE, "save_pretrained"),
        "self save_directory file_names legacy_format filename_prefix",
    ),
    Hook(TOKENIZER_BASE, "_switch_to_target_mode", "encodes `text_target`", by(TOKENIZER_BASE, "__call__")),
    Hook(TOKENIZER_BASE, "_switch_to_input_mode", "encodes `text`", by(TOKENIZER_BASE, "__call__")),
    # The pipeline.
    Hook(PIPELINE, "_sanitize_parameters", "sorts the options by step", by(PIPELINE, "__init__", "__call__")),
    Hook(PIPELINE, "_forward", "searches instead of generate()", by(PIPELINE, "forward")),
    *(
        Hook(PIPELINE, f"_load_{part}", "of the tokenizer alone", ("transformers.pipelines.pipeline",))
        for part in ("tokenizer", "feature_extractor", "image_processor", "processor")
    ),
    # Metrics and data.
    Hook(METRIC, "_info", "documented for authors of metrics", by(METRIC, "__init__"), "self"),
    Hook(METRIC, "_compute", "as `_info`", by(METRIC, "compute")),
    Hook(
        SACREBLEU,
        "_extract_corpus_statistics",
        "corpus_score(n_bootstrap=...) fails where a resample scores zero",
        by(SACREBLEU, "corpus_score"),
        "self hypotheses references",
    ),
    Hook(SACREBLEU, "_aggregate_and_compute", "as the statistics", by(SACREBLEU, "corpus_score"), "self stats"),
    Hook(
        "sacrebleu.significance",
        "_bootstrap_resample",
        "as the statistics",
        by(SACREBLEU, "corpus_score"),
        "stats metric n_samples",
    ),
    Hook(
        "sacrebleu.metrics.base.Score", "_mean", "of the resamples", by("sacrebleu.metrics.base.Score", "estimate_ci")
    ),
    Hook("sacrebleu.metrics.base.Score", "_ci", "as the mean", by("sacrebleu.metrics.base.Score", "estimate_ci")),
    Hook("datasets.Dataset", "_fingerprint", "names what a table was made of", by("datasets.Dataset", "__init__")),
    Hook(
        "accelerate.state.AcceleratorState",
        "_reset_state",
        "a process may train in another precision after its first run",
        (),
        "reset_partial_state",
    ),
    # torch.
    Hook(MODULE, "_forward_hooks", "a layer with a hook is called, not read", by(MODULE, "register_forward_hook")),
    Hook(MODULE, "_forward_pre_hooks", "as the hooks", by(MODULE, "register_forward_pre_hook")),
    Hook(MODULE, "_backward_hooks", "as the hooks", by(MODULE, "register_full_backward_hook")),
    Hook(MODULE, "_backward_pre_hooks", "as the hooks", by(MODULE, "register_full_backward_pre_hook")),
    Hook(
        MODULE, "_compiled_call_impl", "a part compiled in place is called, not read", by(MODULE, "compile", "__call__")
    ),
    Hook("torch", "_foreach_lerp_", "averages all weights in one call"),
    Hook("torch.ops.mkldnn", "_linear_pointwise", "oneDNN's product of a packed weight"),
    Hook("torch.ops.mkldnn", "_reorder_linear_weight", "packs it"),
    Hook("torch.ops.aten", "_softmax_backward_data", "the scan's own backward pass"),
    Hook("torch.optim.Adam", "found_inf", "fused kernels skip the update where it is 1", ("torch.optim.Adam",)),
    # argparse.
    Hook(
        PARSER,
        "_option_string_actions",
        "the declared options: their names, and the positional words that they give back",
        by(PARSER, "_parse_optional"),
    ),
    Hook(PARSER, "_actions", "the positional words that a command needs", by(PARSER, "parse_known_args")),
    Hook(PARSER, "_action_groups", "help shows an option in one line, group by group", by(PARSER, "format_help")),
    Hook("argparse._ArgumentGroup", "_group_actions", "the options of a group", by(PARSER, "format_help")),
]


def modules() -> Iterator[ModuleType]:
    for found in pkgutil.walk_packages(hf_rnn_seq2seq.__path__, "hf_rnn_seq2seq."):
        try:
            yield importlib.import_module(found.name)
        except ModuleNotFoundError as error:
            pytest.skip(f"{error.name} (of an extra) is not installed")


@functools.cache
def source(thing: object) -> str:
    """The text of a class or function; "" where it was made at run time or is not Python."""
    try:
        return textwrap.dedent(inspect.getsource(thing))
    except (OSError, TypeError):
        return ""


@functools.cache
def private_names(base: type) -> frozenset[str]:
    """The private names that a library's class defines, or reads from itself."""
    pattern = r"\b(?:self\.|cls\.|def )(_[a-z]\w*)|^    (_[a-z]\w*)\b"
    return frozenset(one or other for one, other in re.findall(pattern, source(base), re.MULTILINE))


def private(name: object) -> bool:
    return isinstance(name, str) and re.fullmatch(r"_[a-z]\w*", name) is not None and not name.startswith("__")


def names(tree: ast.AST, *, stored: bool) -> Iterator[str]:
    """The names that `tree` defines or sets (`stored`), or the attributes it reads, by `getattr` too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and stored:
            yield node.name
        elif isinstance(node, ast.Name) and stored and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) == stored:
            yield node.attr
        elif isinstance(node, ast.ImportFrom) and not stored and not node.level:
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.Dict) and not stored:  # names that a loop looks up
            yield from (key.value for key in node.keys if isinstance(key, ast.Constant))
        elif isinstance(node, ast.Call) and not stored and getattr(node.func, "id", "") in ("getattr", "hasattr"):
            yield from (one.value for one in node.args[1:2] if isinstance(one, ast.Constant))


# Of named tuples, and of os.
PUBLIC_ALL_THE_SAME = {"_asdict", "_exit", "_fields", "_replace"}


def foreign_names() -> dict[str, str]:
    """Private names of libraries that the package reads or overrides, and where."""
    root = Path(hf_rnn_seq2seq.__path__[0])
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in root.rglob("*.py")}
    own = {name for tree in trees.values() for name in names(tree, stored=True)} | PUBLIC_ALL_THE_SAME
    classes = {
        (path, node.name): node
        for path, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    }
    found = {
        name: path.name
        for path, tree in trees.items()
        for name in names(tree, stored=False)
        if private(name) and name not in own
    }
    for module in modules():
        for kind in vars(module).values():
            if not inspect.isclass(kind) or kind.__module__ != module.__name__:
                continue
            bases = [base for base in kind.__mro__ if base.__module__.split(".")[0] in LIBRARIES]
            theirs = set().union(*map(private_names, bases))
            # A mixin overrides what the classes with it inherit.
            for part in (one for one in kind.__mro__ if one.__module__.startswith("hf_rnn_seq2seq.")):
                file = Path(sys.modules[part.__module__].__file__)
                tree = classes.get((file, part.__name__)) or ast.parse(source(part))
                used = set(filter(private, [*names(tree, stored=True), *names(tree, stored=False)]))
                found |= dict.fromkeys(used & theirs, part.__name__)
    return found


def test_every_private_name_of_a_library_is_listed() -> None:
    found = foreign_names()
    listed = {hook.name for hook in HOOKS}
    missing = {name: place for name, place in found.items() if name not in listed}
    assert not missing, f"private names of libraries that stand in no Hook: {missing}"
    stale = sorted(name for name in listed if private(name) and name not in found)
    assert not stale, f"hooks that the package no longer uses: {stale}"


@pytest.mark.parametrize("hook", HOOKS, ids=str)
def test_the_library_still_has_and_uses_it(hook: Hook) -> None:
    library = (hook.owner or hook.users[0]).split(".")[0]
    pytest.importorskip(library, reason=f"{library} is not installed")
    if hook.owner:
        owner = (
            operator.attrgetter(hook.owner.partition("torch.")[2])(torch)
            if "ops." in hook.owner
            else pydoc.locate(hook.owner)
        )
        assert owner is not None, f"{hook.owner} is gone"
        there = hasattr(owner, hook.name) or re.search(rf"\bself\b.*\b{hook.name}\b", source(owner))
        assert there, f"{hook} is gone; needed since {hook.why}"
        if hook.parameters is not None:
            told = " ".join(inspect.signature(getattr(owner, hook.name)).parameters)
            assert told == hook.parameters, f"{hook} has other parameters; needed since {hook.why}"
    for user in hook.users:
        place = pydoc.locate(user)
        assert place is not None, f"{user} is gone; it used {hook}"
        assert re.search(rf"\b{hook.name}\b", source(place)), f"{user} no longer uses {hook}; {hook.why}"
