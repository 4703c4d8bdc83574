#include "basis.h"

#include <bit>
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

// G of MultiplyAdd in vector_sums.h.
int grid(const std::vector<Row>& rows, const std::vector<std::size_t>& source, const Modulus& target) {
    unsigned bits = 0;
    for (std::size_t i : source) bits = std::max(bits, rows[i].modulus().bits);
    return static_cast<int>(bits + target.bits) - (source.size() > 8 ? 47 : 48);
}

// The bounds at MultiplyAdd (vector_sums.h) and at FromConversion (ifma_sums.h).
bool fit(const std::vector<Row>& rows, const std::vector<std::size_t>& source, const VectorKernels& kernels) {
    if (source.size() > kMaxSources) return false;
    for (const Row& row : rows)
        if (!row.on_lanes() || (!kernels.whole && grid(rows, source, row.modulus()) > 50)) return false;
    return !kernels.whole || (source.size() + 1) * rows[source[0]].modulus().q <= u64(1) << 52;
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
    if (!kernels_ || !fit(rows, source_, *kernels_)) {
        kernels_ = nullptr;
        return;
    }
    for (std::size_t i = 0; i < count; ++i) {
        vector_.moduli.push_back(static_cast<double>(modulus(i).q));
        vector_.inverses.push_back(1.0 / vector_.moduli.back());
        vector_.scales.push_back(rows[source_[i]].vector().scale(to_y_[i]));
    }
    for (std::size_t row = 0; row < rows.size(); ++row) {
        const Modulus& m = rows[row].modulus();
        const u64* const constants = &constants_[row * (count + 1)];
        for (std::size_t i = 0; i < count; ++i) {
            vector_.factors.push_back(balanced(m, constants[i]));
            vector_.whole.push_back(static_cast<u64>((u128(constants[i]) << 52) % m.q));
        }
        vector_.whole.push_back(m.multiply(constants[count], count));
        vector_.grids.push_back(std::ldexp(1.5, 52 + grid(rows, source_, m)));
        vector_.inverse_product.push_back(vector_factor(m, inverse_product_[row]));
    }
}

VectorConversion Basis::conversion(std::size_t row) const {
    const std::size_t count = source_.size();
    return {count, &vector_.factors[row * count], vector_.grids[row], &vector_.whole[row * (count + 1)]};
}

void Basis::load(std::size_t i, const u64* x, u64* scratch) const {
    const Row& row = (*rows_)[source_[i]];
    if (kernels_) {
        const Buffer<u64> room = make_buffer<u64>(degree_);
        kernels_->inverse_scaled(row.vector().prime(), vector_.scales[i].factors, x, scratch + source_at(i, 0), source_.size(), room.get());
    } else {
        u64* const y = scratch + i * stride_;
        row.inverse(x, y);
        row.scale(to_y_[i], y, y, degree_);
    }
}

void Basis::settle(u64* scratch, std::size_t start, std::size_t n) const {
    if (!kernels_) return settle_integers(scratch, start, n);
    std::vector<std::uint32_t> doubtful(n);
    const std::size_t found = kernels_->overflow(scratch + source_at(0, start), vector_.inverses.data(), vector_.moduli.data(), source_.size(), n,
                                                 doubtful.data());
    for (std::size_t i = 0; i < found; ++i) settle_exactly(scratch, start + doubtful[i]);
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

// One position whose sum is within 2^-39 of a half: with all y_i in [0, q_i) its integer part is certain.
void Basis::settle_exactly(u64* scratch, std::size_t k) const {
    const std::size_t count = source_.size();
    std::vector<u64> y(count);
    double sum = 0;
    for (std::size_t i = 0; i < count; ++i) {
        const u64 bits = scratch[source_at(i, k)];
        y[i] = residue(bits, (*rows_)[source_[i]].modulus());
        sum += static_cast<double>(y[i]) / vector_.moduli[i];
    }
    const u64 lower = static_cast<u64>(sum), u = lower + rounds_up(y.data(), 1, lower), first = (*rows_)[source_[0]].modulus().q;
    for (std::size_t i = 0; i < count; ++i) {
        if (kernels_->whole)
            scratch[source_at(i, k)] = i > 0 ? y[i] : y[i] + (count - u) * first;
        else
            scratch[source_at(i, k)] = std::bit_cast<u64>(static_cast<double>(y[i]) - (i > 0 ? 0.0 : static_cast<double>(u * first)));
    }
}

// Of a number as the kernels hold it.
u64 Basis::residue(u64 bits, const Modulus& m) const {
    if (kernels_->whole) return bits % m.q;
    const double q = static_cast<double>(m.q), x = std::bit_cast<double>(bits);
    if (!(std::abs(x) < static_cast<double>(kMaxSources + 2) * q)) return 0;  // only from residues that were out of range
    return static_cast<u64>(x - std::floor(x / q) * q);
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
    kernels_->convert_forward((*rows_)[row].vector().prime(), conversion(row), scratch, out);
}

void Basis::convert_lazily(const u64* scratch, u64* out, std::size_t row) const {
    if (!kernels_) return convert_integers(scratch, out, row);
    kernels_->convert_lazily((*rows_)[row].vector().prime(), conversion(row), scratch, out);
}

void Basis::divide(const u64* scratch, const u64* x, u64* out, std::size_t row) const {
    const Row& target = (*rows_)[row];
    if (kernels_)
        return kernels_->convert_divide(target.vector().prime(), conversion(row), vector_.inverse_product[row], scratch, x, out);
    convert_integers(scratch, out, row);
    target.subtract(x, out, out, degree_);
    target.scale(inverse_product_[row], out, out, degree_);
}

}  // namespace kernels
