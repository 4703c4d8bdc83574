// Exact conversion of centred residues from one set of primes to others.
#pragma once

#include <vector>

#include "row.h"

namespace kernels {

// Between rows of scratch: rows a power of two apart would meet in the same few places of a cache.
constexpr std::size_t kPadding = 64;

// Sources q_1..q_a with product D. With y_i = x_i * (D/q_i)^-1 mod q_i and u = round(sum_i y_i/q_i), the representative of x in
// (-D/2, D/2] is sum_i y_i * (D/q_i) - u*D (Halevi, Polyakov and Shoup 2019, section 2.2). D is odd, so there are no ties.
//
// Scratch is [a+1][N + padding]: y_1..y_a and u, filled by `load` for each source, then by `settle`. With kernels it is [N/8][a][8], so that what is read
// together lies together, of numbers of their own, and u*q_1 has been taken from y_1 in place of a term of its own.
class Basis {
public:
    // `rows`: of the whole parameter set; must outlive this. kernels: null for 64-bit integers throughout, as where they do not fit.
    Basis(const std::vector<Row>& rows, std::vector<std::size_t> source, std::size_t degree, const VectorKernels* kernels);

    const std::vector<std::size_t>& source() const { return source_; }
    static std::size_t scratch_size(std::size_t count, std::size_t degree) { return (count + 1) * (degree + kPadding); }

    // x: source i in NTT domain.
    void load(std::size_t i, const u64* x, u64* scratch) const;
    // Positions [start, start+n).
    void settle(u64* scratch, std::size_t start, std::size_t n) const;
    // The representative in NTT domain modulo the prime of `row`, or what Row::key_sum takes in its place; or x minus it, divided by D.
    void convert(const u64* scratch, u64* out, std::size_t row) const;
    void convert_lazily(const u64* scratch, u64* out, std::size_t row) const;
    void divide(const u64* scratch, const u64* x, u64* out, std::size_t row) const;

private:
    struct VectorSide {
        std::vector<double> inverses, moduli;  // of the sources
        std::vector<VectorScale> scales;
        std::vector<double> factors;             // [row][a]: as `constants_`, balanced
        std::vector<u64> whole;                  // [row][a+1]: VectorConversion::whole
        std::vector<double> grids;               // [row]
        std::vector<VectorFactor> inverse_product;  // [row]
    };

    void settle_integers(u64* scratch, std::size_t start, std::size_t n) const;
    void settle_exactly(u64* scratch, std::size_t k) const;
    bool rounds_up(const u64* y, std::size_t stride, u64 lower) const;
    void convert_integers(const u64* scratch, u64* out, std::size_t row) const;
    u64 residue(u64 bits, const Modulus& m) const;
    std::size_t source_at(std::size_t i, std::size_t k) const { return (k / 8 * source_.size() + i) * 8 + k % 8; }
    VectorConversion conversion(std::size_t row) const;

    const std::vector<Row>* rows_;
    std::vector<std::size_t> source_;
    std::size_t degree_, stride_;
    const VectorKernels* kernels_;     // null: on 64-bit integers
    std::vector<u64> to_y_;            // (D/q_i)^-1 mod q_i
    std::vector<u64> constants_;       // [row][a+1]: D/q_i modulo the row's prime, then -D
    std::vector<u64> inverse_product_; // [row]: D^-1, or 0 on a source row
    std::vector<std::vector<u64>> words_;  // D/q_i as little-endian words, then D: for the exact comparison
    VectorSide vector_;
};

}  // namespace kernels
