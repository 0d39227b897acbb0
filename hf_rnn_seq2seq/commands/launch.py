"""Starts training through Accelerate's launcher: `hf-rnn train [LAUNCHER OPTIONS] RECIPE [--option value ...]`.

    hf-rnn train cldr_en_fr --output_dir runs/demo
    hf-rnn train --num_processes 2 --multi_gpu tatoeba_fr_en --output_dir runs/tatoeba

Options of `accelerate launch` are passed on, wherever they stand; without any, one process with all cores is started.
"""

import importlib.util
import os
import re
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

from hf_rnn_seq2seq.errors import ArgumentError
from hf_rnn_seq2seq.training.arguments import RunOptions

MODULE = "hf_rnn_seq2seq.commands.train"
# Options of both: training reads them.
_OF_TRAINING = ("--mixed_precision", "--gradient_accumulation_steps", "--help", "-h", "--debug")


def split_words(words: Sequence[str], launcher: ArgumentParser) -> tuple[list[str], list[str]]:
    """The words of the launcher, and those of training.

    Args:
        words: as they are typed, in any order.
        launcher: the parser of `accelerate launch`.
    """
    actions = {name: action for name, action in launcher._option_string_actions.items() if name not in _OF_TRAINING}
    theirs, ours, left = [], [], list(words)
    while left:
        word = left.pop(0)
        name, equals, _ = word.partition("=")
        action = actions.get(name)
        if action is None:
            ours.append(word)
            continue
        theirs.append(word)
        if not equals and action.nargs != 0 and left:
            theirs.append(left.pop(0))
    return theirs, ours


def launcher_names() -> set[str]:
    """The names of the launcher's options, from its source text: importing it imports torch."""
    found = importlib.util.find_spec("accelerate")
    if found is None or found.origin is None:
        raise ArgumentError("accelerate is not installed; install it: pip install 'hf_rnn_seq2seq[train]'")
    text = (Path(found.origin).parent / "commands" / "launch.py").read_text(encoding="utf-8")
    names = set(re.findall(r'"(--?\w+)"', text))
    return names | {"--" + name[2:].replace("_", "-") for name in names if name.startswith("--")}


def check_processes(launcher: Namespace) -> None:
    """Refuses `--num_processes` above 1 where Accelerate starts a single process without saying so.

    Raises:
        ArgumentError: `--cpu` is given, or nothing asks for several: `--multi_gpu` or its like, a configuration file,
            several GPUs.
    """
    import torch
    from accelerate.commands.config.config_args import default_config_file

    if launcher.mpirun_hostfile:
        return
    configured = launcher.config_file or os.path.isfile(default_config_file)
    kinds = (launcher.multi_gpu, launcher.use_deepspeed, launcher.use_fsdp, launcher.tpu, launcher.use_megatron_lm)
    several = configured or any(kinds) or torch.accelerator.device_count() > 1
    if (launcher.num_processes or 1) > 1 and (launcher.cpu or not several):
        raise ArgumentError(
            f"num_processes={launcher.num_processes}: a single process would start; on CPUs write "
            f"`ACCELERATE_USE_CPU=true hf-rnn train --multi_gpu --num_processes {launcher.num_processes} ...`"
            + (", without --cpu" if launcher.cpu else "")
        )


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    if not {word.partition("=")[0] for word in words} & (launcher_names() - set(_OF_TRAINING)):
        RunOptions.parse(words, __doc__)  # a wrong option, or --help, needs no launcher
    from accelerate.commands.launch import launch_command, launch_command_parser

    launcher = launch_command_parser()
    theirs, ours = split_words(words, launcher)
    if theirs:
        RunOptions.parse(ours, __doc__)  # bad input is found here, once, and not by every process
    elif "ACCELERATE_CONFIG_FILE" not in os.environ:
        from hf_rnn_seq2seq.training.environment import usable_cores

        theirs = ["--num_processes", "1", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
        theirs += ["--num_cpu_threads_per_process", str(usable_cores())]
    try:
        chosen = launcher.parse_args([*theirs, "--module", MODULE, *ours])
        check_processes(chosen)
        launch_command(chosen)
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 1
    return 0
