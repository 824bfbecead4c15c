"""From a model's configuration to a native library: targets, passes, linking and the library's metadata."""

from mlc_dsv3._pins import check_pins

check_pins()

from mlc_dsv3.compiler.compile import compile_model  # noqa: E402
from mlc_dsv3.compiler.devices import DeviceStatus, devices  # noqa: E402
from mlc_dsv3.compiler.metadata import FORMAT_VERSION, Metadata  # noqa: E402
from mlc_dsv3.compiler.targets import CompileTarget, resolve_target  # noqa: E402

__all__ = [
    "FORMAT_VERSION",
    "CompileTarget",
    "DeviceStatus",
    "Metadata",
    "compile_model",
    "devices",
    "resolve_target",
]
