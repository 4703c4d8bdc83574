#include "vector.h"

#if defined(__AVX512IFMA__) && defined(__AVX512VBMI__)
#include "ifma_products.h"

namespace kernels {
namespace {

struct FromIntegers {
    const u64* x;
    V operator()(std::size_t k) const { return load(x + k); }
    const void* address() const { return x; }
};

struct ToIntegers {
    const Field f;
    u64* out;
    void operator()(std::size_t k, V v) const { store(out + k, f.finish(v)); }
};

struct ReducedToIntegers {
    const Field f;
    u64* out;
    void operator()(std::size_t k, V v) const { store(out + k, f.finish(f.reduce(v))); }
};

// See VectorKernels::inverse_scaled.
struct ToSource {
    const Field f;
    u64* y;
    const std::size_t count;
    void operator()(std::size_t k, V v) const { store(y + k * count, f.finish(v)); }
};

// Below 2^52, with what lies above as it fell.
struct ToMemory {
    u64* out;
    void operator()(std::size_t k, V v) const { store(out + k, v); }
};

// From a forward transform of primes for which `exact` holds: the quotient is right, and what is left is in [0, q).
struct ExactToIntegers {
    const V minus, mask, reciprocal, shift;
    u64* out;
    ExactToIntegers(const VectorPrime& p, u64* to)
        : minus(Field(p).minus), mask(Field(p).mask), reciprocal(all(p.whole_reciprocal)), shift(all(p.whole_reciprocal_shift)), out(to) {}
    void operator()(std::size_t k, V v) const {
        const V quotient = _mm512_srlv_epi64(add_high(_mm512_setzero_si512(), v, reciprocal), shift);
        store(out + k, _mm512_and_si512(add_low(v, quotient, minus), mask));
    }
};

// The end of a division, (x - v) * factor. A multiple of q that v is below makes the difference positive: x plus that is in 69 (roomy), 9 or 3.
struct ToQuotient {
    const Field f;
    const u64* x;
    u64* out;
    const Factors factor;
    const V above;
    ToQuotient(const Field& field, const VectorFactor& by, const u64* from, u64* to)
        : f(field), x(from), out(to), factor(field.factor(by.value)), above(all(bound_of(room(field.prime)) * field.prime)) {}
    void operator()(std::size_t k, V v) const { store(out + k, f.finish(f.times(sub(add(load(x + k), above), v), factor))); }
};

void forward(const VectorPrime& p, const u64* x, u64* out) {
    if (exact(p)) return transform(p, FromIntegers{x}, out, ExactToIntegers(p, out));
    transform(p, FromIntegers{x}, out, ReducedToIntegers{Field(p), out});
}

void inverse(const VectorPrime& p, const u64* x, u64* out) {
    transform_back(p, p.scale, x, out, ToIntegers{Field(p), out});
}

void inverse_scaled(const VectorPrime& p, const VectorFactor* scale, const u64* x, u64* y, std::size_t count, u64* room) {
    transform_back(p, scale, x, room, ToSource{Field(p), y, count});
}

void convert_forward(const VectorPrime& p, const VectorConversion& c, const u64* y, u64* out) {
    if (exact(p)) return transform_conversion<ExactToIntegers>(p, c, y, out, {p, out});
    transform_conversion<ReducedToIntegers>(p, c, y, out, {Field(p), out});
}

// A last reduction is a tenth of a transform, and multiplications do without.
void convert_lazily(const VectorPrime& p, const VectorConversion& c, const u64* y, u64* out) {
    if (room(static_cast<u64>(p.q)) != Room::roomy) return convert_forward(p, c, y, out);
    transform_conversion<ToMemory>(p, c, y, out, {out});
}

void convert_divide(const VectorPrime& p, const VectorConversion& c, const VectorFactor& factor, const u64* y, const u64* x, u64* out) {
    transform_conversion<ToQuotient>(p, c, y, out, {Field(p), factor, x, out});
}

}  // namespace

// What is not here runs on doubles: products of two residues are as fast.
const VectorKernels* avx512ifma_kernels() {
    static const VectorKernels table = [] {
        VectorKernels t = *avx512_kernels();
        t.name = "avx512ifma";
        t.whole = true;
        t.forward = forward, t.inverse = inverse, t.inverse_scaled = inverse_scaled;
        t.convert_forward = convert_forward, t.convert_lazily = convert_lazily, t.convert_divide = convert_divide, t.overflow = overflow;
        t.key_sum = key_sum, t.plain_sum = plain_sum;
        return t;
    }();
    return &table;
}

}  // namespace kernels
#else
namespace kernels {
const VectorKernels* avx512ifma_kernels() { return nullptr; }
}  // namespace kernels
#endif
