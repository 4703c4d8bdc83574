// The negacyclic number-theoretic transform modulo one prime.
#pragma once

#include <vector>

#include "modarith.h"

namespace kernels {

// Position i of the transform holds a(psi^(2*bitrev(i)+1)). Longa and Naehrig 2016, with Harvey's lazy butterflies.
class Ntt {
public:
    // What the last pass of an inverse transform multiplies by: N^-1 times any constant.
    struct Scale {
        Factor low, high;
    };

    Ntt(std::size_t degree, u64 prime, u64 psi);

    const Modulus& modulus() const { return modulus_; }
    Scale scale(u64 constant) const;

    // In place. forward: [0, 8q) -> [0, 8q). inverse: [0, 4q) -> [0, q).
    void forward_lazy(u64* a) const;
    void inverse(u64* a, const Scale& scale) const;

private:
    std::size_t degree_;
    Modulus modulus_;
    std::vector<Factor> roots_, inverse_roots_;  // psi^bitrev(i), psi^-bitrev(i)
};

unsigned reverse_bits(unsigned x, unsigned bits);

}  // namespace kernels
