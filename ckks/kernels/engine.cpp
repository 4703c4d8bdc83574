#include "engine.h"

#include <memory>

#include "accumulate.h"
#include "parallel.h"

namespace kernels {

namespace {

constexpr std::size_t kBlock = Accumulator::kBlock;

Rows range(std::size_t start, std::size_t stop) {
    Rows rows;
    for (std::size_t i = start; i < stop; ++i) rows.push_back(i);
    return rows;
}

std::unique_ptr<u64[]> scratch(std::size_t size) { return std::make_unique_for_overwrite<u64[]>(size); }

}  // namespace

Engine::Engine(std::size_t degree, const std::vector<u64>& moduli, const std::vector<u64>& roots,
               std::size_t data_count, std::size_t digit_limbs, std::size_t threads)
    : degree_(degree), data_count_(data_count), digit_limbs_(digit_limbs), threads_(threads) {
    for (std::size_t i = 0; i < moduli.size(); ++i) {
        tables_.emplace_back(degree, moduli[i], roots[i]);
        plain_scale_.push_back(tables_[i].scale(1));
    }
    for (std::size_t i = 0; i < data_count; ++i) {
        digit_bases_.emplace_back(tables_, range(i / digit_limbs * digit_limbs, i + 1));
        single_bases_.emplace_back(tables_, Rows{i});
    }
    special_basis_.emplace_back(tables_, range(data_count, moduli.size()));
}

void Engine::forward(const u64* x, u64* out, std::size_t polys, const Rows& rows) const {
    parallel(threads_, polys * rows.size(), [&](std::size_t i) {
        const Ntt& table = tables_[rows[i % rows.size()]];
        u64* const a = out + i * degree_;
        std::copy_n(x + i * degree_, degree_, a);
        table.forward_lazy(a);
        for (std::size_t k = 0; k < degree_; ++k) a[k] = table.modulus().reduce_eight(a[k]);
    });
}

void Engine::inverse(const u64* x, u64* out, std::size_t polys, const Rows& rows) const {
    parallel(threads_, polys * rows.size(), [&](std::size_t i) {
        const std::size_t row = rows[i % rows.size()];
        std::copy_n(x + i * degree_, degree_, out + i * degree_);
        tables_[row].inverse(out + i * degree_, plain_scale_[row]);
    });
}

template <class Operation>
void Engine::element_wise(const u64* a, const u64* b, u64* out, std::size_t polys, std::size_t b_polys, const Rows& rows,
                          const Operation& operation) const {
    parallel(threads_, polys * rows.size(), [&](std::size_t i) {
        const Modulus m = modulus(rows[i % rows.size()]);
        const u64 *const x = a + i * degree_, *const y = b + i % (b_polys * rows.size()) * degree_;
        u64* const z = out + i * degree_;
        for (std::size_t k = 0; k < degree_; ++k) z[k] = operation(m, x[k], y[k]);
    });
}

void Engine::add(const u64* a, const u64* b, u64* out, std::size_t polys, std::size_t b_polys, const Rows& rows) const {
    element_wise(a, b, out, polys, b_polys, rows, [](const Modulus& m, u64 x, u64 y) { return m.add(x, y); });
}

void Engine::subtract(const u64* a, const u64* b, u64* out, std::size_t polys, std::size_t b_polys,
                      const Rows& rows) const {
    element_wise(a, b, out, polys, b_polys, rows, [](const Modulus& m, u64 x, u64 y) { return m.subtract(x, y); });
}

void Engine::multiply(const u64* a, const u64* b, u64* out, std::size_t polys, std::size_t b_polys,
                      const Rows& rows) const {
    element_wise(a, b, out, polys, b_polys, rows, [](const Modulus& m, u64 x, u64 y) { return m.multiply(x, y); });
}

void Engine::multiply_scalars(const u64* a, const u64* scalars, u64* out, std::size_t polys, const Rows& rows) const {
    parallel(threads_, polys * rows.size(), [&](std::size_t i) {
        const Modulus m = modulus(rows[i % rows.size()]);
        const Factor w = m.factor(scalars[i % rows.size()]);
        for (std::size_t k = i * degree_; k < (i + 1) * degree_; ++k) out[k] = m.multiply(a[k], w);
    });
}

void Engine::multiply_sum(const std::vector<const u64*>& terms, const std::vector<const u64*>& plains, u64* out,
                          std::size_t polys, const Rows& rows) const {
    const std::size_t blocks = degree_ / kBlock, poly_size = rows.size() * degree_;
    parallel(threads_, rows.size() * blocks, [&](std::size_t i) {
        const std::size_t at = i * kBlock;  // in one polynomial: the same part of every term and plain
        for (std::size_t p = 0; p < polys; ++p) {
            Accumulator sums(modulus(rows[i / blocks]), kBlock);
            for (std::size_t j = 0; j < terms.size(); ++j) sums.add_products(terms[j] + p * poly_size + at, plains[j] + at);
            sums.store(out + p * poly_size + at);
        }
    });
}

void Engine::tensor(const u64* a, const u64* b, u64* out, const Rows& rows) const {
    const std::size_t size = rows.size() * degree_;
    parallel(threads_, rows.size(), [&](std::size_t i) {
        const Modulus m = modulus(rows[i]);
        for (std::size_t k = i * degree_; k < (i + 1) * degree_; ++k) {
            const u64 a0 = a[k], a1 = a[size + k], b0 = b[k], b1 = b[size + k];
            out[k] = m.multiply(a0, b0);
            out[size + k] = m.reduce(u128(a0) * b1 + u128(a1) * b0);
            out[2 * size + k] = m.multiply(a1, b1);
        }
    });
}

// Position i holds p(psi^e), e = 2*bitrev(i)+1; p(X^element) there is p(psi^(e*element)).
void Engine::automorphism(const u64* x, u64* out, std::size_t row_total, u64 element) const {
    const unsigned bits = std::bit_width(degree_) - 1;
    const u64 mask = 2 * degree_ - 1;
    std::vector<unsigned> source(degree_);
    for (std::size_t i = 0; i < degree_; ++i) {  // i runs over exponents in natural order
        const u64 exponent = (2 * i + 1) * element & mask;
        source[reverse_bits(static_cast<unsigned>(i), bits)] = reverse_bits(static_cast<unsigned>(exponent / 2), bits);
    }
    parallel(threads_, row_total, [&](std::size_t row) {
        const u64* const from = x + row * degree_;
        u64* const to = out + row * degree_;
        for (std::size_t k = 0; k < degree_; ++k) to[k] = from[source[k]];
    });
}

void Engine::decompose(const u64* x, u64* out, std::size_t level) const {
    const std::size_t digits = digit_count(level), extended = level + 1 + special_count();
    const auto basis = [&](std::size_t digit) -> const Basis& {
        return digit_bases_[std::min((digit + 1) * digit_limbs_, level + 1) - 1];
    };
    const auto y = scratch((level + 1) * degree_), u = scratch(digits * degree_);
    parallel(threads_, level + 1, [&](std::size_t i) {
        u64* const row = y.get() + i * degree_;
        std::copy_n(x + i * degree_, degree_, row);
        tables_[i].inverse(row, basis(i / digit_limbs_).to_y(i % digit_limbs_));
    });
    parallel(threads_, digits, [&](std::size_t j) {
        basis(j).overflow(y.get() + j * digit_limbs_ * degree_, u.get() + j * degree_, degree_);
    });
    parallel(threads_, digits * extended, [&](std::size_t i) {
        const std::size_t j = i / extended, row = extended_row(i % extended, level);
        u64* const to = out + i * degree_;
        if (row <= level && row / digit_limbs_ == j) {
            std::copy_n(x + row * degree_, degree_, to);
            return;
        }
        basis(j).convert(y.get() + j * digit_limbs_ * degree_, u.get() + j * degree_, to, row, degree_);
        tables_[row].forward_lazy(to);
        for (std::size_t k = 0; k < degree_; ++k) to[k] = modulus(row).reduce_eight(to[k]);
    });
}

void Engine::key_product(const u64* digits, const u64* key, u64* out, std::size_t level, std::size_t key_level) const {
    const std::size_t blocks = degree_ / kBlock, count = digit_count(level);
    const std::size_t rows = level + 1 + special_count(), key_rows = key_level + 1 + special_count();
    parallel(threads_, rows * blocks, [&](std::size_t i) {
        const std::size_t row = i / blocks, at = i * kBlock;
        const std::size_t skipped = row <= level ? 0 : (key_level - level) * degree_;
        for (std::size_t p = 0; p < 2; ++p) {
            Accumulator sums(modulus(extended_row(row, level)), kBlock);
            for (std::size_t j = 0; j < count; ++j)
                sums.add_products(digits + j * rows * degree_ + at, key + (2 * j + p) * key_rows * degree_ + skipped + at);
            sums.store(out + p * rows * degree_ + at);
        }
    });
}

void Engine::mod_down(const u64* x, u64* out, std::size_t polys, std::size_t level) const {
    divide(x, out, polys, level + 1, special_basis_[0]);
}

void Engine::rescale(const u64* x, u64* out, std::size_t polys, std::size_t level) const {
    divide(x, out, polys, level, single_bases_[level]);
}

void Engine::divide(const u64* x, u64* out, std::size_t polys, std::size_t kept, const Basis& basis) const {
    const std::size_t dropped = basis.source().size(), rows = kept + dropped;
    const auto y = scratch(polys * dropped * degree_), u = scratch(polys * degree_);
    parallel(threads_, polys * dropped, [&](std::size_t i) {
        u64* const row = y.get() + i * degree_;
        std::copy_n(x + (i / dropped * rows + kept + i % dropped) * degree_, degree_, row);
        tables_[basis.source()[i % dropped]].inverse(row, basis.to_y(i % dropped));
    });
    parallel(threads_, polys, [&](std::size_t p) {
        basis.overflow(y.get() + p * dropped * degree_, u.get() + p * degree_, degree_);
    });
    parallel(threads_, polys * kept, [&](std::size_t i) {
        const std::size_t p = i / kept, row = i % kept;
        const Modulus m = modulus(row);
        const Factor inverse = basis.inverse_product(row);
        const u64* const from = x + (p * rows + row) * degree_;
        u64* const to = out + i * degree_;
        basis.convert(y.get() + p * dropped * degree_, u.get() + p * degree_, to, row, degree_);
        tables_[row].forward_lazy(to);
        // The transform leaves [0, 8q), so the difference is in (0, 9q): any 64-bit value may be multiplied.
        for (std::size_t k = 0; k < degree_; ++k) to[k] = m.multiply(from[k] + 8 * m.q - to[k], inverse);
    });
}

}  // namespace kernels
