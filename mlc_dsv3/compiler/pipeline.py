"""The passes from the model's IRModule to a VM executable. Every kernel is ours, so nothing is legalised or fused."""

from __future__ import annotations

from tvm import IRModule, ir, relax, transform
from tvm.relax import transform as passes


def lower(module: IRModule) -> IRModule:
    """Plan memory and lower calls to what the Relax virtual machine runs."""
    return transform.Sequential(
        [
            passes.RewriteDataflowReshape(),
            passes.ToNonDataflow(),
            passes.RemovePurityChecking(),
            passes.CallTIRRewrite(),
            passes.StaticPlanBlockMemory(),
            passes.LowerAllocTensor(),
            passes.KillAfterLastUse(),
            passes.LowerRuntimeBuiltin(),
            passes.ComputePrimValue(),
            passes.VMShapeLower(),
            passes.AttachGlobalSymbol(),
        ]
    )(module)


def add_metadata(module: IRModule, text: str) -> IRModule:
    """Add `_metadata() -> str`, which returns `text`."""
    builder = relax.BlockBuilder(module)
    with builder.function("_metadata", params=[]):
        builder.emit_func_output(ir.StringImm(text))
    return builder.finalize()
