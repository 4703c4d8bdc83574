// Rows of residues as keys and encoded weights keep them (vector.h). ckks/packed.py writes them.
#pragma once

#include <algorithm>
#include <bit>
#include <cstring>

#include "vector.h"

namespace kernels {

// Bytes of a residue.
constexpr std::size_t packed_width(u64 prime) { return std::max<std::size_t>(4, (std::bit_width(prime) + 7) / 8); }

// Bytes of a row of `length` residues: whole blocks of 64.
constexpr std::size_t packed_size(u64 prime, std::size_t length) {
    return packed_width(prime) * ((length + kVectorBlock - 1) / kVectorBlock * kVectorBlock);
}

// Residue k of a row, from its first and its last four bytes: nothing beside it is read.
inline u64 packed_residue(std::size_t width, const Byte* row, std::size_t k) {
    std::uint32_t low, high;
    std::memcpy(&low, row + width * k, 4);
    std::memcpy(&high, row + width * (k + 1) - 4, 4);
    return low | u64(high) << (8 * width - 32);
}

}  // namespace kernels
