// Constants of one prime for the vector kernels.
#pragma once

#include "memory.h"
#include "modarith.h"
#include "vector.h"

namespace kernels {

// x as an integer in (-q/2, q/2].
double balanced(const Modulus& m, u64 x);
VectorFactor vector_factor(const Modulus& m, u64 x);

// What the last pass of an inverse transform multiplies by: N^-1 times any constant.
struct VectorScale {
    VectorFactor factors[2];
};

class VectorTables {
public:
    // The tail of the tables is laid out for `lanes`.
    VectorTables(std::size_t degree, const Modulus& modulus, u64 psi, std::size_t lanes);

    const VectorPrime& prime() const { return prime_; }
    VectorScale scale(u64 constant) const;

private:
    Modulus modulus_;
    u64 degree_inverse_, last_factor_;
    VectorPrime prime_;
    Buffer<VectorFactor> roots_, inverse_roots_;
    Buffer<double> tail_, inverse_tail_;
};

}  // namespace kernels
