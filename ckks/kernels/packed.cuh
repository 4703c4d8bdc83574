// Residues as ckks/packed.py packs them, read on the device: keys and encoded weights.
#pragma once

#include "modular.cuh"

// A row within a polynomial: the byte where it begins, and bytes of a residue (4, 6 or 8).
struct PackedRow {
    unsigned start, width;
};

__device__ __forceinline__ word packed_value(const unsigned char* polynomial, PackedRow row, unsigned k) {
    const unsigned char* from = polynomial + row.start;
    if (row.width == 8) return reinterpret_cast<const word*>(from)[k];
    if (row.width == 4) return reinterpret_cast<const unsigned*>(from)[k];
    const unsigned char* block = from + k / 64 * 384;  // 64 lower words and then their 64 upper halves
    const word upper = reinterpret_cast<const unsigned short*>(block + 256)[k % 64];
    return upper << 32 | reinterpret_cast<const unsigned*>(block)[k % 64];
}
