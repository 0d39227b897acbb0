"""A Hub on loopback: what the real `huggingface_hub` client needs, answered from memory.

A child process of the tests on 127.0.0.1 with a free port: it prints its address and ends with its input. Paths and
headers follow https://huggingface.co/docs/hub/api and the Git LFS batch API; `hub_store.py` holds the repositories,
`hub_card.py` checks cards, and `hub.py` is the side that tests use. In addition, `/_test/log` lists the
requests seen and `/_test/fail` makes coming requests fail.
"""

import json
import re
import sys
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

sys.path.insert(0, str(Path(__file__).parent))  # the child process is started by file name
from hub_card import card_errors  # noqa: E402 - found through the line above
from hub_store import TOKENS, Refusal, Repository, Store  # noqa: E402 - found through the line above

_API = r"/api/(?P<kind>models|datasets|spaces)/(?P<name>[^/]+/[^/]+)"
_PLAIN = r"/(?:(?P<kind>datasets|spaces)/)?(?P<name>[^/]+/[^/]+)"


@dataclass(frozen=True)
class Answer:
    """One HTTP response: a JSON-able body or raw bytes."""

    body: Any = None
    status: int = 200
    headers: dict[str, str] | None = None


class Handler(BaseHTTPRequestHandler):
    """Routes one request to one of the methods named in ROUTES, all under the store's lock."""

    protocol_version = "HTTP/1.1"
    server: "HubServer"

    def answer(self) -> None:
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        self.body = self.read_body()
        try:
            answer = self.injected_failure(url.path) or self.route(url.path)
        except Refusal as refusal:
            answer = Answer({"error": refusal.message, **refusal.extra}, refusal.status, refusal.headers)
        self.server.log.append([self.command, self.path, answer.status])
        payload = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
        self.send_response(answer.status)
        for name, value in {"Content-Length": str(len(payload)), **(answer.headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(payload)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def injected_failure(self, path: str) -> Answer | None:
        for rule in self.server.failures:
            if rule["times"] > 0 and not path.startswith("/_test/") and re.search(rule["pattern"], path):
                rule["times"] -= 1
                time.sleep(rule.get("seconds", 0.0))
                if rule["status"] == 0:
                    return None
                return Answer({"error": "injected failure"}, rule["status"])
        return None

    def route(self, path: str) -> Answer:
        for method, pattern, name in ROUTES:
            match = re.fullmatch(pattern, path)
            if match and self.command in method.split():
                groups = {key: unquote(value) for key, value in match.groupdict().items() if value is not None}
                with self.server.lock:
                    return getattr(self, name)(**groups)
        raise Refusal(404, f"no route for {self.command} {path}")

    def log_message(self, *_: Any) -> None:  # the request log is read through /_test/log instead
        pass

    # Who asks, and what they may touch.

    def user(self) -> tuple[str | None, str]:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ").strip()
        if not token:
            return None, "read"
        if token not in TOKENS:
            raise Refusal(401, "Invalid credentials in Authorization header", show=True)
        return TOKENS[token]

    def repository(self, name: str, kind: str = "models", *, write: bool = False) -> Repository:
        user, role = self.user()
        repository = self.server.store.repositories.get((kind, name))
        if repository is None or (repository.private and user != repository.owner):
            # As on the real Hub, a stranger cannot tell a private repository from one that does not exist.
            raise Refusal(401 if user is None else 404, "Repository not found", code="RepoNotFound")
        if write and user is None:
            raise Refusal(401, "Invalid username or password.", show=True)
        if write and (role != "write" or user != repository.owner):
            raise Refusal(403, "You don't have the rights to write to this repository", show=True)
        return repository

    def json(self) -> Any:
        try:
            return json.loads(self.body or b"{}")
        except json.JSONDecodeError as error:
            raise Refusal(400, f"malformed JSON: {error}") from None

    # Repositories.

    def whoami(self) -> Answer:
        user, role = self.user()
        if user is None:
            raise Refusal(401, "Invalid username or password.", show=True)
        token = {"displayName": "test", "role": role}
        return Answer({"type": "user", "name": user, "auth": {"accessToken": token}, "orgs": []})

    def create(self) -> Answer:
        user, role = self.user()
        if user is None:
            raise Refusal(401, "Invalid username or password.", show=True)
        request = self.json()
        owner, kind = request.get("organization") or user, (request.get("type") or "model") + "s"
        if role != "write" or owner != user:
            raise Refusal(403, f"You don't have the rights to create a repository under {owner!r}", show=True)
        name = f"{owner}/{request['name']}"
        url = f"{self.server.url}/{'' if kind == 'models' else kind + '/'}{name}"
        if (kind, name) in self.server.store.repositories:
            raise Refusal(409, "You already created this repo", extra={"url": url})
        private = request.get("visibility") == "private" or bool(request.get("private"))
        self.server.store.create(kind, name, owner, private)
        return Answer({"url": url, "name": name, "id": name, "private": private})

    def delete(self) -> Answer:
        request = self.json()
        name = f"{request.get('organization') or self.user()[0]}/{request['name']}"
        kind = (request.get("type") or "model") + "s"
        self.repository(name, kind, write=True)
        del self.server.store.repositories[(kind, name)]
        return Answer({})

    def settings(self, kind: str, name: str) -> Answer:
        repository, request = self.repository(name, kind, write=True), self.json()
        repository.private = request.get("visibility") == "private" or bool(request.get("private"))
        return Answer({"private": repository.private})

    def info(self, kind: str, name: str, revision: str = "main") -> Answer:
        repository = self.repository(name, kind)
        commit = repository.resolve(revision)
        described = {"id": name, "author": repository.owner, "sha": commit.oid, "private": repository.private}
        return Answer(described | {"tags": [], "siblings": [{"rfilename": path} for path in sorted(commit.tree)]})

    def refs(self, kind: str, name: str) -> Answer:
        repository = self.repository(name, kind)
        shown = {
            group: [{"name": key, "ref": f"refs/{prefix}/{key}", "targetCommit": oid} for key, oid in refs.items()]
            for group, prefix, refs in (("branches", "heads", repository.branches), ("tags", "tags", repository.tags))
        }
        return Answer(shown | {"converts": []})

    def branch(self, kind: str, name: str, revision: str) -> Answer:
        repository = self.repository(name, kind, write=True)
        if self.command == "DELETE":
            repository.remove_ref(repository.branches, revision)
        else:
            repository.add_ref(repository.branches, revision, self.json().get("startingPoint", "main"))
        return Answer({})

    def tag(self, kind: str, name: str, revision: str) -> Answer:
        repository = self.repository(name, kind, write=True)
        if self.command == "DELETE":
            repository.remove_ref(repository.tags, revision)
        else:
            repository.add_ref(repository.tags, self.json()["tag"], revision)
        return Answer({})

    def commits(self, kind: str, name: str, revision: str) -> Answer:
        history = self.repository(name, kind).history(revision)
        return Answer(
            [
                {"id": commit.oid, "title": commit.title, "message": "", "authors": [], "date": commit.date}
                for commit in history
            ]
        )

    # Uploads.

    def preupload(self, kind: str, name: str, revision: str) -> Answer:
        repository = self.repository(name, kind, write=True)
        tree = repository.resolve(revision).tree
        return Answer({"files": [self.server.store.upload_mode(tree, file) for file in self.json()["files"]]})

    def lfs_batch(self, name: str, kind: str = "models") -> Answer:
        self.repository(name, kind, write=True)
        objects = []
        for wanted in self.json()["objects"]:
            described = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.server.store.objects:
                ticket = self.server.store.ticket(wanted["oid"])
                described["actions"] = {"upload": {"href": f"{self.server.url}/_lfs/{wanted['oid']}?ticket={ticket}"}}
            objects.append(described)
        return Answer({"transfer": "basic", "objects": objects})

    def lfs_put(self, oid: str) -> Answer:
        self.server.store.put(oid, self.query.get("ticket", [""])[0], self.body)
        return Answer(b"")

    def commit(self, kind: str, name: str, revision: str) -> Answer:
        repository = self.repository(name, kind, write=True)
        lines = [json.loads(line) for line in self.body.splitlines() if line.strip()]
        commit = self.server.store.commit(repository, revision, lines)
        url = f"{self.server.url}/{'' if kind == 'models' else kind + '/'}{name}/commit/{commit.oid}"
        return Answer({"success": True, "commitOid": commit.oid, "commitUrl": url, "hookOutput": ""})

    def validate_card(self) -> Answer:
        errors = card_errors(self.json()["content"])
        report = {"errors": [{"message": message} for message in errors], "warnings": []}
        return Answer(report, 400 if errors else 200)

    # Downloads.

    def tree(self, kind: str, name: str, revision: str, path: str = "") -> Answer:
        repository = self.repository(name, kind)
        recursive = self.query.get("recursive", ["false"])[0].lower() in ("true", "1")
        return Answer(repository.list_folder(repository.resolve(revision), path.strip("/"), recursive))

    def paths_info(self, kind: str, name: str, revision: str) -> Answer:
        repository = self.repository(name, kind)
        if "json" in self.headers.get("Content-Type", ""):
            paths = self.json()["paths"]
        else:
            paths = parse_qs(self.body.decode()).get("paths", [])
        return Answer(repository.describe(repository.resolve(revision), paths))

    def resolve(self, name: str, revision: str, path: str, kind: str = "models") -> Answer:
        repository = self.repository(name, kind)
        commit = repository.resolve(revision)
        headers = {"X-Repo-Commit": commit.oid, "Accept-Ranges": "bytes"}
        entry = commit.tree.get(path)
        if entry is None:
            raise Refusal(404, "Entry not found", code="EntryNotFound", headers=headers)
        headers |= {"ETag": f'"{entry.oid}"', "Content-Type": "application/octet-stream"}
        if entry.lfs:
            headers |= {"X-Linked-ETag": f'"{entry.oid}"', "X-Linked-Size": str(len(entry.content))}
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if wanted is None or wanted[0] == "bytes=-":
            return Answer(entry.content, headers=headers)
        size = len(entry.content)
        first = int(wanted[1]) if wanted[1] else max(0, size - int(wanted[2]))
        last = min(int(wanted[2]), size - 1) if wanted[1] and wanted[2] else size - 1
        if first > last:
            return Answer(b"", 416, headers | {"Content-Range": f"bytes */{size}"})
        headers |= {"Content-Range": f"bytes {first}-{last}/{size}"}
        return Answer(entry.content[first : last + 1], 206, headers)

    # For the tests themselves.

    def test_log(self) -> Answer:
        return Answer(list(self.server.log))

    def test_fail(self) -> Answer:
        self.server.failures[:] = self.json()
        return Answer({})


ROUTES = [
    ("GET", "/_test/log", "test_log"),
    ("POST", "/_test/fail", "test_fail"),
    ("GET", "/api/whoami-v2", "whoami"),
    ("POST", "/api/repos/create", "create"),
    ("DELETE", "/api/repos/delete", "delete"),
    ("POST", "/api/validate-yaml", "validate_card"),
    ("PUT", f"{_API}/settings", "settings"),
    ("GET", f"{_API}/refs", "refs"),
    ("GET", rf"{_API}(?:/revision/(?P<revision>[^/]+))?", "info"),
    ("POST DELETE", rf"{_API}/branch/(?P<revision>[^/]+)", "branch"),
    ("POST DELETE", rf"{_API}/tag/(?P<revision>[^/]+)", "tag"),
    ("GET", rf"{_API}/commits/(?P<revision>[^/]+)", "commits"),
    ("POST", rf"{_API}/preupload/(?P<revision>[^/]+)", "preupload"),
    ("POST", rf"{_API}/commit/(?P<revision>[^/]+)", "commit"),
    ("GET", rf"{_API}/tree/(?P<revision>[^/]+)(?:/(?P<path>.*))?", "tree"),
    ("POST", rf"{_API}/paths-info/(?P<revision>[^/]+)", "paths_info"),
    ("POST", rf"{_PLAIN}\.git/info/lfs/objects/batch", "lfs_batch"),
    ("PUT", r"/_lfs/(?P<oid>[0-9a-f]{64})", "lfs_put"),
    ("GET HEAD", rf"{_PLAIN}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
]


class HubServer(ThreadingHTTPServer):
    """The listening socket and everything that outlives one request."""

    daemon_threads = True

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.store = Store()
        self.lock = threading.RLock()
        self.log: list[list[Any]] = []
        self.failures: list[dict[str, Any]] = []


if __name__ == "__main__":
    hub_server = HubServer(int(sys.argv[1]))
    threading.Thread(target=hub_server.serve_forever, daemon=True).start()
    print(hub_server.url, flush=True)
    sys.stdin.read()
