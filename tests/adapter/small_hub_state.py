"""What the small Hub of the tests holds: users, repositories with their commits, and what it was asked."""

from __future__ import annotations

import hashlib
import os
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

TOKEN = "hf_may_write"
READ_TOKEN = "hf_may_read"
GUEST_TOKEN = "hf_guest"
WRONG_TOKEN = "hf_wrong"
USERS = {TOKEN: "me", READ_TOKEN: "me", GUEST_TOKEN: "guest"}


@dataclass
class Repository:
    """One repository: where its branches, tags and pull requests stand, and what its commits hold."""

    kind: str = "models"
    private: bool = False
    refs: dict[str, str] = field(default_factory=dict)
    history: list[str] = field(default_factory=list)
    sizes: dict[str, int] = field(default_factory=dict)
    """Sizes that are told of files in place of their own, for files that no test wants to make."""


@dataclass
class Break:
    """A connection that breaks: the next ``times`` requests of this method whose path matches.

    Args:
        method: GET, PUT, POST.
        path: Regular expression.
        when: ``sending``: in the middle of the answer's bytes; ``receiving``: in the middle of the request's;
            ``answering``: all is done as asked, but no answer comes; ``never``: the answer is 403 instead.
        times: How often.
    """

    method: str
    path: str
    when: str
    times: int = 1


class SmallHub:
    """What the server holds, and what it was asked; ``address`` is where it listens.

    Args:
        address: Scheme, host and port.
        running: Whether anybody listens there.
    """

    def __init__(self, address: str, running: bool = False) -> None:
        self.address = address
        self.running = running
        self.elsewhere = address.replace("127.0.0.1", "localhost")
        """Where large files lie: another host, to which no token may be sent."""
        self.repositories: dict[str, Repository] = {}
        self.commits: dict[str, dict[str, bytes]] = {}
        self.messages: list[str] = []
        self.requests: list[tuple[str, str]] = []
        self.headers: list[tuple[str, dict[str, str]]] = []
        self.received: list[bytes] = []
        self.large: dict[str, bytes] = {}
        self.part = 1_000_000
        """Large files of more bytes than this go up in parts of this size."""
        self.parts: dict[str, dict[int, bytes]] = {}
        self.breaks: list[Break] = []
        self.meanwhile: list[tuple[str, Callable[[], object]]] = []
        """What happens right after the first answer to a request whose path matches: somebody else's push."""
        self.lock = threading.RLock()

    def create(
        self, repo_id: str, files: dict[str, bytes] | None = None, private: bool = False, kind: str = "models"
    ) -> str:
        self.repositories[repo_id] = Repository(kind, private)
        return self.commit(repo_id, files or {".gitattributes": b""})

    def commit(self, repo_id: str, files: dict[str, bytes], message: str = "", ref: str = "main") -> str:
        repository = self.repositories[repo_id]
        sha = hashlib.sha1(f"{repo_id} {len(repository.history)}".encode()).hexdigest()
        before = self.commits[repository.refs[ref]] if ref in repository.refs else {}
        self.commits[sha] = {**before, **files}
        repository.refs[ref] = sha
        repository.history.append(sha)
        self.messages.append(message)
        return sha

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes] | None:
        sha = self.sha(repo_id, revision)
        return None if sha is None else self.commits[sha]

    def sha(self, repo_id: str, revision: str = "main") -> str | None:
        repository = self.repositories[repo_id]
        return repository.refs.get(revision) or (revision if revision in repository.history else None)

    def asked(self, method: str, path: str) -> list[str]:
        """The paths asked for so far with this method that match."""
        return [asked for by, asked in self.requests if by == method and re.search(path, asked)]

    def environment(self, folder: Path, token: str | None = TOKEN) -> dict[str, str]:
        """For a process of its own, because huggingface_hub reads these when it is imported."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        own = {"HF_ENDPOINT": self.address, "HF_HOME": str(folder), "HF_HUB_DISABLE_XET": "1"}
        return kept | own | ({"HF_TOKEN": token} if token else {})
