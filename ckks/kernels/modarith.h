// Arithmetic modulo one prime q, 2^19 < q < 2^60.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>

namespace kernels {

using u64 = std::uint64_t;
__extension__ typedef unsigned __int128 u128;

// A fixed factor w < q with floor(w * 2^64 / q), after Shoup (Harvey 2014, algorithm 2).
struct Factor {
    u64 value, quotient;
};

struct Modulus {
    u64 q;
    unsigned bits;  // 2^(bits-1) < q < 2^bits
    u64 inverse;    // floor(2^(bits+63) / q): below 2^64 because q > 2^(bits-1)

    explicit Modulus(u64 prime)
        : q(prime), bits(std::bit_width(prime)), inverse(static_cast<u64>((u128(1) << (bits + 63)) / prime)) {}

    Factor factor(u64 w) const { return {w, static_cast<u64>((u128(w) << 64) / q)}; }

    u64 add(u64 a, u64 b) const { return minus_if(a + b, q); }
    u64 subtract(u64 a, u64 b) const { return minus_if(a + (q - b), q); }
    u64 multiply(u64 a, u64 b) const { return reduce(u128(a) * b); }

    // x mod q in [0, 2q) times w, for any 64-bit x: the quotient is at most one too small.
    u64 multiply_lazy(u64 x, Factor w) const {
        const u64 quotient = static_cast<u64>((u128(x) * w.quotient) >> 64);
        return x * w.value - quotient * q;
    }
    u64 multiply(u64 x, Factor w) const { return minus_if(multiply_lazy(x, w), q); }

    // z mod q, in [0, 3q), for z < 2^(bits+63): Barrett with three errors below one each, from cutting z, the inverse and the product.
    u64 reduce_lazy(u128 z) const {
        const u64 top = static_cast<u64>(z >> 64) << (65 - bits) | static_cast<u64>(z) >> (bits - 1);
        const u64 quotient = static_cast<u64>((u128(top) * inverse) >> 64);
        return static_cast<u64>(z) - quotient * q;
    }
    u64 reduce(u128 z) const { return minus_if(minus_if(reduce_lazy(z), q), q); }

    // [0, 8q) to [0, q)
    u64 reduce_eight(u64 x) const { return minus_if(minus_if(minus_if(x, 4 * q), 2 * q), q); }

    // x - m if that is not negative, else x. As a minimum it never becomes a branch, which random residues would mispredict.
    static u64 minus_if(u64 x, u64 m) { return std::min(x, x - m); }

    u64 power(u64 base, u64 exponent) const {
        u64 result = 1;
        for (base %= q; exponent; exponent >>= 1, base = multiply(base, base))
            if (exponent & 1) result = multiply(result, base);
        return result;
    }
    u64 invert(u64 x) const { return power(x, q - 2); }
};

}  // namespace kernels
