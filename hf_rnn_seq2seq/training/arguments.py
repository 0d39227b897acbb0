"""The options of training and of its checkpoints' default search, with Hugging Face's names where it has one.

The class is called `TrainingOptions` because `transformers.TrainingArguments` has other fields.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from hf_rnn_seq2seq.data.arguments import OF_TASKS, PATH_OPTIONS, DataArguments, TokenizerArguments
from hf_rnn_seq2seq.errors import ArgumentError
from hf_rnn_seq2seq.option_parser import parse_arguments
from hf_rnn_seq2seq.options import OptionGroup, import_code, option
from hf_rnn_seq2seq.training.model_fields import check_preset, model_fields

if TYPE_CHECKING:
    from transformers import GenerationConfig


@dataclass
class GenerationArguments(OptionGroup):
    """How the checkpoint translates by default (its generation_config.json)."""

    num_beams: int | None = option(None, "beams (default: model_name_or_path's, else 1, which is greedy)", at_least=1)
    max_new_tokens: int = option(128, "longest translation in tokens", at_least=1)
    length_penalty: float | None = option(None, "beam scores are divided by length to this power (same default)")
    no_repeat_ngram_size: int | None = option(
        None, "never write an n-gram of this size twice; 0 is off (same default)", at_least=0
    )

    def set(self, config: GenerationConfig, inherited: str | None = None) -> None:
        """Sets the given options in a GenerationConfig, and checks that transformers can save it.

        Args:
            config: of a new model, or of the checkpoint `inherited`, whose values stay unless an option is given.

        Raises:
            ArgumentError: the options contradict one another or the checkpoint's.
        """
        from hf_rnn_seq2seq.model.search_options import limit_length

        # transformers warns about a neutral value in generation_config.json.
        neutral = {"length_penalty": 1.0, "no_repeat_ngram_size": 0}
        for name, value in dataclasses.asdict(self).items():
            if value is not None:
                setattr(config, name, None if neutral.get(name) == value else value)
        if config.num_beams is None:
            config.num_beams = 1
        limit_length(config)
        try:
            config.validate(strict=True)
        except ValueError as error:
            reason = " ".join(str(error).split()).removeprefix("GenerationConfig is invalid: - ")
            names = dict.fromkeys(re.findall(r"`(\w+)`", reason))
            values = {name: getattr(config, name) for name in names if getattr(config, name, None) is not None}
            shown = ", ".join(f"{name}={value!r}" for name, value in values.items())
            where = f"in the generation config of {inherited} with the options of this run" if inherited else "together"
            mend = (
                "give other values for them" if not inherited else "give a value for each that fits, or change it there"
            )
            raise ArgumentError(f"{shown}: cannot be saved {where}; {mend} ({reason[:200]})") from None


OPTIMIZERS = ("adamw", "adam", "sgd", "adadelta")
SCHEDULES = ("constant", "linear", "cosine", "inverse_sqrt", "plateau", "halving")
OF_TRANSLATIONS = ("bleu", "chrf", "exact_match", "sequence_error", "symbol_error")
OF_CLASSES = ("accuracy", "macro_f1")
METRICS = ("loss", "perplexity", *OF_TRANSLATIONS, *OF_CLASSES)
# What a task measures where that is not a translation; the first decides which weights are the best.
MEASURED = {
    "classification": ("accuracy", "macro_f1", "loss"),
    "text": ("loss", "perplexity"),
    "handwriting": ("loss",),
}
OBJECTIVES = ("ml", "mrt", "reinforce")
PRECISIONS = ("no", "bf16", "fp16", "auto")
REWARDS = ("gleu", "bleu", "chrf", "sequence_error", "symbol_error")


_RESUME = {**dict.fromkeys(("latest", "true", "yes", "on"), "latest"), **dict.fromkeys(("false", "no", "off"), None)}


@dataclass
class TrainingOptions(OptionGroup):
    """The training loop."""

    output_dir: str | None = option(None, "the run directory; one run each", path=True)
    resume_from_checkpoint: str | None = option(
        None, "`latest` (or true), a step, or the folder of a checkpoint", path=True
    )
    imports: str | None = option(
        None, "`mine.py` or a module with an attention or a model of your own; several between commas", path=True
    )
    model_name_or_path: str | None = option(None, "start from the weights and tokenizer of this checkpoint", path=True)
    encoder: dict | str | None = option(
        None,
        "a pretrained encoder of transformers (folder or Hub) in the place of the source's word vectors; its own "
        "tokenizer reads the source. Or the fields of one that starts at random: {model_type: marian, d_model: 256}",
        path=True,
    )
    extend_vocabulary: str | None = option(
        None,
        "text file of new tokens, one a line, added to the vocabulary; two files `source,target` where it is two",
        path=True,
    )
    source_vectors: str | None = option(
        None, "word vectors (word2vec or GloVe text, also .gz) of source words", path=True
    )
    target_vectors: str | None = option(None, "the same for target words", path=True)
    freeze_vectors: bool = option(False, "do not train the embeddings that word vectors initialized")
    freeze: list[str] = option([], "do not train the parameters whose names match, such as model.encoder.*")
    dry_run: bool = option(False, "print the plan, time 20 steps, write nothing")
    seed: int = option(42, "seed of the weights, the order of batches and dropout", at_least=0, at_most=2**32 - 1)
    num_seeds: int = option(
        1, "train this number of models, with seed, seed + 1, ..., side by side: an ensemble", at_least=1
    )
    cpu_threads: int | None = option(None, "threads per process (default: cores / local processes)", at_least=1)
    # The batch of an update
    per_device_train_batch_size: int = option(64, "sentences per process and micro-batch", at_least=1)
    gradient_accumulation_steps: int = option(1, "micro-batches per update and process", at_least=1)
    train_batch_tokens: int | None = option(
        None,
        "padded tokens (source and target) of an update over all processes; replaces the sentence count",
        at_least=1,
    )
    per_device_eval_batch_size: int = option(64, "sentences per process in evaluation", at_least=1)
    # How long
    max_steps: int = option(-1, "updates; -1: as many as num_train_epochs needs", at_least=-1)
    num_train_epochs: float = option(3.0, "passes over the training split, fractions allowed", above=0)
    max_train_seconds: float | None = option(None, "wall-clock budget, evaluations and saving included", above=0)
    early_stopping_patience: int | None = option(None, "stop after so many evaluations without a gain", at_least=1)
    early_stopping_threshold: float = option(0.0, "a gain must be larger than this to count", at_least=0)
    # Optimization
    optim: str = option("adamw", "fused if the device supports it", choices=OPTIMIZERS)
    learning_rate: float = option(1e-3, "the peak", at_least=0)
    weight_decay: float = option(0.0, "of matrices only: not of biases, gains or vectors", at_least=0)
    adam_beta1: float = option(0.9, "of adamw and adam", at_least=0, below=1)
    adam_beta2: float = option(0.999, "of adamw and adam", at_least=0, below=1)
    adam_epsilon: float = option(1e-8, "of adamw, adam and adadelta", above=0)
    adadelta_rho: float = option(0.95, "of adadelta (Bahdanau 2014: 0.95 with adam_epsilon 1e-6)", at_least=0, below=1)
    max_grad_norm: float = option(1.0, "clip the gradient to this norm; 0 is off", at_least=0)
    lr_scheduler_type: str = option("linear", "learning rate schedule", choices=SCHEDULES)
    warmup_steps: int = option(0, "updates of linear growth before the schedule", at_least=0)
    min_lr_ratio: float = option(
        0.0, "floor of linear, cosine and plateau, as a share of the peak", at_least=0, at_most=1
    )
    halving_start: float = option(0.5, "halving: share of the run that keeps the peak", at_least=0, below=1)
    halving_times: int = option(5, "halving: halvings spread over the rest", at_least=1)
    plateau_patience: int = option(2, "plateau: evaluations without a gain before a cut", at_least=1)
    plateau_factor: float = option(0.5, "plateau: factor of a cut", above=0, below=1)
    ema_decay: float = option(0.0, "decay of the running average of the weights; 0 is off", at_least=0, below=1)
    mixed_precision: str = option(
        "no", "precision of the training step; auto: bf16 if the processor supports it", choices=PRECISIONS
    )
    gradient_checkpointing: bool = option(False, "recompute activations to save memory")
    max_skipped_updates: int = option(10, "stop after so many non-finite updates in a row", at_least=1)
    # Sequence-level training, a second stage
    objective: str = option("ml", "cross entropy, minimum risk, or REINFORCE", choices=OBJECTIVES)
    objective_metric: str = option("gleu", "mrt, reinforce: the sentence score that is raised", choices=REWARDS)
    objective_samples: int = option(15, "mrt, reinforce: translations drawn for each sentence", at_least=2)
    mrt_alpha: float = option(0.005, "mrt: sharpness of the distribution over the candidates", above=0)
    ml_weight: float | None = option(
        None, "mrt, reinforce: share of cross entropy (default: 0 for mrt, 0.017 for reinforce)", at_least=0
    )
    # Evaluation, saving, reporting
    eval_steps: int | None = option(500, "updates between evaluations; none: only at the end", at_least=1)
    predict_with_generate: bool = option(True, "translate the validation split too, and score it")
    max_generate_samples: int | None = option(None, "translate only so many validation rows", at_least=1)
    metric_for_best_model: str | None = option(
        None, "default: accuracy of a classifier; else bleu if it is measured, else loss", choices=METRICS
    )
    save_steps: int | None = option(500, "updates between checkpoints; none: only at the end", at_least=1)
    save_total_limit: int | None = option(2, "checkpoints kept in addition to the best one; none: all", at_least=1)
    logging_steps: int = option(50, "updates between log lines", at_least=1)
    disable_tqdm: bool = option(False, "no progress bar; where standard error is a file there is none anyway")
    report_to: list[str] = option(["tensorboard"], "trackers of Accelerate, or none")
    # The Hub
    push_to_hub: bool = option(False, "upload checkpoints in the background, and the run at its end")
    hub_model_id: str | None = option(None, "the repository, `user/name`; created if it does not exist")
    hub_strategy: str = option("every_save", "with each checkpoint, or once at the end", choices=("every_save", "end"))
    hub_token: str | None = option(None, "default: HF_TOKEN, or the token of `hf auth login`; never written to a file")
    hub_private_repo: bool = option(False, "create a private repository")

    def validate(self) -> None:
        if self.max_steps == 0:
            raise ArgumentError("max_steps=0: must be at least 1, or -1 for num_train_epochs")
        self.resume_from_checkpoint = _RESUME.get(str(self.resume_from_checkpoint).lower(), self.resume_from_checkpoint)
        if self.metric_for_best_model in OF_TRANSLATIONS and not self.predict_with_generate:
            raise ArgumentError(
                f"metric_for_best_model={self.metric_for_best_model!r}: needs predict_with_generate, "
                "without it loss or perplexity"
            )
        if self.push_to_hub and not re.fullmatch(r"[\w.-]+/[\w.-]+", self.hub_model_id or ""):
            raise ArgumentError(f"hub_model_id={self.hub_model_id!r}: push_to_hub needs a repository, user/name")
        self.report_to = [name for name in self.report_to if name != "none"]
        self._validate_vectors()
        self._validate_objective()
        for name in ("model_name_or_path", "source_vectors", "extend_vocabulary"):
            if self.encoder is not None and getattr(self, name):
                reason = (
                    "decides what the model is" if name == "model_name_or_path" else "changes the source's word vectors"
                )
                raise ArgumentError(
                    f"encoder={self.encoder!r}: {name}={getattr(self, name)!r} {reason}; leave out one of them "
                    "(encoder of a recipe: --encoder none)"
                )

    def _validate_objective(self) -> None:
        of_mrt, of_both = ("mrt_alpha",), ("objective_metric", "objective_samples", "ml_weight")
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        for name in (*(of_mrt if self.objective != "mrt" else ()), *(of_both if self.objective == "ml" else ())):
            if getattr(self, name) != defaults[name]:
                raise ArgumentError(f"{name}={getattr(self, name)!r}: has no effect with objective={self.objective!r}")
        if self.objective == "ml":
            return
        if not self.model_name_or_path:
            raise ArgumentError(
                f"objective={self.objective!r}: needs model_name_or_path, the checkpoint a second stage starts from"
            )
        if self.gradient_checkpointing:
            raise ArgumentError(f"gradient_checkpointing=True: has no effect with objective={self.objective!r}")

    def _validate_vectors(self) -> None:
        given = [name for name in ("source_vectors", "target_vectors") if getattr(self, name)]
        if self.freeze_vectors and not given:
            raise ArgumentError("freeze_vectors=True: needs source_vectors or target_vectors")
        if given and self.model_name_or_path and not self.extend_vocabulary:
            raise ArgumentError(
                f"{given[0]}={getattr(self, given[0])!r}: cannot be combined with model_name_or_path, whose "
                "embeddings would be lost, unless extend_vocabulary adds tokens, whose embeddings are filled"
            )

    @property
    def pretrained_encoder(self) -> str | None:
        """The folder or the repository of a pretrained encoder."""
        return self.encoder if isinstance(self.encoder, str) else None

    @property
    def best_metric(self) -> str:
        """The metric that decides which weights are the best."""
        return self.metric_for_best_model or ("bleu" if self.predict_with_generate else "loss")


GROUPS = (DataArguments, TokenizerArguments, GenerationArguments, TrainingOptions)


# The tokenizer decides the sizes of the vocabularies and the special tokens, the loop turns the cache off.
@dataclass(frozen=True)
class RunOptions:
    """Every option of a run. `model` holds those of the model's configuration that were given, and `preset`."""

    data: DataArguments
    tokenizer: TokenizerArguments
    generation: GenerationArguments
    training: TrainingOptions
    model: dict[str, Any]

    def __post_init__(self) -> None:
        task, metric = self.data.task, self.training.metric_for_best_model
        measured = MEASURED.get(task, ("loss", "perplexity", *OF_TRANSLATIONS))
        if metric is not None and metric not in measured:
            raise ArgumentError(f"metric_for_best_model={metric!r}: is not measured with task={task!r}")
        if metric is None and task in MEASURED:
            self.training.metric_for_best_model = measured[0]
        for group in (self.data, self.tokenizer, self.generation, self.training):
            for item in dataclasses.fields(group):
                default = item.default_factory() if item.default is dataclasses.MISSING else item.default
                if (value := getattr(group, item.name)) != default:
                    _check_task(item.name, value, task)
        if (preset := self.model.get("preset")) is not None:
            check_preset(preset, task, self.training.encoder)
        for name, value in self.model.items():
            if name not in model_fields(task):
                raise ArgumentError(f"{name}={value!r}: is not a field of the models of task={task!r}; leave it out")
            if value:
                _check_task(name, value, task)

    @classmethod
    def parse(cls, words: Sequence[str], description: str = "") -> RunOptions:
        """Reads `[RECIPE.yaml] [--option value ...]`, see `parse_arguments`."""
        options = cls(*parse_arguments(words, GROUPS, model_fields(), description=description))
        if options.training.imports:
            import_code(options.training.imports)
        return options

    def recipe(self) -> str:
        """The recipe that repeats the run, see `dump_recipe`."""
        return dump_recipe((self.data, self.tokenizer, self.generation, self.training), self.model)


def _check_task(name: str, value: object, task: str) -> None:
    """Raises ArgumentError if the task has no use for an option that was given."""
    if (tasks := OF_TASKS.get(name)) and task not in tasks:
        raise ArgumentError(f"{name}={value!r}: has no effect with task={task!r}, it is for {' and '.join(tasks)}")


_OF_ONE_START = ("output_dir", "resume_from_checkpoint", "dry_run", "push_to_hub", "hub_model_id", "hub_strategy")
_OF_ONE_START += ("hub_token", "hub_private_repo")


def dump_recipe(groups: Sequence[Any], model_options: Mapping[str, Any]) -> str:
    """The options as the YAML text of a recipe that repeats the run from any working directory.

    Files are written with their absolute paths; options of a single start (output_dir, ...) are left out.
    """
    options: dict[str, Any] = {}
    for group in groups:
        options.update(dataclasses.asdict(group))
    options.update(model_options)
    for name in _OF_ONE_START:
        options.pop(name, None)
    for name in PATH_OPTIONS:
        if isinstance(options.get(name), str):
            options[name] = ",".join(
                os.path.abspath(part) if Path(part).exists() else part for part in options[name].split(",")
            )
    return yaml.safe_dump(options, sort_keys=False, allow_unicode=True)
