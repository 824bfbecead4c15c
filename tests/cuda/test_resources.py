"""What CUDA's compiler makes of the kernels, held against docs/cuda_kernels.md, so that one that gets worse is seen."""

from __future__ import annotations

from pathlib import Path

import pytest
from resource_table import Row, compile_shape, read_table, rows_of

from mlc_dsv3.cuda.resources import fatbin_of
from mlc_dsv3.errors import UserError

pytestmark = pytest.mark.full
# Another version of the compiler may take a few registers more.
_MORE_REGISTERS = 8


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Row]:
    rows = rows_of(compile_shape(tmp_path_factory.mktemp("resources")))
    return {(row.kernel, row.architecture): row for row in rows}


def test_the_table_has_every_kernel(found) -> None:
    assert {(row.kernel, row.architecture) for row in read_table()} == found.keys()


def test_no_kernel_takes_more_than_the_table_says(found) -> None:
    for row in read_table():
        now = found[row.kernel, row.architecture]
        assert now.registers <= row.registers + _MORE_REGISTERS, (now, row)
        assert (now.stack, now.shared) == (row.stack, row.shared), (now, row)


def test_nothing_is_spilled(found) -> None:
    assert {row.kernel for row in found.values() if row.stack} <= {"rope_table_kernel"}


def test_the_fast_instructions_are_there(found) -> None:
    for row in read_table():
        now = found[row.kernel, row.architecture]
        for field in ("products", "wide_loads", "shuffles"):
            assert bool(getattr(now, field)) == bool(getattr(row, field)), (field, now, row)


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90a"])
def test_where_they_have_to_be(found, architecture: str) -> None:
    def row(kernel: str) -> Row:
        return found[kernel, architecture]

    for kernel in ("linear_kernel_2", "linear_pair_kernel_2", "gate_up_silu_kernel_2", "absorbed_values_kernel"):
        assert row(kernel).products, f"{kernel} makes its products without tensor cores"
    for kernel in ("linear_kernel", "linear_pair_kernel", "gate_up_silu_kernel", "experts_kernel"):
        assert row(kernel).wide_loads, f"{kernel} loads no 16 bytes at once"


def test_a_cache_in_codes_goes_to_tensor_cores_without_a_spill(tmp_path: Path) -> None:
    rows = {row.kernel: row for row in rows_of(compile_shape(tmp_path, ("sm_90a",), cache_dtype="int8"))}
    assert {kernel for kernel, row in rows.items() if row.stack} <= {"rope_table_kernel"}
    assert rows["absorbed_values_kernel"].products


def test_a_library_without_machine_code_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "library.so"
    file.write_bytes(b"\x7fELF\x50\xed\x55\xba" + bytes(20))
    with pytest.raises(UserError, match=r"library\.so has no machine code for CUDA"):
        fatbin_of(file)
