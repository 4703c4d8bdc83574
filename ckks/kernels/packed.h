// Rows of residues as keys and encoded weights keep them (Packing in vector.h). ckks/packed.py writes them.
#pragma once

#include "modarith.h"
#include "vector.h"

namespace kernels {

constexpr Packing packing_of(u64 prime) {
    return prime >> 32 == 0 ? Packing::narrow : prime >> 48 == 0 ? Packing::split : Packing::wide;
}

// Bytes of a row of `length` residues: whole blocks of 64.
constexpr std::size_t packed_size(u64 prime, std::size_t length) {
    return static_cast<std::size_t>(packing_of(prime)) * ((length + kVectorBlock - 1) / kVectorBlock * kVectorBlock);
}

// Residue k of a row.
inline u64 packed_residue(Packing packing, const Byte* row, std::size_t k) {
    if (packing == Packing::wide) return reinterpret_cast<const u64*>(row)[k];
    if (packing == Packing::narrow) return reinterpret_cast<const std::uint32_t*>(row)[k];
    const Byte* const block = row + k / kVectorBlock * kSplitBlock;
    const u64 low = reinterpret_cast<const std::uint32_t*>(block)[k % kVectorBlock];
    return low | u64(reinterpret_cast<const std::uint16_t*>(block + 4 * kVectorBlock)[k % kVectorBlock]) << 32;
}

}  // namespace kernels
