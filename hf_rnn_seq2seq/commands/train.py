"""Train a model: `accelerate launch scripts/train.py RECIPE.yaml [--option value ...] --output_dir DIR`.

    accelerate launch scripts/train.py scripts/recipes/cldr_en_fr.yaml --output_dir runs/demo

`--task` says what is read and written (default: translation). Options override the recipe. The same command with
`--resume_from_checkpoint latest` continues a run that was stopped; `--dry_run` prints the plan and times some updates.
Exit codes: 0 done, 2 bad input, 1 training cannot continue, 128 + n stopped by signal n with the state saved.
"""

import os
import shlex
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

# OpenMP reads this when torch is imported: its threads wait actively for a short time only, which costs little on an
# idle machine and much less than the default on a busy one.
if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
    os.environ["GOMP_SPINCOUNT"] = "2000"
# With both of these Multi30k trains 5 % faster, in 2.3 GiB where it grew to 3.7. By the first, torch asks Linux for
# huge pages for tensors of 2 MiB or more.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
# oneDNN compiles a product for each shape, and by default keeps 1,024. A corpus has more: each would be compiled again
# and again, and the memory that is freed stays in pieces.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16384")

from hf_rnn_seq2seq import command_line  # noqa: E402  after the environment
from hf_rnn_seq2seq.training.arguments import RunOptions, TrainingOptions  # noqa: E402  after the environment

if TYPE_CHECKING:
    from hf_rnn_seq2seq.hub.background_upload import BackgroundUpload
    from hf_rnn_seq2seq.training.loop import TrainingLoop


def draw_learning_curve(directory: Path) -> str:
    """Draws the learning curve of a run; returns the line to print."""
    from hf_rnn_seq2seq.run_directory import LEARNING_CURVE, LOG_FILE

    picture = directory / LEARNING_CURVE
    try:
        from hf_rnn_seq2seq.visualization.learning_curve import has_curve, plot_learning_curve

        if not has_curve(directory / LOG_FILE):
            return f"no {picture.name}: nothing was logged twice"
        plot_learning_curve(directory / LOG_FILE, picture)
    except ImportError as error:
        return f"no {picture.name}: {error} (pip install 'hf_rnn_seq2seq[plot]')"
    except ValueError as error:
        return f"no {picture.name}: {error}"
    return f"learning curve in {picture}"


def begin_upload(options: TrainingOptions, loop: "TrainingLoop") -> "BackgroundUpload":
    """Makes the repository, and sends each checkpoint that the loop saves if the options ask for it."""
    from hf_rnn_seq2seq.hub.background_upload import BackgroundUpload

    where = {"token": options.hub_token, "private": options.hub_private_repo}
    upload = BackgroundUpload(str(options.hub_model_id), **where, log=loop.log.write, show=loop.console.print)
    upload.create_repo()
    loop.after_save = upload.start if options.hub_strategy == "every_save" else None
    return upload


def main(argv: Sequence[str] | None = None) -> int:
    words = sys.argv[1:] if argv is None else argv
    options = RunOptions.parse(words, __doc__ or "")
    command_line.load_libraries()
    from hf_rnn_seq2seq.errors import TrainingError
    from hf_rnn_seq2seq.hub.background_upload import without_token
    from hf_rnn_seq2seq.training.run import run

    if options.training.num_seeds > 1:
        from hf_rnn_seq2seq.training.seeds import check_seeds, train_seeds

        if not options.training.dry_run:
            return 0 if train_seeds(options) else 1
        check_seeds(options)
    program = "scripts/train.py" if Path(sys.argv[0]).parent.name == "scripts" else "hf-rnn train"
    uploads = partial(begin_upload, options.training) if options.training.push_to_hub else None
    try:
        reason = run(options, f"{program} {shlex.join(without_token(words))}", draw_learning_curve, uploads)
    except TrainingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 128 + reason.signal_number if reason is not None and reason.signal_number else 0


if __name__ == "__main__":  # compare, and the launcher of `hf-rnn train`, start this module
    command_line.run(main)
