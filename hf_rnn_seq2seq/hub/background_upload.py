"""Uploads of a run to the Hub during training: in a background thread, and errors do not stop training.

Each upload is a finished checkpoint folder, in one commit. A checkpoint that is saved during an upload is skipped, so
training never waits and uploads never queue up. At the end of training the run directory is uploaded.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path

from huggingface_hub import HfApi

from hf_rnn_seq2seq.errors import one_line
from hf_rnn_seq2seq.hub.upload import plan_upload, push


class BackgroundUpload:
    """The uploads of one run, on its main process.

    Args:
        repo_id: `user/name`; created if it does not exist.
        token: default: the token of `hf auth login` or HF_TOKEN.
        private: create a private repository.
        log: `log(event, **facts)` writes a line to the log of the run.
        show: prints a line.
    """

    def __init__(
        self,
        repo_id: str,
        *,
        token: str | None = None,
        private: bool = False,
        log: Callable[..., object] = lambda *_, **__: None,
        show: Callable[[str], object] = print,
    ) -> None:
        self.repo_id, self.token, self.private, self.log, self.show = repo_id, token, private, log, show
        self._api = HfApi(token=token)
        self._task: Future[str] | None = None
        self._step: int | None = None
        self._last_failure = ""

    def create_repo(self) -> None:
        """Creates the repository in the background, so that a wrong token is reported before hours of training."""
        self._task = self._api.run_as_future(self._report, None, self._create)

    def start(self, checkpoint: Path) -> Future[str] | None:
        """Starts the upload of a checkpoint, unless another upload is running; the task reads the folder."""
        step = int(re.sub(r"\D.*", "", checkpoint.name.removeprefix("step-")))
        if self._step is not None and self._task is not None and not self._task.done():
            self.log("push", step=step, outcome=f"skipped: step {self._step} is being uploaded")
            return None
        return self._submit(checkpoint, step)

    def finish(self, directory: str | os.PathLike[str], step: int, interrupted: bool = False) -> bool:
        """Uploads the run directory and waits; an interrupted run uploads nothing more.

        Returns:
            whether the Hub has what the run directory has.
        """
        if interrupted:
            if self._task is not None:
                self._task.cancel()
            return False
        self.show(f"hub: uploading {directory} to {self.repo_id}")
        if self._submit(directory, step).exception() is None:
            return True
        self.show(
            f"hub: {self.repo_id} does not have the end of this run; nothing is lost, upload it later with "
            f"scripts/push_to_hub.py {directory} {self.repo_id}"
        )
        return False

    def _submit(self, folder: str | os.PathLike[str], step: int) -> Future[str]:
        self._step = step
        self._task = self._api.run_as_future(self._report, step, partial(self._push, folder, f"Training, step {step}"))
        return self._task

    # --- in the background thread ---------------------------------------------------------------------------------

    def _create(self) -> str:
        return str(self._api.create_repo(self.repo_id, private=self.private, exist_ok=True))

    def _push(self, folder: str | os.PathLike[str], message: str) -> str:
        upload = plan_upload(folder, self.repo_id)
        return push(upload, self.repo_id, private=self.private, token=self.token, message=message)

    def _report(self, step: int | None, action: Callable[[], str]) -> str:
        """Runs an action and reports how it ended; only what concerns a step is logged."""
        try:
            address = action()
        except Exception as error:
            reason = one_line(error, 300)
            if step is not None:
                self.log("push", step=step, outcome="failed", reason=reason)
            if reason != self._last_failure:
                self.show(f"hub: {self.repo_id}: {reason}; not uploaded")
            self._last_failure = reason
            raise
        self._last_failure = ""
        if step is not None:
            self.log("push", step=step, outcome="done", commit=address)
            self.show(f"hub: step {step} is at {address}")
        return address


def without_token(words: Sequence[str]) -> list[str]:
    """The words of a command line with the value of --hub_token replaced."""
    public: list[str] = []
    is_token = False
    for word in words:
        name, equals, _ = word.partition("=")
        is_option = name.replace("-", "_") == "__hub_token"
        public.append("<hidden>" if is_token else f"{name}=<hidden>" if is_option and equals else word)
        is_token = is_option and not equals
    return public
