"""A small Hugging Face Hub on localhost, over the Hub's own HTTP API as huggingface_hub uses it.

Repositories of all kinds with commits, branches, tags and pull requests; users, tokens and who may do what; large files
through the LFS protocol, in one piece or in parts, and down through a redirect to another host; and connections that
break in the middle where a test asks for it. Not the Xet protocol: tests switch the client to plain HTTP.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote

import yaml
from small_hub_state import GUEST_TOKEN, READ_TOKEN, TOKEN, USERS, WRONG_TOKEN, Break, Repository, SmallHub

__all__ = ["GUEST_TOKEN", "READ_TOKEN", "TOKEN", "WRONG_TOKEN", "Break", "SmallHub", "no_hub", "small_hub"]


@contextmanager
def small_hub() -> Iterator[SmallHub]:
    """A hub with nothing in it; it is always at the same address, of a server that runs until the tests end."""
    server = _server()
    server.hub = hub = SmallHub(f"http://127.0.0.1:{server.server_port}", running=True)
    yield hub


@cache
def _server() -> ThreadingHTTPServer:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    return server


@contextmanager
def no_hub() -> Iterator[SmallHub]:
    """A hub that cannot be reached: its port is taken, and nobody listens there."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield SmallHub(f"http://127.0.0.1:{taken.getsockname()[1]}")


class _RefusedError(Exception):
    """An answer other than what was asked for."""

    def __init__(self, status: int, **headers: str) -> None:
        self.status, self.headers = status, headers


class _BrokenError(Exception):
    """The connection is to end here."""


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
        if self.breaking == "answering":
            raise _BrokenError
        if self.command != "HEAD":
            half = self.breaking == "sending"
            self.wfile.write(data[: len(data) // 2] if half else data)
            if half:
                raise _BrokenError

    def handle_any(self) -> None:
        hub = self.server.hub
        path, _, query = self.path.partition("?")
        self.query = {name: values[0] for name, values in parse_qs(query).items()}
        with hub.lock:
            hub.requests.append((self.command, path))
            hub.headers.append((path, {name.lower(): value for name, value in self.headers.items()}))
            self.breaking = self.break_of(hub, path)
        length = int(self.headers.get("Content-Length") or 0)
        data = self.rfile.read(length // 2 if self.breaking == "receiving" else length)
        hub.received.append(data)
        self.token = self.headers.get("Authorization", "").removeprefix("Bearer ") or None
        try:
            if self.breaking == "receiving":
                raise _BrokenError
            if self.breaking == "never":
                raise _RefusedError(403, X_Error_Message="Request has expired")
            with hub.lock:
                if self.breaking == "answering":
                    # What was asked for is done; the answer goes nowhere.
                    self.wfile, wire = _Nowhere(), self.wfile
                    try:
                        self.route(hub, path, data)
                    finally:
                        self.wfile = wire
                    raise _BrokenError
                self.route(hub, path, data)
                for wanted in [wanted for wanted in hub.meanwhile if re.search(wanted[0], path)]:
                    hub.meanwhile.remove(wanted)
                    wanted[1]()
        except _RefusedError as refused:
            self.answer(refused.status, {}, **refused.headers)
        except _BrokenError:
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

    do_GET = do_HEAD = do_POST = do_PUT = handle_any  # noqa: N815

    def break_of(self, hub: SmallHub, path: str) -> str | None:
        for wanted in hub.breaks:
            if wanted.times and wanted.method == self.command and re.search(wanted.path, path):
                wanted.times -= 1
                return wanted.when
        return None

    def route(self, hub: SmallHub, path: str, data: bytes) -> None:
        if self.token == WRONG_TOKEN:
            raise _RefusedError(401, X_Error_Message="Invalid credentials in Authorization header")
        for method, pattern, do in _ROUTES:
            if method == self.command.replace("HEAD", "GET") and (match := re.fullmatch(pattern, path)):
                return do(self, hub, data, **{name: unquote(part) for name, part in match.groupdict().items() if part})
        raise _RefusedError(404)

    def repository(self, hub: SmallHub, repo: str, kind: str = "models") -> Repository:
        """The repository, if the one who asks may see it."""
        found = hub.repositories.get(repo)
        mine = repo.split("/")[0] == USERS.get(self.token)
        if found is None or found.kind != kind or (found.private and not mine):
            # Who is not logged in is not told whether it is there. (The Hub sends no code here; the client knows the
            # case by an address that begins with https, which this one is not.)
            if self.token is None:
                message = "Invalid username or password."
                raise _RefusedError(401, X_Error_Code="RepoNotFound", X_Error_Message=message)
            raise _RefusedError(404, X_Error_Code="RepoNotFound", X_Error_Message="Repository not found")
        return found

    def may_write(self, name: str) -> None:
        if self.token is None:
            raise _RefusedError(401, X_Error_Message="Invalid username or password.")
        if self.token != TOKEN or name.split("/")[0] != "me":
            raise _RefusedError(403, X_Error_Message="You don't have the rights to write here")

    def at(self, hub: SmallHub, repo: str, revision: str) -> tuple[str, dict[str, bytes]]:
        self.repository(hub, repo)
        sha = hub.sha(repo, revision)
        if sha is None:
            raise _RefusedError(404, X_Error_Code="RevisionNotFound", X_Error_Message=f"Invalid rev id: {revision}")
        return sha, hub.commits[sha]

    def whoami(self, _hub: SmallHub, _data: bytes) -> None:
        if self.token not in USERS:
            raise _RefusedError(401, X_Error_Message="Invalid username or password.")
        self.answer(200, {"type": "user", "name": USERS[self.token], "orgs": []})

    def create(self, hub: SmallHub, data: bytes) -> None:
        asked = json.loads(data)
        repo = f"{asked['organization'] or USERS.get(self.token)}/{asked['name']}"
        self.may_write(repo)
        there = repo in hub.repositories
        if not there:
            hub.create(repo, private=asked.get("visibility") == "private" or bool(asked.get("private")))
        self.answer(409 if there else 200, {"url": f"{hub.address}/{repo}"})

    def branch(self, hub: SmallHub, data: bytes, repo: str, branch: str) -> None:
        repository = self.repository(hub, repo)
        self.may_write(repo)
        if branch in repository.refs:
            raise _RefusedError(409, X_Error_Message=f"Reference already exists: {branch}")
        repository.refs[branch] = hub.sha(repo, json.loads(data).get("startingPoint", "main"))
        self.answer(200, {})

    def validate(self, _hub: SmallHub, data: bytes) -> None:
        parts = json.loads(data)["content"].split("---")
        metadata = yaml.safe_load(parts[1]) if len(parts) > 2 else {}  # a card without any is only warned of
        if isinstance(metadata, dict) and metadata.get("license") != "nonsense":
            return self.answer(200, {"errors": [], "warnings": []})
        return self.answer(400, {"errors": [{"message": '"license" must be one of a list'}], "warnings": []})

    def preupload(self, hub: SmallHub, data: bytes, repo: str, revision: str) -> None:
        _, there = self.at(hub, repo, revision)
        if not self.query.get("create_pr"):
            self.may_write(repo)

        def described(path: str) -> dict:
            mode = "lfs" if path.endswith(".safetensors") else "regular"
            oid = _oids(path, there[path])["known"] if path in there else None
            return {"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid}

        self.answer(200, {"files": [described(file["path"]) for file in json.loads(data)["files"]]})

    def batch(self, hub: SmallHub, data: bytes, repo: str) -> None:
        self.repository(hub, repo)
        if self.token is None:
            raise _RefusedError(401, X_Error_Message="Invalid username or password.")
        asked = json.loads(data)
        if asked["operation"] != "upload" or asked["hash_algo"] != "sha256" or "multipart" not in asked["transfers"]:
            raise _RefusedError(422)

        def actions(oid: str, size: int) -> dict:
            if oid in hub.large:
                return {}
            verify = {"href": f"{hub.address}/{repo}.git/verify"}
            if size <= hub.part:
                return {"actions": {"upload": {"href": f"{hub.elsewhere}/large/{oid}"}, "verify": verify}}
            parts = {str(n + 1): f"{hub.elsewhere}/large/{oid}/{n + 1}" for n in range(-(-size // hub.part))}
            upload = {"href": f"{hub.address}/large/{oid}/complete", "header": {"chunk_size": str(hub.part), **parts}}
            return {"actions": {"upload": upload, "verify": verify}}

        objects = [{**wanted, **actions(wanted["oid"], wanted["size"])} for wanted in asked["objects"]]
        self.answer(200, {"transfer": "basic", "objects": objects}, Content_Type="application/vnd.git-lfs+json")

    def put_large(self, hub: SmallHub, data: bytes, oid: str) -> None:
        if hashlib.sha256(data).hexdigest() != oid:
            raise _RefusedError(400)
        hub.large[oid] = data
        self.answer(200)

    def put_part(self, hub: SmallHub, data: bytes, oid: str, part: str) -> None:
        hub.parts.setdefault(oid, {})[int(part)] = data
        self.answer(200, ETag=f'"{hashlib.md5(data).hexdigest()}"')

    def complete(self, hub: SmallHub, data: bytes, oid: str) -> None:
        parts = hub.parts[oid]
        named = {part["partNumber"]: part["etag"].strip('"') for part in json.loads(data)["parts"]}
        if named != {number: hashlib.md5(part).hexdigest() for number, part in parts.items()}:
            raise _RefusedError(400)
        self.put_large(hub, b"".join(parts[number] for number in sorted(parts)), oid)

    def verify(self, hub: SmallHub, data: bytes, repo: str) -> None:
        asked = json.loads(data)
        if len(hub.large.get(asked["oid"], b"")) != asked["size"]:
            raise _RefusedError(404)
        self.answer(200, {})

    def commit(self, hub: SmallHub, data: bytes, repo: str, revision: str) -> None:
        self.at(hub, repo, revision)
        as_pr = self.query.get("create_pr") == "1"
        if not as_pr:
            self.may_write(repo)
        elif self.token not in (TOKEN, GUEST_TOKEN):
            raise _RefusedError(403, X_Error_Message="You may not open pull requests")
        files, message = {}, ""
        for line in map(json.loads, data.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                message = value["summary"]
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = hub.large[value["oid"]]
            else:
                raise _RefusedError(400, X_Error_Message=f"unknown key {line['key']}")
        ref, pull = revision, {}
        if as_pr:
            number = sum(ref.startswith("refs/pr/") for ref in hub.repositories[repo].refs) + 1
            ref = f"refs/pr/{number}"
            hub.repositories[repo].refs[ref] = hub.sha(repo, revision)
            pull = {"pullRequestUrl": f"{hub.address}/{repo}/discussions/{number}"}
        sha = hub.commit(repo, files, message, ref)
        self.answer(200, {"commitUrl": f"{hub.address}/{repo}/commit/{sha}", "commitOid": sha, **pull})

    def info(self, hub: SmallHub, _data: bytes, kind: str, repo: str, revision: str = "main") -> None:
        repository = self.repository(hub, repo, kind)
        sha = hub.sha(repo, revision)
        if sha is None:
            raise _RefusedError(404, X_Error_Code="RevisionNotFound", X_Error_Message=f"Invalid rev id: {revision}")
        blobs = self.query.get("blobs") in ("True", "true", "1")
        siblings = [
            {"rfilename": path, **({"size": repository.sizes.get(path, len(data))} if blobs else {})}
            for path, data in hub.commits[sha].items()
        ]
        described = {"id": repo, "sha": sha, "siblings": siblings, "tags": [], "private": repository.private}
        self.answer(200, described)

    def entry(self, hub: SmallHub, repo: str, path: str, data: bytes) -> dict:
        size = hub.repositories[repo].sizes.get(path, len(data))
        oids = _oids(path, data)
        lfs = {"lfs": {"oid": oids["lfs"], "size": size, "pointerSize": 130}} if "lfs" in oids else {}
        return {"type": "file", "path": path, "size": size, "oid": oids["git"], **lfs}

    def tree(self, hub: SmallHub, _data: bytes, repo: str, revision: str) -> None:
        _, files = self.at(hub, repo, revision)
        self.answer(200, [self.entry(hub, repo, path, data) for path, data in files.items()])

    def paths_info(self, hub: SmallHub, data: bytes, repo: str, revision: str) -> None:
        _, files = self.at(hub, repo, revision)
        sent = data.decode()
        wanted = json.loads(sent)["paths"] if sent.startswith("{") else parse_qs(sent)["paths"]
        self.answer(200, [self.entry(hub, repo, path, files[path]) for path in wanted if path in files])

    def resolve(self, hub: SmallHub, _data: bytes, repo: str, revision: str, name: str) -> None:
        sha, files = self.at(hub, repo, revision)
        if name not in files:
            raise _RefusedError(404, X_Error_Code="EntryNotFound", X_Repo_Commit=sha)
        data, oids = files[name], _oids(name, files[name])
        if "lfs" not in oids:
            return self.send_file(data, ETag=f'"{oids["git"]}"', X_Repo_Commit=sha)
        hub.large.setdefault(oids["lfs"], data)
        place = f"{hub.elsewhere}/large/{oids['lfs']}"
        linked = {"X_Linked_ETag": f'"{oids["lfs"]}"', "X_Linked_Size": str(len(data))}
        return self.answer(302, b"", Location=place, X_Repo_Commit=sha, **linked)

    def get_large(self, hub: SmallHub, _data: bytes, oid: str) -> None:
        self.send_file(hub.large[oid], ETag=f'"{oid}"')

    def send_file(self, data: bytes, **headers: str) -> None:
        """A file, or what is left of it from where the one who asks has it."""
        if asked := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start = int(asked[1])
            told = f"bytes {start}-{len(data) - 1}/{len(data)}"
            return self.answer(206, data[start:], Content_Range=told, **headers)
        return self.answer(200, data, Accept_Ranges="bytes", **headers)


class _Nowhere:
    """Takes the bytes of an answer that never arrives."""

    def write(self, data: bytes) -> int:
        return len(data)

    def flush(self) -> None:
        pass


def _oids(path: str, data: bytes) -> dict[str, str]:
    """The ids of a file's content: git's own, for a large one its hash, and which of them the Hub compares."""
    if path.endswith(".safetensors"):
        large = hashlib.sha256(data).hexdigest()
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{large}\nsize {len(data)}\n".encode()
        return {"git": _oids("", pointer)["git"], "lfs": large, "known": large}
    git = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    return {"git": git, "known": git}


_REPO = r"(?P<repo>[^/]+/[^/]+)"
_REVISION = r"(?P<revision>[^/]+)"
_OID = "(?P<oid>[0-9a-f]{64})"
_ROUTES = [
    ("GET", "/api/whoami-v2", _Handler.whoami),
    ("POST", "/api/repos/create", _Handler.create),
    ("POST", "/api/validate-yaml", _Handler.validate),
    ("POST", f"/api/models/{_REPO}/branch/(?P<branch>[^/]+)", _Handler.branch),
    ("POST", f"/api/models/{_REPO}/preupload/{_REVISION}", _Handler.preupload),
    ("POST", rf"/{_REPO}\.git/info/lfs/objects/batch", _Handler.batch),
    ("POST", rf"/{_REPO}\.git/verify", _Handler.verify),
    ("PUT", f"/large/{_OID}", _Handler.put_large),
    ("PUT", f"/large/{_OID}/(?P<part>[0-9]+)", _Handler.put_part),
    ("POST", f"/large/{_OID}/complete", _Handler.complete),
    ("GET", f"/large/{_OID}", _Handler.get_large),
    ("POST", f"/api/models/{_REPO}/commit/{_REVISION}", _Handler.commit),
    ("POST", f"/api/models/{_REPO}/paths-info/{_REVISION}", _Handler.paths_info),
    ("GET", f"/api/models/{_REPO}/tree/{_REVISION}", _Handler.tree),
    ("GET", f"/api/(?P<kind>models|datasets|spaces)/{_REPO}", _Handler.info),
    ("GET", f"/api/(?P<kind>models|datasets|spaces)/{_REPO}/revision/{_REVISION}", _Handler.info),
    ("GET", f"/{_REPO}/resolve/{_REVISION}/(?P<name>.+)", _Handler.resolve),
]
