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
// Scratch is [a+1][N + padding]: y_1..y_a and u, filled by `load` for each source, then by `settle`. It holds doubles if every row of the
// parameter set is on lanes, else integers.
class Basis {
public:
    // `rows`: of the whole parameter set; must outlive this. kernels: null for integers throughout.
    Basis(const std::vector<Row>& rows, std::vector<std::size_t> source, std::size_t degree, const VectorKernels* kernels);

    const std::vector<std::size_t>& source() const { return source_; }
    static std::size_t scratch_size(std::size_t count, std::size_t degree) { return (count + 1) * (degree + kPadding); }

    // x: source i in NTT domain.
    void load(std::size_t i, const u64* x, u64* scratch) const;
    // Positions [start, start+n).
    void settle(u64* scratch, std::size_t start, std::size_t n) const;
    // The representative in NTT domain modulo the prime of `row`; or x minus that, divided by D.
    void convert(const u64* scratch, u64* out, std::size_t row) const;
    void divide(const u64* scratch, const u64* x, u64* out, std::size_t row) const;

private:
    struct VectorSide {
        std::vector<double> inverses, moduli;  // of the sources
        std::vector<VectorScale> scales;
        std::vector<double> factors;             // as `constants_`, balanced
        std::vector<double> grids;               // [row]
        std::vector<VectorFactor> inverse_product;  // [row]
    };

    void settle_integers(u64* scratch, std::size_t start, std::size_t n) const;
    void settle_exactly(double* scratch, std::size_t k) const;
    bool rounds_up(const u64* y, std::size_t stride, u64 lower) const;
    void convert_integers(const u64* scratch, u64* out, std::size_t row) const;
    VectorConversion conversion(std::size_t row) const;

    const std::vector<Row>* rows_;
    std::vector<std::size_t> source_;
    std::size_t degree_, stride_;
    const VectorKernels* kernels_;     // null where scratch holds integers
    std::vector<u64> to_y_;            // (D/q_i)^-1 mod q_i
    std::vector<u64> constants_;       // [row][a+1]: D/q_i modulo the row's prime, then -D
    std::vector<u64> inverse_product_; // [row]: D^-1, or 0 on a source row
    std::vector<std::vector<u64>> words_;  // D/q_i as little-endian words, then D: for the exact comparison
    VectorSide vector_;
};

}  // namespace kernels
