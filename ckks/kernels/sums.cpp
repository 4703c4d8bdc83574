// Sums of products of one prime: with a key, and with plaintexts.
#include "accumulate.h"
#include "memory.h"
#include "row.h"

namespace kernels {

namespace {

constexpr std::size_t kBlock = Accumulator::kBlock;

// Positions at..at+size-1 of a packed row, or those they stand for.
void unpack(Packing packing, const Byte* row, unsigned log_repeat, std::size_t at, std::size_t size, u64* out) {
    for (std::size_t k = 0; k < size; ++k) out[k] = packed_residue(packing, row, (at + k) >> log_repeat);
}

}  // namespace

void Row::key_sum(const KeyOperands& s, u64* first, u64* second, std::size_t start, std::size_t n) const {
    const Packing packing = packing_of(modulus_.q);
    if (vector_) {
        const VectorPermutation view = s.permutation ? s.permutation->view() : VectorPermutation{};
        return kernels_->key_sum(vector_->prime(),
                                 {s.terms.data(), s.terms.size(), packing, s.permutation ? &view : nullptr, s.moved_first,
                                  s.moved_second, static_cast<double>(s.factor), first, second},
                                 start, n);
    }
    u64 line[kBlock], factors[kBlock];
    for (std::size_t at = start; at < start + n; at += kBlock) {
        const std::size_t size = std::min(kBlock, start + n - at);
        Accumulator sums[2] = {{modulus_, size}, {modulus_, size}};
        const auto read = [&](const u64* x) {
            for (std::size_t k = 0; k < size; ++k) line[k] = x[s.permutation ? s.permutation->source(at + k) : at + k];
        };
        for (const KeyTerm& t : s.terms) {
            read(t.digit);
            const Byte* const rows[2] = {t.first, t.second};
            for (std::size_t p = 0; p < 2; ++p) {
                unpack(packing, rows[p], 0, at, size, factors);
                sums[p].add_products(line, factors);
            }
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
void Row::plain_sums(std::span<const std::pair<const u64*, const u64*>> terms, std::span<const PlainOperands> sums, unsigned log_repeat,
                     std::size_t start, std::size_t n) const {
    const Packing packing = packing_of(modulus_.q);
    if (vector_) {
        constexpr std::size_t stretch = 256;  // 4 KiB of a term: a few dozen fit the second-level cache
        const Buffer<double> staged = make_buffer<double>(2 * stretch * terms.size());
        std::vector<PlainTerm> products;
        for (std::size_t at = start; at < start + n; at += stretch) {
            for (std::size_t i = 0; i < terms.size(); ++i) {
                kernels_->stage(terms[i].first + at, staged.get() + 2 * i * stretch, stretch);
                kernels_->stage(terms[i].second + at, staged.get() + (2 * i + 1) * stretch, stretch);
            }
            for (const PlainOperands& sum : sums) {
                products.clear();
                for (const auto& [term, plain] : sum.products) {
                    const double* const first = staged.get() + 2 * term * stretch;
                    products.push_back({sum.plains + plain * sum.stride, first, first + stretch});
                }
                kernels_->plain_sum(vector_->prime(),
                                    {products.data(), products.size(), packing, log_repeat, at, sum.out_first, sum.out_second},
                                    stretch);
            }
        }
        return;
    }
    u64 line[kBlock];
    for (std::size_t at = start; at < start + n; at += kBlock) {
        const std::size_t size = std::min(kBlock, start + n - at);
        for (const PlainOperands& sum : sums) {
            Accumulator totals[2] = {{modulus_, size}, {modulus_, size}};
            for (const auto& [term, plain] : sum.products) {
                unpack(packing, sum.plains + plain * sum.stride, log_repeat, at, size, line);
                totals[0].add_products(line, terms[term].first + at);
                totals[1].add_products(line, terms[term].second + at);
            }
            totals[0].store(sum.out_first + at);
            totals[1].store(sum.out_second + at);
        }
    }
}

}  // namespace kernels
