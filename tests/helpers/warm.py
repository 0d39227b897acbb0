"""Processes of their own without the seconds of importing: each is forked from one that has imported everything.

    subprocess.run([*warm.python(), "scripts/translate.py", ...], cwd=..., env=..., input=...)

The new process has the arguments, streams, folder and environment of whoever asks. What libraries read while they are
imported (HF_HOME, HF_ENDPOINT, OMP_NUM_THREADS) is that of the one that waits: `python(environment)` starts another. A
test of what importing does takes `sys.executable`.
"""

import atexit
import contextlib
import importlib
import json
import os
import pkgutil
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from functools import lru_cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 400  # seconds until a process is ended that does not end


def python(environment: dict[str, str] | None = None) -> list[str]:
    """The words of a command that stand for `python`; one process waits for each environment at import."""
    kept = os.environ if environment is None else environment
    kept = {**kept, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    # A token is read when it is needed, and pytest names the running test.
    return _waiting(tuple(sorted((k, v) for k, v in kept.items() if k not in ("HF_TOKEN", "PYTEST_CURRENT_TEST"))))


@lru_cache
def _waiting(environment: tuple[tuple[str, str], ...]) -> list[str]:
    address = os.path.join(tempfile.mkdtemp(prefix="warm-"), "s")
    command = [sys.executable, __file__, "--wait", address]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    process = subprocess.Popen(command, env=dict(environment), cwd=ROOT, text=True, **pipes)
    atexit.register(process.communicate)  # it leaves at the end of its input, so also when this process is killed
    assert process.stdout.readline() == "ready\n"
    return [sys.executable, "-I", "-S", __file__, address]


def wait(address: str) -> None:
    """Forks a process for each that asks, until standard input ends."""
    import matplotlib.backends.backend_agg
    import matplotlib.figure  # noqa: F401 - what pictures import when they are drawn

    import hf_rnn_seq2seq

    for module in pkgutil.walk_packages(hf_rnn_seq2seq.__path__, "hf_rnn_seq2seq."):
        importlib.import_module(module.name)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        print("ready", flush=True)
        while sys.stdin not in select.select([listener, sys.stdin], [], [])[0]:
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                return answer(connection)
            connection.close()
            with contextlib.suppress(ChildProcessError):  # none is left
                while os.waitpid(-1, os.WNOHANG) != (0, 0):
                    pass
    shutil.rmtree(Path(address).parent)


def answer(connection: socket.socket) -> None:
    """Forks what was asked for, and says how it ended."""
    _, streams, *_ = socket.recv_fds(connection, 1, 3)
    asked = json.loads(connection.makefile().readline())
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        connection.sendall(str(os.waitstatus_to_exitcode(status)).encode())
        os._exit(0)
    connection.close()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(asked["folder"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    signal.alarm(PATIENCE)
    sys.argv = asked["words"]
    sys.path[0] = str(Path(sys.argv[0]).resolve().parent)
    runpy.run_path(sys.argv[0], run_name="__main__")


def ask(address: str, words: list[str]) -> int:
    """Hands streams, folder and environment over; returns the exit code of the new process."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        socket.send_fds(connection, [b"\n"], [0, 1, 2])
        asked = {"words": words, "folder": os.getcwd(), "environment": dict(os.environ)}
        connection.sendall(json.dumps(asked).encode() + b"\n")
        code = int(connection.makefile().read())
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code


if __name__ == "__main__":
    if sys.argv[1] == "--wait":
        wait(sys.argv[2])
    else:
        sys.exit(ask(sys.argv[1], sys.argv[2:]))
