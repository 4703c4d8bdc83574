// Arithmetic modulo one prime q, 2^19 < q < 2^60, on the device. Residues are in [0, q) wherever a kernel reads or writes them in global memory.
#pragma once

typedef unsigned long long word;

struct Prime {
    word q;
    word inverse;  // floor(2^(bits+63) / q)
    word bits;     // 2^(bits-1) < q < 2^bits
    double modulus, reciprocal;  // for primes of at most 49 bits (doubles.cuh)
};

// A fixed factor w < q with floor(w * 2^64 / q), after Shoup (Harvey 2014, algorithm 2).
struct __align__(16) Factor {
    word value, quotient;
};

__device__ __forceinline__ word minus_if(word x, word m) { return x >= m ? x - m : x; }

__device__ __forceinline__ word add(word a, word b, word q) { return minus_if(a + b, q); }
__device__ __forceinline__ word subtract(word a, word b, word q) { return minus_if(a + (q - b), q); }

// z >> (bits-1) of z = high * 2^64 + low < 2^(bits+63).
__device__ __forceinline__ word top(word high, word low, word bits) { return high << (65 - bits) | low >> (bits - 1); }

// On 64-bit integers, for all of these primes. Most kernels are templates over this class and Doubles, which has the same members. A Value is a
// residue in registers, or what one pass of a transform leaves to the next. It is called small in [0, 2q).
struct Whole {
    typedef word Value;
    typedef Factor Constant;
    struct Sum {
        word high, low;
    };
    static constexpr unsigned kBits = 60;
    // Products between two folds: of a residue with anything below 2^60 they are below 2^(bits+60), so seven of them and a remainder stay
    // below the 2^(bits+63) up to which a sum can be reduced.
    static constexpr unsigned kProducts = 7;

    Prime p;

    __device__ __forceinline__ explicit Whole(const Prime& prime) : p(prime) {}

    static __device__ __forceinline__ const Constant* constants(const Factor* table) { return table; }
    static __device__ __forceinline__ word written(Value x) { return x; }
    static __device__ __forceinline__ Value read(word x) { return x; }
    static __device__ __forceinline__ Value enter(word residue) { return residue; }
    __device__ __forceinline__ word residue(Value small) const { return minus_if(small, p.q); }

    // Small, for any x: the quotient is at most one too small.
    __device__ __forceinline__ Value multiply(Value x, Constant w) const { return x * w.value - __umul64hi(x, w.quotient) * p.q; }
    // Small, of two residues.
    __device__ __forceinline__ Value product(Value a, Value b) const {
        Sum s = sum();
        add(s, a, b);
        return reduced(s);
    }
    static __device__ __forceinline__ Value add(Value a, Value b) { return a + b; }
    __device__ __forceinline__ Value subtract(Value a, Value small) const { return a + (2 * p.q - small); }

    // The rounds of a transform. Forward: values are below 4q, and `addend` is taken of those that are not multiplied. Inverse: values are
    // small, and `folded` is taken of sums of two. `settled` makes the result of a forward transform small.
    __device__ __forceinline__ Value addend(Value x, unsigned) const { return minus_if(x, 2 * p.q); }
    __device__ __forceinline__ Value folded(Value x, unsigned, unsigned) const { return minus_if(x, 2 * p.q); }
    __device__ __forceinline__ Value settled(Value x) const { return minus_if(x, 2 * p.q); }

    static __device__ __forceinline__ Sum sum() { return {0, 0}; }
    static __device__ __forceinline__ void add(Sum& s, Value a, Value b) {
        const word product = a * b;
        s.low += product;
        s.high += __umul64hi(a, b) + (s.low < product);
    }
    // In [0, 3q). Barrett with three errors below one each, from cutting the sum, the inverse and the product.
    __device__ __forceinline__ word lazy(const Sum& s) const { return s.low - __umul64hi(top(s.high, s.low, p.bits), p.inverse) * p.q; }
    __device__ __forceinline__ void fold(Sum& s) const { s = {0, lazy(s)}; }
    // Small.
    __device__ __forceinline__ Value reduced(const Sum& s) const { return minus_if(lazy(s), p.q); }
};

// The row of a grid (.., rows, ..) that may have more rows than its second axis can count: the third then counts parts of it.
__device__ __forceinline__ unsigned grid_row() { return blockIdx.z * gridDim.y + blockIdx.y; }

// p(X) -> p(X^element) on values: position k holds the value at psi^(2*bitrev(k)+1), which is p at psi^((2*bitrev(k)+1)*element).
__device__ __forceinline__ unsigned source_position(unsigned k, unsigned element, unsigned log_n) {
    const unsigned shift = 32 - log_n, exponent = (2 * (__brev(k) >> shift) + 1) * element;
    return __brev((exponent >> 1) & ((1u << log_n) - 1)) >> shift;
}
