"""Fixtures that several packages' tests share: tiny checkpoints compiled once a session."""

from __future__ import annotations

import argparse
import fcntl
import functools
import os
import re
import signal
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

# A background job is started with interrupts ignored; tests of Ctrl-C are not to depend on how they were started.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Two workers have two threads each on what may be two cores: one that waits must not keep another from running.
os.environ.setdefault("TVM_THREAD_POOL_SPIN_COUNT", "0")

# Tests run against the installed package, so that not the repository but only this folder goes on the path: `golden`.
sys.path.insert(0, str(Path(__file__).parent))

from emulation import session  # noqa: E402  after the line that makes it findable

if TYPE_CHECKING:
    from golden.driver import Driver


def pytest_addoption(parser: pytest.Parser) -> None:
    """--emulate and --share."""
    session.add_option(parser)
    parser.addoption(
        "--share", metavar="K/N", type=_share, help="run the K-th of N shares of the tests, chosen by name"
    )


def _share(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise argparse.ArgumentTypeError(f"{text!r} is not K/N with K from 1 to N")
    return int(found[1]), int(found[2])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the tests of other shares."""
    if share := config.getoption("share"):
        number, shares = share
        chosen = [item for item in items if zlib.crc32(item.nodeid.encode()) % shares == number - 1]
        config.hook.pytest_deselected(items=[item for item in items if item not in set(chosen)])
        items[:] = chosen


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """Prepare --emulate, before workers are started."""
    session.configure(config)


@dataclass(frozen=True)
class Compiled:
    """A tiny checkpoint with what was made of it: the Hugging Face folder, the artifact and the library."""

    checkpoint: Path
    artifact: Path
    library: Path

    def driver(self, *, threads: int | None = None) -> Driver:
        """The loaded model behind a driver with a cache of its own."""
        from golden.driver import Driver

        from mlc_dsv3.runtime.model import CompiledModel
        from mlc_dsv3.weights import Artifact

        return Driver(CompiledModel.load(Artifact.open(self.artifact), self.library, threads=threads))


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of this run that all workers share."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session", autouse=True)
def nothing_of_the_users(shared_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What somebody has tuned or made on this machine does not decide what is tested. Workers share what they make."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_DATA_HOME", str(tmp_path_factory.mktemp("data")))
        patch.setenv("XDG_CACHE_HOME", str(shared_folder / "cache"))
        yield


@contextmanager
def alone(lock: Path) -> Iterator[None]:
    """Wait until no other worker is inside with this lock file."""
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="session")
def compiled(shared_folder: Path) -> Callable[..., Compiled]:
    """`compiled(name, quantization="q0f32", cache_dtype=None, device="cpu")`: a tiny checkpoint converted and compiled,
    once a run, by the first worker that asks."""
    folder = shared_folder / "compiled"
    folder.mkdir(exist_ok=True)

    @functools.cache
    def compile_once(name: str, quantization: str, cache_dtype: str | None, device: str) -> Compiled:
        from golden import checkpoints, tokenizer

        from mlc_dsv3.compiler import compile_model
        from mlc_dsv3.weights import Checkpoint, convert

        source = folder / name
        artifact = folder / f"{name}-{quantization}-MLC"
        library = folder / f"{name}-{quantization}-{cache_dtype}-{device}.so"
        with alone(folder / f"{name}-{quantization}.lock"):
            with alone(folder / f"{name}.lock"):
                if not source.exists():
                    checkpoints.write(name, source)
                    tokenizer.write(source)
            checkpoint = Checkpoint.open(source)
            if not artifact.exists():
                convert(checkpoint, quantization, artifact)
            if not library.exists():
                compile_model(checkpoint.model_config, quantization, device, library, cache_dtype=cache_dtype)
        return Compiled(source, artifact, library)

    # The cache tells a default left out from the same one given, and would compile for each.
    return lambda name, quantization="q0f32", cache_dtype=None, device="cpu": compile_once(
        name, quantization, cache_dtype, device
    )


@pytest.fixture(scope="session")
def demo_is_made(nothing_of_the_users: None, shared_folder: Path) -> None:
    """The demo is converted and compiled: a command that had to wait for another worker to do it would say so."""
    from mlc_dsv3.runtime.prepare import prepare

    with alone(shared_folder / "demo.lock"):
        prepare(None, None, "cpu", None)


@pytest.fixture(scope="session")
def driver(compiled: Callable[..., Compiled]) -> Callable[..., Driver]:
    """`driver(name, quantization="q0f32", cache_dtype=None, device="cpu")`: a compiled tiny checkpoint's driver, one a
    session."""

    @functools.cache
    def load_once(name: str, quantization: str, cache_dtype: str | None, device: str) -> Driver:
        return compiled(name, quantization, cache_dtype, device).driver()

    return lambda name, quantization="q0f32", cache_dtype=None, device="cpu": load_once(
        name, quantization, cache_dtype, device
    )
