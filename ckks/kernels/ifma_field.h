// Arithmetic modulo one prime on eight 52-bit integers: AVX-512 IFMA, which gives the low or the high half of a product of 52-bit factors,
// added to a third operand.
#pragma once

#include <immintrin.h>

#include "vector.h"

namespace kernels {
namespace {

using V = __m512i;
constexpr std::size_t W = 8;

V all(u64 x) { return _mm512_set1_epi64(static_cast<long long>(x)); }
V load(const u64* p) { return _mm512_loadu_si512(p); }
void store(u64* p, V x) { _mm512_storeu_si512(p, x); }
V add(V a, V b) { return _mm512_add_epi64(a, b); }
V sub(V a, V b) { return _mm512_sub_epi64(a, b); }
V add_low(V sum, V a, V b) { return _mm512_madd52lo_epu64(sum, a, b); }
V add_high(V sum, V a, V b) { return _mm512_madd52hi_epu64(sum, a, b); }

// p[0], p[1] in turn.
V load_two(const u64* p) { return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
// Factors w < q, each with floor(w * 2^52 / q).
struct Factors {
    V value, quotient;
    explicit Factors(const WholeFactor& f) : value(all(f.value)), quotient(all(f.quotient)) {}
    explicit Factors(V v, V q) : value(v), quotient(q) {}
};

// Of four values, then their quotients: 0 and 1 in turn in the lower half, 2 and 3 in the upper.
Factors load_four(const u64* p) {
    const V both = load(p);
    return Factors(_mm512_shuffle_i64x2(both, both, 0x50), _mm512_shuffle_i64x2(both, both, 0xFA));
}

// q < 2^49. "x in B" means 0 <= x < B*q <= 2^52. Only the low 52 bits of a lane count: multiplications read no others, and no sum carries
// downwards. What lies above is left as it falls until `clean`.
//
// For x below 2^52 and Shoup's quotient w' = floor(w * 2^52 / q), floor(x * w' / 2^52) is below x*w/q by less than x/2^52 + 1 < 2, so the product
// is in 2 (Harvey 2014, algorithm 2).
struct Field {
    u64 prime;
    V q, twice, minus, one, mask;  // twice = 2q, minus = -q modulo 2^52; one: the quotient of the factor 1

    explicit Field(const VectorPrime& p)
        : prime(static_cast<u64>(p.q)), q(all(prime)), twice(all(2 * prime)), minus(all((u64(1) << 52) - prime)), one(all((u64(1) << 52) / prime)),
          mask(all((u64(1) << 52) - 1)) {}

    [[gnu::always_inline]] V times(V x, const Factors& w) const {
        const V zero = _mm512_setzero_si512(), quotient = add_high(zero, x, w.quotient);
        return add_low(add_low(zero, x, w.value), quotient, minus);
    }
    // Into 2.
    [[gnu::always_inline]] V reduce(V x) const { return add_low(x, add_high(_mm512_setzero_si512(), x, one), minus); }
    [[gnu::always_inline]] V clean(V x) const { return _mm512_and_si512(x, mask); }
    // From 2 to [0, q).
    [[gnu::always_inline]] V finish(V x) const {
        x = clean(x);
        return _mm512_min_epu64(x, sub(x, q));
    }

    WholeFactor factor(double balanced) const {
        const u64 w = balanced < 0 ? prime - static_cast<u64>(-balanced) : static_cast<u64>(balanced);
        return {w, static_cast<u64>((static_cast<unsigned __int128>(w) << 52) / prime)};
    }
};

}  // namespace
}  // namespace kernels
