"""Runs programs that talk to the small Hub, each in a process of its own.

The Hub's client reads its address, and whether it may ask at all, when it is imported. So one process imports it, told
of the small Hub's address, and is forked for every program: 0.9 s less each than a process that imports it anew.
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

from small_hub import TOKEN, SmallHub

PUSH = """
import sys
from npti_export.adapter.adapter import PersonalityAdapter
adapter = PersonalityAdapter.from_pretrained(sys.argv[1])
print(adapter.push_to_hub(sys.argv[2], **eval(sys.argv[3])))
"""
PULL = """
import sys
from npti_export.adapter.adapter import PersonalityAdapter
PersonalityAdapter.from_pretrained(sys.argv[1], **eval(sys.argv[3])).save_pretrained(sys.argv[2])
"""
COMMAND = "from npti_export.cli import main; main()"


def started(
    program: str, arguments: list[str], hub: SmallHub, folder: Path, token: str | None = TOKEN, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Runs a program to its end.

    Args:
        program: Python.
        arguments: Its own.
        hub: The only Hub that it knows.
        folder: Working directory; what is kept lies below, or in a cache that another folder does not share.
        token: Of the one who is logged in.
        variables: Of the environment.
    """
    places = {"HOME": str(folder / "home"), "NPTI_EXPORT_HOME": str(folder / "own"), "OMP_NUM_THREADS": "1"}
    environment = hub.environment(folder / "hf", token) | places | variables
    if hub.running and "HF_HUB_OFFLINE" not in variables:
        return _forker(hub.address).run(program, arguments, environment, folder)
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=600,
    )


def runner(hub: SmallHub, folder: Path) -> Callable[..., str]:
    """A function that runs PUSH or PULL; it gives the output, or the one sentence of the package's error."""

    def run(
        program: str,
        *arguments: object,
        token: str | None = TOKEN,
        hub: SmallHub = hub,
        variables: dict[str, str] | None = None,
        **options: object,
    ) -> str:
        # The package's error, and no other, is printed as a sentence.
        wrapped = "\n".join(
            ["from npti_export.errors import NptiError", "try:"]
            + [f"    {line}" for line in program.strip().splitlines()]
            + ["except NptiError as error: print('NptiError:', error)"]
        )
        done = started(wrapped, [*map(str, arguments), repr(options)], hub, folder, token, **(variables or {}))
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("\n") <= 1
        return done.stdout.strip()

    return run


class _Forker:
    """The process that is forked, and the Hub cache that all of its children have."""

    def __init__(self, address: str) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="small-hub-"))
        self.folder: Path | None = None
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            env=SmallHub(address).environment(self.home / "hf", None) | {"OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        atexit.register(self.end)

    def run(
        self, program: str, arguments: list[str], environment: dict[str, str], folder: Path
    ) -> subprocess.CompletedProcess[str]:
        kept = folder / "hf"
        if folder != self.folder:
            # Another test: what the last one downloaded is not there.
            shutil.rmtree(self.home / "hf", ignore_errors=True)
            self.folder = folder
        if kept.is_symlink():
            kept.unlink()
        # A process that is started anew finds the same cache.
        (self.home / "hf").mkdir(exist_ok=True)
        kept.symlink_to(self.home / "hf")
        job = {"program": program, "arguments": arguments, "environment": environment, "folder": str(folder)}
        job |= {"out": str(self.home / "out"), "err": str(self.home / "err")}
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        code = int(self.process.stdout.readline())
        out, err = ((self.home / name).read_text(encoding="utf-8") for name in ("out", "err"))
        return subprocess.CompletedProcess(arguments, code, out, err)

    def end(self) -> None:
        self.process.stdin.close()
        self.process.wait()
        shutil.rmtree(self.home, ignore_errors=True)


@cache
def _forker(address: str) -> _Forker:
    return _Forker(address)


def _serve() -> None:
    """What the forked process does: imports everything, and for every line of its input runs a program in a child."""
    import npti_export.adapter.adapter
    import npti_export.cli.pull
    import npti_export.cli.push  # noqa: F401

    for line in sys.stdin:
        job = json.loads(line)
        child = os.fork()
        if child == 0:
            _become(job)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _become(job: dict) -> None:
    """Runs the program as if this process had been started for it, and ends."""
    os.environ.clear()
    os.environ.update(job["environment"])
    os.chdir(job["folder"])
    for stream, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(job[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    os.close(0)
    sys.argv = ["-c", *job["arguments"]]
    code = 0
    try:
        exec(compile(job["program"], "<program>", "exec"), {"__name__": "__main__"})
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve()
