// Arithmetic modulo a prime below 2^49 on doubles with fused multiply-add, for devices where these are fast (as ckks/kernels/vector_field.h and
// vector_sums.h on the CPU), and the choice between it and integers.
#pragma once

#include "modular.cuh"

// A Value is an integer; "x in B" means |x| <= B*q, and small is the interior of 1. Every operation is rounded by itself: the compiler may
// not merge a product and a sum.
//
// Adding and taking away 1.5*2^52 rounds to an integer while |x| < 2^51. multiply: h = a*w rounded is off by at most 2^-53 relative, l is what
// is missing, exactly. For a in A and w in W the quotient h/q, below A*W*q, is off by at most 3*2^-53 of itself (h, 1/q and their
// product), so h - quotient*q + l is in 1/2 + 3*A*W/16; it and h - quotient*q are integers below 2^53, so both steps are exact. This
// needs A*W*q < 2^51: A*W <= 4. Constants are in 1/2: 1/2 + 3A/32, A <= 8.
struct Doubles {
    typedef double Value;
    typedef double Constant;
    struct Sum {
        double high, low;
    };
    static constexpr unsigned kBits = 49;
    // Products between two folds, of a residue with anything below 2^49. high starts at 1.5*2^(53+bits), where doubles are multiples of
    // 2^(bits+1), and stays within 2^(52+bits) of it: eight products, each below 2^(49+bits), and one of an overflow below 2^6, for which the
    // distance of primes from 2^49 leaves room. What its steps miss is at most 2^bits each, which low collects: below 9 * 2^bits + q/2.
    static constexpr unsigned kProducts = 8;

    double q, inverse, grid;

    __device__ __forceinline__ explicit Doubles(const Prime& p)
        : q(p.modulus), inverse(p.reciprocal), grid(__longlong_as_double((1023 + 53 + p.bits) << 52 | 1ull << 51)) {}

    // Where Whole has factors there are these, one after the other; the rest of the table's row is not used.
    static __device__ __forceinline__ const Constant* constants(const Factor* table) { return reinterpret_cast<const Constant*>(table); }
    static __device__ __forceinline__ word written(Value x) { return __double_as_longlong(x); }
    static __device__ __forceinline__ Value read(word x) { return __longlong_as_double(x); }
    // Integers below 2^52 <-> doubles, by way of the exponent of 2^52.
    static __device__ __forceinline__ Value enter(word residue) { return __dsub_rn(__longlong_as_double(residue | kWhole), 0x1p52); }
    __device__ __forceinline__ word residue(Value small) const {
        return __double_as_longlong(__dadd_rn(small < 0 ? __dadd_rn(small, q) : small, 0x1p52)) ^ kWhole;
    }

    // In 1/2 (and the rounding of 1/q: for a in A less than A * 2^-51 more).
    __device__ __forceinline__ Value settled(Value a) const { return __fma_rn(-nearest(a), q, a); }
    // In 1/2 + 3A/32.
    __device__ __forceinline__ Value multiply(Value a, Constant w) const {
        const double h = __dmul_rn(a, w), l = __fma_rn(a, w, -h);
        return __dadd_rn(__fma_rn(-nearest(h), q, h), l);
    }
    // Of two residues: in 1/2 + 3/16.
    __device__ __forceinline__ Value product(Value a, Value b) const { return multiply(a, b); }
    static __device__ __forceinline__ Value add(Value a, Value b) { return __dadd_rn(a, b); }
    static __device__ __forceinline__ Value subtract(Value a, Value b) { return __dsub_rn(a, b); }

    // Forward rounds: values enter in B = 2.6; in the first stage those that are not multiplied are settled. Sums are then in 1 + 3B/32 < 1.25,
    // after the second stage in 1.25 * 35/32 + 1/2 < 1.87, after a third in 1.87 * 35/32 + 1/2 < 2.55.
    __device__ __forceinline__ Value addend(Value x, unsigned stage) const { return stage == 0 ? settled(x) : x; }
    // Inverse rounds: values enter in B = 1.6. After two stages value 0 (of four), the sum of sums, is in 4B = 6.4 and settled here; 1 is a sum of
    // products, in 2 * (1/2 + 3*2B/32) = 1.6; 2 and 3 are products of differences, in 1/2 + 3*4B/32 = 1.1 and less. A third stage: 0 is in 1;
    // 1 and 2, in 3.2 and 2.2, are settled here; 3 is in 2 * (1/2 + 3*1.6/32) = 1.3; the others are products of what is in 3.2 at most.
    __device__ __forceinline__ Value folded(Value x, unsigned stage, unsigned number) const {
        return (stage == 1 && (number & 3) == 0) || (stage == 2 && (number == 1 || number == 2)) ? settled(x) : x;
    }

    __device__ __forceinline__ Sum sum() const { return {grid, 0.0}; }
    static __device__ __forceinline__ void add(Sum& s, Value x, Value y) {
        const double next = __fma_rn(x, y, s.high);
        s.low = __dadd_rn(s.low, __fma_rn(x, y, -__dsub_rn(next, s.high)));
        s.high = next;
    }
    __device__ __forceinline__ void fold(Sum& s) const { s = {grid, reduced(s)}; }
    // In 1/2. The quotient is below 2^53 and off by 2.5 at most, so the remainder is in 2.5 and its sum with low below 2.5q + 9.5 * 2^49 < 2^53.
    __device__ __forceinline__ Value reduced(const Sum& s) const {
        const double whole = __dsub_rn(s.high, grid);
        return settled(__dadd_rn(__fma_rn(-rint(__dmul_rn(whole, inverse)), q, whole), s.low));
    }

private:
    static constexpr word kWhole = 0x4330000000000000;  // 2^52 as a double

    // a/q rounded.
    __device__ __forceinline__ double nearest(double a) const { return __dsub_rn(__fma_rn(a, inverse, 0x1.8p52), 0x1.8p52); }
};

// body(Doubles) or body(Whole): all threads of a block choose alike. DOUBLES: whether this device is fast at doubles.
template <class Body>
__device__ __forceinline__ void with_field(const Prime& p, const Body& body) {
#if DOUBLES
    if (p.bits <= Doubles::kBits) return body(Doubles(p));
#endif
    body(Whole(p));
}
