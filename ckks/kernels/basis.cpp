#include "basis.h"

#include <cmath>

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

Basis::Basis(const std::vector<Row>& rows, std::vector<std::size_t> source, std::size_t degree, const VectorKernels* kernels)
    : rows_(&rows), source_(std::move(source)), degree_(degree), stride_(degree + kPadding), kernels_(kernels), inverse_product_(rows.size(), 0) {
    const std::size_t count = source_.size();
    const auto modulus = [&](std::size_t i) -> const Modulus& { return rows[source_[i]].modulus(); };
    const auto product_without = [&](const Modulus& m, std::size_t skip) {
        u64 product = 1;
        for (std::size_t i = 0; i < count; ++i)
            if (i != skip) product = m.multiply(product, modulus(i).q % m.q);
        return product;
    };
    for (std::size_t i = 0; i < count; ++i) to_y_.push_back(modulus(i).invert(product_without(modulus(i), i)));
    for (std::size_t row = 0; row < rows.size(); ++row) {
        const Modulus& m = rows[row].modulus();
        for (std::size_t i = 0; i < count; ++i) constants_.push_back(product_without(m, i));
        const u64 product = product_without(m, count);
        constants_.push_back(m.subtract(0, product));
        if (product != 0) inverse_product_[row] = m.invert(product);
    }
    for (std::size_t skip = 0; skip <= count; ++skip) {
        Words product(count + 1, 0);  // one spare word, for the comparison's factor
        product[0] = 1;
        for (std::size_t i = 0; i < count; ++i) {
            if (i == skip) continue;
            Words next(count + 1, 0);
            add_multiple(next, product, modulus(i).q);
            product = next;
        }
        words_.push_back(product);
    }
    if (count > kMaxSources || !std::all_of(rows.begin(), rows.end(), [](const Row& row) { return row.on_lanes(); }))
        kernels_ = nullptr;
    if (!kernels_) return;
    unsigned source_bits = 0;
    for (std::size_t i = 0; i < count; ++i) {
        vector_.moduli.push_back(static_cast<double>(modulus(i).q));
        vector_.inverses.push_back(1.0 / vector_.moduli.back());
        vector_.scales.push_back(rows[source_[i]].vector().scale(to_y_[i]));
        source_bits = std::max(source_bits, modulus(i).bits);
    }
    for (std::size_t row = 0; row < rows.size(); ++row) {
        const Modulus& m = rows[row].modulus();
        for (std::size_t i = 0; i <= count; ++i) vector_.factors.push_back(balanced(m, constants_[row * (count + 1) + i]));
        vector_.grids.push_back(std::ldexp(1.5, 52 + static_cast<int>(source_bits + m.bits) - 48));  // G of MultiplyAdd
        vector_.inverse_product.push_back(vector_factor(m, inverse_product_[row]));
    }
}

VectorConversion Basis::conversion(std::size_t row) const {
    return {&vector_.factors[row * (source_.size() + 1)], source_.size(), vector_.grids[row]};
}

void Basis::load(std::size_t i, const u64* x, u64* scratch) const {
    const Row& row = (*rows_)[source_[i]];
    u64* const y = scratch + i * stride_;
    if (kernels_) {
        kernels_->inverse_scaled(row.vector().prime(), vector_.scales[i].factors, x, reinterpret_cast<double*>(y));
    } else {
        row.inverse(x, y);
        row.scale(to_y_[i], y, y, degree_);
    }
}

void Basis::settle(u64* scratch, std::size_t start, std::size_t n) const {
    if (!kernels_) return settle_integers(scratch, start, n);
    double* const y = reinterpret_cast<double*>(scratch);
    std::vector<std::uint32_t> doubtful(n);
    const std::size_t count = source_.size();
    const std::size_t found = kernels_->overflow(y + start, stride_, vector_.inverses.data(), vector_.moduli.data(), count,
                                                 y + count * stride_ + start, n, doubtful.data());
    for (std::size_t i = 0; i < found; ++i) settle_exactly(y, start + doubtful[i]);
}

// y_i/q_i enters as a multiple of 2^-64 cut by less than 3 * 2^-64: y_i < 2^bits times an inverse cut by less than one gives less
// than 2, cutting the product less than 1. The sum is settled unless it lies that close below a half; then words decide.
void Basis::settle_integers(u64* scratch, std::size_t start, std::size_t n) const {
    const std::size_t count = source_.size();
    u64* const u = scratch + count * stride_;
    const u64 doubtful = -static_cast<u64>(3 * count);
    for (std::size_t k = start; k < start + n; ++k) {
        u128 sum = u128(1) << 63;
        for (std::size_t i = 0; i < count; ++i) {
            const Modulus& m = (*rows_)[source_[i]].modulus();
            sum += (u128(scratch[i * stride_ + k]) * m.inverse) >> (m.bits - 1);
        }
        u[k] = static_cast<u64>(sum >> 64);
        if (static_cast<u64>(sum) >= doubtful && rounds_up(scratch + k, stride_, u[k])) ++u[k];
    }
}

// Whether sum_i y_i/q_i is beyond lower + 1/2: 2 * sum_i y_i * (D/q_i) >= (2 * lower + 1) * D.
bool Basis::rounds_up(const u64* y, std::size_t stride, u64 lower) const {
    const std::size_t count = source_.size();
    Words twice(count + 1, 0), bound(count + 1, 0);
    for (std::size_t i = 0; i < count; ++i) add_multiple(twice, words_[i], 2 * y[i * stride]);
    add_multiple(bound, words_[count], 2 * lower + 1);
    return !less(twice, bound);
}

// One position of doubles whose sum is within 2^-39 of a half: with all y_i in [0, q_i) its integer part is certain.
void Basis::settle_exactly(double* scratch, std::size_t k) const {
    const std::size_t count = source_.size();
    std::vector<u64> y(count);
    double sum = 0;
    for (std::size_t i = 0; i < count; ++i) {
        double& part = scratch[i * stride_ + k];
        const double q = vector_.moduli[i];
        if (!(std::abs(part) < 2 * q)) part = 0;  // only from residues that were out of range
        part -= std::floor(part / q) * q;
        sum += part / q;
        y[i] = static_cast<u64>(part);
    }
    const u64 lower = static_cast<u64>(sum);
    const double u = static_cast<double>(lower + rounds_up(y.data(), 1, lower));
    if (count == 1)
        scratch[k] -= u * vector_.moduli[0];
    else
        scratch[count * stride_ + k] = u;
}

// In [0, q).
void Basis::convert_integers(const u64* scratch, u64* out, std::size_t row) const {
    const std::size_t count = source_.size();
    const u64* constants = &constants_[row * (count + 1)];
    for (std::size_t start = 0; start < degree_; start += Accumulator::kBlock) {
        Accumulator sums((*rows_)[row].modulus(), std::min(degree_ - start, Accumulator::kBlock));
        for (std::size_t i = 0; i <= count; ++i) sums.add_scaled(scratch + i * stride_ + start, constants[i]);
        sums.store_lazy(out + start);
    }
    (*rows_)[row].forward(out, out);
}

void Basis::convert(const u64* scratch, u64* out, std::size_t row) const {
    if (!kernels_) return convert_integers(scratch, out, row);
    kernels_->convert_forward((*rows_)[row].vector().prime(), conversion(row), reinterpret_cast<const double*>(scratch), stride_, out);
}

void Basis::divide(const u64* scratch, const u64* x, u64* out, std::size_t row) const {
    const Row& target = (*rows_)[row];
    if (kernels_)
        return kernels_->convert_divide(target.vector().prime(), conversion(row), vector_.inverse_product[row],
                                        reinterpret_cast<const double*>(scratch), stride_, x, out);
    convert_integers(scratch, out, row);
    target.subtract(x, out, out, degree_);
    target.scale(inverse_product_[row], out, out, degree_);
}

}  // namespace kernels
