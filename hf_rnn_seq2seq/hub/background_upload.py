"""Push a run to the Hub while it trains: in the background, and never at the price of the training.

A push takes a snapshot of the run directory (hard links: no copy, and later saves do not change it) and sends it in
one commit from a thread. While one push is under way the newest snapshot waits and older ones are dropped. What the Hub
refuses or fails to answer is tried again, reported, and left at that: the run directory always has everything.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_rnn_seq2seq.errors import PublishError, one_line
from hf_rnn_seq2seq.hub.upload import Upload, plan_upload, push

STRATEGIES = ("every_save", "end")
SNAPSHOTS = ".hub-upload"
# Seconds before the second, third, ... attempt. The client itself repeats single requests within an attempt.
WAITS = (2.0, 8.0, 30.0, 120.0)
# A run that is told to stop has little time left.
GRACE_SECONDS = 5.0


@dataclass(frozen=True)
class Snapshot:
    """What one commit is going to hold; `folder` is None for the check at the start, which sends no file."""

    step: int | None
    upload: Upload | None = None
    folder: Path | None = None


class HubUploads:
    """The pushes of one run, on its main process.

    Args:
        directory: the run directory.
        repo_id: `user/name`; created where it does not exist.
        strategy: `every_save` pushes with each checkpoint and at the end, `end` at the end only.
        token: instead of the one that `hf auth login` or HF_TOKEN gave.
        private: create the repository as a private one.
        log: `log(event, **facts)` writes a line into the run's log.
        waits: seconds between the attempts of one push.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        repo_id: str,
        *,
        strategy: str = "every_save",
        token: str | None = None,
        private: bool = False,
        log: Callable[..., None] = lambda *_, **__: None,
        waits: Sequence[float] = WAITS,
    ) -> None:
        self.directory, self.repo_id, self.strategy = Path(directory), repo_id, strategy
        self.token, self.private = token, private
        self.log, self.waits = log, tuple(waits)
        self.say: Callable[[str], None] = print
        self._changed = threading.Condition()
        self._next: Snapshot | None = None
        self._busy = self._closing = False
        self._taken = 0
        self._said = ""
        self._failed: str | None = None
        self._thread: threading.Thread | None = None

    def begin(self, say: Callable[[str], None] = print) -> None:
        """Creates the repository in the background, so that a wrong token is known before hours of training.

        `say` shows a line to the user.
        """
        self.say = say
        shutil.rmtree(self.directory / SNAPSHOTS, ignore_errors=True)
        # A daemon: an interpreter that wants to end is not held by a Hub that does not answer.
        self._thread = threading.Thread(target=self._work, name="hub-uploads", daemon=True)
        self._thread.start()
        self._offer(Snapshot(None))

    def saved(self, step: int) -> None:
        """A checkpoint was written: offers what the run directory holds now, without waiting."""
        if self.strategy == "every_save":
            self._offer_snapshot(step)

    def finish(self, step: int | None = None, interrupted: bool = False) -> bool:
        """The last push, and the wait for it; an interrupted run only waits a moment for what is under way.

        Returns:
            whether the Hub holds what the run directory holds.
        """
        planned = False
        if not interrupted:
            self.say(f"hub: pushing to {self.repo_id}")
            self._failed = None
            planned = self._offer_snapshot(step)
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        assert self._thread is not None
        self._thread.join(GRACE_SECONDS if interrupted else None)
        if not self._thread.is_alive():
            shutil.rmtree(self.directory / SNAPSHOTS, ignore_errors=True)
        done = planned and self._failed is None
        if not done and not interrupted:
            self.say(
                f"hub: {self.repo_id} does not have the end of this run; nothing is lost, push it later with "
                f"scripts/push_to_hub.py {self.directory} {self.repo_id}"
            )
        return done

    # ---------------------------------------------------------------- on the training's thread

    def _offer_snapshot(self, step: int | None) -> bool:
        try:
            self._offer(self._snapshot(step))
        except Exception as error:  # whatever is wrong with a push, training goes on
            self._report(step, f"not pushed: {one_line(error)}")
            return False
        return True

    def _snapshot(self, step: int | None) -> Snapshot:
        """Links what is published now; the best weights so far, else those of the newest checkpoint."""
        source = self.directory
        if not (source / "config.json").is_file():
            checkpoints = sorted((source / "checkpoints").glob("step-*"))
            if not checkpoints:
                raise PublishError(f"{source}: holds no model yet")
            source = checkpoints[-1]
        plan = plan_upload(source, self.repo_id)
        self._taken += 1
        folder = self.directory / SNAPSHOTS / str(self._taken)
        files: dict[str, bytes | Path] = {}
        for name, content in plan.files.items():
            files[name] = content if isinstance(content, bytes) else _link(content, folder / name)
        return Snapshot(step, Upload(files, plan.kept_here), folder)

    def _offer(self, snapshot: Snapshot) -> None:
        with self._changed:
            dropped, self._next = self._next, snapshot
            self._changed.notify_all()
        if dropped is not None and dropped.folder is not None:
            shutil.rmtree(dropped.folder, ignore_errors=True)
            self.log("push", step=dropped.step, outcome="replaced by a newer one")

    # ---------------------------------------------------------------- on the background thread

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._next is not None or self._closing)
                snapshot, self._next = self._next, None
            if snapshot is None:
                return
            try:
                self._send(snapshot)
            finally:
                if snapshot.folder is not None:
                    shutil.rmtree(snapshot.folder, ignore_errors=True)

    def _send(self, snapshot: Snapshot) -> None:
        for attempt in range(len(self.waits) + 1):
            try:
                address = self._request(snapshot)
            except Exception as error:  # the client has classes of its own, and so has its transport
                reason = one_line(error, 300)
                last = attempt == len(self.waits) or is_final(error)
                self._report(snapshot.step, f"{reason}; {'not pushed' if last else 'trying again'}")
                if last or self._superseded(self.waits[attempt]):
                    self._failed = reason
                    return
            else:
                self._failed = None
                self._said = ""
                if snapshot.upload is not None:
                    self.log("push", step=snapshot.step, outcome="done", commit=address)
                    self.say(f"hub: step {snapshot.step} is at {address}")
                return

    def _request(self, snapshot: Snapshot) -> str:
        if snapshot.upload is None:
            from huggingface_hub import HfApi

            return str(HfApi(token=self.token).create_repo(self.repo_id, private=self.private, exist_ok=True))
        message = f"Training, step {snapshot.step}" if snapshot.step is not None else "Training"
        return push(snapshot.upload, self.repo_id, private=self.private, token=self.token, message=message)

    def _superseded(self, seconds: float) -> bool:
        """Waits, and tells whether a newer snapshot has come meanwhile: it is sent in this one's place."""
        with self._changed:
            return self._changed.wait_for(lambda: self._next is not None, seconds)

    def _report(self, step: int | None, message: str) -> None:
        """Into the log of the run, which exists once there is a step, and to the user once in a row."""
        if step is not None:
            self.log("push", step=step, outcome="failed", reason=message)
        if message != self._said:
            self.say(f"hub: {self.repo_id}: {message}")
        self._said = message


def is_final(error: Exception) -> bool:
    """Whether asking again would be answered alike: the Hub's refusals, bad names and damaged files."""
    from huggingface_hub.errors import LocalTokenNotFoundError, OfflineModeIsEnabled

    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is not None:
        return status < 500 and status not in (408, 409, 412, 429)
    return isinstance(error, ValueError | OfflineModeIsEnabled | LocalTokenNotFoundError)


def without_token(words: Sequence[str]) -> list[str]:
    """The words of a command line as they may be written down: without the value of --hub_token."""
    shown: list[str] = []
    hidden = False
    for word in words:
        name, equals, _ = word.partition("=")
        is_option = name.replace("-", "_") == "__hub_token"
        shown.append("<hidden>" if hidden else f"{name}=<hidden>" if is_option and equals else word)
        hidden = is_option and not equals
    return shown


def _link(path: Path, target: Path) -> Path:
    """A second name of a file that is replaced, never rewritten; a copy where the disk has no such names."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(path, target)
    except OSError:
        shutil.copy2(path, target)
    return target


def for_run(training: Any) -> HubUploads | None:
    """The uploads that a run's options ask for, None where they ask for none."""
    from hf_rnn_seq2seq.training.log import LOG_FILE, RunLog

    if not training.push_to_hub or training.dry_run:
        return None
    return HubUploads(
        training.output_dir,
        training.hub_model_id,
        strategy=training.hub_strategy,
        token=training.hub_token,
        private=training.hub_private_repo,
        log=RunLog(Path(training.output_dir) / LOG_FILE).write,
    )
