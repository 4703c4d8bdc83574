// What the vector kernels need to turn packed residues (vector.h) into lanes.
//
// A step is kLine vectors. Registers hold more bytes than a vector's residues have, but never more than a step's: its first vector is read from its first
// byte on, its last one up to its last byte, and nothing outside of the step is touched.
#pragma once

#include <immintrin.h>

#include <cstring>

#include "vector.h"

namespace kernels {
namespace {

constexpr std::size_t kLine = 2;  // enough sums side by side to hide the latency of each

// Which bytes of a register make 64-bit lanes, one line for each of two registers: residues of `width` bytes from byte first[.] on, each in 2^repeat lanes in a
// row. Bytes above a residue have the bit for which shuffles within 128 bits give zero.
template <std::size_t width, unsigned repeat, std::size_t size>
struct Picks {
    alignas(64) Byte of[2][size];
    constexpr Picks(std::size_t first, std::size_t second) : of() {
        for (std::size_t i = 0; i < size; ++i) {
            const std::size_t at = (i / 8 >> repeat) * width + i % 8;
            of[0][i] = static_cast<Byte>(i % 8 < width ? first + at : 0x80);
            of[1][i] = static_cast<Byte>(i % 8 < width ? second + at : 0x80);
        }
    }
};

// The residue at x, from its first and its last four bytes.
template <std::size_t width>
u64 packed_one(const Byte* x) {
    std::uint32_t low, high;
    std::memcpy(&low, x, 4);
    std::memcpy(&high, x + width - 4, 4);
    return low | u64(high) << (8 * width - 32);
}

inline __m128i load_half(const Byte* x) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(x)); }

template <std::size_t width>
inline constexpr Picks<width, 0, 16> kHalves{0, 16 - 2 * width};

// Of the four residues at x the first two, or the last two.
template <std::size_t width>
__m128i packed_two(const Byte* x, bool last) {
    const __m128i bytes = load_half(x + (last ? 4 * width - 16 : 0));
    return _mm_shuffle_epi8(bytes, _mm_load_si128(reinterpret_cast<const __m128i*>(kHalves<width>.of[last])));
}

template <std::size_t width>
__m256i packed_four(const Byte* x) {
    const __m256i bytes = _mm256_inserti128_si256(_mm256_castsi128_si256(load_half(x)), load_half(x + 4 * width - 16), 1);
    return _mm256_shuffle_epi8(bytes, _mm256_load_si256(reinterpret_cast<const __m256i*>(kHalves<width>.of)));
}

}  // namespace
}  // namespace kernels
