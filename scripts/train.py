"""Train a translator: `accelerate launch scripts/train.py RECIPE.yaml [--option value ...] --output_dir DIR`.

    accelerate launch scripts/train.py scripts/recipes/cldr_en_fr.yaml --output_dir runs/demo

Options override the recipe. The same command with `--resume_from_checkpoint latest` continues a run that was stopped;
`--dry_run` prints the plan and times some updates. Exit codes: 0 done, 2 bad input, 1 training cannot continue, 128 + n
stopped by signal n with the state saved.
"""

import contextlib
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

# OpenMP reads this when torch is imported: its threads wait actively for a short time only, which costs little on an
# idle machine and much less than the default on a busy one.
if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
    os.environ["GOMP_SPINCOUNT"] = "2000"

from hf_rnn_seq2seq import command_line  # noqa: E402  after GOMP_SPINCOUNT
from hf_rnn_seq2seq.training.arguments import RunOptions  # noqa: E402  after GOMP_SPINCOUNT


def draw_learning_curve(directory: Path) -> str:
    """Draws the learning curve of a run; returns the line to print."""
    from hf_rnn_seq2seq.run_directory import LOG_FILE

    picture = directory / "learning_curve.png"
    try:
        from hf_rnn_seq2seq.visualization.learning_curve import plot_learning_curve

        plot_learning_curve(directory / LOG_FILE, picture)
    except ImportError as error:
        return f"no {picture.name}: {error} (pip install 'hf_rnn_seq2seq[plot]')"
    except ValueError as error:
        return f"no {picture.name}: {error}"
    return f"learning curve in {picture}"


def main(argv: Sequence[str] | None = None) -> int:
    words = sys.argv[1:] if argv is None else argv
    options = RunOptions.parse(words, __doc__ or "")

    from transformers import GenerationConfig

    from hf_rnn_seq2seq.files import only_writer
    from hf_rnn_seq2seq.training.launch import check_before_work, check_output_dir

    command_line.quiet_libraries()
    check_before_work(options.training)
    if not options.training.model_name_or_path:  # else this is checked when the checkpoint is read
        options.generation.set(GenerationConfig())
    if options.training.dry_run:
        return train(options, words)
    check_output_dir(options.training)
    # The main process locks the directory for all; if it cannot, the launcher stops the others.
    main_process = os.environ.get("RANK", "0") == "0"
    with only_writer(str(options.training.output_dir)) if main_process else contextlib.nullcontext():
        return train(options, words)


def train(options: RunOptions, words: Sequence[str]) -> int:
    """The run, from the corpus to the last checkpoint; returns the exit code."""
    from hf_rnn_seq2seq.errors import TrainingError
    from hf_rnn_seq2seq.hub.background_upload import BackgroundUpload, without_token
    from hf_rnn_seq2seq.training.dry_run import dry_run
    from hf_rnn_seq2seq.training.launch import build_accelerator, use_all_cores
    from hf_rnn_seq2seq.training.setup import build_training

    training = options.training
    use_all_cores(training.cpu_threads)
    accelerator = build_accelerator(training, lambda message: print(message, file=sys.stderr))
    command = shlex.join(["scripts/train.py", *without_token(words)])
    try:
        run = build_training(options, accelerator, command=command, after_run=draw_learning_curve)
        if training.dry_run:
            plan = dry_run(run.loop, run.vocabulary)
            if accelerator.is_main_process:
                print(plan)
            return 0
        upload = None
        if training.push_to_hub and accelerator.is_main_process:
            upload = BackgroundUpload(
                str(training.hub_model_id),
                token=training.hub_token,
                private=training.hub_private_repo,
                log=run.loop.log.write,
                show=run.loop.console.print,
            )
            upload.create_repo()
            run.loop.after_save = upload.start if training.hub_strategy == "every_save" else None
        reason = run.loop.run()
        if upload is not None:
            upload.finish(str(training.output_dir), run.loop.state.progress.step, interrupted=reason.signal_number > 0)
    except TrainingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        accelerator.end_training()
    return 128 + reason.signal_number if reason.signal_number else 0


if __name__ == "__main__":
    command_line.run(main)
