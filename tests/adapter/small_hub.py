"""A small Hugging Face Hub on localhost: repositories, commits, large files and tokens, over the Hub's own HTTP API."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import yaml

TOKEN = "hf_may_write"
WRONG_TOKEN = "hf_wrong"


class SmallHub:
    """What the server holds, and what it was asked; ``address`` is where it listens.

    Args:
        address: Scheme, host and port.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.repositories: dict[str, list[str]] = {}
        """Commits of each repository, the newest last."""
        self.commits: dict[str, dict[str, bytes]] = {}
        self.messages: list[str] = []
        self.private: set[str] = set()
        self.requests: list[tuple[str, str]] = []
        self.received: list[bytes] = []
        self.large: dict[str, bytes] = {}

    def create(self, repo_id: str, files: dict[str, bytes] | None = None, private: bool = False) -> None:
        self.repositories.setdefault(repo_id, [])
        if private:
            self.private.add(repo_id)
        self.commit(repo_id, files or {".gitattributes": b""})

    def commit(self, repo_id: str, files: dict[str, bytes], message: str = "") -> str:
        sha = hashlib.sha1(f"{repo_id} {len(self.repositories[repo_id])}".encode()).hexdigest()
        self.commits[sha] = {**(self.files(repo_id) if self.repositories[repo_id] else {}), **files}
        self.repositories[repo_id].append(sha)
        self.messages.append(message)
        return sha

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes] | None:
        shas = self.repositories[repo_id]
        return self.commits[shas[-1]] if revision == "main" else self.commits[revision] if revision in shas else None

    def environment(self, folder: Path, token: str | None = TOKEN) -> dict[str, str]:
        """For a process of its own, because huggingface_hub reads these when it is imported."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        own = {"HF_ENDPOINT": self.address, "HF_HOME": str(folder), "HF_HUB_DISABLE_XET": "1"}
        return kept | own | ({"HF_TOKEN": token} if token else {})


@contextmanager
def small_hub() -> Iterator[SmallHub]:
    """A running hub."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.hub = hub = SmallHub(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, status: int, body: bytes | dict | list = b"", **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def handle_any(self) -> None:
        hub = self.server.hub
        path = self.path.partition("?")[0]
        hub.requests.append((self.command, path))
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        hub.received.append(data)
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token == WRONG_TOKEN:
            return self.answer(401, {}, X_Error_Message="Invalid credentials in Authorization header")
        for method, pattern, do in _ROUTES:
            if method == self.command.replace("HEAD", "GET") and (match := re.fullmatch(pattern, path)):
                repo_id = match.groupdict().get("repo")
                seen = repo_id in hub.repositories and (repo_id not in hub.private or token == TOKEN)
                if repo_id and not seen:
                    return self.answer(404 if token else 401, {}, X_Error_Code="RepoNotFound")
                if method == "POST" and not path.endswith("validate-yaml") and token != TOKEN:
                    return self.answer(403, {}, X_Error_Message="You may not write here")
                return do(self, hub, data, **match.groupdict())
        return self.answer(404, {})

    do_GET = do_HEAD = do_POST = do_PUT = handle_any  # noqa: N815

    def create(self, hub: SmallHub, data: bytes) -> None:
        asked = json.loads(data)
        repo_id = f"{asked['organization'] or 'me'}/{asked['name']}"
        there = repo_id in hub.repositories
        if not there:
            hub.create(repo_id, private=asked.get("visibility") == "private" or bool(asked.get("private")))
        self.answer(409 if there else 200, {"url": f"{hub.address}/{repo_id}"})

    def validate(self, _hub: SmallHub, data: bytes) -> None:
        metadata = yaml.safe_load(json.loads(data)["content"].split("---")[1])
        if isinstance(metadata, dict) and metadata.get("license") != "nonsense":
            return self.answer(200, {"errors": [], "warnings": []})
        return self.answer(400, {"errors": [{"message": '"license" must be one of a list'}], "warnings": []})

    def preupload(self, hub: SmallHub, data: bytes, repo: str) -> None:
        def mode(path: str) -> str:
            return "lfs" if path.endswith(".safetensors") else "regular"

        names = [file["path"] for file in json.loads(data)["files"]]
        self.answer(200, {"files": [{"path": n, "uploadMode": mode(n), "shouldIgnore": False} for n in names]})

    def batch(self, hub: SmallHub, data: bytes, repo: str) -> None:
        objects = [
            {**wanted, "actions": {"upload": {"href": f"{hub.address}/large/{wanted['oid']}"}}}
            for wanted in json.loads(data)["objects"]
        ]
        self.answer(200, {"transfer": "basic", "objects": objects}, Content_Type="application/vnd.git-lfs+json")

    def put_large(self, hub: SmallHub, data: bytes, oid: str) -> None:
        hub.large[oid] = data
        self.answer(200 if hashlib.sha256(data).hexdigest() == oid else 400)

    def commit(self, hub: SmallHub, data: bytes, repo: str) -> None:
        files, message = {}, ""
        for line in map(json.loads, data.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                message = value["summary"]
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = hub.large[value["oid"]]
        sha = hub.commit(repo, files, message)
        self.answer(200, {"commitUrl": f"{hub.address}/{repo}/commit/{sha}", "commitOid": sha})

    def info(self, hub: SmallHub, _data: bytes, repo: str, revision: str | None = None) -> None:
        if hub.files(repo, revision or "main") is None:
            return self.answer(404, {}, X_Error_Code="RevisionNotFound")
        sha = hub.repositories[repo][-1] if revision in (None, "main") else revision
        return self.answer(200, {"id": repo, "sha": sha, "siblings": [], "tags": [], "private": repo in hub.private})

    def tree(self, hub: SmallHub, _data: bytes, repo: str, revision: str) -> None:
        files = hub.files(repo, revision) or {}
        self.answer(200, [{"type": "file", "path": n, "size": len(d), "oid": _oid(d)} for n, d in files.items()])

    def resolve(self, hub: SmallHub, _data: bytes, repo: str, revision: str, name: str) -> None:
        files = hub.files(repo, revision)
        if files is None or name not in files:
            return self.answer(404, b"", X_Error_Code="RevisionNotFound" if files is None else "EntryNotFound")
        sha = hub.repositories[repo][-1] if revision == "main" else revision
        return self.answer(200, files[name], ETag=f'"{_oid(files[name])}"', X_Repo_Commit=sha)


def _oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


_REPO = r"(?P<repo>[^/]+/[^/]+)"
_ROUTES = [
    ("POST", "/api/repos/create", _Handler.create),
    ("POST", "/api/validate-yaml", _Handler.validate),
    ("POST", f"/api/models/{_REPO}/preupload/main", _Handler.preupload),
    ("POST", rf"/{_REPO}\.git/info/lfs/objects/batch", _Handler.batch),
    ("PUT", "/large/(?P<oid>[0-9a-f]{64})", _Handler.put_large),
    ("POST", f"/api/models/{_REPO}/commit/main", _Handler.commit),
    ("GET", f"/api/models/{_REPO}", _Handler.info),
    ("GET", f"/api/models/{_REPO}/revision/(?P<revision>.+)", _Handler.info),
    ("GET", f"/api/models/{_REPO}/tree/(?P<revision>.+)", _Handler.tree),
    ("GET", f"/{_REPO}/resolve/(?P<revision>[^/]+)/(?P<name>.+)", _Handler.resolve),
]
