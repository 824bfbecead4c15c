"""TIR's statements → GLSL: loops, branches, stores, arrays on the chip, threads and barriers."""

from __future__ import annotations

from typing import Any

from mlc_dsv3.vulkan.errors import Unsupported
from mlc_dsv3.vulkan.glsl.buffers import ArrayBuffer, Buffer, GlobalBuffer, Index, References, WordBuffer
from mlc_dsv3.vulkan.glsl.expressions import Expressions, Value, dtype_of
from mlc_dsv3.vulkan.glsl.scope import Code
from mlc_dsv3.vulkan.glsl.subgroups import Warps
from mlc_dsv3.vulkan.glsl.types import Scalar, Types, lanes, scalar

_UNROLLED = 3  # tirx.ForKind
# Notes for passes that have run by now.
_PASSED = ("pragma_", "tirx.", "storage_alignment", "extern_scope", "realize_scope", "reduce_scope")


class Statements(Expressions):
    """The body of one kernel."""

    def __init__(self, types: Types, code: Code, references: References, warps: Warps) -> None:
        super().__init__(types, code)
        self.references = references
        self.warps = warps
        self.shared: list[str] = []  # declarations
        self.shared_bytes = 0
        self.written: set[str] = set()  # addresses that are stored to
        self.barriers = False
        # Arguments that stand for memory of each thread's own: TVM's scans allocate theirs outside of the kernel.
        self.private: set[int] = set()

    def visit(self, statement: Any) -> None:
        """Append a statement."""
        name = type(statement).__name__
        visit = getattr(self, f"_statement_{name}", None)
        if visit is None:
            raise Unsupported(f"the statement {name}")
        visit(statement)

    def _statement_SeqStmt(self, statement: Any) -> None:
        for each in statement.seq:
            self.visit(each)

    def _statement_Bind(self, statement: Any) -> None:
        self.bind_value(statement.var, statement.value)

    def _statement_Evaluate(self, statement: Any) -> None:
        call = statement.value
        if type(call).__name__ != "Call":
            return
        name = call.op.name.partition(".")[2] if hasattr(call.op, "name") else str(call.op)
        if name == "tvm_storage_sync":
            self._barrier(call.args[0].value)
        elif name == "thread_return":
            self.code.line("return;")
        elif name not in ("tvm_thread_invariant", "assume"):
            self.code.line(f"{self.scalar(call)};")

    def _barrier(self, scope: str) -> None:
        if scope not in ("shared", "shared.dyn", "warp"):
            raise Unsupported(f"a barrier over {scope} memory")
        # What a barrier of a warp promises, one of the whole block gives, whatever a subgroup's width.
        self.code.line("barrier_of_block();")
        self.barriers = True

    # Control flow

    def _statement_For(self, statement: Any) -> None:
        variable, of = statement.loop_var, scalar(dtype_of(statement.loop_var))
        type_ = self.types.value(of)
        first = self.scalar(statement.min)
        extent = self.code.temporary(type_, self.scalar(statement.extent))
        step = self.scalar(statement.step) if statement.step is not None else self.types.literal(1, of)
        last = extent if first == self.types.literal(0, of) else self.code.temporary(type_, f"{first} + {extent}")
        name = self.code.name(variable.name)
        self.bind(variable, Value((name,), of))
        hint = "[[unroll]] " if int(statement.kind) == _UNROLLED else ""
        with self.code.block(f"{hint}for ({type_} {name} = {first}; {name} < {last}; {name} += {step})"):
            self.visit(statement.body)

    def _statement_While(self, statement: Any) -> None:
        with self.code.block("while (true)"):
            self.code.line(f"if (!{self.scalar(statement.condition)}) break;")
            self.visit(statement.body)

    def _statement_Break(self, _: Any) -> None:
        self.code.line("break;")

    def _statement_Continue(self, _: Any) -> None:
        self.code.line("continue;")

    def _statement_IfThenElse(self, statement: Any) -> None:
        with self.code.block(f"if ({self.scalar(statement.condition)})"):
            self.visit(statement.then_case)
        if statement.else_case is not None:
            with self.code.block("else"):
                self.visit(statement.else_case)

    # Threads

    def _statement_AttrStmt(self, statement: Any) -> None:
        if statement.attr_key == "thread_extent":
            self._thread_axis(statement.node)
        elif not statement.attr_key.startswith(_PASSED):
            raise Unsupported(f"the attribute {statement.attr_key}")
        self.visit(statement.body)

    def _thread_axis(self, axis: Any) -> None:
        scope, _, name = axis.thread_tag.partition(".")
        if scope not in ("blockIdx", "threadIdx") or name not in ("x", "y", "z"):
            raise Unsupported(f"the thread axis {axis.thread_tag}")
        of = scalar(dtype_of(axis.var))
        if scope == "threadIdx":
            text = self.warps.thread(name)
        else:
            text = "(gl_WorkGroupID.x + args.first_block)" if name == "x" else f"gl_WorkGroupID.{name}"
        variable = self.code.name(axis.var.name)
        type_ = self.types.value(of)
        # Unsigned until here: Mesa 22.3 compares what was an int and became an int64_t with a constant wrongly.
        self.code.line(f"{type_} {variable} = {type_}({text});")
        self.bind(axis.var, Value((variable,), of))

    # Memory

    def atomic_add(self, buffer: Buffer, index: Index, addend: str) -> str:
        """As for an expression, and a store."""
        if isinstance(buffer, GlobalBuffer):
            self.written.add(buffer.address)
        return super().atomic_add(buffer, index, addend)

    def _statement_BufferStore(self, statement: Any) -> None:
        buffer = self.buffer(statement.buffer)
        if isinstance(buffer, GlobalBuffer):
            self.written.add(buffer.address)
        (index,) = statement.indices
        run = self.run(index)
        values = list(self.value(statement.value).lanes)
        if run is not None:
            first, _, aligned = run
            buffer.store_run(self.code, first, values, aligned)
            return
        if len(values) > 1:
            # Stores may change what later lanes read.
            type_ = self.types.value(buffer.element)
            values = [self.code.temporary(type_, value) for value in values]
        for place, value in zip(self.indices(index), values, strict=True):
            buffer.store(self.code, place, value)

    def _statement_AllocBuffer(self, statement: Any) -> None:
        variable = statement.buffer
        type_ = variable.ty
        element, count = scalar(str(type_.dtype)), lanes(str(type_.dtype))
        for size in type_.shape:
            if type(size).__name__ != "IntImm":
                raise Unsupported(f"an array {variable.name} of a size that is known only at run time")
            count *= int(size.value)
        scope, name = str(type_.storage_scope), self.code.name(variable.name)
        if scope in ("shared", "shared.dyn"):
            self._shared_array(variable, element, count, name)
        elif scope in ("local", "", "global"):
            self.code.line(f"{self.types.value(element)} {name}[{count}];")
            self.enter_buffer(variable, ArrayBuffer(self.types, element, name))
        else:
            raise Unsupported(f"memory of scope {scope}")

    def _shared_array(self, variable: Any, element: Scalar, count: int, name: str) -> None:
        if element.name == "uint8" and str(variable.ty.storage_scope) == "shared.dyn":
            # Bytes that were put together from arrays of several types: each is a view on words.
            words = -(-count // 4)
            self.shared.append(f"shared uint {name}[{words}];")
            self.shared_bytes += 4 * words
            self.enter_buffer(variable, WordBuffer(self.types, element, name))
            return
        held = self.types.value(element)
        self.shared.append(f"shared {held} {name}[{count}];")
        self.shared_bytes += count * (8 if element.bits == 64 else 2 if held == "float16_t" else 4)
        self.enter_buffer(variable, ArrayBuffer(self.types, element, name))

    def _statement_DeclBuffer(self, statement: Any) -> None:
        element = scalar(str(statement.buffer.ty.dtype))
        data = statement.data
        if data.__chandle__() in self.private:
            self._statement_AllocBuffer(statement)
            self.private.remove(data.__chandle__())
            self.enter_buffer(data, self.buffer(statement.buffer))
            return
        under = self.buffer(data)
        if isinstance(under, GlobalBuffer):
            view = GlobalBuffer(self.types, element, under.address, self.references)
        elif isinstance(under, WordBuffer):
            view = WordBuffer(self.types, element, under.name)
        elif under.element == element:
            view = under
        else:
            raise Unsupported(f"a view of {element.name} on an array of {under.element.name}")
        self.enter_buffer(statement.buffer, view)
