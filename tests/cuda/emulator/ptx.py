"""PTX → C++ that runs a thread of a kernel on the CPU.

    a kernel   →  void NAME(Thread& t, const uint8_t* parameters), compiled beside `kernel.h`
    a register →  an unsigned integer of its size: PTX gives types to instructions, not to registers
    a barrier, a shuffle, a product of matrices → a call by which the thread waits for others (`kernel.h`)

What instructions do is PTX ISA 9.0's; one that is not here is refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

_TYPES = {
    **{f"{kind}{bits}": f"uint{bits}_t" for kind in "ub" for bits in (8, 16, 32, 64)},
    **{f"s{bits}": f"int{bits}_t" for bits in (8, 16, 32, 64)},
    "f16": "_Float16",
    "f32": "float",
    "f64": "double",
    "pred": "bool",
}
_SIZES = {"8": 1, "16": 2, "32": 4, "64": 8}
_BINARY = {"add": "+", "sub": "-", "and": "&", "or": "|", "xor": "^"}
_FUNCTIONS_OF_ONE = {"rcp", "sqrt", "rsqrt", "ex2", "lg2", "sin", "cos", "tanh", "abs", "neg", "popc", "clz", "brev"}
_SPACES = ("global", "shared", "local", "param", "const")
_NOTHING = {"membar", "fence"}
_DECLARATION = re.compile(r"\.(?:reg)\s+\.(\w+)\s+%(\w+)<(\d+)>")
_ARRAY = re.compile(
    r"\.(shared|local|global|const)\s+(?:\.align\s+(\d+)\s+)?\.[a-z](\d+)\s+([\w$]+)(?:\[(\d+)\])?(?:\s*=\s*\{(.*)\})?"
)
_PARAMETER = re.compile(r"\.param\s+(?:\.align\s+\d+\s+)?\.[a-z](\d+)\s+([\w$]+)(?:\[(\d+)\])?")


@dataclass(frozen=True)
class Kernel:
    """A kernel's name, the bytes of each of its parameters, those of its shared memory, and its C++."""

    name: str
    parameters: list[int]
    shared_bytes: int
    source: str


def kernels(text: str) -> list[Kernel]:
    """The kernels of a PTX file."""
    text = re.sub(r"//[^\n]*", "", text)
    outside = re.sub(r"(?ms)^\.visible \.entry.*?^\}", "", text)
    return [
        _Translation(match[1], match[2], match[3], outside).kernel()
        for match in re.finditer(r"(?ms)^\.visible \.entry ([\w$]+)\((.*?)\)(.*?^\})", text)
    ]


def _split(operands: str) -> list[str]:
    """Operands, parted by the commas outside of brackets."""
    parts, depth = [""], 0
    for character in operands:
        depth += (character in "{[") - (character in "}]")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts if part.strip()]


class _Translation:
    def __init__(self, name: str, parameters: str, body: str, outside: str) -> None:
        self._name = name
        self._parameters: dict[str, tuple[int, int]] = {}  # offset and bytes
        self._symbols: dict[str, str] = {}  # of memory, as an address in its own space
        self._declared: list[str] = []
        self._statements: list[str] = []
        self._shared = self._offset = 0
        for match in _PARAMETER.finditer(parameters):
            size = _SIZES[match[1]] * int(match[3] or 1)
            self._offset = -(-self._offset // min(size, 8)) * min(size, 8)
            self._parameters[match[2]] = (self._offset, size)
            self._offset += size
        for match in _ARRAY.finditer(outside):
            if match[4] in body:
                self._declare(match[0])
        self._translate(body)

    def kernel(self) -> Kernel:
        lines = [f'extern "C" void {self._name}(Thread& t, const uint8_t* parameters) {{', *self._declared]
        source = '#include "kernel.h"\n' + "\n".join([*lines, *self._statements, "}"]) + "\n"
        return Kernel(self._name, [size for _, size in self._parameters.values()], self._shared, source)

    def _declare(self, statement: str) -> bool:
        if match := _DECLARATION.match(statement):
            type_ = "bool" if match[1] == "pred" else f"uint{match[1][1:]}_t"
            names = ", ".join(f"{match[2]}_{i} = 0" for i in range(int(match[3])))
            self._declared.append(f"[[maybe_unused]] {type_} {names};")
        elif match := re.match(r"\.reg \.(\w+) (%\w+(?:, ?%\w+)*)", statement):
            type_ = "bool" if match[1] == "pred" else f"uint{match[1][1:]}_t"
            self._declared.append(f"[[maybe_unused]] {type_} {match[2].replace('%', '')};")
        elif match := _ARRAY.match(statement):
            space, align, bits, name, count, values = match.groups()
            size, align = _SIZES[bits] * int(count or 1), int(align or _SIZES[bits])
            if space == "shared":
                self._shared = -(-self._shared // align) * align
                self._symbols[name] = f"uint64_t({self._shared})"
                self._shared += size
            else:
                own = name.replace("$", "_")
                contents = f" = {{{values}}}" if values else ""
                const = "static const " if values else ""
                self._declared.append(f"alignas({align}) {const}uint{bits}_t memory_{own}[{count or 1}]{contents};")
                self._symbols[name] = f"reinterpret_cast<uint64_t>(memory_{own})"
        else:
            return False
        return True

    def _translate(self, body: str) -> None:
        body = body[body.index("{") + 1 : body.rindex("}")]
        for piece in body.split(";"):
            statement = piece.strip()
            while match := re.match(r"(\$?[\w$]+):(?!:)\s*", statement):
                self._statements.append(f"{_label(match[1])}:;")
                statement = statement[match.end() :]
            statement = statement.lstrip("{} \n\t").strip()
            while match := re.match(r"(\$?[\w$]+):(?!:)\s*", statement):
                self._statements.append(f"{_label(match[1])}:;")
                statement = statement[match.end() :].lstrip("{} \n\t")
            if not statement or statement.startswith(".pragma") or self._declare(statement):
                continue
            self._statements.append(self._instruction(re.sub(r"\s+", " ", statement)))

    def _instruction(self, statement: str) -> str:
        guard = ""
        if match := re.match(r"@(!?)%(\w+) ", statement):
            guard = f"if ({match[1]}{_register(match[2])}) "
            statement = statement[match.end() :]
        code, _, rest = statement.partition(" ")
        name, *modifiers = code.split(".")
        operands = _split(rest)
        translated = self._operation(code, name, modifiers, operands)
        if translated is None:
            raise NotImplementedError(f"{self._name}: {statement}")
        return f"{guard}{{ {translated} }}"

    def _operation(self, code: str, name: str, modifiers: list[str], operands: list[str]) -> str | None:
        if name in _NOTHING:
            return ""
        method: Callable[..., str | None] | None = getattr(self, f"_{name}", None)
        if method is not None:
            return method(modifiers, operands)
        type_ = modifiers[-1]
        if name in _BINARY or name in ("min", "max", "div", "rem"):
            a, b = (self._value(each, type_) for each in operands[1:])
            if name in _BINARY:
                return self._set(operands[0], f"{_TYPES[type_]}({a} {_BINARY[name]} {b})")
            return self._set(operands[0], f"{name}_of({a}, {b})")
        if name in _FUNCTIONS_OF_ONE:
            return self._set(operands[0], f"{name}_of({self._value(operands[1], type_)})")
        return None

    # Operands

    def _value(self, operand: str, type_: str) -> str:
        """An operand's value as of a type."""
        c_type = _TYPES[type_]
        if operand.startswith("%"):
            return f"get<{c_type}>({_register(operand[1:])})"
        if match := re.fullmatch(r"0f([0-9A-Fa-f]{8})", operand):
            return f"get<float>(0x{match[1]}u)"
        if match := re.fullmatch(r"0d([0-9A-Fa-f]{16})", operand):
            return f"get<double>(0x{match[1]}ull)"
        if re.fullmatch(r"-?(0x)?[0-9A-Fa-f]+U?", operand):
            return f"{c_type}({operand.removesuffix('U')}ll)"
        return f"{c_type}({self._symbols[operand]})"

    def _set(self, operand: str, value: str) -> str:
        return f"put({_register(operand[1:])}, {value});"

    def _address(self, operand: str, space: str) -> str:
        base, _, offset = operand[1:-1].replace(" ", "").partition("+")
        if space == "param":
            return f"parameters + {self._parameters[base][0] + int(offset or 0)}"
        address = f"{self._value(base, 'u64')} + {int(offset or 0)}ll"
        if base.startswith("%"):
            # A shared address may lie in a register of 32 bits.
            address = f"uint64_t({_register(base[1:])}) + {int(offset or 0)}ll"
        return f"t.shared({address})" if space == "shared" else f"reinterpret_cast<uint8_t*>({address})"

    # Instructions

    def _mov(self, modifiers: list[str], operands: list[str]) -> str:
        to, source = operands
        type_ = modifiers[-1]
        if to.startswith("{"):
            parts = _split(to[1:-1])
            width = 8 * _SIZES[type_[1:]] // len(parts)
            whole = self._value(source, type_)
            sets = (self._set(part, f"uint{width}_t(whole >> {i * width})") for i, part in enumerate(parts))
            return f"const auto whole = {whole}; " + " ".join(sets)
        if source.startswith("{"):
            parts = _split(source[1:-1])
            width = 8 * _SIZES[type_[1:]] // len(parts)
            joined = (f"{_TYPES[type_]}({self._value(p, f'u{width}')}) << {i * width}" for i, p in enumerate(parts))
            return self._set(to, f"{_TYPES[type_]}({' | '.join(f'({each})' for each in joined)})")
        return self._set(to, self._value(source, type_))

    def _not(self, modifiers: list[str], operands: list[str]) -> str:
        sign = "!" if modifiers[-1] == "pred" else "~"
        return self._set(operands[0], f"{_TYPES[modifiers[-1]]}({sign}{self._value(operands[1], modifiers[-1])})")

    def _mul(self, modifiers: list[str], operands: list[str]) -> str:
        type_ = modifiers[-1]
        a, b = (self._value(each, type_) for each in operands[1:])
        kind = next((each for each in modifiers if each in ("wide", "hi")), "low")
        return self._set(operands[0], f"{kind}_product({a}, {b})")

    def _mad(self, modifiers: list[str], operands: list[str]) -> str:
        type_ = modifiers[-1]
        a, b = (self._value(each, type_) for each in operands[1:3])
        kind = next((each for each in modifiers if each in ("wide", "hi")), "low")
        product = f"{kind}_product({a}, {b})"
        wide = f"{type_[0]}{2 * int(type_[1:])}" if kind == "wide" else type_
        return self._set(operands[0], f"decltype({product})({product} + {self._value(operands[3], wide)})")

    def _dp4a(self, modifiers: list[str], operands: list[str]) -> str:
        return self._products_of_parts(operands, modifiers, 4, 0)

    def _dp2a(self, modifiers: list[str], operands: list[str]) -> str:
        return self._products_of_parts(operands, modifiers, 2, 0 if "lo" in modifiers else 16)

    def _products_of_parts(self, operands: list[str], modifiers: list[str], count: int, shift: int) -> str:
        a, b = (self._value(each, "u32") for each in operands[1:3])
        types = f"{_TYPES[modifiers[-2][0] + str(32 // count)]}, {_TYPES[modifiers[-1][0] + '8']}"
        total = f"dot<{types}>({a}, {b} >> {shift}, {self._value(operands[3], 'u32')})"
        return self._set(operands[0], total)

    def _fma(self, modifiers: list[str], operands: list[str]) -> str:
        type_ = modifiers[-1]
        rounded = "down" if "rm" in modifiers else "up" if "rp" in modifiers else "near"
        return self._set(operands[0], f"fma_{rounded}({', '.join(self._value(o, type_) for o in operands[1:])})")

    def _shl(self, modifiers: list[str], operands: list[str]) -> str:
        return self._set(
            operands[0], f"left({self._value(operands[1], modifiers[-1])}, {self._value(operands[2], 'u32')})"
        )

    def _shr(self, modifiers: list[str], operands: list[str]) -> str:
        return self._set(
            operands[0], f"right({self._value(operands[1], modifiers[-1])}, {self._value(operands[2], 'u32')})"
        )

    def _shf(self, modifiers: list[str], operands: list[str]) -> str:
        given = ", ".join(self._value(each, "u32") for each in operands[1:])
        return self._set(
            operands[0], f"funnel({given}, {str('l' in modifiers).lower()}, {str('wrap' in modifiers).lower()})"
        )

    def _bfe(self, modifiers: list[str], operands: list[str]) -> str:
        given = self._value(operands[1], modifiers[-1])
        return self._set(operands[0], f"field({given}, {', '.join(self._value(o, 'u32') for o in operands[2:])})")

    def _bfi(self, modifiers: list[str], operands: list[str]) -> str:
        a, b = (self._value(each, modifiers[-1]) for each in operands[1:3])
        return self._set(operands[0], f"insert({a}, {b}, {', '.join(self._value(o, 'u32') for o in operands[3:])})")

    def _prmt(self, modifiers: list[str], operands: list[str]) -> str:
        return self._set(operands[0], f"permuted({', '.join(self._value(o, 'u32') for o in operands[1:])})")

    def _lop3(self, modifiers: list[str], operands: list[str]) -> str:
        return self._set(operands[0], f"logical({', '.join(self._value(o, 'u32') for o in operands[1:])})")

    def _selp(self, modifiers: list[str], operands: list[str]) -> str:
        a, b = (self._value(each, modifiers[-1]) for each in operands[1:3])
        return self._set(operands[0], f"{_register(operands[3][1:])} ? {a} : {b}")

    def _setp(self, modifiers: list[str], operands: list[str]) -> str:
        type_, comparison = modifiers[-1], modifiers[0]
        a, b = (self._value(each, type_) for each in operands[1:3])
        signs = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">=", "lo": "<", "ls": "<=", "hi": ">"}
        signs["hs"] = ">="
        if comparison == "num" or comparison == "nan":
            result = f"({'!' if comparison == 'num' else ''}unordered({a}, {b}))"
        elif comparison in signs:
            result = f"({a} {signs[comparison]} {b})"
            if type_[0] == "f" and comparison == "ne":  # false where either is no number
                result = f"({result} && !unordered({a}, {b}))"
        else:  # equ, neu, ltu, …: true where either is no number
            result = f"({a} {signs[comparison[:2]]} {b} || unordered({a}, {b}))"
        if len(operands) == 4:
            joining = {"and": "&&", "or": "||", "xor": "!="}[modifiers[1]]
            third = operands[3]
            third = f"!{_register(third[2:])}" if third.startswith("!") else _register(third[1:])
            result = f"({result} {joining} {third})"
        to = operands[0].split("|")
        assert len(to) == 1, operands
        return f"{_register(to[0][1:])} = {result};"

    def _cvt(self, modifiers: list[str], operands: list[str]) -> str | None:
        to, source = modifiers[-2:]
        if to in ("f16x2", "bf16x2") and source == "f32":
            high, low = (self._value(each, "f32") for each in operands[1:])
            half = "half_bits" if to == "f16x2" else "bfloat_bits"
            return self._set(operands[0], f"uint32_t({half}({high})) << 16 | {half}({low})")
        if to == "bf16" and source == "f32":
            return self._set(operands[0], f"bfloat_bits({self._value(operands[1], 'f32')})")
        if to == "tf32":
            return self._set(operands[0], f"tf32_bits({self._value(operands[1], 'f32')})")
        if to == "f16x2" and source in ("e4m3x2", "e5m2x2"):
            return self._set(operands[0], f"{source[:4]}_pair({self._value(operands[1], 'u16')})")
        if to not in _TYPES or source not in _TYPES:
            return None
        value = self._value(operands[1], source)
        whole = next((each for each in modifiers if each in ("rni", "rzi", "rmi", "rpi")), None)
        if whole is not None:
            value = f"{whole}_of({value})"
        elif to[0] != "f" and source[0] == "f":
            return None
        if to[0] == "f":
            value = f"{_TYPES[to]}({value})"
            return self._set(operands[0], f"saturated({value})" if "sat" in modifiers else value)
        if source[0] == "f":
            return self._set(operands[0], f"integer<{_TYPES[to]}>({value})")
        return self._set(operands[0], f"{_TYPES[to]}({value})") if "sat" not in modifiers else None

    def _cvta(self, modifiers: list[str], operands: list[str]) -> str:
        value = self._value(operands[1], "u64")
        if "shared" in modifiers:
            value = f"t.of_shared({value})" if "to" in modifiers else f"reinterpret_cast<uint64_t>(t.shared({value}))"
        return self._set(operands[0], value)

    def _ld(self, modifiers: list[str], operands: list[str]) -> str:
        space, type_ = self._space(modifiers), modifiers[-1]
        parts = _split(operands[0][1:-1]) if operands[0].startswith("{") else [operands[0]]
        size = _SIZES[type_[1:]]
        loads = (self._set(part, f"load<{_TYPES[type_]}>(from + {i * size})") for i, part in enumerate(parts))
        return f"const uint8_t* from = aligned({self._address(operands[1], space)}, {size * len(parts)}); " + " ".join(
            loads
        )

    def _st(self, modifiers: list[str], operands: list[str]) -> str:
        space, type_ = self._space(modifiers), modifiers[-1]
        parts = _split(operands[1][1:-1]) if operands[1].startswith("{") else [operands[1]]
        size = _SIZES[type_[1:]]
        stores = (f"store(to + {i * size}, {self._value(part, type_)});" for i, part in enumerate(parts))
        address = f"aligned({self._address(operands[0], space)}, {size * len(parts)})"
        return f"uint8_t* to = {address}; " + " ".join(stores)

    def _space(self, modifiers: list[str]) -> str:
        return next((each for each in modifiers if each in _SPACES), "generic")

    def _atom(self, modifiers: list[str], operands: list[str]) -> str:
        type_ = modifiers[-1]
        operation = next(each for each in modifiers if each in ("add", "min", "max", "exch", "cas", "and", "or", "inc"))
        given = ", ".join(self._value(each, type_) for each in operands[2:])
        address = self._address(operands[1], self._space(modifiers))
        return self._set(operands[0], f"atomic_{operation}<{_TYPES[type_]}>({address}, {given})")

    def _red(self, modifiers: list[str], operands: list[str]) -> str:
        type_ = modifiers[-1]
        operation = next(each for each in modifiers if each in ("add", "min", "max", "and", "or"))
        address = self._address(operands[0], self._space(modifiers))
        return f"atomic_{operation}<{_TYPES[type_]}>({address}, {self._value(operands[1], type_)});"

    def _bra(self, modifiers: list[str], operands: list[str]) -> str:
        return f"goto {_label(operands[0])};"

    def _ret(self, modifiers: list[str], operands: list[str]) -> str:
        return "return;"

    _exit = _ret

    def _bar(self, modifiers: list[str], operands: list[str]) -> str | None:
        if "warp" in modifiers:
            return "t.meet_warp();"
        return "t.meet_block();" if operands == ["0"] else None

    _barrier = _bar

    def _shfl(self, modifiers: list[str], operands: list[str]) -> str:
        to, *within = operands[0].split("|")
        mode = next(each for each in modifiers if each in ("bfly", "up", "down", "idx"))
        given = ", ".join(self._value(each, "u32") for each in operands[1:4])
        inside = _register(within[0][1:]) if within else "inside"
        return f"bool inside; (void)inside; {self._set(to, f't.shuffle_{mode}({given}, {inside})')}"

    def _vote(self, modifiers: list[str], operands: list[str]) -> str:
        given = operands[1]
        value = f"!{_register(given[2:])}" if given.startswith("!") else _register(given[1:])
        votes = f"t.votes({value})"
        kind = next(each for each in modifiers if each in ("ballot", "any", "all"))
        return self._set(operands[0], {"ballot": votes, "any": f"{votes} != 0", "all": f"{votes} == ~0u"}[kind])

    def _ldmatrix(self, modifiers: list[str], operands: list[str]) -> str | None:
        if "b16" not in modifiers or "m8n8" not in modifiers:
            return None
        parts = _split(operands[0][1:-1])
        turned = str("trans" in modifiers).lower()
        address = self._address(operands[1], "shared")
        sets = (self._set(part, f"got[{i}]") for i, part in enumerate(parts))
        return f"uint32_t got[{len(parts)}]; t.load_matrices({len(parts)}, {turned}, {address}, got); " + " ".join(sets)

    def _mma(self, modifiers: list[str], operands: list[str]) -> str | None:
        shape = next(each for each in modifiers if re.fullmatch(r"m\d+n\d+k\d+", each))
        kinds = modifiers[-4:]
        if (shape, kinds) == ("m16n8k8", ["f32", "tf32", "tf32", "f32"]):
            kind = "tf32"
        elif shape == "m16n8k16" and kinds in (["f32", "f16", "f16", "f32"], ["f32", "bf16", "bf16", "f32"]):
            kind = "half" if kinds[1] == "f16" else "bfloat"
        else:
            return None
        to, a, b, c = (_split(each[1:-1]) for each in operands)
        lists = ["{" + ", ".join(self._value(each, "u32") for each in part) + "}" for part in (a, b)]
        sums = "{" + ", ".join(self._value(each, "f32") for each in c) + "}"
        sets = (self._set(each, f"d[{i}]") for i, each in enumerate(to))
        product = f"uint32_t a[] = {lists[0]}, b[] = {lists[1]}; float d[] = {sums}; t.multiply_{kind}(a, b, d); "
        return product + " ".join(sets)

    def _cp(self, modifiers: list[str], operands: list[str]) -> str | None:
        if "async" not in modifiers or "bulk" in modifiers:
            return None
        if "commit_group" in modifiers:
            return "t.end_group();"
        if "wait_all" in modifiers:
            return "t.await_copies();"
        if "wait_group" in modifiers:
            return f"t.await_groups({operands[0]});"
        to, source = self._address(operands[0], "shared"), self._address(operands[1], "global")
        count = int(operands[2])
        taken = self._value(operands[3], "u32") if len(operands) > 3 else str(count)
        return f"t.copy(aligned({to}, {count}), aligned({source}, {count}), {count}, {taken});"


def _register(name: str) -> str:
    """A register's C++ name, a special one's value."""
    if match := re.fullmatch(r"(tid|ntid|ctaid|nctaid)\.([xyz])", name):
        return f"t.{match[1]}[{'xyz'.index(match[2])}]"
    if name in ("laneid", "warpid"):
        return f"t.{name}()"
    return re.sub(r"^([a-z]+)(\d+)$", r"\1_\2", name)


def _label(name: str) -> str:
    return name.replace("$", "_")
