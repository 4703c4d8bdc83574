// Eight doubles: AVX-512F.
#pragma once

#include <immintrin.h>

#include "packed_lanes.h"

namespace kernels {
namespace {

struct Lanes {
    using V = __m512d;
    static constexpr std::size_t width = 8;
    static constexpr const char* name = "avx512";

    static V all(double x) { return _mm512_set1_pd(x); }
    static V load(const double* p) { return _mm512_loadu_pd(p); }
    static void store(double* p, V x) { _mm512_storeu_pd(p, x); }
    static V add(V a, V b) { return _mm512_add_pd(a, b); }
    static V sub(V a, V b) { return _mm512_sub_pd(a, b); }
    static V mul(V a, V b) { return _mm512_mul_pd(a, b); }
    static V fma(V a, V b, V c) { return _mm512_fmadd_pd(a, b, c); }   // a*b + c
    static V fms(V a, V b, V c) { return _mm512_fmsub_pd(a, b, c); }   // a*b - c
    static V fnma(V a, V b, V c) { return _mm512_fnmadd_pd(a, b, c); } // c - a*b
    static V round(V x) { return _mm512_roundscale_pd(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }

    // Integers below 2^52 <-> doubles, by way of the exponent of 2^52.
    static V load_bits(const u64* p) { return _mm512_castsi512_pd(_mm512_loadu_si512(p)); }
    static void store_bits(u64* p, V x) { _mm512_storeu_si512(p, _mm512_castpd_si512(x)); }
    static V to_double(V bits) {
        const V magic = all(0x1p52);
        return sub(_mm512_castsi512_pd(_mm512_or_si512(_mm512_castpd_si512(bits), _mm512_castpd_si512(magic))), magic);
    }
    static V load_integers(const u64* p) { return to_double(load_bits(p)); }
    // x in (-q, q) -> [0, q)
    static void store_integers(u64* p, V x, V q) {
        const V magic = all(0x1p52);
        x = _mm512_mask_add_pd(x, _mm512_cmp_pd_mask(x, _mm512_setzero_pd(), _CMP_LT_OQ), x, q);
        const __m512i bits = _mm512_castpd_si512(add(x, magic));
        _mm512_storeu_si512(p, _mm512_xor_si512(bits, _mm512_castpd_si512(magic)));
    }
    // x in [0, q)
    static void store_residues(u64* p, V x) {
        const V magic = all(0x1p52);
        _mm512_storeu_si512(p, _mm512_xor_si512(_mm512_castpd_si512(add(x, magic)), _mm512_castpd_si512(magic)));
    }

    // Packed residues, each for 2^repeat positions: vector u of the step that starts with the one at x.
    template <std::size_t bytes, unsigned repeat>
    static V unpack(const Byte* x, std::size_t u) {
        if constexpr (repeat == 0) {
            const __m256i low = packed_four<bytes>(x + 8 * bytes * u), high = packed_four<bytes>(x + 8 * bytes * u + 4 * bytes);
            return to_double(_mm512_castsi512_pd(_mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1)));
        } else {
            const __m512i some = repeat == 1 ? _mm512_castsi256_si512(packed_four<bytes>(x + 4 * bytes * u)) : _mm512_castsi128_si512(packed_two<bytes>(x, u));
            const __m512i half = _mm512_set_epi64(3, 3, 2, 2, 1, 1, 0, 0), quarter = _mm512_set_epi64(1, 1, 1, 1, 0, 0, 0, 0);
            return to_double(_mm512_castsi512_pd(_mm512_permutexvar_epi64(repeat == 1 ? half : quarter, some)));
        }
    }

    using Pattern = __m512i;
    static Pattern pattern(const std::uint32_t* lanes) {
        return _mm512_cvtepu32_epi64(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(lanes)));
    }
    static V permute(V x, Pattern p) { return _mm512_permutexvar_pd(p, x); }

    // Bit l is set where |x_l| > bound.
    static unsigned beyond(V x, V bound) { return _mm512_cmp_pd_mask(_mm512_abs_pd(x), bound, _CMP_GT_OQ); }

    // Of the last stages (vector_stages.h). Lanes 2 1 0 become 1 0 2; the vector's bit and one of the lanes' change places.
    static V turn(V x) { return _mm512_permutexvar_pd(_mm512_set_epi64(7, 3, 6, 2, 5, 1, 4, 0), x); }
    static V turn_back(V x) { return _mm512_permutexvar_pd(_mm512_set_epi64(7, 5, 3, 1, 6, 4, 2, 0), x); }
    template <unsigned T>
    static void exchange(V& x, V& y) {
        const V a = x, b = y;
        if constexpr (T == 0 || T == 3) x = _mm512_unpacklo_pd(a, b), y = _mm512_unpackhi_pd(a, b);
        if constexpr (T == 1) x = _mm512_shuffle_f64x2(a, b, 0x44), y = _mm512_shuffle_f64x2(a, b, 0xEE);
        if constexpr (T == 2) x = _mm512_mask_permutex_pd(a, 0xCC, b, 0x4E), y = _mm512_mask_permutex_pd(b, 0x33, a, 0x4E);
    }
    // Two factors in turn; or the first two of four in the lower half, the others in the upper; or eight.
    template <unsigned T>
    static V load_part(const double* p) {
        const auto pair = [](const double* from) { return _mm256_broadcast_pd(reinterpret_cast<const __m128d*>(from)); };
        if constexpr (T == 0) return _mm512_broadcast_f64x4(pair(p));
        if constexpr (T == 1) return _mm512_insertf64x4(_mm512_castpd256_pd512(pair(p)), pair(p + 2), 1);
        if constexpr (T == 2) return load(p);
    }
};

}  // namespace
}  // namespace kernels
