"""Scripts run as a user runs them, in this process or in one of their own."""

import importlib
import io
import os
import socket
import subprocess
import sys
import warnings
from pathlib import Path
from types import ModuleType

import pytest

from hf_rnn_seq2seq import command_line
from tests.helpers import warm

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))


def free_port() -> str:
    """A port of this machine that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


def command_of(script: str) -> ModuleType:
    """The module whose `main` a script of scripts/ runs."""
    return sys.modules[importlib.import_module(script).main.__module__]


def run(script: str, *arguments: object, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """The script's `main` under `command_line.run` in this process; a process of its own takes seconds to import."""
    module = importlib.import_module(script.removesuffix(".py").replace("/", "."))
    streams = [io.TextIOWrapper(io.BytesIO(content)) for content in (stdin, b"", b"")]
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        for name, stream in zip(("stdin", "stdout", "stderr"), streams, strict=True):
            patch.setattr(sys, name, stream)
        patch.setattr(command_line, "load_libraries", lambda: None)
        with pytest.raises(SystemExit) as ended:
            command_line.run(lambda _: module.main([str(argument) for argument in arguments]))
        for stream in streams[1:]:
            stream.flush()
        found = [stream.buffer.getvalue() for stream in streams[1:]]  # type: ignore[attr-defined]
    return subprocess.CompletedProcess(list(arguments), ended.value.code, *found)


def train(recipe: Path | None, folder: Path, *words: object, **options: object) -> str:
    """Trains by `train.py` into `folder`; returns what it prints to standard error."""
    given = [word for name, value in options.items() for word in (f"--{name}", value)]
    done = run("train.py", *filter(None, [recipe]), *given, "--output_dir", folder, *words)
    assert done.returncode == 0, done.stderr.decode()
    return done.stderr.decode()


def run_alone(script: str, *arguments: object, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    command = [*warm.python(), str(ROOT / "scripts" / script), *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, input=stdin, capture_output=True, env=environment, check=False)
