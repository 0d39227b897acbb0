"""Repositories, commits and objects of the loopback Hub, in memory."""

import base64
import binascii
import hashlib
import secrets
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

OWNER_TOKEN = "hf_owner"
READER_TOKEN = "hf_reader"
USER_TOKEN = "hf_user"
METRICS_TOKEN = "hf_metrics"
# token -> its user and role; a `write` token writes to that user's own repositories
TOKENS = {
    OWNER_TOKEN: ("owner", "write"),
    READER_TOKEN: ("reader", "read"),
    USER_TOKEN: ("user", "write"),
    METRICS_TOKEN: ("evaluate-metric", "write"),
}

# What the Hub's default .gitattributes sends to LFS, as far as the tests need it.
LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".parquet", ".arrow", ".png", ".npz", ".gz")
GIT_ATTRIBUTES = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES).encode()


class Refusal(Exception):
    """An error answer; `code` and a shown message become the headers by which the client picks its error class."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        show: bool = False,
        headers: dict[str, str] | None = None,
        extra: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.extra = status, message, extra or {}
        self.headers = dict(headers or {})
        if code:
            self.headers["X-Error-Code"] = code
        if code or show:
            self.headers["X-Error-Message"] = message


@dataclass(frozen=True)
class Entry:
    """A file: git's blob id for a regular one, the SHA-256 of the content for an LFS one."""

    content: bytes
    lfs: bool

    @property
    def blob_id(self) -> str:
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()

    @property
    def oid(self) -> str:
        return hashlib.sha256(self.content).hexdigest() if self.lfs else self.blob_id

    def describe(self, path: str) -> dict[str, Any]:
        described = {"type": "file", "path": path, "size": len(self.content), "oid": self.blob_id}
        if self.lfs:
            described["lfs"] = {"oid": self.oid, "size": len(self.content), "pointerSize": 134}
        return described


@dataclass(frozen=True)
class Commit:
    """A state of the whole tree; `tree` maps path to entry."""

    oid: str
    parent: str | None
    title: str
    date: str
    tree: dict[str, Entry]


@dataclass
class Repository:
    """Commits and the names that point at them."""

    name: str
    owner: str
    private: bool
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def resolve(self, revision: str) -> Commit:
        name = revision.removeprefix("refs/heads/").removeprefix("refs/tags/")
        oid = self.branches.get(name) or self.tags.get(name) or name
        if oid not in self.commits:
            raise Refusal(404, f"Invalid rev id: {revision}", code="RevisionNotFound")
        return self.commits[oid]

    def history(self, revision: str) -> list[Commit]:
        commit: Commit | None = self.resolve(revision)
        found = []
        while commit is not None:
            found.append(commit)
            commit = self.commits[commit.parent] if commit.parent else None
        return found

    def add_commit(self, branch: str, title: str, tree: dict[str, Entry]) -> Commit:
        parent = self.branches.get(branch)
        content = "\n".join(f"{path} {entry.oid}" for path, entry in sorted(tree.items()))
        oid = hashlib.sha1(f"{parent}\n{title}\n{len(self.commits)}\n{content}".encode()).hexdigest()
        self.commits[oid] = Commit(oid, parent, title, datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z"), tree)
        self.branches[branch] = oid
        return self.commits[oid]

    def add_ref(self, refs: dict[str, str], name: str, start: str) -> None:
        if name in refs:
            raise Refusal(409, f"Reference {name} already exists", show=True)
        refs[name] = self.resolve(start).oid

    def remove_ref(self, refs: dict[str, str], name: str) -> None:
        if name not in refs:
            raise Refusal(404, f"Invalid rev id: {name}", code="RevisionNotFound")
        del refs[name]

    def list_folder(self, commit: Commit, folder: str, recursive: bool) -> list[dict[str, Any]]:
        prefix = f"{folder}/" if folder else ""
        inside = {path: entry for path, entry in commit.tree.items() if path.startswith(prefix)}
        if folder and not inside:
            raise Refusal(404, f"{folder} does not exist on {commit.oid}", code="EntryNotFound")
        folders = {
            f"{prefix}{'/'.join(parts[:depth])}"
            for parts in (path[len(prefix) :].split("/") for path in inside)
            for depth in range(1, len(parts))
        }
        listed = [
            {"type": "directory", "path": path, "size": 0, "oid": self._folder_id(path)} for path in sorted(folders)
        ]
        listed += [entry.describe(path) for path, entry in sorted(inside.items())]
        return [item for item in listed if recursive or "/" not in item["path"][len(prefix) :]]

    def describe(self, commit: Commit, paths: list[str]) -> list[dict[str, Any]]:
        described = []
        for path in paths:
            if path in commit.tree:
                described.append(commit.tree[path].describe(path))
            elif any(other.startswith(f"{path}/") for other in commit.tree):
                described.append({"type": "directory", "path": path, "size": 0, "oid": self._folder_id(path)})
        return described

    @staticmethod
    def _folder_id(path: str) -> str:
        return hashlib.sha1(f"tree {path}".encode()).hexdigest()


class Store:
    """Every repository, and the LFS objects uploaded so far."""

    def __init__(self) -> None:
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.objects: dict[str, bytes] = {}
        self._tickets: dict[str, str] = {}

    def create(self, kind: str, name: str, owner: str, private: bool) -> Repository:
        repository = Repository(name, owner, private)
        repository.add_commit("main", "initial commit", {".gitattributes": Entry(GIT_ATTRIBUTES, lfs=False)})
        self.repositories[(kind, name)] = repository
        return repository

    def upload_mode(self, tree: dict[str, Entry], file: dict[str, Any]) -> dict[str, Any]:
        """Decide whether a file goes through LFS, and name the content that is there now."""
        sample = base64.b64decode(file["sample"])
        lfs = file["path"].endswith(LFS_SUFFIXES) or b"\0" in sample or file["size"] > 10_000_000
        present = tree.get(file["path"])
        return {
            "path": file["path"],
            "uploadMode": "lfs" if lfs else "regular",
            "shouldIgnore": False,
            "oid": present.oid if present else None,
        }

    def ticket(self, oid: str) -> str:
        """A permission to upload one object, since the upload itself carries no token."""
        return self._tickets.setdefault(oid, secrets.token_hex(8))

    def put(self, oid: str, ticket: str, content: bytes) -> None:
        if self._tickets.get(oid) != ticket:
            raise Refusal(403, "no upload was agreed for this object", show=True)
        if hashlib.sha256(content).hexdigest() != oid:
            raise Refusal(400, f"content does not have SHA-256 {oid}")
        self.objects[oid] = content

    def commit(self, repository: Repository, branch: str, lines: list[dict[str, Any]]) -> Commit:
        """Apply the NDJSON lines of a commit; nothing changes unless every line is good."""
        branch = branch.removeprefix("refs/heads/")
        head = repository.resolve(branch)
        if branch not in repository.branches:
            raise Refusal(400, f"{branch} is not a branch")
        if not lines or lines[0]["key"] != "header" or not lines[0]["value"].get("summary"):
            raise Refusal(400, "the first line must be a header with a summary")
        parent = lines[0]["value"].get("parentCommit")
        if parent is not None and not head.oid.startswith(parent):
            raise Refusal(412, "A commit has happened since. Please refresh and try again.", show=True)
        tree = dict(head.tree)
        for line in lines[1:]:
            self._apply(tree, line["key"], line["value"])
        return repository.add_commit(branch, lines[0]["value"]["summary"], tree)

    def _apply(self, tree: dict[str, Entry], key: str, value: dict[str, Any]) -> None:
        path = value["path"]
        if path.startswith("/") or ".." in path.split("/") or not path:
            raise Refusal(400, f"path {path!r} leaves the repository")
        if key == "file":
            try:
                tree[path] = Entry(base64.b64decode(value["content"], validate=True), lfs=False)
            except binascii.Error as error:
                raise Refusal(400, f"{path}: {error}") from None
        elif key == "lfsFile":
            content = self.objects.get(value["oid"])
            if content is None or len(content) != value.get("size", len(content)):
                raise Refusal(400, f"{path} names an object that was never uploaded: {value['oid']}", show=True)
            tree[path] = Entry(content, lfs=True)
        elif key in ("deletedFile", "deletedFolder"):
            gone = [each for each in tree if each == path or each.startswith(path.rstrip("/") + "/")]
            if not gone:
                raise Refusal(404, f"{path} does not exist", code="EntryNotFound")
            for each in gone:
                del tree[each]
        else:
            raise Refusal(400, f"unknown operation {key!r}")
