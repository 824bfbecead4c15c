"""A compiled library: what it says of itself, and which artifacts and machines it refuses."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from golden.families import CHECKPOINTS

from mlc_dsv3.compiler import compile_model, hosts
from mlc_dsv3.compiler.metadata import FORMAT_VERSION, Metadata
from mlc_dsv3.compiler.note import read_note
from mlc_dsv3.errors import UserError
from mlc_dsv3.native_names import native_name
from mlc_dsv3.runtime import library as library_module
from mlc_dsv3.runtime.library import Library
from mlc_dsv3.runtime.model import CompiledModel, set_threads
from mlc_dsv3.runtime.virtual_machine import open_machines
from mlc_dsv3.weights import Artifact
from relax_model.config import parse_config
from relax_model.layout import layout_of
from relax_model.parameters import parameters


@pytest.fixture(scope="module")
def tiny(compiled):
    return compiled("youtu")


def test_metadata_says_what_the_library_is_for(tiny) -> None:
    config = Artifact.open(tiny.artifact).model_config
    metadata = read_note(tiny.library)["metadata"]
    assert metadata["format_version"] == FORMAT_VERSION
    assert metadata["model_type"] == "youtu"
    assert metadata["config_digest"] == config.digest()
    assert metadata["quantization"] == "q0f32"
    assert metadata["context_window"] == config.max_position_embeddings
    assert metadata["functions"] == ["step", "prefill"]
    names = [name for p in parameters(config) for name in p.buffers(layout_of("q0f32"))]
    assert [name for name, _, _ in metadata["parameters"]] == names
    (machine,) = open_machines(tiny.library, "cpu", [True])
    assert json.loads(str(machine.get_function("_metadata")())) == metadata


def test_an_artifact_of_another_config_is_refused_by_the_field_that_differs(tiny, compiled) -> None:
    other = compiled("deepseek_v2_lite")
    with pytest.raises(UserError, match="does not fit the model: model_type is youtu in the library and deepseek_v2"):
        CompiledModel.load(Artifact.open(other.artifact), tiny.library)


@pytest.mark.full
def test_an_artifact_of_another_quantization_is_refused(tiny, compiled) -> None:
    other = compiled("youtu", "q4f16_1")
    with pytest.raises(UserError, match="quantization is q0f32 in the library and q4f16_1 in the model"):
        CompiledModel.load(Artifact.open(other.artifact), tiny.library)


def test_the_same_type_of_another_size_is_refused(tiny) -> None:
    artifact = Artifact.open(tiny.artifact)
    wider = dataclasses.replace(artifact.model_config, intermediate_size=999)
    with pytest.raises(UserError, match="config is [0-9a-f]{12} in the library and [0-9a-f]{12} in the model"):
        Library(tiny.library).metadata.refuse_unless_for(wider, "q0f32", "lib.so")


def test_a_library_with_an_mtp_layer_that_the_artifact_lacks_is_refused_by_the_layers(tiny) -> None:
    config = Artifact.open(tiny.artifact).model_config
    metadata = dataclasses.replace(Library(tiny.library).metadata, num_caches=config.num_cached_layers + 1)
    with pytest.raises(UserError, match=r"number of layers, MTP layers included, is \d+ in the library and \d+ in"):
        metadata.refuse_unless_for(config, "q0f32", "lib.so")


def test_what_a_library_reads_is_known_without_opening_it(tiny, monkeypatch) -> None:
    from mlc_dsv3.runtime import prepare

    monkeypatch.setattr(library_module, "open_machines", lambda *_: pytest.fail("opened the library"))
    assert prepare.prepare(tiny.artifact, None, "cpu", tiny.library).artifact.quantization == "q0f32"
    with pytest.raises(UserError, match="reads q0f32, not q8f16_1"):
        prepare.prepare(tiny.artifact, "q8f16_1", "cpu", tiny.library)


def test_a_library_of_another_format_version_is_refused(tiny) -> None:
    fields = read_note(tiny.library)["metadata"] | {"format_version": FORMAT_VERSION + 1}
    with pytest.raises(UserError, match=f"format version {FORMAT_VERSION + 1}.*compile it again"):
        Metadata.from_fields(fields)


def test_a_processor_without_the_librarys_features_is_refused_by_their_names(tiny, monkeypatch) -> None:
    monkeypatch.setattr(library_module, "host_features", lambda: frozenset())
    with pytest.raises(UserError, match=f"lacks {', '.join(sorted(read_metadata_features(tiny)))}"):
        Library(tiny.library)


def read_metadata_features(tiny) -> tuple[str, ...]:
    """The features that the library was compiled for."""
    return tuple(read_note(tiny.library)["metadata"]["features"])


def test_another_architecture_is_refused(tiny, monkeypatch) -> None:
    this = read_note(tiny.library)["metadata"]["host"]
    for module in (library_module, hosts):
        monkeypatch.setattr(module, "host_arch", lambda: "riscv64")
    with pytest.raises(UserError, match=f"is compiled for {this}, and this machine is riscv64-"):
        Library(tiny.library)


def test_files_that_are_no_library_are_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not there; make it with: mlc_dsv3 compile"):
        Library(tmp_path / "absent.so")
    text = tmp_path / "text.so"
    text.write_text("no library")
    with pytest.raises(UserError, match="is no library of this program") as caught:
        Library(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("window", [0, 10**9])
def test_a_context_window_outside_the_models_is_refused(window: int, tmp_path: Path) -> None:
    config = parse_config(CHECKPOINTS["youtu"].config)
    with pytest.raises(UserError, match=f"context window {window} is outside"):
        compile_model(config, "q0f32", "cpu", tmp_path / "lib.so", context_window=window)
    assert list(tmp_path.iterdir()) == []


def test_a_compilation_that_fails_leaves_nothing(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("CC", "false")
    config = parse_config(CHECKPOINTS["youtu"].config)
    with pytest.raises(UserError, match="linking .* failed"):
        compile_model(config, "q0f32", "cpu", tmp_path / "lib.so")
    assert list(tmp_path.iterdir()) == []


def test_more_threads_than_cores_and_none_are_refused() -> None:
    for threads in (0, 4096):
        with pytest.raises(UserError, match=f"threads is {threads}; this machine has 1 to"):
            set_threads(threads)


def test_kernels_run_on_as_many_threads_as_asked_and_by_default_on_all_cores(tiny) -> None:
    script = (
        "import os, sys; from pathlib import Path; from mlc_dsv3.runtime.model import CompiledModel, set_threads;"
        "from mlc_dsv3.weights import Artifact; from mlc_dsv3.runtime.virtual_machine import thread_count;"
        "load = lambda threads: CompiledModel.load(Artifact.open(sys.argv[1]), Path(sys.argv[2]), threads=threads);"
        "load(None); print(thread_count() == len(os.sched_getaffinity(0)));"
        "load(1); print(thread_count()); print(set_threads(None) == len(os.sched_getaffinity(0)))"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TVM_")}
    arguments = [sys.executable, "-c", script, str(tiny.artifact), str(tiny.library)]
    done = subprocess.run(arguments, capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.split() == ["True", "1", "True"]


def test_caches_are_aligned_and_zero(tiny) -> None:
    model = CompiledModel.load(Artifact.open(tiny.artifact), tiny.library)
    model.allocate_cache(3)
    for cache in model._caches:
        array = np.from_dlpack(cache)
        assert array.ctypes.data % 64 == 0
        assert array.shape[0] == 3
        assert not array.any()
    itemsize, count = array.dtype.itemsize, len(model._caches)
    assert model.cache_bytes_per_page() == count * array[0].size * itemsize


def test_a_folder_whose_name_is_not_ascii_loads_in_any_locale(tiny, tmp_path) -> None:
    folder = tmp_path / "Größe"
    folder.mkdir()
    shutil.copyfile(tiny.library, folder / "lib.so")
    shutil.copyfile(tiny.checkpoint / "tokenizer.json", folder / "tokenizer.json")
    load = (
        "import sys; from pathlib import Path\n"
        "from mlc_dsv3.runtime.library import Library\nfrom mlc_dsv3.runtime.tokenizer import Tokenizer\n"
        "folder = Path(sys.argv[1]); Tokenizer.load(folder); Library(folder / 'lib.so')"
    )
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", load, str(folder)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_name_that_is_not_utf8_is_refused() -> None:
    with pytest.raises(UserError, match="is not valid UTF-8, and the file cannot be opened; rename it"):
        native_name(Path(os.fsdecode(b"/tmp/Gr\xf6\xdfe.so")))
