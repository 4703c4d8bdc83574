// Residues as ckks/packed.py packs them, read on the device: keys and encoded weights.
#pragma once

#include "doubles.cuh"

// A row within a polynomial: the byte where it begins, a multiple of 64, and bytes of a residue (4 to 8).
struct PackedRow {
    unsigned start, width;
};

// Residue k, from the aligned words that hold it; none beyond its last byte is read.
__device__ __forceinline__ word packed_value(const unsigned char* polynomial, PackedRow row, unsigned k) {
    const unsigned at = row.width * k, last = at + row.width - 1, shift = 8 * (at % 4);
    const unsigned* from = reinterpret_cast<const unsigned*>(polynomial + row.start);
    const unsigned low = from[at / 4], middle = from[min(at / 4 + 1, last / 4)], high = from[min(at / 4 + 2, last / 4)];
    const word value = static_cast<word>(__funnelshift_r(middle, high, shift)) << 32 | __funnelshift_r(low, middle, shift);
    return value & ~word(0) >> (64 - 8 * row.width);
}
