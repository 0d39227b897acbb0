"""Files that are written whole or not at all, by one process at a time, and are known by their content."""

import contextlib
import errno
import hashlib
import json
import os
import socket
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path

from hf_rnn_seq2seq.errors import ArgumentError, InUseError

LOCK = ".lock"


def content_hash(paths: Sequence[Path]) -> str:
    """SHA-256 over the bytes of the files, so that a changed file is never served from a cache."""
    total = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


def digest(value: object) -> str:
    """SHA-256 of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def write_atomically(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Write under a temporary name beside `path`, sync, rename: a reader sees the old file or the new one."""
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: its folder does not exist; make it, or name another one")
    data = content.encode("utf-8") if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error  # with the name that the user knows
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def check_output_file(path: str | os.PathLike[str], option: str, *, overwrite: bool = True) -> None:
    """Raises ArgumentError unless a file can be written there: before the work, since after it much would be lost.

    Args:
        path: of the file.
        option: that named it.
        overwrite: whether a file may be there already.
    """
    named, folder = f"{option}={str(path)!r}", Path(path).parent
    if Path(path).is_dir():
        raise ArgumentError(f"{named}: is a folder; name a file")
    if not folder.is_dir():
        raise ArgumentError(f"{named}: its folder does not exist; make it, or name another one")
    if not os.access(folder, os.W_OK):
        raise ArgumentError(f"{named}: its folder cannot be written to; name another one")
    if Path(path).exists() and not overwrite:
        raise ArgumentError(f"{named}: exists; choose another name, or --overwrite")


def check_new_folder(path: str | os.PathLike[str], option: str) -> None:
    """Raises FileExistsError unless there is nothing at the path, or an empty folder; `option` named it."""
    path = Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(f"{option}={str(path)!r}: must be a new or an empty folder")


@contextlib.contextmanager
def whole_folder(output: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a folder to write into and renames it to `output` in the end; after an error nothing remains.

    Raises:
        FileExistsError: `output` is there and not an empty folder.
    """
    output = Path(output)
    check_new_folder(output, "output")
    made = [each for each in output.parents if not each.exists()]
    output.parent.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}-") as place:
            folder = Path(place) / "whole"  # the outer one is for its owner only
            folder.mkdir()
            yield folder
            if output.exists():
                output.rmdir()
            os.replace(folder, output)
    finally:
        with contextlib.suppress(OSError):
            for each in made:
                each.rmdir()


class FileLock:
    """The right to write a file, held until `release` or until this process ends, however it ends.

    The lock is the operating system's: nothing has to be removed after a kill. It is advisory and knows one holder, in
    this process or another; the children that this process forks do not hold it.

    Raises:
        InUseError: somebody else holds it.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.descriptor: int | None = None
        while self.descriptor is None:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                _lock(descriptor)
                # The holder before may have moved or removed the file after it was opened here.
                if self.path.exists() and os.path.samestat(os.fstat(descriptor), os.stat(self.path)):
                    self.descriptor, descriptor = descriptor, -1
            finally:
                if descriptor >= 0:
                    os.close(descriptor)
        _HELD.add(self)

    def release(self) -> None:
        """Lets the next one write; a second call does nothing."""
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None


_HELD: weakref.WeakSet[FileLock] = weakref.WeakSet()
_FOLDERS: set[Path] = set()


def _lock(descriptor: int) -> None:
    try:
        if os.name == "nt":
            import msvcrt

            os.lseek(descriptor, 2**31 - 2, os.SEEK_SET)  # a byte that nobody reads: locked ones cannot be
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES, errno.EDEADLK):
            raise InUseError("another process is writing here") from None
        # Some network file systems keep no locks; there a run is as alone as its user makes it.
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            raise


def _release_in_child() -> None:
    for lock in list(_HELD):
        lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_release_in_child)


@contextlib.contextmanager
def only_writer(folder: str | os.PathLike[str]) -> Iterator[None]:
    """A lock of a directory: no other process can take it meanwhile. A missing directory is made.

    What was made here and is still empty in the end is removed again. A second lock of the same directory by this
    process has no effect.

    Raises:
        InUseError: another process holds it.
        OSError: the directory cannot be made or written.
    """
    path = Path(folder).absolute()
    if path in _FOLDERS:
        yield
        return
    made = [each for each in (path, *path.parents) if not each.exists()]
    path.mkdir(parents=True, exist_ok=True)
    holder = ""
    try:
        lock = FileLock(path / LOCK)
    except InUseError:
        with contextlib.suppress(OSError):
            holder = f" ({(path / LOCK).read_text(encoding='utf-8').strip()})"
        raise InUseError(
            f"output_dir={str(folder)!r}: another process{holder} is writing this directory; wait until it has ended, "
            "or give another directory"
        ) from None
    _FOLDERS.add(path)
    try:
        (path / LOCK).write_text(f"process {os.getpid()} on {socket.gethostname()}\n", encoding="utf-8")
        yield
    finally:
        _FOLDERS.discard(path)
        with contextlib.suppress(OSError):
            if os.name != "nt":  # where an open file cannot be removed
                (path / LOCK).unlink()
        lock.release()
        with contextlib.suppress(OSError):
            for each in made:
                each.rmdir()
