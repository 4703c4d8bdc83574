// Exact sums of products on 52-bit integers, and what is built from them.
#pragma once

#include "ifma_ntt.h"

namespace kernels {
namespace {

// A sum of products in two operations each: high * 2^52 + low, with carries in the upper bits of low. `divided` is its value times 2^-52 (Montgomery
// 1985): the multiple m*q of q that agrees in the low 52 bits is taken away. At most kMaxSources + 1 products of x < 2^50 and y < q are below 3q * 2^52,
// so the result, with q added to be positive, is in 4.
struct MultiplyAdd {
    V high = _mm512_setzero_si512(), low = _mm512_setzero_si512();

    [[gnu::always_inline]] void add(V x, V y) {
        low = add_low(low, x, y);
        high = add_high(high, x, y);
    }
    // inverse: of q modulo 2^52.
    [[gnu::always_inline]] V divided(const Field& f, V inverse) const { return MultiplyAdd{kernels::add(high, f.q), low}.lowered(f, inverse); }
    // As `divided`, for sums of which `high` started with q.
    [[gnu::always_inline]] V lowered(const Field& f, V inverse) const {
        const V zero = _mm512_setzero_si512(), m = add_low(zero, low, inverse);
        return sub(kernels::add(high, _mm512_srli_epi64(low, 52)), add_high(zero, m, f.q));
    }
};

// The value of a conversion at k, in 4; its constants are held times 2^52, and -count * D is what the sum starts with. Count: the number of sources
// where that is common, else 0. The y, below q_i and y_0 below (count+1) * q_0 <= 2^52, sum to less than 2^53: all products to 2q * 2^52 at most, with
// the start and q to 4q.
template <std::size_t Count>
struct FromConversion {
    const Field f;
    const u64* y;
    const std::size_t count;
    const V inverse, start;
    V constants[Count ? Count : kMaxSources];

    FromConversion(const VectorPrime& p, const VectorConversion& c, const u64* from)
        : f(p), y(from), count(Count ? Count : c.count), inverse(all(p.whole_inverse)), start(all(c.whole[count] + f.prime)) {
        for (std::size_t i = 0; i < count; ++i) constants[i] = all(c.whole[i]);
    }
    [[gnu::always_inline]] V operator()(std::size_t k) const {
        MultiplyAdd sum{start, _mm512_setzero_si512()};
        const std::size_t sources = Count ? Count : count;
        for (std::size_t i = 0; i < sources; ++i) sum.add(load(y + k * sources + i * W), constants[i]);
        return sum.lowered(f, inverse);
    }
    const void* address() const { return y; }
};

// One source: what `overflow` added, q_0, is taken away modulo the target. In 2.
struct FromCentred {
    const Field f;
    const u64* y;
    const V start;

    FromCentred(const Field& field, const VectorConversion& c, const u64* from) : f(field), y(from), start(all(c.whole[1])) {}
    [[gnu::always_inline]] V operator()(std::size_t k) const { return f.reduce(kernels::add(load(y + k), start)); }
    const void* address() const { return y; }
};

template <class Store>
void transform_conversion(const VectorPrime& p, const VectorConversion& c, const u64* y, u64* out, const Store& store) {
    switch (c.count) {
        case 1: return transform(p, FromCentred(Field(p), c, y), out, store);
        case 2: return transform(p, FromConversion<2>(p, c, y), out, store);
        case 3: return transform(p, FromConversion<3>(p, c, y), out, store);
        case 4: return transform(p, FromConversion<4>(p, c, y), out, store);
        default: return transform(p, FromConversion<0>(p, c, y), out, store);
    }
}

// As on doubles (vector_sums.h), for y in [0, q_i): u is at most `count`, so y_0 + (count - u) * q_0 stays positive.
std::size_t overflow(u64* y, const double* inverses, const double* moduli, std::size_t count, std::size_t n, std::uint32_t* doubtful) {
    std::size_t found = 0;
    const __m512d magic = _mm512_set1_pd(0x1p52), bound = _mm512_set1_pd(0.5 - 0x1p-40), most = _mm512_set1_pd(static_cast<double>(count));
    const auto at = [&](std::size_t i, std::size_t k) {
        return _mm512_sub_pd(_mm512_castsi512_pd(_mm512_or_si512(load(y + k * count + i * W), _mm512_castpd_si512(magic))), magic);
    };
    for (std::size_t k = 0; k < n; k += W) {
        __m512d sum = _mm512_mul_pd(at(0, k), _mm512_set1_pd(inverses[0]));
        for (std::size_t i = 1; i < count; ++i) sum = _mm512_fmadd_pd(at(i, k), _mm512_set1_pd(inverses[i]), sum);
        const __m512d u = _mm512_roundscale_pd(sum, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        const V times = _mm512_castpd_si512(_mm512_add_pd(magic, _mm512_sub_pd(most, u)));  // in the low bits
        kernels::store(y + k * count, add_low(load(y + k * count), times, all(static_cast<u64>(moduli[0]))));
        const unsigned mask = _mm512_cmp_pd_mask(_mm512_abs_pd(_mm512_sub_pd(sum, u)), bound, _CMP_GT_OQ);
        for (unsigned lane = 0; mask >> lane; ++lane)
            if (mask >> lane & 1) doubtful[found++] = static_cast<std::uint32_t>(k + lane);
    }
    return found;
}

}  // namespace
}  // namespace kernels
