// Exact conversion of centred residues from one set of primes to others.
#pragma once

#include <vector>

#include "ntt.h"

namespace kernels {

// Sources q_1..q_a with product D. With y_i = x_i * (D/q_i)^-1 mod q_i and u = round(sum_i y_i/q_i), the representative of x in
// (-D/2, D/2] is sum_i y_i * (D/q_i) - u*D (Halevi, Polyakov and Shoup 2019, section 2.2). D is odd, so there are no ties.
class Basis {
public:
    Basis(const std::vector<Ntt>& tables, std::vector<std::size_t> source);

    const std::vector<std::size_t>& source() const { return source_; }
    // For the inverse transform of source i: leaves y_i instead of x_i.
    const Ntt::Scale& to_y(std::size_t i) const { return to_y_[i]; }
    // D^-1 modulo a row outside the source.
    Factor inverse_product(std::size_t row) const { return inverse_product_[row]; }

    // y: source rows [a][n]. u: [n].
    void overflow(const u64* y, u64* u, std::size_t n) const;
    // The representative modulo the prime of `row`, in [0, 3q).
    void convert(const u64* y, const u64* u, u64* out, std::size_t row, std::size_t n) const;

private:
    u64 exact_overflow(const u64* y, std::size_t stride, u64 lower) const;

    std::vector<std::size_t> source_;
    std::vector<Modulus> moduli_;  // of every row
    std::vector<Ntt::Scale> to_y_;
    std::vector<u64> constants_;  // [row][a+1]: D/q_i modulo the row's prime, then -D
    std::vector<Factor> inverse_product_;
    std::vector<std::vector<u64>> words_;  // D/q_i as little-endian words, then D: for the exact comparison
};

}  // namespace kernels
