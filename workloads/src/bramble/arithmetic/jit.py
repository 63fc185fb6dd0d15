"""Kernels in machine code: numba, the same everywhere."""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic


def compiled(*signatures: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Compile a function when its module is imported, once per machine, without the GIL.

    The machine code is kept where numba keeps it: beside the module, in NUMBA_CACHE_DIR or in the home. A service may
    have none of these; it compiles anew each time it starts.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        try:
            return njit(list(signatures), nogil=True, cache=True)(function)
        except RuntimeError as error:
            if "no locator available" not in str(error):
                raise
            return njit(list(signatures), nogil=True)(function)

    return decorate


def generated(function: Callable[..., Any]) -> Callable[..., Any]:
    """Make a function of compiled code of what generates it; whoever calls it does not give the typing context."""
    made: Callable[..., Any] = intrinsic(function)
    return made


@generated
def mulhi(typing_context: Any, a: Any, b: Any) -> Any:
    """The upper 64 bits of the product of two uint64, in compiled code: one or two instructions."""
    wide = ir.IntType(128)

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        product = builder.mul(*(builder.zext(argument, wide) for argument in arguments))
        return builder.trunc(builder.lshr(product, ir.Constant(wide, 64)), ir.IntType(64))

    return types.uint64(types.uint64, types.uint64), generate
