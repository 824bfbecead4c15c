"""TIR's expressions → GLSL. A vector is as many scalars; what cannot stand in an expression goes before it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import tvm

from mlc_dsv3.vulkan.errors import Unsupported
from mlc_dsv3.vulkan.glsl.buffers import Buffer, GlobalBuffer, Index, from_bits, from_bits64, to_bits, to_bits64
from mlc_dsv3.vulkan.glsl.intrinsics import function, in_float32, is_function
from mlc_dsv3.vulkan.glsl.scope import Code, is_atom
from mlc_dsv3.vulkan.glsl.subgroups import is_shuffle, source_lane
from mlc_dsv3.vulkan.glsl.types import Scalar, Types, lanes, scalar

_ARITHMETIC = {"Add": "+", "Sub": "-", "Mul": "*"}
_COMPARISONS = {"EQ": "==", "NE": "!=", "LT": "<", "LE": "<=", "GT": ">", "GE": ">="}
_BITWISE = {"BitwiseAnd": "&", "BitwiseOr": "|", "BitwiseXor": "^"}
_BITWISE_CALLS = {"bitwise_and": "&", "bitwise_or": "|", "bitwise_xor": "^"}
_LOGICAL = {"&": "&&", "|": "||", "^": "^^"}
INT32 = Scalar("int32", "int", 32)


@dataclass(frozen=True)
class Value:
    """An expression's lanes, and their type."""

    lanes: tuple[str, ...]
    type: Scalar

    @property
    def text(self) -> str:
        """The one lane."""
        assert len(self.lanes) == 1
        return self.lanes[0]


def dtype_of(expression: Any) -> str:
    """An expression's dtype by TVM's name."""
    return str(expression.ty.dtype)


def _narrowest(a: Any, b: Any) -> tuple[Any, Any]:
    """What is compared, in 32 bits where it was widened from them to meet a constant: cheaper, and safe from the Mesa
    that compares such wrongly."""
    for wide, constant in ((a, b), (b, a)):
        if type(wide).__name__ != "Cast" or type(constant).__name__ != "IntImm" or dtype_of(wide) != "int64":
            continue
        if dtype_of(wide.value) == "int32" and -(2**31) <= int(constant.value) < 2**31:
            narrow = tvm.tirx.const(int(constant.value), "int32")
            return (wide.value, narrow) if wide is a else (narrow, wide.value)
    return a, b


class Expressions:
    """Expressions of one kernel, over its variables and buffers."""

    def __init__(self, types: Types, code: Code) -> None:
        self.types, self.code = types, code
        self.analyzer = tvm.sym.Analyzer()
        self._variables: dict[int, Value] = {}
        self._buffers: dict[int, Buffer] = {}

    def bind(self, variable: Any, value: Value) -> None:
        """What a variable stands for."""
        self._variables[variable.__chandle__()] = value

    def enter_buffer(self, variable: Any, buffer: Buffer) -> None:
        """What a buffer variable stands for."""
        self._buffers[variable.__chandle__()] = buffer

    def buffer(self, variable: Any) -> Buffer:
        """The buffer of a variable, or of the pointer in it."""
        if type(variable).__name__ == "Call" and variable.op.name == "tirx.buffer_data":
            variable = variable.args[0]
        found = self._buffers.get(variable.__chandle__())
        if found is None:
            raise Unsupported(f"the memory that {variable} stands for")
        return found

    def value(self, expression: Any) -> Value:
        """An expression's lanes."""
        name = type(expression).__name__
        if name in _ARITHMETIC:
            return self._each(expression, lambda a, b, of: self.types.wrapped(f"({a} {_ARITHMETIC[name]} {b})", of))
        if name in _COMPARISONS:
            return self._compare(expression, _COMPARISONS[name])
        if name in _BITWISE:
            return self._bitwise(expression.a, expression.b, _BITWISE[name])
        visit = getattr(self, f"_visit_{name}", None)
        if visit is None:
            raise Unsupported(f"the expression {name}")
        return visit(expression)

    def scalar(self, expression: Any) -> str:
        """An expression of one lane."""
        return self.value(expression).text

    # Lane by lane

    def _map(self, expression: Any, one: Callable[..., str], *parts: Any, of: Scalar | None = None) -> Value:
        """`one` on each lane of the parts."""
        values = [self.value(part) for part in parts]
        result = scalar(dtype_of(expression)) if of is None else of
        return Value(tuple(one(*each) for each in zip(*(value.lanes for value in values), strict=True)), result)

    def _each(self, expression: Any, one: Callable[[str, str, Scalar], str]) -> Value:
        of = scalar(dtype_of(expression))
        return self._map(expression, lambda a, b: one(a, b, of), expression.a, expression.b)

    def _compare(self, expression: Any, operator: str) -> Value:
        boolean, (a, b) = scalar("bool"), _narrowest(expression.a, expression.b)
        return self._map(expression, lambda x, y: f"({x} {operator} {y})", a, b, of=boolean)

    def _bitwise(self, a: Any, b: Any, operator: str) -> Value:
        of = scalar(dtype_of(a))
        if of.kind == "bool":
            operator = _LOGICAL[operator]
        return self._map(a, lambda x, y: f"({x} {operator} {y})", a, b, of=of)

    def _shift(self, a: Any, b: Any, operator: str) -> Value:
        of, by = scalar(dtype_of(a)), scalar(dtype_of(b))
        return self._map(
            a, lambda x, n: self.types.wrapped(f"({x} {operator} {self.types.cast(n, by, INT32)})", of), a, b, of=of
        )

    def _visit_LShift(self, expression: Any) -> Value:
        return self._shift(expression.a, expression.b, "<<")

    def _visit_RShift(self, expression: Any) -> Value:
        return self._shift(expression.a, expression.b, ">>")

    def _visit_Div(self, expression: Any) -> Value:
        return self._each(expression, lambda a, b, of: self.types.wrapped(f"({a} / {b})", of))

    def _visit_Mod(self, expression: Any) -> Value:
        """The remainder of a division that rounds towards zero; GLSL's own is undefined below zero."""
        type_ = self.types.value(scalar(dtype_of(expression)))

        def one(a: str, b: str, of: Scalar) -> str:
            if of.kind == "uint":
                return f"({a} % {b})"
            a, b = self.code.temporary(type_, a), self.code.temporary(type_, b)
            return f"({a} - {a} / {b} * {b})" if of.kind == "int" else f"({a} - trunc({a} / {b}) * {b})"

        return self._each(expression, one)

    def _floor_division(self, expression: Any, remainder: bool) -> Value:
        type_ = self.types.value(scalar(dtype_of(expression)))

        def one(a: str, b: str, of: Scalar) -> str:
            if of.kind == "uint":
                return f"({a} {'%' if remainder else '/'} {b})"
            a, b = self.code.temporary(type_, a), self.code.temporary(type_, b)
            if of.kind == "float":
                return f"({a} - floor({a} / {b}) * {b})" if remainder else f"floor({a} / {b})"
            q = self.code.temporary(type_, f"{a} / {b}")
            r = self.code.temporary(type_, f"{a} - {q} * {b}")
            below = f"({r} != {self.types.literal(0, of)} && ({r} < 0) != ({b} < 0))"
            return f"({below} ? {r} + {b} : {r})" if remainder else f"({below} ? {q} - 1 : {q})"

        return self._each(expression, one)

    def _visit_FloorDiv(self, expression: Any) -> Value:
        return self._floor_division(expression, remainder=False)

    def _visit_FloorMod(self, expression: Any) -> Value:
        return self._floor_division(expression, remainder=True)

    def _visit_Min(self, expression: Any) -> Value:
        return self._each(expression, lambda a, b, of: self._extreme("min", "&&", a, b, of))

    def _visit_Max(self, expression: Any) -> Value:
        return self._each(expression, lambda a, b, of: self._extreme("max", "||", a, b, of))

    def _extreme(self, function_: str, logical: str, a: str, b: str, of: Scalar) -> str:
        if of.kind == "bool":
            return f"({a} {logical} {b})"
        return in_float32(self.types, function_, [a, b], of) if of.name == "float16" else f"{function_}({a}, {b})"

    def _visit_Not(self, expression: Any) -> Value:
        return self._map(expression, lambda a: f"(!{a})", expression.a)

    def _visit_BitwiseNot(self, expression: Any) -> Value:
        return self._invert(expression, expression.a)

    def _invert(self, expression: Any, a: Any) -> Value:
        of = scalar(dtype_of(expression))
        return self._map(expression, lambda x: self.types.wrapped(f"(~{x})", of) if of.kind != "bool" else f"(!{x})", a)

    def _visit_Cast(self, expression: Any) -> Value:
        of, to = scalar(dtype_of(expression.value)), scalar(dtype_of(expression))
        return self._map(expression, lambda a: self.types.cast(a, of, to), expression.value)

    # Where only one side may be computed

    def _visit_And(self, expression: Any) -> Value:
        return self._short_circuit(expression, "&&", when=True)

    def _visit_Or(self, expression: Any) -> Value:
        return self._short_circuit(expression, "||", when=False)

    def _short_circuit(self, expression: Any, operator: str, *, when: bool) -> Value:
        first = self.value(expression.a)
        before = len(self.code.lines)
        second = self.value(expression.b)
        if len(self.code.lines) == before:
            both = zip(first.lanes, second.lanes, strict=True)
            return Value(tuple(f"({a} {operator} {b})" for a, b in both), first.type)
        # What the second side needs beforehand may only be done where the first does not decide.
        del self.code.lines[before:]
        if len(first.lanes) > 1:
            raise Unsupported("a vector of conditions of which one guards the other")
        name = self.code.name("holds")
        self.code.line(f"bool {name} = {first.text};")
        with self.code.block(f"if ({name if when else f'!{name}'})"):
            self.code.line(f"{name} = {self.scalar(expression.b)};")
        return Value((name,), first.type)

    def _branch(self, expression: Any, condition: Any, then: Any, otherwise: Any) -> Value:
        """A value of which only the side that is wanted is computed."""
        of = scalar(dtype_of(expression))
        type_, names = self.types.value(of), [self.code.name("t") for _ in range(lanes(dtype_of(expression)))]
        tested = self.scalar(condition)
        for name in names:
            self.code.line(f"{type_} {name};")
        for head, side in ((f"if ({tested})", then), ("else", otherwise)):
            with self.code.block(head):
                for name, text in zip(names, self.value(side).lanes, strict=True):
                    self.code.line(f"{name} = {text};")
        return Value(tuple(names), of)

    def _visit_Select(self, expression: Any) -> Value:
        parts = (expression.condition, expression.true_value, expression.false_value)
        if lanes(dtype_of(parts[0])) == 1 and lanes(dtype_of(expression)) > 1:
            return self._branch(expression, *parts)
        return self._map(expression, lambda c, a, b: f"({c} ? {a} : {b})", *parts)

    # Vectors

    def _bound(self, value: Value) -> str:
        return self.code.temporary(self.types.value(value.type), value.text)

    def _visit_Broadcast(self, expression: Any) -> Value:
        value = self.value(expression.value)
        return Value((self._bound(value),) * lanes(dtype_of(expression)), value.type)

    def _visit_Ramp(self, expression: Any) -> Value:
        base = self.value(expression.base)
        first, stride = self._bound(base), self.scalar(expression.stride)
        places = range(lanes(dtype_of(expression)))
        return Value(
            tuple(f"({first} + {self.types.literal(i, base.type)} * {stride})" if i else first for i in places),
            base.type,
        )

    def _visit_Shuffle(self, expression: Any) -> Value:
        every = [lane for vector in expression.vectors for lane in self._lanes_once(vector)]
        picked = tuple(every[int(index.value)] for index in expression.indices)
        return Value(picked, scalar(dtype_of(expression)))

    def _lanes_once(self, vector: Any) -> list[str]:
        value = self.value(vector)
        return [self.code.temporary(self.types.value(value.type), lane) for lane in value.lanes]

    # Leaves

    def _visit_Var(self, expression: Any) -> Value:
        found = self._variables.get(expression.__chandle__())
        if found is None:
            raise Unsupported(f"the variable {expression.name}, which has no value in a kernel")
        return found

    def _visit_IntImm(self, expression: Any) -> Value:
        of = scalar(dtype_of(expression))
        return Value((self.types.literal(int(expression.value), of),), of)

    def _visit_FloatImm(self, expression: Any) -> Value:
        of = scalar(dtype_of(expression))
        return Value((self.types.literal(float(expression.value), of),), of)

    def _visit_Let(self, expression: Any) -> Value:
        self.bind_value(expression.var, expression.value)
        return self.value(expression.body)

    def bind_value(self, variable: Any, expression: Any) -> None:
        """Compute an expression once, for all uses of a variable."""
        value = self.value(expression)
        type_, names = self.types.value(value.type), []
        for lane in value.lanes:
            names.append(self.code.name(variable.name))
            self.code.line(f"{type_} {names[-1]} = {lane};")
        self.bind(variable, Value(tuple(names), value.type))
        if len(names) == 1 and value.type.kind in ("int", "uint"):
            self.analyzer.bind(variable, expression)

    # Memory

    def run(self, index: Any) -> tuple[Index, int, int] | None:
        """(first, count, alignment) of an index that is a run of neighbours, alignment in elements."""
        if type(index).__name__ != "Ramp" or getattr(index.stride, "value", None) != 1:
            return None
        found = self.analyzer.modular_set(index.base)
        coefficient, rest = int(found.coeff), int(found.base)
        count = lanes(dtype_of(index))
        aligned = count
        while aligned > 1 and (coefficient % aligned or rest % aligned):
            aligned -= 1
        return self.index(index.base), count, aligned

    def index(self, expression: Any) -> Index:
        """A place, computed once."""
        value = self.value(expression)
        text = self._bound(value) if not is_atom(value.text) else value.text
        return Index(text, value.type.bits == 64)

    def indices(self, expression: Any) -> list[Index]:
        """The places of all lanes of an index."""
        value = self.value(expression)
        return [Index(lane, value.type.bits == 64) for lane in value.lanes]

    def _visit_TensorLoad(self, expression: Any) -> Value:
        buffer = self.buffer(expression.source)
        (index,) = expression.indices
        run = self.run(index)
        if run is not None:
            first, count, aligned = run
            return Value(tuple(buffer.load_run(self.code, first, count, aligned)), buffer.element)
        return Value(tuple(buffer.load(self.code, place) for place in self.indices(index)), buffer.element)

    # Calls

    def _visit_Call(self, call: Any) -> Value:
        name = getattr(call.op, "name", str(call.op)).partition(".")[2]
        if name in ("call_pure_extern", "call_extern"):
            return self._extern(call)
        if name in _BITWISE_CALLS:
            return self._bitwise(*call.args, _BITWISE_CALLS[name])
        if is_function(name):
            return self._function(call, name, call.args)
        if is_shuffle(name):
            return self._shuffle(call, name)
        visit = getattr(self, f"_call_{name}", None)
        if visit is None:
            raise Unsupported(f"the operator {call.op.name}")
        return visit(call)

    def _function(self, call: Any, name: str, arguments: Any) -> Value:
        of = scalar(dtype_of(call))
        if name == "ldexp":
            return self._map(call, lambda x, n: function(self.types, name, [x, f"float({n})"], of), *arguments)
        return self._map(call, lambda *each: function(self.types, name, list(each), of), *arguments)

    def _extern(self, call: Any) -> Value:
        name = call.args[0].value
        if name == "atomicAdd":
            return self._atomic_sum(call, *call.args[1:])
        known = name.removesuffix("f") if not is_function(name) else name
        if not is_function(known):
            raise Unsupported(f"the external function {name}")
        return self._function(call, known, call.args[1:])

    def _shuffle(self, call: Any, name: str) -> Value:
        """Another thread's value; at once, as all of a warp have to take part."""
        _, value, by, width, _ = call.args
        of = scalar(dtype_of(value))
        lane = self.code.temporary("uint", source_lane(name, self.scalar(by), width))

        def one(text: str) -> str:
            if of.bits == 64:
                words = f"subgroupShuffle({to_bits64(self.types, of, text)}, {lane})"
                return self.code.temporary(self.types.value(of), from_bits64(self.types, of, words))
            passed = {"float16": Scalar("float32", "float", 32), "bool": INT32}.get(of.name, of)
            words = f"subgroupShuffle({self.types.cast(text, of, passed)}, {lane})"
            return self.code.temporary(self.types.value(of), self.types.cast(words, passed, of))

        return self._map(call, one, value, of=of)

    def _call_tvm_warp_activemask(self, call: Any) -> Value:
        of = scalar(dtype_of(call))
        return Value((self.types.literal((1 << of.bits) - 1, of),), of)

    def _call_if_then_else(self, call: Any) -> Value:
        return self._branch(call, *call.args)

    def _call_likely(self, call: Any) -> Value:
        return self.value(call.args[0])

    _call_tvm_thread_invariant = _call_likely

    def _call_shift_left(self, call: Any) -> Value:
        return self._shift(*call.args, "<<")

    def _call_shift_right(self, call: Any) -> Value:
        return self._shift(*call.args, ">>")

    def _call_bitwise_not(self, call: Any) -> Value:
        return self._invert(call, call.args[0])

    def _call_large_uint_imm(self, call: Any) -> Value:
        low, high = (int(part.value) for part in call.args)
        of = scalar(dtype_of(call))
        return Value((self.types.literal(high << 32 | low, of),), of)

    def _test(self, call: Any, one: str) -> Value:
        of = scalar(dtype_of(call.args[0]))
        if of.kind != "float":
            holds = one == "(!isnan({0}) && !isinf({0}))"
            return self._map(call, lambda _: "true" if holds else "false", call.args[0], of=scalar("bool"))
        type_ = self.types.value(of)
        return self._map(call, lambda a: one.format(self.code.temporary(type_, a)), call.args[0], of=scalar("bool"))

    def _call_isnan(self, call: Any) -> Value:
        return self._test(call, "isnan({0})")

    def _call_isinf(self, call: Any) -> Value:
        return self._test(call, "isinf({0})")

    def _call_isfinite(self, call: Any) -> Value:
        return self._test(call, "(!isnan({0}) && !isinf({0}))")

    def _call_atomic_add(self, call: Any) -> Value:
        return self._atomic_sum(call, *call.args)

    def _atomic_sum(self, call: Any, address: Any, addend: Any) -> Value:
        """The element's value before the sum."""
        load = address.args[0]
        buffer, of = self.buffer(load.source), scalar(dtype_of(call))
        (index,) = load.indices
        return Value((self.atomic_add(buffer, self.index(index), self.scalar(addend)),), of)

    def atomic_add(self, buffer: Buffer, index: Index, addend: str) -> str:
        """Add to an element that other threads add to as well; every device does it with 32 bits."""
        if buffer.element.name == "float32" and isinstance(buffer, GlobalBuffer):
            return f"atomic_add_float({buffer.address} + uint64_t({index.text}) * 4ul, {addend})"
        if buffer.element.name not in ("int32", "uint32"):
            raise Unsupported(f"an atomic sum of {buffer.element.name}")
        name = self.code.name("before")
        self.code.line(
            f"{self.types.value(buffer.element)} {name} = atomicAdd({buffer.load(self.code, index)}, {addend});"
        )
        return name

    def _call_popcount(self, call: Any) -> Value:
        of = scalar(dtype_of(call))
        if of.bits == 64:
            raise Unsupported("popcount of 64 bits")
        mask = f" & {(1 << of.bits) - 1}" if of.is_narrow else ""
        held = self.types.value(of)
        return self._map(call, lambda a: f"{held}(bitCount({a}{mask}))", call.args[0])

    def _call_clz(self, call: Any) -> Value:
        of = scalar(dtype_of(call.args[0]))
        if of.bits != 32:
            raise Unsupported(f"clz of {of.name}")
        held = self.types.value(scalar(dtype_of(call)))
        return self._map(call, lambda a: f"{held}(31 - findMSB(uint({a})))", call.args[0])

    def _call_reinterpret(self, call: Any) -> Value:
        of, to = scalar(dtype_of(call.args[0])), scalar(dtype_of(call))
        given, wanted = lanes(dtype_of(call.args[0])), lanes(dtype_of(call))
        if of.bytes * given != to.bytes * wanted:
            raise Unsupported(f"reinterpreting {dtype_of(call.args[0])} as {dtype_of(call)}")
        value = self.value(call.args[0])
        if of.bytes == to.bytes:
            return Value(tuple(self._same_bits(lane, of, to) for lane in value.lanes), to)
        words = self._words(value)
        return Value(tuple(self._from_words(words, to)[:wanted]), to)

    def _same_bits(self, text: str, of: Scalar, to: Scalar) -> str:
        if of.bits == 64:
            return from_bits64(self.types, to, to_bits64(self.types, of, text))
        return from_bits(self.types, to, to_bits(self.types, of, text))

    def _words(self, value: Value) -> list[str]:
        """The 32-bit words of a vector."""
        size, texts = value.type.bytes, list(value.lanes)
        if size == 8:
            pairs = [self.code.temporary("uvec2", to_bits64(self.types, value.type, text)) for text in texts]
            return [f"{pair}.{part}" for pair in pairs for part in "xy"]
        bits = [to_bits(self.types, value.type, text) for text in texts]
        if size == 4:
            return [self.code.temporary("uint", each) for each in bits]
        each, mask = 4 // size, (1 << 8 * size) - 1
        words = []
        for start in range(0, len(bits), each):
            parts = [f"(({part} & {mask}u) << {8 * size * i})" for i, part in enumerate(bits[start : start + each])]
            words.append(self.code.temporary("uint", " | ".join(parts)))
        return words

    def _from_words(self, words: list[str], to: Scalar) -> list[str]:
        if to.bytes == 8:
            return [
                from_bits64(self.types, to, f"uvec2({low}, {high})")
                for low, high in zip(words[::2], words[1::2], strict=True)
            ]
        if to.bytes == 4:
            return [from_bits(self.types, to, word) for word in words]
        size = 8 * to.bytes
        return [
            from_bits(self.types, to, f"bitfieldExtract({word}, {start}, {size})")
            for word in words
            for start in range(0, 32, size)
        ]
