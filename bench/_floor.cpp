// How fast this machine can do the floating-point work of a butterfly with nothing else in the way: no loads, no stores, and
// enough independent chains to hide every latency. Compiled at run time for the machine it runs on.
#include <cstddef>
#if defined(__AVX512IFMA__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr std::size_t bytes = 64;
#elif defined(__AVX__)
constexpr std::size_t bytes = 32;
#else
constexpr std::size_t bytes = 16;
#endif
typedef double Vector __attribute__((vector_size(bytes)));
constexpr std::size_t lanes = bytes / sizeof(double), rounds = 1 << 14;
constexpr std::size_t chains = 8;  // of each kind: latency 4 at two a cycle; 16 registers in all, which AVX has

double sum(Vector v) {
    double total = 0;
    for (std::size_t i = 0; i < lanes; i++) total += v[i];
    return total;
}

}  // namespace

// `repeats` times some 50 microseconds of pairs of one FMA and one addition; how many pairs that was, over all lanes. `values` are 16 zeros, which the compiler must not know, and take
// the results so that it cannot drop the work.
extern "C" double pairs(long repeats, double* values) {
    for (long r = 0; r < repeats; r++) {
        Vector m[chains], s[chains];
        for (std::size_t i = 0; i < chains; i++) m[i] = Vector{} + values[i], s[i] = Vector{} + values[chains + i];
        for (std::size_t k = 0; k < rounds; k++) {
            for (std::size_t i = 0; i < chains; i++) {
                m[i] = m[i] * m[i] + m[i];  // contracted to one FMA
                s[i] = s[i] + s[i];
            }
        }
        for (std::size_t i = 0; i < chains; i++) values[i] = sum(m[i]), values[chains + i] = sum(s[i]);
    }
    return static_cast<double>(repeats) * rounds * chains * lanes;
}

// The same of butterflies on 52-bit integers: three multiply-adds and two additions; 0 where the CPU has none.
extern "C" double whole_butterflies(long repeats, double* values) {
#if defined(__AVX512IFMA__)
    constexpr std::size_t butterflies = 4;
    for (long r = 0; r < repeats; r++) {
        const __m512i factor = _mm512_set1_epi64(static_cast<long long>(values[0]));
        __m512i m[3 * butterflies], s[2 * butterflies];
        for (__m512i& x : m) x = factor;
        for (__m512i& x : s) x = factor;
        for (std::size_t k = 0; k < rounds; k++) {
            for (std::size_t i = 0; i < butterflies; i++) {
                m[3 * i] = _mm512_madd52hi_epu64(m[3 * i], factor, factor);
                m[3 * i + 1] = _mm512_madd52lo_epu64(m[3 * i + 1], factor, factor);
                s[2 * i] = _mm512_add_epi64(s[2 * i], factor);
                m[3 * i + 2] = _mm512_madd52lo_epu64(m[3 * i + 2], factor, factor);
                s[2 * i + 1] = _mm512_add_epi64(s[2 * i + 1], factor);
            }
            for (__m512i& x : m) asm volatile("" : "+v"(x));  // every one is to be computed
            for (__m512i& x : s) asm volatile("" : "+v"(x));
        }
    }
    return static_cast<double>(repeats) * rounds * butterflies * 8;
#else
    (void)repeats, (void)values;
    return 0;
#endif
}
