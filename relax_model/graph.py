"""A Relax function under construction: parameters by name, kernels by operator; it emits nothing but kernels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import numpy as np
from tvm import relax
from tvm.ir import GlobalVar
from tvm.relax import BlockBuilder, Expr, Var

from relax_model.config import ModelConfig
from relax_model.kernels import registry
from relax_model.kernels.cpu_tiles import CpuTile
from relax_model.kernels.gpu_tiles import GpuTile
from relax_model.layout import Layout, PackedLayout
from relax_model.parameters import parameters


@dataclass(frozen=True)
class BuildOptions:
    """What a library is built for, beside the model itself."""

    layout: Layout
    family: str  # kernel family: "cpu" or "gpu"
    page_size: int
    cache_dtype: str
    max_rows: int  # rows of one step, at most
    prefill_block: int  # rows of an expanded prefill, at most; 0: there is none
    tile: CpuTile | GpuTile  # tuned values of the family's kernels
    # KernelCall.key → what differs from `tile` there; keys of other models are of no harm.
    tuned: Mapping[str, Mapping[str, int]] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True)
class KernelCall:
    """A call that a function makes: the operator, what its kernel is built with, and the types that go in and come out.

    `matrix` is the logical shape of the matrix, where the kernel itself serves every shape. A kernel without a tile of
    its own is built with a neighbour's.
    """

    operator: str
    family: str
    arguments: tuple[object, ...]
    matrix: tuple[int, ...] | None
    inputs: tuple[relax.TensorType, ...]
    outputs: tuple[relax.TensorType, ...]
    has_own_tile: bool = True

    @property
    def key(self) -> str:
        """The name of this work for tuning: `expert_down layout=q4f16_1 experts=64 …`."""
        return kernel_key(self.operator, self.family, self.arguments, self.matrix)


def kernel_key(operator: str, family: str, arguments: Sequence[object], matrix: tuple[int, ...] | None = None) -> str:
    """See `KernelCall.key`."""
    key = registry.describe(operator, family, *arguments)
    return key if matrix is None else f"{key} matrix={'x'.join(map(str, matrix))}"


Observer = Callable[[KernelCall], None]


@dataclass(frozen=True)
class Activation:
    """Rows as products take them: `inputs` are float32 values, or beside packed weights codes, scales and offsets.

    With `eps`, products normalise them on the way, and the norm's weight is the second input. `values` are the float32
    values where they are needed too.
    """

    inputs: tuple[Expr, ...]
    values: Expr | None = None
    eps: float | None = None

    @property
    def rows(self) -> object:
        """How many rows there are: a number or a symbol."""
        return self.inputs[0].ty.shape[0]


class Graph:
    """Emits calls to kernels into the function that `builder` is building."""

    def __init__(
        self,
        builder: BlockBuilder,
        config: ModelConfig,
        options: BuildOptions,
        packed: Var | None,  # None: a function without parameters
        observe: Observer | None = None,
    ) -> None:
        self.builder, self.config, self.options = builder, config, options
        self._observe = observe
        self._parameters = {parameter.name: parameter for parameter in parameters(config)}
        self._packed = packed
        self._places = {
            name: place
            for place, name in enumerate(
                name for parameter in self._parameters.values() for name in parameter.buffers(options.layout)
            )
        }

    def parameter(self, name: str) -> list[Expr]:
        """The stored arrays of a parameter: codes and scales, or the values alone."""
        arrays = self._parameters[name].buffers(self.options.layout)
        return [relax.TupleGetItem(self._packed, self._places[array]) for array in arrays]

    def shape_of(self, name: str) -> tuple[int, ...]:
        """The logical shape of a parameter."""
        return self._parameters[name].shape

    def call(
        self,
        operator: str,
        builder_arguments: Sequence[object],
        inputs: Sequence[Expr],
        out: relax.TensorType | list[relax.TensorType],
        *,
        matrix: tuple[int, ...] | None = None,
        tile: CpuTile | GpuTile | None = None,
    ) -> Var:
        """Emit a call of the kernel of `operator`, built with `builder_arguments`, and return its output(s).

        `matrix` is the shape of the parameter, where `builder_arguments` do not say it; `tile` overrules tuning.
        """
        outputs = out if isinstance(out, list) else [out]
        symbol = self._kernel(operator, builder_arguments, inputs, outputs, matrix, tile)
        return self.builder.emit(relax.call_tir(symbol, list(inputs), out))

    def call_inplace(
        self,
        operator: str,
        builder_arguments: Sequence[object],
        inputs: Sequence[Expr],
        place: int,
        out: Sequence[relax.TensorType] = (),
    ) -> Var:
        """The same for a kernel that writes into its input number `place`: returns that input's new value, and with
        `out` a tuple of it and the outputs."""
        symbol = self._kernel(operator, builder_arguments, inputs, list(out), None, None)
        if not out:
            return self.builder.emit(relax.op.call_tir_inplace(symbol, list(inputs), place, inputs[place].ty))
        types, places = [inputs[place].ty, *out], [place, *[-1] * len(out)]
        return self.builder.emit(relax.op.call_tir_inplace(symbol, list(inputs), places, types))

    def tile_of(
        self, operator: str, builder_arguments: Sequence[object], matrix: tuple[int, ...] | None = None
    ) -> CpuTile | GpuTile:
        """The tile that a kernel is built with: the options' own, but for what was tuned."""
        if not self.options.tuned:
            return self.options.tile
        key = kernel_key(operator, self.options.family, builder_arguments, matrix)
        return replace(self.options.tile, **self.options.tuned.get(key, {}))

    def _kernel(
        self,
        operator: str,
        arguments: Sequence[object],
        inputs: Sequence[Expr],
        outputs: Sequence[relax.TensorType],
        matrix: tuple[int, ...] | None,
        tile: CpuTile | GpuTile | None,
    ) -> GlobalVar:
        family = self.options.family
        if self._observe:
            types = tuple(value.ty for value in inputs)
            self._observe(KernelCall(operator, family, tuple(arguments), matrix, types, tuple(outputs), tile is None))
        tile = tile or self.tile_of(operator, arguments, matrix)
        return self.builder.add_func(registry.build(operator, family, *arguments, tile=tile), operator)

    @property
    def quantizes(self) -> bool:
        """Whether products take 8-bit activations: beside packed weights."""
        return isinstance(self.options.layout, PackedLayout)

    @property
    def fuses(self) -> bool:
        """Whether kernels take in what stands between them: on GPUs, where a launch costs more than to compute a norm
        in every block."""
        return self.options.family == "gpu"

    def activation(
        self,
        operator: str,
        builder_arguments: Sequence[object],
        inputs: Sequence[Expr],
        shape: tuple[object, int],
        *,
        keep: bool = False,
        matrix: tuple[int, ...] | None = None,
    ) -> Activation:
        """Emit an operator that makes rows for a product, of `shape`; with `keep` their float32 values as well."""
        if not self.quantizes:
            values = self.call(operator, builder_arguments, inputs, tensor(shape))
            return Activation((values,), values)
        types = [tensor(shape)] * keep + self.codes(shape)
        outputs = self.call(operator, builder_arguments, inputs, types, matrix=matrix)
        parts = [outputs[index] for index in range(3 + keep)]
        return Activation(tuple(parts[keep:]), parts[0] if keep else None)

    def codes(self, shape: tuple[object, int]) -> list[relax.TensorType]:
        """Types of the codes, scales and offsets of rows of `shape`."""
        base = self.options.layout.base
        rows, groups = shape[0], base.groups(shape[1])
        return [
            tensor((rows, groups * base.group_size), "int8"),
            tensor((rows, groups)),
            tensor((rows, groups), "int32"),
        ]

    def quantize(self, values: Expr) -> Activation:
        """Rows of float32 values for a product."""
        if not self.quantizes:
            return Activation((values,), values)
        width = int(values.ty.shape[1])
        return self.activation("quantize", (self.options.layout, width), [values], (values.ty.shape[0], width))

    def norm(self, x: Expr, weight: Sequence[Expr], eps: float, *, keep: bool = False) -> Activation:
        """RMS normalisation of x (rows, width) for a product; with `keep`, its float32 values as well."""
        if self.fuses and not keep:
            return Activation((x, *weight), eps=eps)
        rows, width = x.ty.shape
        arguments = (int(width), eps, self.options.layout, keep)
        return self.activation("rms_norm", arguments, [x, *weight], (rows, int(width)), keep=keep)

    def linear(self, name: str, x: Activation, residual: Expr | None = None) -> Var:
        """x · Wᵀ (+ residual) with the parameter `name`: float32 (rows, out)."""
        out, width = self.shape_of(name)
        extra = [] if residual is None else [residual]
        inputs, result = [*x.inputs, *self.parameter(name), *extra], tensor((x.rows, out))
        if self.quantizes:
            arguments = (self.options.layout, bool(extra))
            return self.call("quantized_linear", arguments, inputs, result, matrix=(out, width))
        eps = [] if x.eps is None else [x.eps]
        return self.call("linear", (self.options.layout, out, width, bool(extra), *eps), inputs, result)

    def linear_pair(self, first: str, second: str, x: Activation) -> tuple[Expr, Expr]:
        """x times two parameters."""
        if not self.fuses:
            return self.linear(first, x), self.linear(second, x)
        (out, width), (other, _) = self.shape_of(first), self.shape_of(second)
        inputs = [*x.inputs, *self.parameter(first), *self.parameter(second)]
        results = [tensor((x.rows, out)), tensor((x.rows, other))]
        outputs = self.call("linear_pair", (self.options.layout, out, other, width, x.eps), inputs, results)
        return outputs[0], outputs[1]

    def constant(self, values: np.ndarray) -> Expr:
        """A constant of the library."""
        return relax.const(values)


def tensor(shape: Sequence[object], dtype: str = "float32") -> relax.TensorType:
    """The type of a tensor of this shape, symbolic or not."""
    return relax.TensorType(list(shape), dtype)


def packed_types(config: ModelConfig, layout: Layout) -> list[tuple[str, relax.TensorType]]:
    """(name, type) of every stored array in the order of the packed argument."""
    result = []
    for parameter in parameters(config):
        result += [(name, _stored_type(spec.shape, spec.dtype)) for name, spec in parameter.buffers(layout).items()]
    return result


def _stored_type(shape: tuple[int, ...], dtype: str) -> relax.TensorType:
    return tensor(shape, "uint16" if dtype == "bfloat16" else dtype)
