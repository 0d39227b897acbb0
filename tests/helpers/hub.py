"""Start the loopback Hub for a test, and talk to it.

with running_hub() as hub:
    subprocess.run([...], env=hub.environment(cache=tmp_path, token=OWNER_TOKEN))
"""

import atexit
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import transformers
from huggingface_hub import HfApi, constants

from tests.helpers import warm
from tests.helpers.script_runs import free_port

ROOT = Path(__file__).resolve().parents[2]
# Every child starts with this.
PREAMBLE = """
import json, sys, warnings
from pathlib import Path
arguments = json.loads(sys.argv[1])
import torch
from transformers import AutoConfig, AutoModel, AutoModelForSeq2SeqLM, AutoTokenizer
from transformers.utils import logging
logging.disable_progress_bar()

def logits(model, tokenizer, text):
    model.eval()
    with torch.no_grad():
        output = model(**tokenizer(text, return_tensors="pt"), decoder_input_ids=torch.tensor([[1, 4, 5]]))
    return [round(value, 4) for value in output.logits.flatten()[:60].tolist()]

def ids(tokenizer):
    return [tokenizer("guten morgen").input_ids, tokenizer(text_target="good morning").input_ids]
"""


@dataclass(frozen=True)
class Hub:
    """A handle of the running server."""

    url: str

    def environment(self, *, cache: Path, token: str | None = None) -> dict[str, str]:
        """Environment of a child process that talks to this Hub and to nothing else, with its own cache.

        Libraries read the cache's address when they are imported, so all children have one, a link that turns here.
        """
        cache.mkdir(parents=True, exist_ok=True)
        link = _home() / "of_a_hub"
        link.unlink(missing_ok=True)
        link.symlink_to(cache)
        kept = {
            key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING", "TRANSFORMERS_"))
        }
        kept |= {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(link),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }
        return kept | ({"HF_TOKEN": token} if token else {})

    def log(self) -> list[list[Any]]:
        """Requests so far as [method, path, status]."""
        with urllib.request.urlopen(f"{self.url}/_test/log") as response:
            return json.load(response)

    def fail(self, pattern: str, status: int = 503, times: int = 1, seconds: float = 0.0) -> None:
        """Answer the next `times` requests whose path matches `pattern` with `status`; times=0 ends that.

        `seconds` pass first; status 0 then answers as ever.
        """
        rules = json.dumps([{"pattern": pattern, "status": status, "times": times, "seconds": seconds}]).encode()
        urllib.request.urlopen(urllib.request.Request(f"{self.url}/_test/fail", data=rules)).close()


@lru_cache
def _home() -> Path:
    """A folder for HF_HOME that the children of a worker share, so that one waiting process serves them."""
    folder = Path(tempfile.mkdtemp(prefix="hf_rnn_seq2seq-home-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@dataclass
class Child:
    """Runs Python in a fresh process that talks to the loopback Hub, with an empty cache of its own."""

    hub: Hub
    folder: Path
    started: int = 0

    def run(self, code: str, *, package: bool = True, token: str | None = None, **arguments: Any) -> Any:
        """Run `code`, which prints JSON on its last line, and return that."""
        self.started += 1
        place = self.folder / f"child{self.started}"
        environment = self.hub.environment(cache=place / "cache", token=token)
        python = warm.python(environment, package=package)
        command = [*python, "-c", PREAMBLE + textwrap.dedent(code), json.dumps(arguments)]
        done = subprocess.run(command, env=environment, cwd=place, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-4000:]
        return json.loads(done.stdout.strip().splitlines()[-1])


def act_as(token: str, endpoint: str, monkeypatch: pytest.MonkeyPatch) -> HfApi:
    """The client in this process, with `endpoint` and `token`."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    # Built from the endpoint when the client is imported.
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.partition("{repo_id}")
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{endpoint}/{template[1]}{template[2]}")
    # A client that transformers has made keeps the endpoint of that moment.
    monkeypatch.setattr(transformers.utils.hub, "_hf_api", None)
    monkeypatch.setenv("HF_TOKEN", token)
    return HfApi(endpoint=endpoint, token=token)


# One port for every Hub of a test session, so that one waiting process serves the children of all.
hub_port = lru_cache(free_port)


@contextlib.contextmanager
def running_hub() -> Iterator[Hub]:
    """Start the server as a child process, yield its handle, end it."""
    command = [sys.executable, "-I", str(Path(__file__).resolve().with_name("hub_server.py")), hub_port()]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        try:
            yield Hub(child.stdout.readline().strip())
        finally:
            child.stdin.close()  # the child leaves at the end of its input, so also when this process is killed
            child.wait(timeout=10)
