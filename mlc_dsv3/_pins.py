"""The pair of TVM packages that works together, checked before either is imported: another pair crashes the process."""

from importlib.metadata import PackageNotFoundError, version

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
