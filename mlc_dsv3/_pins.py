"""The pair of TVM packages that works together, checked before either is imported: another pair crashes the process."""

import importlib.util
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from mlc_dsv3.errors import UserError

PINS = {"apache-tvm": "0.27.0.post1", "apache-tvm-ffi": "0.1.14.post1"}


def check_pins() -> None:
    """Raise UserError unless exactly the pinned versions are installed."""
    for package, wanted in PINS.items():
        try:
            found = version(package)
        except PackageNotFoundError:
            found = "not installed"
        if found != wanted:
            both = " ".join(f"{name}=={pin}" for name, pin in PINS.items())
            raise UserError(f"{package} is {found}, and only {wanted} works; run: pip install {both}")


def tvm_library(name: str) -> Path:
    """A library of TVM's package, which is not imported for it; which ones there are differs between systems."""
    spec = importlib.util.find_spec("tvm")
    assert spec is not None, "check_pins has seen the package"
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / "lib" / name
