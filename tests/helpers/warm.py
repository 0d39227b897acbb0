"""Processes of their own without the seconds of importing: each is forked from one that has imported everything.

    subprocess.run([*warm.python(), "scripts/translate.py", ...], cwd=..., env=..., input=...)
    subprocess.run([*warm.python(package=False), "-c", "import torch, transformers; ...", ...], ...)

The new process has the arguments, streams, folder and environment of its caller. What libraries read while they are
imported (HF_HOME, HF_ENDPOINT, OMP_NUM_THREADS) is that of the waiting process: `python(environment)` starts another.
With `package=False` the libraries are imported, with an empty cache of modules, and importing this package fails.
`sys.executable` of a new process is forked as well, so the workers of a launcher start at once. Every signal but
SIGKILL reaches the process: a test that kills it, or that is about importing, takes `sys.executable`.
"""

import atexit
import contextlib
import fcntl
import gc
import hashlib
import importlib
import json
import os
import pkgutil
import runpy
import select
import shlex
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 400  # seconds until a process is ended that does not end
AT_IMPORT = ("GOMP_", "HF_", "HUGGINGFACE_", "OMP_", "PYTHON", "TOKENIZERS_", "TORCH", "TRANSFORMERS_", "XDG_")


def python(environment: dict[str, str] | None = None, *, package: bool = True) -> list[str]:
    """The words of a command that stand for `python`; one process waits for each environment at import."""
    kept = os.environ if environment is None else environment
    if not package and environment is None:
        kept = {**kept, "HF_HOME": os.path.join(os.environ["WARM_SESSION"], "home"), "HF_HUB_OFFLINE": "1"}
    kept = {**kept, "PYTHONPATH": str(ROOT) if package else "", "OMP_NUM_THREADS": "1"}
    # The rest is read when it is needed.
    fixed = {name: value for name, value in kept.items() if name.startswith(AT_IMPORT) and name != "HF_TOKEN"}
    other = {name: value for name, value in os.environ.items() if not name.startswith((*AT_IMPORT, "PYTEST_"))}
    return _waiting(tuple(sorted((other | fixed).items())), package)


@lru_cache
def _waiting(environment: tuple[tuple[str, str], ...], package: bool) -> list[str]:
    """Starts it, or finds that of another worker: it leaves when the session ends, even if that is killed."""
    session = Path(os.environ["WARM_SESSION"])
    name = hashlib.sha256(repr((environment, package)).encode()).hexdigest()[:8]
    executable = session / name / "python"
    with open(session / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not executable.exists():
            executable.parent.mkdir()
            address = str(executable.with_name("s"))
            command = [sys.executable, __file__, "--wait", address, "package" if package else "libraries"]
            reader, writer = os.pipe()
            streams = (os.POSIX_SPAWN_OPEN, 0, str(session / "alive"), os.O_RDONLY, 0), (os.POSIX_SPAWN_DUP2, writer, 1)
            os.posix_spawn(sys.executable, command, dict(environment), file_actions=streams)
            os.close(writer)
            with open(reader) as answers:
                assert answers.readline() == "ready\n"
            words = shlex.join([sys.executable, "-I", "-S", __file__, address])
            executable.with_suffix(".new").write_text(f'#!/bin/sh\nexec {words} "$@"\n')
            executable.with_suffix(".new").chmod(0o755)
            executable.with_suffix(".new").rename(executable)
    return [str(executable)]


def session() -> Callable[[], None]:
    """Opens the folder that the workers of a test session share; the function that ends it."""
    folder = tempfile.mkdtemp(prefix="warm-")
    os.mkfifo(os.path.join(folder, "alive"))
    alive = os.open(os.path.join(folder, "alive"), os.O_RDWR)  # waiting processes see its end
    os.environ["WARM_SESSION"] = folder

    def close() -> None:
        os.close(alive)
        shutil.rmtree(folder, ignore_errors=True)

    return close


def import_libraries() -> None:
    """What a user of a checkpoint's own code has imported."""
    from transformers import AutoConfig, AutoModel, AutoModelForSeq2SeqLM, AutoTokenizer  # noqa: F401
    from transformers.generation import utils  # noqa: F401

    sys.path = [folder for folder in sys.path if Path(folder or ".").resolve() not in (ROOT, Path(__file__).parent)]
    sys.modules["hf_rnn_seq2seq"] = None  # type: ignore[assignment] - however it is installed, importing it fails


def empty_module_cache(folder: str) -> None:
    """Lets the copies of a checkpoint's code go into `folder`, which no other process has."""
    from transformers import dynamic_module_utils
    from transformers.utils import hub

    hub.HF_MODULES_CACHE = dynamic_module_utils.HF_MODULES_CACHE = folder


def import_package() -> None:
    import matplotlib.backends.backend_agg
    import matplotlib.figure  # noqa: F401 - what pictures import when they are drawn

    import hf_rnn_seq2seq

    for module in pkgutil.walk_packages(hf_rnn_seq2seq.__path__, "hf_rnn_seq2seq."):
        importlib.import_module(module.name)


def wait(address: str, imported: str) -> None:
    """Forks a process for each that asks, until standard input ends."""
    os.chdir(ROOT)
    import_package() if imported == "package" else import_libraries()
    gc.freeze()  # pages that are only read stay shared
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        print("ready", flush=True)
        while sys.stdin not in select.select([listener, sys.stdin], [], [])[0]:
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                if imported == "libraries":
                    empty_module_cache(tempfile.mkdtemp(prefix="modules-", dir=Path(address).parent))
                return answer(connection)
            connection.close()
            with contextlib.suppress(ChildProcessError):  # none is left
                while os.waitpid(-1, os.WNOHANG) != (0, 0):
                    pass
    end(0)


def answer(connection: socket.socket) -> None:
    """Forks what was asked for, and sends its number and how it ended."""
    _, streams, *_ = socket.recv_fds(connection, 1, 3)
    request = json.loads(connection.makefile().readline())
    child = os.fork()
    if child:
        connection.sendall(f"{child}\n".encode())
        _, status = os.waitpid(child, 0)
        connection.sendall(str(os.waitstatus_to_exitcode(status)).encode())
        os._exit(0)
    connection.close()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    signal.alarm(PATIENCE)
    sys.executable = str(Path(request["address"]).with_name("python"))
    sys.argv = request["words"]
    while sys.argv[0] in ("-u", "-P"):  # what launchers put in front; streams are not buffered by much here
        sys.argv.pop(0)
    try:
        run()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1
        if code and not isinstance(ended.code, int):
            print(ended.code, file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    end(code)


def run() -> None:
    """The program that `sys.argv` names, as Python runs it."""
    if sys.argv[0] == "-c":
        program = sys.argv.pop(1)
        sys.path[0] = ""
        exec(compile(program, "<string>", "exec"), {"__name__": "__main__"})
    elif sys.argv[0] == "-m":
        sys.argv.pop(0)
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = str(Path(sys.argv[0]).resolve().parent)
        runpy.run_path(sys.argv[0], run_name="__main__")


def end(code: int) -> NoReturn:
    """Ends as Python does, but does not take apart what was imported: that takes seconds in a forked process."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError:
            code = 120
    os._exit(code)


def ask(address: str, words: list[str]) -> int:
    """Hands streams, folder and environment over; returns the exit code of the new process."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        socket.send_fds(connection, [b"\n"], [0, 1, 2])
        request = {"words": words, "folder": os.getcwd(), "environment": dict(os.environ), "address": address}
        connection.sendall(json.dumps(request).encode() + b"\n")
        answers = connection.makefile()
        child = int(answers.readline())
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
            signal.signal(number, lambda received, _: os.kill(child, received))
        code = int(answers.read())
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code


if __name__ == "__main__":
    if sys.argv[1] == "--wait":
        wait(*sys.argv[2:])
    else:
        sys.exit(ask(sys.argv[1], sys.argv[2:]))
