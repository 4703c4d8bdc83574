// Exact sums of products, and conversions between bases. Include after a lanes_*.h.
#pragma once

#include "vector_ntt.h"

namespace kernels {
namespace {

// A sum of products of integers in four operations each, exact. h starts at grid = 1.5*2^(52+G) and stays within 2^(51+G) of it, so fma(x, y, h)
// is rounded to a multiple of 2^G; the step h made is exact, what it missed is at most 2^(G-1), and l collects that, below 2^53.
//
// Residues (x, y in [0, q), q < 2^bits): G = bits+1 and at most 2^(52-bits) products, so their sum is below 2^(52+bits) = 2^(51+G), and l
// below 2^52 plus q/2 from an earlier flush.
// Conversions (|c| <= 2^(b-1), |y_i| <= 2^a but |y_0| <= (count+1) * 2^a, so sums are below count * 2^(a+b), a, b <= 49): G = a+b-48 for up to 8
// sources, and sums below 2^(51+G); G = a+b-47 for more, if a+b < 98. l is below 11 * 2^49.
struct MultiplyAdd {
    V h, l;

    [[gnu::always_inline]] void add(V x, V y) {
        const V next = Lanes::fma(x, y, h);
        l = Lanes::add(l, Lanes::fms(x, y, Lanes::sub(next, h)));
        h = next;
    }
    // Into 1/2. The quotient is below 11 * 2^49 < 2^53 and off by 2.5 at most, so the remainder is in 2.5 and its sum with l below 15 * 2^49 < 2^53.
    [[gnu::always_inline]] V flush(const Field& f, V grid) const {
        const V sum = Lanes::sub(h, grid);
        const V quotient = Lanes::round(Lanes::mul(sum, f.inverse));
        return f.reduce(Lanes::add(Lanes::fnma(quotient, f.q, sum), l));
    }
};

// Where the number of a source at position k is: see VectorKernels::convert_forward.
std::size_t source_at(std::size_t count, std::size_t source, std::size_t k) { return (k / 8 * count + source) * 8 + k % 8; }

// The value of a conversion at k, in 1/2. Count: its number of sources where that is common, else 0.
template <std::size_t Count>
struct FromConversion {
    const Field f;
    const double *y, *factors;
    const std::size_t count;
    const V grid;
    V constants[Count ? Count : 1];

    FromConversion(const Field& field, const VectorConversion& c, const double* from)
        : f(field), y(from), factors(c.factors), count(c.count), grid(Lanes::all(c.grid)) {
        for (std::size_t i = 0; i < Count; ++i) constants[i] = Lanes::all(c.factors[i]);
    }
    [[gnu::always_inline]] V operator()(std::size_t k) const {
        MultiplyAdd sum{grid, Lanes::all(0.0)};
        if constexpr (Count > 0) {
            for (std::size_t i = 0; i < Count; ++i) sum.add(Lanes::load(y + source_at(Count, i, k)), constants[i]);
        } else {
            for (std::size_t i = 0; i < count; ++i) sum.add(Lanes::load(y + source_at(count, i, k)), Lanes::all(factors[i]));
        }
        return sum.flush(f, grid);
    }
};

// One source is centred: its overflow is zero.
struct FromCentred {
    const Field f;
    const double* y;
    [[gnu::always_inline]] V operator()(std::size_t k) const { return f.reduce(Lanes::load(y + k)); }
};

// Scratch, and what passes between the first and the last leave where the result will be, are doubles.
double* as_doubles(u64* x) { return reinterpret_cast<double*>(x); }
const double* as_doubles(const u64* x) { return reinterpret_cast<const double*>(x); }

template <class Store>
void transform_conversion(const VectorPrime& p, const VectorConversion& c, const u64* scratch, u64* out, const Store& store) {
    const Field f(p);
    const double* const y = as_doubles(scratch);
    double* const room = as_doubles(out);
    switch (c.count) {
        case 1: return transform(p, FromCentred{f, y}, room, store);
        case 2: return transform(p, FromConversion<2>(f, c, y), room, store);
        case 3: return transform(p, FromConversion<3>(f, c, y), room, store);
        case 4: return transform(p, FromConversion<4>(f, c, y), room, store);
        default: return transform(p, FromConversion<0>(f, c, y), room, store);
    }
}

// y in 1 on entry, so u is at most `count` and y_0 - u * q_0 in count + 1. Each quotient is off by less than count * 2^-51 and the rounding of the sum,
// far less than the margin, 2^-40.
std::size_t overflow(u64* scratch, const double* inverses, const double* moduli, std::size_t count, std::size_t n, std::uint32_t* doubtful) {
    std::size_t found = 0;
    double* const y = as_doubles(scratch);
    const V bound = Lanes::all(0.5 - 0x1p-40);
    for (std::size_t k = 0; k < n; k += W) {
        double* const first = y + source_at(count, 0, k);
        V sum = Lanes::mul(Lanes::load(first), Lanes::all(inverses[0]));
        for (std::size_t i = 1; i < count; ++i) sum = Lanes::fma(Lanes::load(y + source_at(count, i, k)), Lanes::all(inverses[i]), sum);
        const V u = Lanes::round(sum);
        Lanes::store(first, Lanes::fnma(u, Lanes::all(moduli[0]), Lanes::load(first)));
        const unsigned mask = Lanes::beyond(Lanes::sub(sum, u), bound);
        for (unsigned lane = 0; mask >> lane; ++lane)
            if (mask >> lane & 1) doubtful[found++] = static_cast<std::uint32_t>(k + lane);
    }
    return found;
}

}  // namespace
}  // namespace kernels
