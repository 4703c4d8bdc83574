// Residues as ckks/packed.py packs them, read on the device: keys and encoded weights.
#pragma once

#include "doubles.cuh"

// A row within a polynomial: the byte where it begins, bytes of a residue (4, 6 or 8), and for 6 how many lower words stand together
// before their upper halves.
struct PackedRow {
    unsigned start, width, log_block;
};

__device__ __forceinline__ word packed_value(const unsigned char* polynomial, PackedRow row, unsigned k) {
    const unsigned char* from = polynomial + row.start;
    if (row.width == 8) return reinterpret_cast<const word*>(from)[k];
    if (row.width == 4) return reinterpret_cast<const unsigned*>(from)[k];
    const unsigned block = k >> row.log_block << row.log_block, at = k - block;
    const unsigned char* lower = from + 6 * static_cast<size_t>(block);
    const word upper = reinterpret_cast<const unsigned short*>(lower + (size_t(4) << row.log_block))[at];
    return upper << 32 | reinterpret_cast<const unsigned*>(lower)[at];
}
