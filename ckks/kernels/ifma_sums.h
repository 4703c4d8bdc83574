// Exact sums of products on 52-bit integers, and what is built from them.
#pragma once

#include "ifma_ntt.h"

namespace kernels {
namespace {

// A sum of products of integers below 2^52, in two operations each: high * 2^52 + low. Of T products of factors below A and B the sum must stay below
// 2^104, and T below 2^12 - 4 for what the low half and a rest of an earlier flush may carry.
struct MultiplyAdd {
    V high = _mm512_setzero_si512(), low = _mm512_setzero_si512();

    [[gnu::always_inline]] void add(V x, V y) {
        low = add_low(low, x, y);
        high = add_high(high, x, y);
    }
    // Into 4: low + high * 2^52, each multiplied or reduced into 2. radix = 2^52 mod q.
    [[gnu::always_inline]] V flush(const Field& f, const Factors& radix) const {
        const V zero = _mm512_setzero_si512(), top = kernels::add(high, _mm512_srli_epi64(low, 52));
        const V quotients[2] = {add_high(zero, top, radix.quotient), add_high(zero, low, f.one)};
        return add_low(add_low(add_low(low, top, radix.value), quotients[0], f.minus), quotients[1], f.minus);
    }
};

WholeFactor radix(const Field& f) { return f.factor(static_cast<double>((u64(1) << 52) % f.prime)); }

// y as VectorKernels::overflow leaves it, a double: whole numbers from -2^48 to 2^50 with `offset` added to be positive; 2^52 more puts them into the
// low bits.
[[gnu::always_inline]] inline V from_double(const double* y, __m512d offset) {
    return _mm512_castpd_si512(_mm512_add_pd(_mm512_loadu_pd(y), offset));
}

// The value of a conversion at k, in 4. y < 2^50, constants < 2^49, at most kMaxSources + 1 of them. Count: the number of sources where that is common,
// else 0.
template <std::size_t Count>
struct FromConversion {
    const Field f;
    const Factors radix_;
    const double* y;
    const std::size_t count, stride;
    V constants[kMaxSources + 1];

    FromConversion(const Field& field, const VectorConversion& c, const double* from, std::size_t distance)
        : f(field), radix_(radix(field)), y(from), count(Count ? Count : c.count), stride(distance) {
        for (std::size_t i = 0; i <= count; ++i) constants[i] = all(f.factor(c.factors[i]).value);
    }
    [[gnu::always_inline]] V operator()(std::size_t k) const {
        const __m512d magic = _mm512_set1_pd(0x1p52);
        MultiplyAdd sum;
        for (std::size_t i = 0; i <= (Count ? Count : count); ++i) sum.add(from_double(y + i * stride + k, magic), constants[i]);
        return sum.flush(f, radix_);
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
        case 2: return transform(p, FromConversion<2>(f, c, y, stride), out, store);
        case 3: return transform(p, FromConversion<3>(f, c, y, stride), out, store);
        case 4: return transform(p, FromConversion<4>(f, c, y, stride), out, store);
        default: return transform(p, FromConversion<0>(f, c, y, stride), out, store);
    }
}

}  // namespace
}  // namespace kernels
