// Arithmetic modulo one prime q, 2^19 < q < 2^60, on the device. Residues are in [0, q) wherever a kernel reads or writes global memory.
#pragma once

typedef unsigned long long word;

struct Prime {
    word q;
    word inverse;  // floor(2^(bits+63) / q)
    word bits;     // 2^(bits-1) < q < 2^bits
};

// A fixed factor w < q with floor(w * 2^64 / q), after Shoup (Harvey 2014, algorithm 2).
struct __align__(16) Factor {
    word value, quotient;
};

__device__ __forceinline__ word minus_if(word x, word m) { return x >= m ? x - m : x; }

__device__ __forceinline__ word add(word a, word b, word q) { return minus_if(a + b, q); }
__device__ __forceinline__ word subtract(word a, word b, word q) { return minus_if(a + (q - b), q); }

// x * w mod q in [0, 2q), for any 64-bit x: the quotient is at most one too small.
__device__ __forceinline__ word multiply_lazy(word x, Factor w, word q) { return x * w.value - __umul64hi(x, w.quotient) * q; }
__device__ __forceinline__ word multiply(word x, Factor w, word q) { return minus_if(multiply_lazy(x, w, q), q); }

// z >> (bits-1) of z = high * 2^64 + low < 2^(bits+63).
__device__ __forceinline__ word top(word high, word low, word bits) { return high << (65 - bits) | low >> (bits - 1); }

// A sum of products as 128 bits. It may be reduced while it is below 2^(bits+63).
struct Sum {
    word high, low;

    __device__ __forceinline__ void add(word a, word b) {
        const word product = a * b;
        low += product;
        high += __umul64hi(a, b) + (low < product);
    }
    // Into [0, 3q). Barrett with three errors below one each, from cutting z, the inverse and the product.
    __device__ __forceinline__ word lazy(const Prime& p) const { return low - __umul64hi(top(high, low, p.bits), p.inverse) * p.q; }
    __device__ __forceinline__ word reduced(const Prime& p) const { return minus_if(minus_if(lazy(p), p.q), p.q); }
    // Products of a residue with anything below 2^60 are below 2^(bits+60) each: seven of them and a remainder leave room.
    __device__ __forceinline__ void fold(const Prime& p) {
        low = lazy(p);
        high = 0;
    }
};

constexpr unsigned kProducts = 7;  // between two folds

__device__ __forceinline__ word multiply(word a, word b, const Prime& p) {
    Sum s = {0, 0};
    s.add(a, b);
    return s.reduced(p);
}

// p(X) -> p(X^element) on values: position k holds the value at psi^(2*bitrev(k)+1), which is p at psi^((2*bitrev(k)+1)*element).
__device__ __forceinline__ unsigned source_position(unsigned k, unsigned element, unsigned log_n) {
    const unsigned shift = 32 - log_n, exponent = (2 * (__brev(k) >> shift) + 1) * element;
    return __brev((exponent >> 1) & ((1u << log_n) - 1)) >> shift;
}
