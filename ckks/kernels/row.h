// One prime with the kernels that serve it: doubles on vector lanes below 2^49, 64-bit integers otherwise.
#pragma once

#include <optional>
#include <span>

#include "ntt.h"
#include "packed.h"
#include "permutation.h"
#include "vector_tables.h"

namespace kernels {

// See KeySum.
struct KeyOperands {
    std::vector<KeyTerm> terms;
    const Permutation* permutation = nullptr;
    const u64 *moved_first = nullptr, *moved_second = nullptr;
    u64 factor = 0;
    // Whose keys are read next, this far from the same positions.
    const KeyOperands* next = nullptr;
    std::size_t ahead_by = 0;
};

// A term of sums of products: a pair of rows, or a product with a key that is made on the way.
struct SumTerm {
    const u64 *first = nullptr, *second = nullptr;
    const KeyOperands* product = nullptr;
};

// Positions that sums over `terms` terms take at a time. Longer stretches are read from memory faster, but those of all terms, pairs of eight bytes a position, have
// to stay in a second-level cache: 640 KiB at most, of 1 MiB or more that servers have.
constexpr std::size_t sum_stretch(std::size_t terms) {
    std::size_t stretch = kPlainStretch;
    while (stretch > 256 && 16 * stretch * terms > 640 << 10) stretch /= 2;
    return stretch;
}

// One sum of products over (term, plaintext): both are named by their numbers; plaintexts are packed rows `stride` bytes apart.
struct PlainOperands {
    std::span<const std::pair<std::size_t, std::size_t>> products;
    const Byte* plains;
    std::size_t stride;
    u64 *out_first, *out_second;
};

// Residues in [0, q) on entry and exit. n is a multiple of kVectorBlock.
class Row {
public:
    Row(std::size_t degree, u64 prime, u64 psi, const VectorKernels* kernels);

    const Modulus& modulus() const { return modulus_; }
    bool on_lanes() const { return vector_.has_value(); }
    const VectorTables& vector() const { return *vector_; }
    const Ntt& integer() const { return *integer_; }

    void forward(const u64* x, u64* out) const;  // x below 3q
    void inverse(const u64* x, u64* out) const;
    void add(const u64* a, const u64* b, u64* out, std::size_t n) const;
    void subtract(const u64* a, const u64* b, u64* out, std::size_t n) const;
    void multiply(const u64* a, const u64* b, u64* out, std::size_t n) const;
    void scale(u64 constant, const u64* a, u64* out, std::size_t n) const;
    void tensor(const u64* const a[2], const u64* const b[2], u64* const out[3], std::size_t n) const;
    // Positions [start, start+n) of whole rows, to first[0..n) and second[0..n).
    void key_sum(const KeyOperands& s, u64* first, u64* second, std::size_t start, std::size_t n) const;
    // Several sums over the same terms, at positions [start, start+n) of whole rows; each value of a plaintext stands for 2^log_repeat positions.
    void plain_sums(std::span<const SumTerm> terms, std::span<const PlainOperands> sums, unsigned log_repeat, std::size_t start,
                    std::size_t n) const;

private:
    std::size_t degree_;
    Modulus modulus_;
    const VectorKernels* kernels_;  // null on CPUs without
    std::optional<VectorTables> vector_;
    std::optional<Ntt> integer_;  // one of the two
    Ntt::Scale plain_scale_{};
};

}  // namespace kernels
