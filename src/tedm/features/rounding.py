"""Rounding of mantissa bits, so that features take less space."""

import numpy as np
import numpy.typing as npt

MANTISSA_BITS = {"float16": 10, "float32": 23}


def keep_bits(values: npt.NDArray[np.floating], bits: int | None) -> npt.NDArray[np.floating]:
    """Round to `bits` bits of mantissa, ties to even, in place (as numcodecs' BitRound; Zender 2016).

    The relative error is at most 2^-(bits + 1). Zeros at the end of each number are what a codec then
    makes small. Finite values close to the largest one round to infinity, as float arithmetic does.

    Args:
        values: float16 or float32, contiguous, any shape.
        bits: mantissa bits kept, from 1; None or all that the dtype has: nothing is changed.

    Returns:
        `values`.
    """
    all_bits = MANTISSA_BITS[values.dtype.name]
    if bits is None or bits >= all_bits:
        return values
    dropped = all_bits - bits
    integers = values.view(f"u{values.dtype.itemsize}")
    kind = integers.dtype.type
    odd = (integers >> kind(dropped)) & kind(1)  # of the last kept bit: half-way goes to even
    integers += odd + kind((1 << (dropped - 1)) - 1)
    integers &= kind(np.iinfo(kind).max >> dropped << dropped)
    return values
