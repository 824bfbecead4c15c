"""A server in a process of its own, and what that process takes of the machine."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from mlc_dsv3.bench.memory import rss_anon
from mlc_dsv3.errors import UserError

_LONGEST_STOP = 60  # seconds
_SAID = re.compile(r"http://([\d.]+):(\d+)")


class ServerProcess:
    """`mlc_dsv3 serve` with `arguments` on a free port of this machine, until the `with` block ends."""

    def __init__(self, arguments: Sequence[str]) -> None:
        self._arguments = [*arguments, "--host", "127.0.0.1", "--port", "0"]
        self.port = 0

    def __enter__(self) -> ServerProcess:
        command = [sys.executable, "-m", "mlc_dsv3", "serve", *self._arguments]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        assert self._process.stderr is not None
        lines = []
        for line in self._process.stderr:
            lines.append(line.strip())
            if found := _SAID.search(line):
                self.port = int(found[2])
                return self
        self._process.wait()
        raise UserError(f"the server did not start: {lines[-1] if lines else 'it said nothing'}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(_LONGEST_STOP)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def rss_anon(self) -> int | None:
        """Anonymous memory in bytes."""
        return rss_anon(self._process.pid)

    def http_seconds(self) -> float | None:
        """CPU seconds so far of the thread that speaks HTTP, which is the process's first; None where the system does
        not tell. (The engine's thread and the kernels' have the others.)"""
        task = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/stat")
        try:
            fields = task.read_text().rpartition(")")[2].split()
        except OSError:
            return None
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
