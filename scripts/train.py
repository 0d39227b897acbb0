"""Train a translator: `accelerate launch scripts/train.py RECIPE.yaml [--option value ...] --output_dir DIR`.

    accelerate launch scripts/train.py scripts/recipes/cldr_en_fr.yaml --output_dir runs/demo

Options override the recipe. The same command with `--resume_from_checkpoint latest` continues a run that was stopped;
`--dry_run` prints the plan and times some updates. Exit codes: 0 done, 2 bad input, 1 training cannot go on, 128 + n
stopped by signal n with the state saved.
"""

import contextlib
import dataclasses
import inspect
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# A thread of OpenMP that waits by spinning takes the core from one that has work: with anything else running, training
# on all cores was seen to become five times slower. One that sleeps at once has to be woken for every product, which
# costs a third of the speed of an idle machine. So: spin shortly, then sleep. Read once, when torch is imported.
if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
    os.environ["GOMP_SPINCOUNT"] = "2000"

from hf_rnn_seq2seq import RnnSeq2SeqConfig, command_line  # noqa: E402  after GOMP_SPINCOUNT
from hf_rnn_seq2seq.data.arguments import DataArguments, TokenizerArguments
from hf_rnn_seq2seq.errors import (
    ArgumentError,
    reading,  # noqa: E402  after GOMP_SPINCOUNT
)
from hf_rnn_seq2seq.options import parse_arguments
from hf_rnn_seq2seq.training.arguments import OF_TRANSLATIONS, GenerationArguments, TrainingOptions, dump_recipe

# The tokenizer decides the sizes of the vocabularies and its special tokens, the loop about the cache.
NOT_OPTIONS = {"vocab_size", "source_vocab_size", "use_cache", "is_encoder_decoder", "transformers_version"}
STREAMED_TOKENIZER_ROWS = 200_000
GROUPS = (DataArguments, TokenizerArguments, GenerationArguments, TrainingOptions)


def model_options() -> dict[str, Any]:
    """The fields of the model's configuration that are options, with their types."""
    own = inspect.get_annotations(RnnSeq2SeqConfig)
    fields = {name: kind for name, kind in own.items() if name not in NOT_OPTIONS and not name.endswith("_token_id")}
    return {"preset": str, **fields}


def build_tokenizer(options: TokenizerArguments, data: DataArguments, corpus: Any, saved: str | Path | None) -> Any:
    """The tokenizer that was saved or named, else one trained on the training split."""
    from transformers import AutoTokenizer

    from hf_rnn_seq2seq.data.named_tokenizer import load_tokenizer
    from hf_rnn_seq2seq.data.tokenizer import build_tokenizer
    from hf_rnn_seq2seq.model.tokenization_rnn_seq2seq import RnnSeq2SeqTokenizer

    if saved is not None and saved == options.tokenizer_name_or_path:
        return load_tokenizer(saved, say=lambda text: print(text, file=sys.stderr))
    if saved is not None:
        with reading(f"the tokenizer of {str(saved)!r}", ArgumentError):
            return AutoTokenizer.from_pretrained(saved)
    train = corpus.splits["train"]
    if data.streaming:
        train = train.take(STREAMED_TOKENIZER_ROWS)
    return build_tokenizer(
        train["source"],
        train["target"],
        algorithm=options.tokenizer_algorithm,
        vocab_size=options.vocab_size,
        source_vocab_size=options.source_vocab_size,
        joint=options.joint_vocabulary,
        min_frequency=options.min_frequency,
        lowercase=options.lowercase,
        model_max_length=data.max_source_length,
        separate_class=RnnSeq2SeqTokenizer,
    )


def build_model(
    options: dict[str, Any], training: TrainingOptions, data: DataArguments, generation: GenerationArguments, tok: Any
) -> Any:
    """A model that fits the tokenizer: of a checkpoint, of a preset, or of configuration fields."""
    from transformers import AutoModelForSeq2SeqLM

    from hf_rnn_seq2seq.data.named_tokenizer import start_token_id
    from hf_rnn_seq2seq.data.tokenizer import source_vocabulary_size, target_vocabulary_size
    from hf_rnn_seq2seq.run_directory import require_finite
    from hf_rnn_seq2seq.training.adaptation import grow_tables

    sizes = {"source_vocab_size": source_vocabulary_size(tok), "vocab_size": target_vocabulary_size(tok)}
    fields = {name: value for name, value in options.items() if name != "preset"}
    if fields.get("copy_mechanism") and hasattr(tok, "target_vocab_size"):
        # Two vocabularies of one size would pass the config's check, and a copied word would be another.
        raise ArgumentError("copy_mechanism=True: source words are copied as target words; needs joint_vocabulary=True")
    if training.model_name_or_path:
        if "preset" in options:
            raise ArgumentError(f"preset={options['preset']!r}: model_name_or_path decides what the model is")
        with reading(f"model_name_or_path={training.model_name_or_path!r}", ArgumentError):
            model = AutoModelForSeq2SeqLM.from_pretrained(training.model_name_or_path, use_safetensors=True, **fields)
        require_finite(model.state_dict().items(), f"model_name_or_path={training.model_name_or_path!r}: ")
        if training.extend_vocabulary:
            grow_tables(model, **sizes)
        for name, needed in sizes.items():
            if getattr(model.config, name, needed) < needed:
                raise ArgumentError(
                    f"model_name_or_path={training.model_name_or_path!r}: {name} is {getattr(model.config, name)}, "
                    f"the tokenizer has {needed} entries"
                )
    else:
        if fields.get("attention_type") == "location":
            fields.setdefault("max_source_positions", data.max_source_length)
        special = {name: getattr(tok, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
        fields = {**fields, **sizes, **special, "decoder_start_token_id": start_token_id(tok)}
        preset = options.get("preset")
        config = RnnSeq2SeqConfig.from_preset(preset, **fields) if preset else RnnSeq2SeqConfig(**fields)
        model = AutoModelForSeq2SeqLM.from_config(config)
    generation.set(model.generation_config, training.model_name_or_path)
    return model


def resumed_tokenizer(training: TrainingOptions) -> Path | None:
    """The newest complete checkpoint of the run to continue: its vocabulary is the run's."""
    from hf_rnn_seq2seq.training.checkpoints import CheckpointStore, named_checkpoint

    if training.resume_from_checkpoint in (None, "latest"):
        store = CheckpointStore(str(training.output_dir))
        return store.latest(lambda _: None) if training.resume_from_checkpoint else None
    return named_checkpoint(str(training.output_dir), training.resume_from_checkpoint)


def build_loop(
    groups: Sequence[Any], options: dict[str, Any], accelerator: Any, uploads: Any = None
) -> tuple[Any, tuple[int, int]]:
    """Corpus, tokenizer, model and the loop that joins them; the second value is the sizes of the vocabularies."""
    from functools import partial

    import torch
    from accelerate.utils import broadcast_object_list, set_seed

    from hf_rnn_seq2seq.data.corpus import Collator, load_corpus, tokenize_corpus
    from hf_rnn_seq2seq.data.loader import BatchLoader
    from hf_rnn_seq2seq.data.sampled_table import SampledTable, build_sampler
    from hf_rnn_seq2seq.data.streaming import TextStream, in_memory
    from hf_rnn_seq2seq.data.tokenizer import source_vocabulary_size, target_vocabulary_size
    from hf_rnn_seq2seq.evaluation.scores import score, why_blind
    from hf_rnn_seq2seq.generation.translate import translate
    from hf_rnn_seq2seq.hub.background_upload import without_token
    from hf_rnn_seq2seq.run_directory import require_vocabulary
    from hf_rnn_seq2seq.training.adaptation import Adaptation
    from hf_rnn_seq2seq.training.loop import TrainingLoop
    from hf_rnn_seq2seq.training.sequence_objectives import build_objective
    from hf_rnn_seq2seq.training.validation import Validator

    data, tokenizer_options, generation, training = groups
    set_seed(training.seed)
    # One process of each machine fills the cache, the others read it.
    with accelerator.local_main_process_first():
        corpus = load_corpus(**corpus_options(data), splits=("train", "validation"))
    if data.streaming and "validation" in corpus.splits:
        corpus.splits["validation"] = in_memory(corpus.splits["validation"])
    if "train" not in corpus.splits:
        raise ArgumentError("train_file=None: there is no training split to train on")
    resumed = resumed_tokenizer(training)
    saved = resumed or tokenizer_options.tokenizer_name_or_path or training.model_name_or_path
    held = [build_tokenizer(tokenizer_options, data, corpus, saved) if accelerator.is_main_process else None]
    if accelerator.num_processes > 1:
        broadcast_object_list(held)
    tokenizer = held[0]
    main = accelerator.is_main_process
    adaptation = Adaptation(
        training, resumed=resumed is not None, say=lambda text: print(text, file=sys.stderr) if main else None
    )
    adaptation.extend(tokenizer)
    if training.model_name_or_path and tokenizer_options.tokenizer_name_or_path and resumed is None:
        require_vocabulary(training.model_name_or_path, tokenizer)
    limits = {"max_source_length": data.max_source_length, "max_target_length": data.max_target_length}
    sampler = build_sampler(tokenizer, tokenizer_options, seed=training.seed, **limits)
    tokenized, skipped = {}, {split: dict(counts) for split, counts in corpus.skipped.items()}
    with accelerator.local_main_process_first():
        for split, rows in corpus.splits.items():
            if data.streaming and split == "train":
                window = {"buffer": data.streaming_buffer, "sampler": sampler}
                tokenized[split] = TextStream(rows, tokenizer, **limits, **window)
                continue
            tokenized[split], counts = tokenize_corpus(
                rows, tokenizer, **limits, num_proc=data.preprocessing_num_workers, alignment_unit=data.alignment_unit
            )
            skipped[split] = {**skipped.get(split, {}), **counts}
    if accelerator.is_main_process:
        for split, counts in skipped.items():
            rows = "streamed" if isinstance(tokenized[split], TextStream) else f"{len(tokenized[split])} rows"
            print(f"{split}: {rows}; {corpus.left_out(split, counts)}", file=sys.stderr)
    collate = Collator(tokenizer.pad_token_id)
    validator = None
    if "validation" in tokenized:
        batch_size = training.per_device_eval_batch_size
        texts = corpus.splits["validation"] if training.predict_with_generate else None
        chosen = [training.best_metric] if training.best_metric in OF_TRANSLATIONS else []
        blind = why_blind(training.best_metric, texts["target"]) if texts is not None else None
        if blind and main:
            print(f"warning: metric_for_best_model={training.best_metric!r}: {blind}", file=sys.stderr)
        search = {"num_beams": 1, "max_new_tokens": generation.max_new_tokens, "progress": False}
        search["workers"] = torch.get_num_threads()
        validator = Validator(
            BatchLoader(tokenized["validation"], collate, device=accelerator.device),
            batch_size=batch_size,
            texts=texts,
            translate=lambda model, sources: translate(model, tokenizer, sources, batch_size=batch_size, **search),
            score=partial(score, metrics=tuple(dict.fromkeys(("bleu", "chrf", *chosen)))),
            max_translations=training.max_generate_samples,
        )
    vocabulary = (source_vocabulary_size(tokenizer), target_vocabulary_size(tokenizer))
    model = build_model(options, training, data, generation, tokenizer)
    adaptation.fill(model, tokenizer, tokenized["train"])
    objective = build_objective(training, model, partial(tokenizer.batch_decode, skip_special_tokens=True))
    guided = objective is None  # which takes the place of every other loss
    tokenized["train"] = aligned(tokenized["train"], model, data, accelerator, guided)
    if sampler is not None and not data.streaming:
        tokenized["train"] = SampledTable(tokenized["train"], corpus.splits["train"], sampler)
    loop = TrainingLoop(
        model,
        tokenized["train"],
        training,
        accelerator=accelerator,
        objective=objective,
        collate=collate,
        validator=validator,
        save_beside=tokenizer.save_pretrained,
        after_save=uploads.saved if uploads is not None else None,
        recipe=dump_recipe(groups, options),
        identity={
            "data": corpus.description.get("fingerprint"),
            "vocabulary": list(vocabulary),
            "freeze": training.freeze or None,
        },
        facts={
            "command": shlex.join(["scripts/train.py", *without_token(sys.argv[1:])]),
            "data": corpus.description,
            "skipped": skipped,
            "source_vocab_size": vocabulary[0],
            "target_vocab_size": vocabulary[1],
            "seed": training.seed,
            "decoder_recurrence": model.get_decoder().recurrence_path,
            **adaptation.facts,
        },
    )
    return loop, vocabulary


def aligned(rows: Any, model: Any, data: DataArguments, accelerator: Any, guided: bool) -> Any:
    """The training rows, with alignments where the model is guided by them: the given ones, else computed."""
    from hf_rnn_seq2seq.data.word_alignment import with_alignments

    weight = getattr(model.config, "guided_alignment_weight", 0) if guided else 0
    for name in ("alignment_file", "alignment_column"):
        if getattr(data, name) is not None and not weight:
            value = getattr(data, name)
            raise ArgumentError(f"{name}={value!r}: needs guided_alignment_weight above 0 and objective='ml'")
    if not weight:
        return rows
    if data.streaming:
        raise ArgumentError(f"guided_alignment_weight={weight}: needs the whole training split, not streaming")
    with accelerator.local_main_process_first():
        return with_alignments(rows)


def corpus_options(data: DataArguments) -> dict[str, Any]:
    """The data options as `load_corpus` takes them."""
    options = dataclasses.asdict(data)
    others = ("max_source_length", "max_target_length", "preprocessing_num_workers", "streaming_buffer")
    for name in (*others, "alignment_unit"):
        del options[name]
    options["seed"] = options.pop("data_seed")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    words = sys.argv[1:] if argv is None else argv
    *groups, options = parse_arguments(words, GROUPS, model_options(), description=__doc__ or "")
    training = groups[-1]

    from transformers import GenerationConfig

    from hf_rnn_seq2seq.files import only_writer
    from hf_rnn_seq2seq.training.launch import check_before_work, check_output_dir

    command_line.quiet_libraries()
    check_before_work(training)
    if not training.model_name_or_path:  # else where the checkpoint is read
        groups[2].set(GenerationConfig())
    if training.dry_run:
        return train(groups, options)
    check_output_dir(training)
    # One process of the run takes the directory for all; the launcher ends the others where it cannot.
    first = os.environ.get("RANK", "0") == "0"
    with only_writer(training.output_dir) if first else contextlib.nullcontext():
        return train(groups, options)


def train(groups: Sequence[Any], options: dict[str, Any]) -> int:
    """The run, from the corpus to the last checkpoint."""
    from hf_rnn_seq2seq.hub import background_upload as hub_uploads
    from hf_rnn_seq2seq.training.dry_run import dry_run
    from hf_rnn_seq2seq.training.launch import build_accelerator, use_all_cores
    from hf_rnn_seq2seq.training.loop import TrainingError

    training = groups[-1]
    use_all_cores(training.cpu_threads)
    accelerator = build_accelerator(training, say=lambda message: print(message, file=sys.stderr))
    uploads = hub_uploads.for_run(training) if accelerator.is_main_process else None
    try:
        loop, vocabulary = build_loop(groups, options, accelerator, uploads)
        if training.dry_run:
            plan = dry_run(loop, vocabulary)
            if accelerator.is_main_process:
                print(plan)
            return 0
        if uploads is not None:
            uploads.begin(loop.screen.say)
        reason = loop.run()
        if uploads is not None:
            uploads.finish(loop.state.progress.step, interrupted=reason in signal.Signals.__members__)
    except TrainingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        accelerator.end_training()
    return 128 + signal.Signals[reason] if reason in signal.Signals.__members__ else 0


if __name__ == "__main__":
    command_line.run(main)
