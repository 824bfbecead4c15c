"""Tuning records: what is written is read, what does not fit is ignored with a warning, what is chosen is built."""

from __future__ import annotations

import codecs
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import hostile
import pytest
import tvm_ffi
from golden.families import CHECKPOINTS
from hypothesis import given
from hypothesis import strategies as st
from tvm import ir, tirx

import relax_model
from mlc_dsv3.compiler import resolve_target, tuned
from mlc_dsv3.compiler.compile import build_options
from mlc_dsv3.compiler.fingerprint import library_key
from mlc_dsv3.compiler.targets import build_folder, read_description
from mlc_dsv3.compiler.tuned import find_tuned, tuned_text, user_record
from mlc_dsv3.compiler.tuning_record import TunedKernel, TuningRecord, kernels_version, read_record, write_record
from mlc_dsv3.errors import UserError
from relax_model.config import parse_config
from relax_model.kernels import registry
from relax_model.kernels.cpu_choices import choices
from relax_model.kernels.cpu_tiles import CpuTile
from relax_model.layout import QUANTIZATIONS, layout_of
from relax_model.model import build_module

TARGET = resolve_target("cpu", "x86-64-avx2")
PACKED = "q4f16_1+vnni16"
LINEAR = f"quantized_linear layout={PACKED} residual=False matrix=64x64"
OTHER = f"gate_up layout={PACKED} matrix=128x64"


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A data folder of the test's own, and no record of ours."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setattr(tuned, "build_folder", lambda: tmp_path / "build")


def record(*kernels: TunedKernel, **changes: Any) -> TuningRecord:
    fields = {"kernels_version": kernels_version(TARGET), "device": "cpu", "level": TARGET.level}
    return TuningRecord(**{**fields, "processor": "a processor", "threads": 2, "kernels": kernels, **changes})


def choice(kernel: str = LINEAR, **tile: int) -> TunedKernel:
    return TunedKernel(kernel, tile, {"decode": (0.002, 0.001), "prefill": (0.2, 0.2)})


def test_a_record_reads_as_it_was_written(tmp_path: Path) -> None:
    written = record(choice(prefetch=8, dot_rows=6), choice(OTHER))
    write_record(written, tmp_path / "new" / "record.json")
    assert read_record(tmp_path / "new" / "record.json") == written
    (tmp_path / "marked.json").write_bytes(codecs.BOM_UTF8 + (tmp_path / "new" / "record.json").read_bytes())
    assert read_record(tmp_path / "marked.json") == written
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["record.json"]
    assert written.kernels[0].gain == pytest.approx(2**0.5)


def test_without_a_record_nothing_is_chosen_and_nothing_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert find_tuned(TARGET).tiles == {}
    assert capsys.readouterr().err == ""


def test_the_users_record_wins_kernel_by_kernel_even_by_preferring_the_default() -> None:
    third = OTHER.replace("128", "256")
    write_record(record(choice(prefetch=8), choice(OTHER, prefetch=0), choice(third, prefetch=8)), ours())
    write_record(record(choice(prefetch=32), choice(OTHER)), user_record(TARGET))
    assert find_tuned(TARGET).tiles == {LINEAR: {"prefetch": 32}, third: {"prefetch": 8}}


def ours() -> Path:
    return tuned.shipped_record(TARGET)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kernels_version": "0" * 64}, "is for another version of the kernels and is ignored"),
        ({"level": "x86-64-avx512"}, "is for x86-64-avx512, and the target is x86-64-avx2; it is ignored"),
        ({"format_version": 99}, "has format version 99"),
        ({"kernels": None}, "is no tuning record: kernels is null; it must be a list; it is ignored"),
    ],
)
def test_a_record_that_does_not_fit_is_ignored_with_one_warning(
    changes: dict[str, Any], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_record(record(choice(prefetch=8)), user_record(TARGET))
    fields = json.loads(user_record(TARGET).read_text()) | changes
    user_record(TARGET).write_text(json.dumps(fields))
    assert find_tuned(TARGET).tiles == {}
    warning = capsys.readouterr().err
    assert warning.startswith(f"mlc_dsv3: warning: tuning record {user_record(TARGET)} ")
    assert said in warning
    assert warning.count("\n") == 1


def read_tuned(folder: Path) -> None:
    found = find_tuned(TARGET)
    found.warn_unless_for([LINEAR])
    assert tuned_text(TARGET, PACKED)
    _ = [each.gain for each in read_record(folder).kernels]


@hostile.EXAMPLES
@given(data=st.data())
def test_whatever_stands_in_a_record_is_read_or_ignored(monkeypatch: pytest.MonkeyPatch, data: st.DataObject) -> None:
    monkeypatch.setattr(tuned, "kernels_version", lambda target: "1")  # it reads all kernels' sources
    path = user_record(TARGET)
    write_record(TuningRecord("1", "cpu", TARGET.level, "a processor", 2, (choice(prefetch=8), choice(OTHER))), path)
    path.write_text(hostile.draw_change(json.loads(path.read_text()), data))
    hostile.check(read_tuned, path)


@pytest.mark.parametrize(
    ("kernel", "tile"),
    [
        ("abacus layout=q4f16_1", {"prefetch": 8}),
        ("quantized_linear layout=q3 matrix=64x64", {"prefetch": 8}),
        (OTHER, {"sharpness": 8}),
        (OTHER, {"lanes": 16}),
        (OTHER, {"prefetch": -7}),
    ],
)
def test_unknown_choices_are_ignored_with_a_warning_and_the_others_kept(
    kernel: str, tile: dict[str, int], capsys: pytest.CaptureFixture[str]
) -> None:
    write_record(record(choice(prefetch=8), TunedKernel(kernel, tile)), user_record(TARGET))
    assert find_tuned(TARGET).tiles == {LINEAR: {"prefetch": 8}}
    warning = capsys.readouterr().err
    assert f"has unknown choices, for {kernel.split()[0]}; they are ignored" in warning
    assert warning.count("\n") == 1


def test_a_record_for_other_shapes_is_said_to_be_ignored(capsys: pytest.CaptureFixture[str]) -> None:
    write_record(record(choice(prefetch=8)), user_record(TARGET))
    found = find_tuned(TARGET)
    found.warn_unless_for({LINEAR, OTHER})
    assert capsys.readouterr().err == ""
    found.warn_unless_for({OTHER})
    assert "is for other shapes than this model's and is ignored" in capsys.readouterr().err


def test_our_record_is_for_some_shapes_and_not_said_to_be_ignored(capsys: pytest.CaptureFixture[str]) -> None:
    write_record(record(choice(prefetch=8)), ours())
    find_tuned(TARGET).warn_unless_for({OTHER})
    assert capsys.readouterr().err == ""


def test_a_newer_record_keeps_what_an_older_one_of_the_same_version_has_beside_it() -> None:
    older = record(choice(prefetch=8), choice(OTHER, prefetch=8))
    newer = record(choice(prefetch=32))
    assert {each.kernel: each.tile for each in older.joined(newer).kernels} == {
        LINEAR: {"prefetch": 32},
        OTHER: {"prefetch": 8},
    }
    assert record(choice(OTHER), kernels_version="old").joined(newer) == newer


def test_a_record_that_cannot_be_written_is_a_users_mistake(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_record(record(), tmp_path / "file" / "record.json")


def test_a_cached_librarys_key_holds_the_choices_for_its_quantization() -> None:
    config = parse_config(CHECKPOINTS["youtu"].config)

    def keys() -> list[str]:
        return [library_key(config, quantization, TARGET, None) for quantization in (PACKED, "q4f16_1", "q0f32")]

    before = keys()
    write_record(record(choice()), user_record(TARGET))
    assert keys() == before
    write_record(record(choice(prefetch=8)), user_record(TARGET))
    after = keys()
    assert after[0] != before[0]
    assert after[1:] == before[1:]


def test_every_choice_is_of_a_field_and_an_operator_that_there_are() -> None:
    fields = {field.name for field in dataclasses.fields(CpuTile)}
    for quantization in QUANTIZATIONS:
        layout = layout_of(quantization)
        tunable = [operator for operator in registry.operators() if choices(operator, layout)]
        assert "absorbed_attention" in tunable
        for operator in tunable:
            assert set(choices(operator, layout)) <= fields


def kernels(module: ir.IRModule, operator: str) -> list[tirx.PrimFunc]:
    """The module's kernels of an operator."""
    primitive = [func for func in module.functions.values() if isinstance(func, tirx.PrimFunc)]
    return [func for func in primitive if func.attrs["relax_model.operator"] == operator]


def test_a_choice_is_what_is_built_for_its_shape_and_nothing_else_changes() -> None:
    config = parse_config(CHECKPOINTS["youtu"].config)
    calls: dict[str, Any] = {}
    options = build_options(TARGET, PACKED)
    plain = build_module(config, options, lambda _, call: calls.setdefault(call.key, call))
    key = next(key for key in calls if key.startswith("quantized_linear") and "residual=False" in key)
    chosen = build_module(config, build_options(TARGET, PACKED, {key: {"dot_rows": 3}}))
    expected = registry.build(
        "quantized_linear", "cpu", *calls[key].arguments, tile=dataclasses.replace(options.tile, dot_rows=3)
    )

    def has(module: ir.IRModule) -> bool:
        candidates = kernels(module, "quantized_linear")
        return any(tvm_ffi.structural_equal(func.without_attr("global_symbol"), expected) for func in candidates)

    assert has(chosen)
    assert not has(plain)
    assert len(kernels(chosen, "quantized_linear")) == len(kernels(plain, "quantized_linear")) + 1
    assert len(chosen.functions) == len(plain.functions) + 1


def test_queries_are_made_for_the_groups_of_heads_that_attention_is_tuned_to_take() -> None:
    config = parse_config({**CHECKPOINTS["youtu"].config, "num_attention_heads": 24, "num_key_value_heads": 24})
    calls: dict[str, Any] = {}
    build_module(config, build_options(TARGET, PACKED), lambda _, call: calls.setdefault(call.operator, call))
    plain = calls["query_absorb"].outputs[0]
    tuned_attention = {calls["absorbed_attention"].key: {"accumulators": 8}}
    calls.clear()
    options = build_options(TARGET, PACKED, tuned_attention)
    module = build_module(config, options, lambda _, call: calls.setdefault(call.operator, call))
    made, taken = calls["query_absorb"].outputs[0], calls["absorbed_attention"].inputs[0]
    assert list(made.shape)[1:] == list(taken.shape)[1:] != list(plain.shape)[1:]
    (absorb,), (attention,) = kernels(module, "query_absorb"), kernels(module, "absorbed_attention")
    assert list(absorb.params[-1].shape)[1:] == list(attention.params[0].shape)[1:] == list(made.shape)[1:]


def test_a_record_is_of_the_files_that_its_family_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "relax_model"
    shutil.copytree(Path(relax_model.__file__).parent, package)
    monkeypatch.setattr(relax_model, "__file__", str(package / "__init__.py"))
    targets = {"cpu": TARGET, "gpu": resolve_target("metal")}
    found = {family: kernels_version(target) for family, target in targets.items()}
    for file, families in (
        ("kernels/attention/cpu_pair_steps.py", {"cpu"}),
        ("kernels/gpu_products.py", {"gpu"}),
        ("kernels/cuda_products.py", {"gpu"}),
        ("kernels/metal_products.py", {"gpu"}),
        ("kernels/cpu_tiles.py", {"cpu", "gpu"}),
        ("kernels/float8.py", {"cpu", "gpu"}),
        ("kernels/registry.py", set()),
        ("model.py", set()),
    ):
        with (package / file).open("a") as source:
            source.write("OTHER = 1\n")
        before, found = found, {family: kernels_version(target) for family, target in targets.items()}
        assert {family for family in targets if found[family] != before[family]} == families, file


def shipped() -> list[Path]:
    return sorted((build_folder() / "tuned").glob("*.json"))


@pytest.mark.parametrize("path", shipped(), ids=lambda path: path.stem)
def test_the_records_that_we_ship_fit_these_kernels(path: Path) -> None:
    """Renewed by `mlc_dsv3 tune tests/shapes/lite9.json -o build/tuned/…` on a machine of that level."""
    found = read_record(path)
    target = resolve_target(found.device, found.level)
    assert path.name == user_record(target).name
    assert found.level in {level["name"] for level in read_description(found.device)["level"]}
    assert found.kernels_version == kernels_version(target)
    assert all(tuned._is_known(kernel, target) for kernel in found.kernels)
