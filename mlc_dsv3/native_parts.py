"""The parts of the package that are C++: which ones this installation has, and what was missing when it was built.

CMakeLists.txt writes native.json: for each part the list of what it lacked, empty for a part that was built.
"""

from __future__ import annotations

import json
from pathlib import Path

_RECORD = Path(__file__).with_name("native.json")
# What CMake did not find → (what was wrong, what to do about it).
_LACKS = {
    "compiler": ("there was no working C++ compiler", "install a C++ compiler (Debian: apt install g++)"),
    "tvm_headers": (
        "the Python that built it had no apache-tvm, whose headers it needs",
        "leave out pip's --no-build-isolation, or install apache-tvm first",
    ),
    "vulkan_headers": (
        "there were no Vulkan headers",
        "install the Vulkan headers (Debian: apt install libvulkan-dev) or set VULKAN_SDK",
    ),
    "newer_vulkan_headers": (
        "the Vulkan headers were older than 1.2",
        "install newer Vulkan headers or set VULKAN_SDK",
    ),
}


def not_built(part: str, library: Path) -> str | None:
    """Why the native part "cuda" or "vulkan" is not at `library`, and what to do; None where it is."""
    if library.is_file():
        return None
    try:
        lacks = json.loads(_RECORD.read_text(encoding="utf-8"))[part]
    except FileNotFoundError:
        return f"this folder of mlc_dsv3 has no native part for {part}: install mlc_dsv3 with pip, which builds it"
    if not lacks:
        return f"{library} is gone from this installation: install mlc_dsv3 again"
    reasons, remedies = zip(*(_LACKS[each] for each in lacks), strict=True)
    return (
        f"this installation has no native part for {part}: when it was built, {' and '.join(reasons)}; "
        f"{' and '.join(remedies)}, then install mlc_dsv3 again"
    )
