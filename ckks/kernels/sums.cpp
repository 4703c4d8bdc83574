// Sums of products of one prime: with a key, and with plaintexts.
#include "accumulate.h"
#include "memory.h"
#include "row.h"

namespace kernels {

namespace {

constexpr std::size_t kBlock = Accumulator::kBlock;
constexpr std::size_t kAhead = 128;  // positions: keys come from memory, too many streams for a CPU to follow

// Positions at..at+size-1 of a packed row, or those they stand for.
void unpack(std::size_t width, const Byte* row, unsigned log_repeat, std::size_t at, std::size_t size, u64* out) {
    for (std::size_t k = 0; k < size; ++k) out[k] = packed_residue(width, row, (at + k) >> log_repeat);
}

}  // namespace

void Row::key_sum(const KeyOperands& s, u64* first, u64* second, std::size_t start, std::size_t n) const {
    const std::size_t width = packed_width(modulus_.q);
    if (vector_) {
        const VectorPermutation view = s.permutation ? s.permutation->view() : VectorPermutation{};
        const KeyOperands& next = s.next ? *s.next : s;
        return kernels_->key_sum(vector_->prime(),
                                 {s.terms.data(), s.terms.size(), width, s.permutation ? &view : nullptr, s.moved_first, s.moved_second,
                                  static_cast<double>(s.factor), first, second, next.terms.data(), s.next ? s.ahead_by : kAhead},
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
                unpack(width, rows[p], 0, at, size, factors);
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
            sums[p].store(out[p] + at - start);
        }
    }
}

// Rows lie a power of two apart, so the caches could keep few of them side by side: each stretch of all terms is first brought together (as
// doubles already), and then read by every sum. Products with keys never leave the caches.
void Row::plain_sums(std::span<const SumTerm> terms, std::span<const PlainOperands> sums, unsigned log_repeat, std::size_t start,
                     std::size_t n) const {
    const std::size_t width = packed_width(modulus_.q);
    if (vector_) {
        const std::size_t stretch = sum_stretch(terms.size()), apart = stretch + kVectorBlock / 8;  // and a line, so as not to lie a power of two apart
        const Buffer<u64> staged = make_buffer<u64>(2 * apart * terms.size());
        const auto of_term = [&](std::size_t i, std::size_t half) { return staged.get() + (2 * i + half) * apart; };
        std::vector<PlainTerm> products;
        for (const PlainOperands& sum : sums)
            for (const auto& [term, plain] : sum.products) products.push_back({sum.plains + plain * sum.stride, of_term(term, 0), of_term(term, 1)});
        for (std::size_t i = 0; i < kPlainTogether; ++i) {  // after the last, the first of the next stretch
            const PlainTerm& first = products[i % products.size()];
            products.push_back({first.plain + packed_size(modulus_.q, stretch >> log_repeat), first.first, first.second});
        }
        for (std::size_t at = start; at < start + n; at += stretch) {
            for (std::size_t i = 0; i < terms.size(); ++i) {
                if (terms[i].product) key_sum(*terms[i].product, of_term(i, 0), of_term(i, 1), at, stretch);
                for (std::size_t half = 0; half < 2; ++half) {
                    u64* const to = of_term(i, half);
                    const u64* const from = terms[i].product ? to : (half ? terms[i].second : terms[i].first) + at;
                    if (!kernels_->whole)
                        kernels_->stage(from, reinterpret_cast<double*>(to), stretch);
                    else if (from != to)
                        std::copy_n(from, stretch, to);
                }
            }
            const PlainTerm* first = products.data();
            for (const PlainOperands& sum : sums) {
                kernels_->plain_sum(vector_->prime(), {first, sum.products.size(), width, log_repeat, at, sum.out_first, sum.out_second}, stretch);
                first += sum.products.size();
            }
        }
        return;
    }
    u64 line[kBlock];
    const Buffer<u64> staged = make_buffer<u64>(2 * kBlock * terms.size());
    std::vector<SumTerm> pairs(terms.begin(), terms.end());
    for (std::size_t at = start; at < start + n; at += kBlock) {
        const std::size_t size = std::min(kBlock, start + n - at);
        for (std::size_t i = 0; i < terms.size(); ++i) {
            if (!terms[i].product) {
                pairs[i] = {terms[i].first + at, terms[i].second + at};
                continue;
            }
            u64* const to = staged.get() + 2 * i * kBlock;
            key_sum(*terms[i].product, to, to + kBlock, at, size);
            pairs[i] = {to, to + kBlock};
        }
        for (const PlainOperands& sum : sums) {
            Accumulator totals[2] = {{modulus_, size}, {modulus_, size}};
            for (const auto& [term, plain] : sum.products) {
                unpack(width, sum.plains + plain * sum.stride, log_repeat, at, size, line);
                totals[0].add_products(line, pairs[term].first);
                totals[1].add_products(line, pairs[term].second);
            }
            totals[0].store(sum.out_first + at);
            totals[1].store(sum.out_second + at);
        }
    }
}

}  // namespace kernels
