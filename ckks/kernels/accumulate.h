// Sums of products, reduced once.
#pragma once

#include <algorithm>

#include "modarith.h"

namespace kernels {

// A block of running sums modulo one prime. Factors are below 2^60 on one side and below q on the other, so a product is below
// 2^(bits+60), and eight of them stay inside the domain 2^(bits+63) of Modulus::reduce.
class Accumulator {
public:
    static constexpr std::size_t kBlock = 512;  // 8 KiB of sums: stays in the first-level cache

    Accumulator(const Modulus& modulus, std::size_t n) : modulus_(modulus), n_(n) { std::fill_n(sums_, n, u128(0)); }

    void add_products(const u64* a, const u64* b) {
        make_room();
        for (std::size_t k = 0; k < n_; ++k) sums_[k] += u128(a[k]) * b[k];
    }
    void add_scaled(const u64* a, u64 c) {
        make_room();
        for (std::size_t k = 0; k < n_; ++k) sums_[k] += u128(a[k]) * c;
    }
    void store(u64* out) const {
        for (std::size_t k = 0; k < n_; ++k) out[k] = modulus_.reduce(sums_[k]);
    }
    // Results in [0, 3q).
    void store_lazy(u64* out) const {
        for (std::size_t k = 0; k < n_; ++k) out[k] = modulus_.reduce_lazy(sums_[k]);
    }

private:
    void make_room() {
        if (pending_ == 7) {  // a remainder below 3q counts for less than the eighth product
            for (std::size_t k = 0; k < n_; ++k) sums_[k] = modulus_.reduce_lazy(sums_[k]);
            pending_ = 0;
        }
        ++pending_;
    }

    const Modulus modulus_;
    const std::size_t n_;
    unsigned pending_ = 0;
    u128 sums_[kBlock];
};

}  // namespace kernels
