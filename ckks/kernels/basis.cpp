#include "basis.h"

#include "accumulate.h"

namespace kernels {

namespace {

using Words = std::vector<u64>;

// total += a * w; the caller leaves room for the carry.
void add_multiple(Words& total, const Words& a, u64 w) {
    u128 carry = 0;
    for (std::size_t k = 0; k < total.size(); ++k) {
        carry += total[k] + u128(k < a.size() ? a[k] : 0) * w;
        total[k] = static_cast<u64>(carry);
        carry >>= 64;
    }
}

bool less(const Words& a, const Words& b) {  // of equal length
    return std::lexicographical_compare(a.rbegin(), a.rend(), b.rbegin(), b.rend());
}

}  // namespace

Basis::Basis(const std::vector<Ntt>& tables, std::vector<std::size_t> source)
    : source_(std::move(source)), inverse_product_(tables.size(), Factor{0, 0}) {
    for (const Ntt& table : tables) moduli_.push_back(table.modulus());
    const std::size_t count = source_.size();
    const auto product_without = [&](const Modulus& m, std::size_t skip) {
        u64 product = 1;
        for (std::size_t i = 0; i < count; ++i)
            if (i != skip) product = m.multiply(product, moduli_[source_[i]].q % m.q);
        return product;
    };
    for (std::size_t i = 0; i < count; ++i) {
        const Modulus& m = moduli_[source_[i]];
        to_y_.push_back(tables[source_[i]].scale(m.invert(product_without(m, i))));
    }
    for (std::size_t row = 0; row < moduli_.size(); ++row) {
        const Modulus& m = moduli_[row];
        for (std::size_t i = 0; i < count; ++i) constants_.push_back(product_without(m, i));
        const u64 product = product_without(m, count);
        constants_.push_back(m.subtract(0, product));
        if (product != 0) inverse_product_[row] = m.factor(m.invert(product));
    }
    for (std::size_t skip = 0; skip <= count; ++skip) {
        Words product(count + 1, 0);  // one spare word, for the comparison's factor
        product[0] = 1;
        for (std::size_t i = 0; i < count; ++i) {
            if (i == skip) continue;
            Words next(count + 1, 0);
            add_multiple(next, product, moduli_[source_[i]].q);
            product = next;
        }
        words_.push_back(product);
    }
}

// y_i/q_i enters as a multiple of 2^-64 cut by less than 3 * 2^-64: y_i < 2^bits times an inverse cut by less than one gives less
// than 2, cutting the product less than 1. The sum is settled unless it lies that close below a half; then words decide.
void Basis::overflow(const u64* y, u64* u, std::size_t n) const {
    const std::size_t count = source_.size();
    if (count == 1) {
        const u64 half = moduli_[source_[0]].q / 2;
        for (std::size_t k = 0; k < n; ++k) u[k] = y[k] > half;
        return;
    }
    const u64 doubtful = -static_cast<u64>(3 * count);
    for (std::size_t k = 0; k < n; ++k) {
        u128 sum = u128(1) << 63;
        for (std::size_t i = 0; i < count; ++i) {
            const Modulus& m = moduli_[source_[i]];
            sum += (u128(y[i * n + k]) * m.inverse) >> (m.bits - 1);
        }
        const u64 lower = static_cast<u64>(sum >> 64);
        u[k] = static_cast<u64>(sum) < doubtful ? lower : exact_overflow(y + k, n, lower);
    }
}

// `lower` or the next integer: rounds up exactly when 2 * sum_i y_i * (D/q_i) >= (2 * lower + 1) * D.
u64 Basis::exact_overflow(const u64* y, std::size_t stride, u64 lower) const {
    const std::size_t count = source_.size();
    Words twice(count + 1, 0), bound(count + 1, 0);
    for (std::size_t i = 0; i < count; ++i) add_multiple(twice, words_[i], 2 * y[i * stride]);
    add_multiple(bound, words_[count], 2 * lower + 1);
    return less(twice, bound) ? lower : lower + 1;
}

void Basis::convert(const u64* y, const u64* u, u64* out, std::size_t row, std::size_t n) const {
    const std::size_t count = source_.size();
    const u64* constants = &constants_[row * (count + 1)];
    for (std::size_t start = 0; start < n; start += Accumulator::kBlock) {
        Accumulator sums(moduli_[row], std::min(n - start, Accumulator::kBlock));
        sums.add_scaled(u + start, constants[count]);
        for (std::size_t i = 0; i < count; ++i) sums.add_scaled(y + i * n + start, constants[i]);
        sums.store_lazy(out + start);
    }
}

}  // namespace kernels
