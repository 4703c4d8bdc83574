// Constants of one prime for the vector kernels.
#pragma once

#include <vector>

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
    // The tables of transforms are laid out for these kernels.
    VectorTables(std::size_t degree, const Modulus& modulus, u64 psi, const VectorKernels& kernels);

    const VectorPrime& prime() const { return prime_; }
    VectorScale scale(u64 constant) const;

private:
    WholeFactor whole_factor(u64 w) const;
    // Powers of the root in the order of stages -> a table of factors and the tail.
    void fill_doubles(const std::vector<u64>& powers, std::size_t lanes, Buffer<VectorFactor>& roots, Buffer<double>& tail) const;
    void fill_whole(const std::vector<u64>& powers, Buffer<WholeFactor>& roots, Buffer<u64>& tail) const;

    Modulus modulus_;
    u64 degree_inverse_, last_factor_;
    VectorPrime prime_;
    Buffer<VectorFactor> roots_, inverse_roots_;
    Buffer<double> tail_, inverse_tail_;
    Buffer<WholeFactor> whole_roots_;
    Buffer<u64> whole_tail_;
};

}  // namespace kernels
