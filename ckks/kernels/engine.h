// The array functions of the backend protocol (ckks/backends/__init__.py) over the moduli of one parameter set.
#pragma once

#include <vector>

#include "basis.h"

namespace kernels {

using Rows = std::vector<std::size_t>;

// Arrays are [polys][rows][N] unless stated; residues in [0, q) on entry and exit. Callers have checked every size.
// Immutable after construction, so calls may run at the same time.
class Engine {
public:
    Engine(std::size_t degree, const std::vector<u64>& moduli, const std::vector<u64>& roots, std::size_t data_count,
           std::size_t digit_limbs, std::size_t threads);

    std::size_t degree() const { return degree_; }
    std::size_t row_count() const { return tables_.size(); }
    std::size_t data_count() const { return data_count_; }
    std::size_t special_count() const { return tables_.size() - data_count_; }
    std::size_t digit_count(std::size_t level) const { return level / digit_limbs_ + 1; }

    void forward(const u64* x, u64* out, std::size_t polys, const Rows& rows) const;
    void inverse(const u64* x, u64* out, std::size_t polys, const Rows& rows) const;

    // b: [b_polys][rows][N], b_polys divides polys, repeated over the leading axes of a.
    void add(const u64* a, const u64* b, u64* out, std::size_t polys, std::size_t b_polys, const Rows& rows) const;
    void subtract(const u64* a, const u64* b, u64* out, std::size_t polys, std::size_t b_polys, const Rows& rows) const;
    void multiply(const u64* a, const u64* b, u64* out, std::size_t polys, std::size_t b_polys, const Rows& rows) const;
    void multiply_scalars(const u64* a, const u64* scalars, u64* out, std::size_t polys, const Rows& rows) const;

    // terms[i]: [polys][rows][N], plains[i]: [rows][N].
    void multiply_sum(const std::vector<const u64*>& terms, const std::vector<const u64*>& plains, u64* out,
                      std::size_t polys, const Rows& rows) const;
    void tensor(const u64* a, const u64* b, u64* out, const Rows& rows) const;
    void automorphism(const u64* x, u64* out, std::size_t row_total, u64 element) const;

    void decompose(const u64* x, u64* out, std::size_t level) const;
    // key: [at least digit_count(level)][2][key_level+1+K][N].
    void key_product(const u64* digits, const u64* key, u64* out, std::size_t level, std::size_t key_level) const;
    void mod_down(const u64* x, u64* out, std::size_t polys, std::size_t level) const;
    void rescale(const u64* x, u64* out, std::size_t polys, std::size_t level) const;

private:
    template <class Operation>
    void element_wise(const u64* a, const u64* b, u64* out, std::size_t polys, std::size_t b_polys, const Rows& rows,
                      const Operation& operation) const;
    // x: [polys][kept + source][N] -> [polys][kept][N], the kept rows being 0..kept-1.
    void divide(const u64* x, u64* out, std::size_t polys, std::size_t kept, const Basis& basis) const;
    const Modulus& modulus(std::size_t row) const { return tables_[row].modulus(); }
    // The modulus row of position i in extended_rows(level).
    std::size_t extended_row(std::size_t i, std::size_t level) const { return i <= level ? i : data_count_ + i - level - 1; }

    std::size_t degree_, data_count_, digit_limbs_, threads_;
    std::vector<Ntt> tables_;
    std::vector<Ntt::Scale> plain_scale_;
    std::vector<Basis> digit_bases_;   // [i]: the digit that ends with data limb i
    std::vector<Basis> single_bases_;  // [i]: data limb i alone
    std::vector<Basis> special_basis_; // one: all special primes
};

}  // namespace kernels
