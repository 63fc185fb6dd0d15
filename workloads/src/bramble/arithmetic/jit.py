"""Compilation of kernels to machine code with numba, with the same settings for all of them."""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic


def compiled(*signatures: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator that compiles a function for these signatures when its module is imported, without the GIL.

    numba caches the machine code beside the module, in NUMBA_CACHE_DIR or in the home folder, so each machine compiles
    once. A service that can write to none of these compiles again each time it starts.
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
    """Return numba's intrinsic of a code generator, typed as a function that is called without the typing context."""
    wrapped: Callable[..., Any] = intrinsic(function)
    return wrapped


@generated
def mulhi(typing_context: Any, a: Any, b: Any) -> Any:
    """Return the upper 64 bits of the product of two uint64, in compiled code: one or two instructions."""
    wide = ir.IntType(128)

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        product = builder.mul(*(builder.zext(argument, wide) for argument in arguments))
        return builder.trunc(builder.lshr(product, ir.Constant(wide, 64)), ir.IntType(64))

    return types.uint64(types.uint64, types.uint64), generate
