#include "row.h"

namespace kernels {

Row::Row(std::size_t degree, u64 prime, u64 psi, const VectorKernels* kernels)
    : degree_(degree), modulus_(prime), kernels_(kernels) {
    if (kernels && prime < kVectorPrimeLimit) {
        vector_.emplace(degree, modulus_, psi, *kernels);
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

}  // namespace kernels
