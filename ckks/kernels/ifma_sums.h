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
    [[gnu::always_inline]] V divided(const Field& f, V inverse) const {
        const V zero = _mm512_setzero_si512(), m = add_low(zero, low, inverse);
        const V top = kernels::add(kernels::add(high, f.q), _mm512_srli_epi64(low, 52));
        return sub(top, add_high(zero, m, f.q));
    }
};

// y as VectorKernels::overflow leaves it, a double: whole numbers from -2^48 to 2^50 with `offset` added to be positive; 2^52 more puts them into the
// low bits.
[[gnu::always_inline]] inline V from_double(const double* y, __m512d offset) {
    return _mm512_castpd_si512(_mm512_add_pd(_mm512_loadu_pd(y), offset));
}

// The value of a conversion at k, in 4; its constants are held times 2^52. Count: the number of sources where that is common, else 0.
template <std::size_t Count>
struct FromConversion {
    const Field f;
    const double* y;
    const std::size_t count, stride;
    const V inverse;
    V constants[kMaxSources + 1];

    FromConversion(const VectorPrime& p, const VectorConversion& c, const double* from, std::size_t distance)
        : f(p), y(from), count(Count ? Count : c.count), stride(distance), inverse(all(p.whole_inverse)) {
        for (std::size_t i = 0; i <= count; ++i)
            constants[i] = all(static_cast<u64>((static_cast<unsigned __int128>(f.factor(c.factors[i]).value) << 52) % f.prime));
    }
    [[gnu::always_inline]] V operator()(std::size_t k) const {
        const __m512d magic = _mm512_set1_pd(0x1p52);
        MultiplyAdd sum;
        for (std::size_t i = 0; i <= (Count ? Count : count); ++i) sum.add(from_double(y + i * stride + k, magic), constants[i]);
        return sum.divided(f, inverse);
    }
    const void* address() const { return y; }
};

// One source is centred, so -2^48 < y < 2^48: a multiple of q between 2^49 and 2^50 makes it positive. In 2.
struct FromCentred {
    const Field f;
    const double* y;
    const __m512d offset;

    FromCentred(const Field& field, const double* from)
        : f(field), y(from), offset(_mm512_set1_pd(0x1p52 + static_cast<double>((u64(1) << 50) / field.prime * field.prime))) {}
    [[gnu::always_inline]] V operator()(std::size_t k) const { return f.reduce(from_double(y + k, offset)); }
    const void* address() const { return y; }
};

template <class Store>
void transform_conversion(const VectorPrime& p, const VectorConversion& c, const double* y, std::size_t stride, u64* out,
                          const Store& store) {
    const Field f(p);
    switch (c.count) {
        case 1: return transform(p, FromCentred(f, y), out, store);
        case 2: return transform(p, FromConversion<2>(p, c, y, stride), out, store);
        case 3: return transform(p, FromConversion<3>(p, c, y, stride), out, store);
        case 4: return transform(p, FromConversion<4>(p, c, y, stride), out, store);
        default: return transform(p, FromConversion<0>(p, c, y, stride), out, store);
    }
}

}  // namespace
}  // namespace kernels
