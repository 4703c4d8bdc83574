#include "row.h"

#include "accumulate.h"

namespace kernels {

Row::Row(std::size_t degree, u64 prime, u64 psi, const VectorKernels* kernels)
    : degree_(degree), modulus_(prime), kernels_(kernels) {
    if (kernels && prime < kVectorPrimeLimit) {
        vector_.emplace(degree, modulus_, psi, kernels->lanes);
    } else {
        integer_.emplace(degree, prime, psi);
        plain_scale_ = integer_->scale(1);
    }
}

void Row::forward(const u64* x, u64* out) const {
    if (vector_) return kernels_->forward(vector_->prime(), x, out);
    if (x != out) std::copy_n(x, degree_, out);
    integer_->forward_lazy(out);
    for (std::size_t k = 0; k < degree_; ++k) out[k] = modulus_.reduce_eight(out[k]);
}

void Row::inverse(const u64* x, u64* out) const {
    if (vector_) return kernels_->inverse(vector_->prime(), x, out);
    if (x != out) std::copy_n(x, degree_, out);
    integer_->inverse(out, plain_scale_);
}

void Row::add(const u64* a, const u64* b, u64* out, std::size_t n) const {
    if (kernels_) return kernels_->add(modulus_.q, a, b, out, n);
    for (std::size_t k = 0; k < n; ++k) out[k] = modulus_.add(a[k], b[k]);
}

void Row::subtract(const u64* a, const u64* b, u64* out, std::size_t n) const {
    if (kernels_) return kernels_->subtract(modulus_.q, a, b, out, n);
    for (std::size_t k = 0; k < n; ++k) out[k] = modulus_.subtract(a[k], b[k]);
}

void Row::multiply(const u64* a, const u64* b, u64* out, std::size_t n) const {
    if (vector_) return kernels_->multiply(vector_->prime(), a, b, out, n);
    const Modulus m = modulus_;
    for (std::size_t k = 0; k < n; ++k) out[k] = m.multiply(a[k], b[k]);
}

void Row::scale(u64 constant, const u64* a, u64* out, std::size_t n) const {
    if (vector_) return kernels_->scale(vector_->prime(), vector_factor(modulus_, constant), a, out, n);
    const Modulus m = modulus_;
    const Factor w = m.factor(constant);
    for (std::size_t k = 0; k < n; ++k) out[k] = m.multiply(a[k], w);
}

void Row::tensor(const u64* const a[2], const u64* const b[2], u64* const out[3], std::size_t n) const {
    if (vector_) return kernels_->tensor(vector_->prime(), a, b, out, n);
    const Modulus m = modulus_;
    for (std::size_t k = 0; k < n; ++k) {
        out[0][k] = m.multiply(a[0][k], b[0][k]);
        out[1][k] = m.reduce(u128(a[0][k]) * b[1][k] + u128(a[1][k]) * b[0][k]);
        out[2][k] = m.multiply(a[1][k], b[1][k]);
    }
}

void Row::pair_sum(const PairOperands& s, u64* first, u64* second, std::size_t start, std::size_t n) const {
    if (vector_) {
        const VectorPermutation view = s.permutation ? s.permutation->view() : VectorPermutation{};
        return kernels_->pair_sum(vector_->prime(),
                                  {s.terms.data(), nullptr, s.terms.size(), 0, s.permutation ? &view : nullptr, s.moved_first,
                                   s.moved_second, static_cast<double>(s.factor), first, second},
                                  start, n);
    }
    constexpr std::size_t block = Accumulator::kBlock;
    u64 line[block];
    for (std::size_t at = start; at < start + n; at += block) {
        const std::size_t size = std::min(block, start + n - at);
        Accumulator sums[2] = {{modulus_, size}, {modulus_, size}};
        const auto read = [&](const u64* x) {
            for (std::size_t k = 0; k < size; ++k) line[k] = x[s.permutation ? s.permutation->source(at + k) : at + k];
        };
        for (const PairTerm& t : s.terms) {
            read(t.shared);
            sums[0].add_products(line, t.first + at);
            sums[1].add_products(line, t.second + at);
        }
        const u64* const moved[2] = {s.moved_first, s.moved_second};
        u64* const out[2] = {first, second};
        for (std::size_t p = 0; p < 2; ++p) {
            if (moved[p]) {
                read(moved[p]);
                sums[p].add_scaled(line, s.factor);
            }
            sums[p].store(out[p] + at);
        }
    }
}

// Rows lie a power of two apart, so the caches could keep few of them side by side: each stretch of all terms is first brought together (as
// doubles already), and then read by every sum.
void Row::plain_sums(std::span<const std::pair<const u64*, const u64*>> terms, std::span<const PlainSum> sums, unsigned log_repeat,
                     std::size_t start, std::size_t n) const {
    if (vector_) {
        constexpr std::size_t stretch = 256;  // 4 KiB of a term: a few dozen fit the second-level cache
        const Buffer<double> staged = make_buffer<double>(2 * stretch * terms.size());
        std::vector<StagedTerm> products;
        for (std::size_t at = start; at < start + n; at += stretch) {
            for (std::size_t i = 0; i < terms.size(); ++i) {
                kernels_->stage(terms[i].first + at, staged.get() + 2 * i * stretch, stretch);
                kernels_->stage(terms[i].second + at, staged.get() + (2 * i + 1) * stretch, stretch);
            }
            for (const PlainSum& sum : sums) {
                products.clear();
                for (std::size_t i = 0; i < sum.terms.size(); ++i) {
                    const double* const first = staged.get() + 2 * sum.terms[i] * stretch;
                    products.push_back({sum.plains[i] + (at >> log_repeat), first, first + stretch});
                }
                kernels_->pair_sum(vector_->prime(),
                                   {nullptr, products.data(), products.size(), log_repeat, nullptr, nullptr, nullptr, 0.0,
                                    sum.out_first + at, sum.out_second + at},
                                   0, stretch);
            }
        }
        return;
    }
    constexpr std::size_t block = Accumulator::kBlock;
    u64 line[block];
    for (std::size_t at = start; at < start + n; at += block) {
        const std::size_t size = std::min(block, start + n - at);
        for (const PlainSum& sum : sums) {
            Accumulator totals[2] = {{modulus_, size}, {modulus_, size}};
            for (std::size_t i = 0; i < sum.terms.size(); ++i) {
                for (std::size_t k = 0; k < size; ++k) line[k] = sum.plains[i][(at + k) >> log_repeat];
                totals[0].add_products(line, terms[sum.terms[i]].first + at);
                totals[1].add_products(line, terms[sum.terms[i]].second + at);
            }
            totals[0].store(sum.out_first + at);
            totals[1].store(sum.out_second + at);
        }
    }
}

}  // namespace kernels
