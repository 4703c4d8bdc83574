// Four doubles: AVX2 and FMA.
#pragma once

#include <immintrin.h>

#include "packed_lanes.h"

namespace kernels {
namespace {

struct Lanes {
    using V = __m256d;
    static constexpr std::size_t width = 4;
    static constexpr const char* name = "avx2";

    static V all(double x) { return _mm256_set1_pd(x); }
    static V load(const double* p) { return _mm256_loadu_pd(p); }
    static void store(double* p, V x) { _mm256_storeu_pd(p, x); }
    static V add(V a, V b) { return _mm256_add_pd(a, b); }
    static V sub(V a, V b) { return _mm256_sub_pd(a, b); }
    static V mul(V a, V b) { return _mm256_mul_pd(a, b); }
    static V fma(V a, V b, V c) { return _mm256_fmadd_pd(a, b, c); }   // a*b + c
    static V fms(V a, V b, V c) { return _mm256_fmsub_pd(a, b, c); }   // a*b - c
    static V fnma(V a, V b, V c) { return _mm256_fnmadd_pd(a, b, c); } // c - a*b
    static V round(V x) { return _mm256_round_pd(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }

    // Integers below 2^52 <-> doubles, by way of the exponent of 2^52.
    static V load_bits(const u64* p) { return _mm256_castsi256_pd(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
    static void store_bits(u64* p, V x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_castpd_si256(x)); }
    static V to_double(V bits) {
        const V magic = all(0x1p52);
        return sub(_mm256_or_pd(bits, magic), magic);
    }
    static V load_integers(const u64* p) { return to_double(load_bits(p)); }
    // x in (-q, q) -> [0, q). The sign bit chooses: x is a sum, so 0 has none.
    static void store_integers(u64* p, V x, V q) {
        const V magic = all(0x1p52);
        store_bits(p, _mm256_xor_pd(add(x, _mm256_blendv_pd(magic, add(magic, q), x)), magic));
    }
    // x in [0, q)
    static void store_residues(u64* p, V x) {
        const V magic = all(0x1p52);
        store_bits(p, _mm256_xor_pd(add(x, magic), magic));
    }

    // Packed residues, each for 2^repeat positions: vector u of the step that starts with the one at x.
    template <std::size_t bytes, unsigned repeat>
    static V unpack(const Byte* x, std::size_t u) {
        if constexpr (repeat == 0) return to_double(_mm256_castsi256_pd(packed_four<bytes>(x + 4 * bytes * u)));
        if constexpr (repeat == 1) return to_double(_mm256_castsi256_pd(_mm256_permute4x64_epi64(_mm256_castsi128_si256(packed_two<bytes>(x, u)), 0x50)));
    }

    // Lane numbers of an automorphism, as pairs of 32-bit lanes.
    using Pattern = __m256i;
    static Pattern pattern(const std::uint32_t* lanes) {
        const __m128i narrow = _mm_loadu_si128(reinterpret_cast<const __m128i*>(lanes));
        const __m256i twice = _mm256_slli_epi64(_mm256_cvtepu32_epi64(narrow), 1);
        return _mm256_or_si256(twice, _mm256_slli_epi64(_mm256_add_epi64(twice, _mm256_set1_epi64x(1)), 32));
    }
    static V permute(V x, Pattern p) {
        return _mm256_castps_pd(_mm256_permutevar8x32_ps(_mm256_castpd_ps(x), p));
    }

    // Bit l is set where |x_l| > bound.
    static unsigned beyond(V x, V bound) {
        const V magnitude = _mm256_andnot_pd(all(-0.0), x);
        return static_cast<unsigned>(_mm256_movemask_pd(_mm256_cmp_pd(magnitude, bound, _CMP_GT_OQ)));
    }

    // Of the last stages (vector_stages.h). The lanes' two bits change places; so do the vector's and, for stages 0 and 2, the lower, else the higher.
    static V turn(V x) { return _mm256_permute4x64_pd(x, 0xD8); }
    static V turn_back(V x) { return turn(x); }
    template <unsigned T>
    static void exchange(V& x, V& y) {
        const V low = T == 1 ? _mm256_permute2f128_pd(x, y, 0x20) : _mm256_unpacklo_pd(x, y);
        y = T == 1 ? _mm256_permute2f128_pd(x, y, 0x31) : _mm256_unpackhi_pd(x, y);
        x = low;
    }
    // Two factors, in turn, or four.
    template <unsigned T>
    static V load_part(const double* p) {
        return T == 0 ? _mm256_broadcast_pd(reinterpret_cast<const __m128d*>(p)) : load(p);
    }
};

}  // namespace
}  // namespace kernels
