// The table of kernels for one instruction set. Include after a lanes_*.h, in one .cpp each.
#pragma once

#include "vector_matrix.h"
#include "vector_products.h"

namespace kernels {
namespace {

struct FromIntegers {
    const u64* x;
    V operator()(std::size_t k) const { return Lanes::load_integers(x + k); }
};

struct ToIntegers {  // for values in less than 1
    u64* x;
    V q;
    void operator()(std::size_t k, V v) const { Lanes::store_integers(x + k, v, q); }
};

// See VectorKernels::inverse_scaled.
struct ToSource {
    double* y;
    const std::size_t count;
    void operator()(std::size_t k, V v) const { Lanes::store(y + source_at(count, 0, k), v); }
};

struct ReducedToIntegers {
    const Field f;
    u64* x;
    void operator()(std::size_t k, V v) const { Lanes::store_residues(x + k, f.residue(v)); }
};

// The end of a division: v in 4.2, so the difference is in 5.2 and the product in 1/2 + 6/32; v in 13 for small primes, but their errors are less.
struct ToQuotient {
    const Field f;
    const u64* x;
    u64* out;
    Constant factor;
    void operator()(std::size_t k, V v) const {
        Lanes::store_integers(out + k, factor.times(f, Lanes::sub(Lanes::load_integers(x + k), v)), f.q);
    }
};

void forward(const VectorPrime& p, const u64* x, u64* out) {
    const Field f(p);
    transform(p, FromIntegers{x}, as_doubles(out), ReducedToIntegers{f, out});
}

void inverse(const VectorPrime& p, const u64* x, u64* out) { transform_back(p, p.scale, x, as_doubles(out), ToIntegers{out, Lanes::all(p.q)}); }

void inverse_scaled(const VectorPrime& p, const VectorFactor* scale, const u64* x, u64* y, std::size_t count, u64* room) {
    transform_back(p, scale, x, as_doubles(room), ToSource{as_doubles(y), count});
}

void convert_forward(const VectorPrime& p, const VectorConversion& c, const u64* y, u64* out) {
    transform_conversion<ReducedToIntegers>(p, c, y, out, {Field(p), out});
}

void convert_divide(const VectorPrime& p, const VectorConversion& c, const VectorFactor& factor, const u64* y, const u64* x, u64* out) {
    transform_conversion<ToQuotient>(p, c, y, out, {Field(p), x, out, Constant(factor)});
}

// Products of residues in [0, q) have a quotient below q, which 3 * 2^-53 * q < 3/16 puts off: in 1/2 + 3/16.
void multiply(const VectorPrime& p, const u64* a, const u64* b, u64* out, std::size_t n) {
    const Field f(p);
    for (std::size_t k = 0; k < n; k += W)
        Lanes::store_integers(out + k, f.multiply(Lanes::load_integers(a + k), Lanes::load_integers(b + k)), f.q);
}

void scale(const VectorPrime& p, const VectorFactor& factor, const u64* a, u64* out, std::size_t n) {
    const Field f(p);
    const Constant c(factor);
    for (std::size_t k = 0; k < n; k += W) Lanes::store_integers(out + k, c.times(f, Lanes::load_integers(a + k)), f.q);
}

void tensor(const VectorPrime& p, const u64* const a[2], const u64* const b[2], u64* const out[3], std::size_t n) {
    const Field f(p);
    for (std::size_t k = 0; k < n; k += W) {
        const V a0 = Lanes::load_integers(a[0] + k), a1 = Lanes::load_integers(a[1] + k);
        const V b0 = Lanes::load_integers(b[0] + k), b1 = Lanes::load_integers(b[1] + k);
        Lanes::store_integers(out[0] + k, f.multiply(a0, b0), f.q);
        Lanes::store_integers(out[1] + k, f.reduce(Lanes::add(f.multiply(a0, b1), f.multiply(a1, b0))), f.q);
        Lanes::store_integers(out[2] + k, f.multiply(a1, b1), f.q);
    }
}

// Written as comparisons of signed numbers, which compilers turn into lanes.
void add(u64 q, const u64* a, const u64* b, u64* out, std::size_t n) {
    for (std::size_t k = 0; k < n; ++k) {
        const u64 low = a[k] + b[k] - q;
        out[k] = low + (static_cast<std::int64_t>(low) < 0 ? q : 0);
    }
}

void subtract(u64 q, const u64* a, const u64* b, u64* out, std::size_t n) {
    for (std::size_t k = 0; k < n; ++k) {
        const u64 low = a[k] - b[k];
        out[k] = low + (static_cast<std::int64_t>(low) < 0 ? q : 0);
    }
}

void permute(const VectorPermutation& p, const u64* x, u64* out, std::size_t n) {
    for (std::size_t k = 0; k < n; k += W) {
        const std::size_t entry = p.entries[k / W];
        Lanes::store_bits(out + k, Lanes::permute(Lanes::load_bits(x + entry / W * W), Lanes::pattern(p.patterns + entry % W * W)));
    }
}

constexpr VectorKernels kTable = {
    Lanes::name, W,     false,   forward, inverse, inverse_scaled, convert_forward, convert_forward, convert_divide, overflow, key_sum, plain_sum,
    stage,       matrix, multiply, scale,  tensor,  add,            subtract,        permute,
};

}  // namespace
}  // namespace kernels
