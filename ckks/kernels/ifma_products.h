// Sums of products with keys and with encoded weights on 52-bit integers, read as they are packed.
#pragma once

#include "ifma_sums.h"
#include "packed_lanes.h"

namespace kernels {
namespace {

// See pair_sums.h. The running sums of products of residues in [0, q), q < 2^49, or of what convert_lazily leaves, below 68q <= 2^52, with them: the high half
// of a product is below 2^46; after `most` of them, on top of the 2q that `reduce` leaves, `high` is below 2^50 + 33 * 2^46 < 2^52; `low` has room for 2^12.
struct Arithmetic {
    using Sum = MultiplyAdd;
    using Pattern = V;
    const Field f;
    const V inverse;
    const Factors shift;
    static constexpr std::size_t most = 32;

    explicit Arithmetic(const VectorPrime& p) : f(p), inverse(all(p.whole_inverse)), shift(p.whole_shift) {}

    Sum zero() const { return {}; }
    [[gnu::always_inline]] void reduce(Sum& sum) const { sum.high = f.reduce(sum.high); }
    // To [0, q). `divided` is below high + q + 2^12 < 2^52 and 2^-52 of the sum; one more product takes the factor away.
    [[gnu::always_inline]] void store(u64* to, const Sum& sum) const { kernels::store(to, f.finish(f.times(sum.divided(f, inverse), shift))); }

    static V factor(double w) { return all(static_cast<u64>(w)); }
    static V read(const u64* x) { return load(x); }
    static V read(const u64* x, Pattern pattern) { return _mm512_permutexvar_epi64(pattern, load(x)); }
    static V read_staged(const u64* x) { return load(x); }
    static Pattern pattern(const std::uint32_t* lanes) {
        return _mm512_cvtepu32_epi64(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(lanes)));
    }
};

// Residues become lanes, repeated as they shall be, in one shuffle of bytes: AVX-512 VBMI.
template <std::size_t width, unsigned repeat>
struct Rows {
    static constexpr std::size_t kVector = W * width >> repeat, kLoad = 64 >> repeat;  // bytes
    static constexpr Picks<width, repeat, 64> kPicks{0, kLoad - kVector};
    static constexpr __mmask64 kKept = ((u64(1) << width) - 1) * 0x0101010101010101;
    const V picks[kLine] = {_mm512_load_si512(kPicks.of[0]), _mm512_load_si512(kPicks.of[1])};

    explicit Rows(unsigned) {}
    // Of a row, vector u of the step at position k.
    V read(const Byte* x, std::size_t k, std::size_t u) const {
        const Byte* const from = x + width * (k >> repeat) + (u ? kLine * kVector - kLoad : 0);
        V bytes;
        if constexpr (repeat == 0) bytes = _mm512_loadu_si512(from);
        if constexpr (repeat == 1) bytes = _mm512_castsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
        if constexpr (repeat == 2) bytes = _mm512_castsi128_si512(load_half(from));
        return _mm512_maskz_permutexvar_epi8(kKept, picks[u], bytes);
    }
};

template <std::size_t width>
struct Rows<width, 3> {
    const unsigned log_repeat;
    V read(const Byte* x, std::size_t k, std::size_t u) const { return all(packed_one<width>(x + width * ((k + u * W) >> log_repeat))); }
};

}  // namespace
}  // namespace kernels

#include "pair_sums.h"
