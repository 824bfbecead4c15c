"""What the version of a family's kernels covers: all that they import, and of that the code alone."""

from __future__ import annotations

import ast
import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

import relax_model
from mlc_dsv3.compiler.kernel_sources import canonical, kernel_sources

PACKAGE = Path(relax_model.__file__).parent
# What ast.dump, ast.unparse and tokenize give in another form on Python 3.12 or later.
EVERYTHING = '''
"""A docstring."""
from __future__ import annotations
@kernel("linear", "cpu")
def build(rows: int, *rest, scale: float = 1e-3, **more) -> "Layout":
    name = f"row {rows!r:>{width}} of 'all'" f"{{{rows}}}" "x" f""
    return [u"a" "b", b"c", ..., 1.5j, None, True, -1, {**more}, lambda x, /, y: x[1:, ::2]]
'''


def code(source: str) -> str:
    return canonical(ast.parse(source))


def test_the_same_on_every_python() -> None:
    assert hashlib.sha256(code(EVERYTHING).encode()).hexdigest()[:16] == "6e763dd6f8292e9b"


@pytest.mark.parametrize(
    ("other", "same"),
    [
        ('def f(x):\n    """Documented."""\n    return x + 1  # a comment', True),
        ("def f(\n    x,\n):\n    return (x + 1)", True),
        ("def f(x):\n    return x + 2", False),
        ("def f(x):\n    return 1 + x", False),
        ("def f(x):\n    return x + 1.0", False),
        ("def f(x):\n    return x + True", False),
        ("def f(y):\n    return y + 1", False),
        ("@cache\ndef f(x):\n    return x + 1", False),
    ],
)
def test_code_counts_and_formatting_does_not(other: str, same: bool) -> None:
    assert (code("def f(x):\n    return x + 1") == code(other)) == same


@pytest.mark.parametrize(("first", "second"), [('f"a{b}c"', 'f"a{b}" "c"'), ("'it'", '"it"'), ('u"a"', '"a"')])
def test_spellings_of_one_text(first: str, second: str) -> None:
    assert code(first + "\nx = " + first) == code(second + "\nx = " + second)


@pytest.mark.parametrize("family", ["cpu", "gpu"])
def test_every_file_that_python_imports_for_a_family_counts(family: str) -> None:
    script = f"""
import sys
from relax_model.kernels import registry
for operator in registry.operators():
    registry.offers(operator, {family!r})
for name, module in sys.modules.items():
    if name.startswith("relax_model.kernels.") and not module.__file__.endswith("__init__.py"):
        print(name)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    counted = {name for name in kernel_sources(family, PACKAGE) if name.startswith("relax_model.kernels.")}
    assert counted == set(done.stdout.split()) - {"relax_model.kernels.registry"}


def test_of_other_files_what_is_imported_counts_with_what_it_uses(tmp_path: Path) -> None:
    folder = tmp_path / "kernels" / "linear"
    folder.mkdir(parents=True)
    (folder / "cpu.py").write_text("from relax_model.layout import width\n")
    (tmp_path / "units.py").write_text("WORD = 4\nSECOND = 60\n")
    layout = "from relax_model.units import SECOND, WORD\ndef width(n): return n * BYTES\nBYTES = WORD * 8\n"
    (tmp_path / "layout.py").write_text(layout + "RATE = SECOND\n")
    found = kernel_sources("cpu", tmp_path)
    names = {
        "relax_model.layout:width",
        "relax_model.layout:BYTES",
        "relax_model.layout:WORD",
        "relax_model.units:WORD",
    }
    assert set(found) == {"relax_model.kernels.linear.cpu", *names}
