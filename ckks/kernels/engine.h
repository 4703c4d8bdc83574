// The array functions of the backend protocol (ckks/backends/__init__.py) over the moduli of one parameter set.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "basis.h"
#include "matrix.h"
#include "parallel.h"

namespace kernels {

using Rows = std::vector<std::size_t>;
using Products = std::vector<std::pair<std::size_t, std::size_t>>;  // (term, plaintext)

// What this machine can run, best first: of "avx512ifma", "avx512", "avx2" and "portable".
std::vector<std::string> instruction_sets();

// Arrays are [polys][rows][N] unless stated; residues in [0, q) on entry and exit. Callers have checked every size.
// Calls may run at the same time.
class Engine {
public:
    // instructions: one of instruction_sets(). Throws std::invalid_argument for another.
    Engine(std::size_t degree, const std::vector<u64>& moduli, const std::vector<u64>& roots, std::size_t data_count,
           std::size_t digit_limbs, std::size_t threads, const std::string& instructions);

    std::size_t degree() const { return degree_; }
    std::size_t row_count() const { return rows_.size(); }
    std::size_t data_count() const { return data_count_; }
    std::size_t special_count() const { return rows_.size() - data_count_; }
    std::size_t digit_count(std::size_t level) const { return level / digit_limbs_ + 1; }
    // Bytes of packed rows of `length` residues.
    std::size_t packed_bytes(const Rows& rows, std::size_t length) const;
    Rows extended_rows(std::size_t level) const;

    void forward(const u64* x, u64* out, std::size_t polys, const Rows& rows);
    void inverse(const u64* x, u64* out, std::size_t polys, const Rows& rows);

    // b: [b_polys][rows][N], b_polys divides polys, repeated over the leading axes of a.
    void add(const u64* a, const u64* b, u64* out, std::size_t polys, std::size_t b_polys, const Rows& rows);
    void subtract(const u64* a, const u64* b, u64* out, std::size_t polys, std::size_t b_polys, const Rows& rows);
    void multiply(const u64* a, const u64* b, u64* out, std::size_t polys, std::size_t b_polys, const Rows& rows);
    void multiply_scalars(const u64* a, const u64* scalars, u64* out, std::size_t polys, const Rows& rows);

    // How a key is used: digits and moved are read through the automorphism.
    struct KeyUse {
        const Byte* key;  // [at least digit_count(level)][2], each the packed extended rows of key_level
        std::size_t level, key_level;
        u64 element;
        const u64* moved;  // [moved_polys <= 2][..][N] over the extended rows, or over the data rows if moved_times_p
        std::size_t moved_polys;
        bool moved_times_p;
        bool divided;  // the result by P: over the data rows, as mod_down leaves it
    };

    // out: [sums][2][rows][N]; terms[i]: [2][rows][N]; plains: polynomials of packed rows of N >> log_repeat values, each of which stands
    // for 2^log_repeat positions. Sum s: terms[i] * plain j over the (i, j) of sums[s].
    void multiply_sums(const std::vector<const u64*>& terms, const Byte* plains, const std::vector<Products>& sums, unsigned log_repeat,
                       u64* out, const Rows& rows);
    // The same over the extended rows of a level, with products of `digits` as the first terms: out: [sums][2][rows][N].
    void multiply_product_sums(const u64* digits, const std::vector<KeyUse>& products, const std::vector<const u64*>& terms, const Byte* plains,
                               const std::vector<Products>& sums, unsigned log_repeat, u64* out, std::size_t level);
    // inputs: each [polys][rows][N], out: [m.outputs][polys][rows][N]; factors: [rows][terms], each in [0, q).
    void matrix(const std::vector<const u64*>& inputs, std::size_t polys, const Matrix& m, const u64* factors, u64* out, const Rows& rows);
    void tensor(const u64* a, const u64* b, u64* out, const Rows& rows);
    void automorphism(const u64* x, u64* out, std::size_t row_total, u64 element);

    void decompose(const u64* x, u64* out, std::size_t level);

    void key_product(const u64* digits, const KeyUse& use, u64* out);
    void key_switch(const u64* x, const KeyUse& use, u64* out);  // the product with the digits of x
    void mod_down(const u64* x, u64* out, std::size_t polys, std::size_t level);
    void rescale(const u64* x, u64* out, std::size_t polys, std::size_t level);

private:
    using Binary = void (Row::*)(const u64*, const u64*, u64*, std::size_t) const;
    void element_wise(Binary operation, const u64* a, const u64* b, u64* out, std::size_t polys, std::size_t b_polys, const Rows& rows);
    // x: [polys][kept + source][N] -> [polys][kept][N], the kept rows being 0..kept-1.
    void divide(const u64* x, u64* out, std::size_t polys, std::size_t kept, const Basis& basis);
    const Basis& digit_basis(std::size_t digit, std::size_t level) const;
    Buffer<u64> load_digits(const u64* x, std::size_t level);
    // Row i of the extended rows of every digit: of digits [digit][rows][N]; or of x itself where it is a digit's own, else converted into `room`.
    std::vector<const u64*> digit_rows(const u64* digits, std::size_t level, std::size_t i) const;
    std::vector<const u64*> convert_digits(const u64* scratch, const u64* x, std::size_t level, std::size_t i, u64* room) const;
    // Row i of the extended rows of a product; digits: that row of each.
    KeyOperands key_operands(const std::vector<const u64*>& digits, const KeyUse& use, const Permutation* moves, std::size_t i) const;
    // products: of digits [digit][rows][N], the first terms.
    void sums(const u64* digits, const std::vector<KeyUse>& products, const std::vector<const u64*>& terms, const Byte* plains,
              const std::vector<Products>& sums, unsigned log_repeat, u64* out, const Rows& rows);
    // digits(i, room): the rows that row i of the product is made of; room for one row of each digit.
    template <class Digits>
    void divided_product(const Digits& digits, const KeyUse& use, const Permutation* moves, u64* out);
    std::shared_ptr<const Permutation> permutation(u64 element);  // null for 1
    // The modulus row of position i in extended_rows(level).
    std::size_t extended_row(std::size_t i, std::size_t level) const { return i <= level ? i : data_count_ + i - level - 1; }

    std::size_t degree_, data_count_, digit_limbs_;
    const VectorKernels* kernels_;  // null: portable
    Pool pool_;
    std::vector<Row> rows_;
    std::vector<u64> special_product_;  // [row]
    std::vector<Basis> digit_bases_;    // [i]: the digit that ends with data limb i
    std::vector<Basis> single_bases_;   // [i]: data limb i alone
    std::vector<Basis> special_basis_;  // one: all special primes
    std::mutex mutex_;                  // of the permutations
    std::map<u64, std::shared_ptr<const Permutation>> permutations_;
};

}  // namespace kernels
