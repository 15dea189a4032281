"""Compiled functions that parallel ones call by their address.

What a compiled function calls is compiled into it once more, and what a parallel loop calls three times more: seconds,
where the loop calls something large. A function that is called by its address is compiled once, on its own. The
address differs from process to process, so a parallel function is given it as an argument.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from llvmlite import ir
from numba import cfunc, types
from numba.core import sigutils
from numba.extending import intrinsic

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["address_of", "caller"]


_compiled: list[Any] = []


def address_of(signature: str, **options: Any) -> Callable[[Callable[..., Any]], Callable[[], int]]:
    """Make of a function one that compiles it, when first called, and returns its address.

    Parameters
    ----------
    signature : str
        Types of the result and of the arguments.
    **options
        As of `numba.cfunc`.

    Returns
    -------
    callable
        Decorator.
    """

    def decorate(function: Callable[..., Any]) -> Callable[[], int]:
        @cache
        def address() -> int:
            compiled = cfunc(signature, cache=True, **options)(function)
            _compiled.append(compiled)  # code goes when nothing refers to it any more
            return int(compiled.address)

        return address

    return decorate


def caller(signature: str) -> Any:
    """Return what calls a function of this signature in compiled code, given its address and a tuple of arguments."""
    arguments, result = sigutils.normalize_signature(signature)

    @intrinsic
    def call(typing_context: Any, address: Any, given: Any) -> Any:  # noqa: ARG001 - the types stand in the signature
        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:  # noqa: ARG001
            kinds = [context.get_value_type(kind) for kind in arguments]
            function = ir.FunctionType(context.get_value_type(result), kinds)
            pointer = builder.inttoptr(values[0], function.as_pointer())
            return builder.call(pointer, [builder.extract_value(values[1], i) for i in range(len(kinds))])

        return result(types.int64, types.Tuple(arguments)), generate

    return call
