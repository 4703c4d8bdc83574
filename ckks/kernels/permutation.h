// Automorphisms on NTT order.
#pragma once

#include <vector>

#include "vector.h"

namespace kernels {

// Position i holds p(psi^e), e = 2*bitrev(i)+1; p(X^element) there is p(psi^(e*element)). The low bits of a position are the high bits of e, so
// each aligned block of w positions reads from one block: with c = (e*element - 1)/2 for the first position of a block, position r of it reads
// what bitrev gives for c + element * (N/w) * bitrev(r); the low bits of c name the block, its high bits the order within.
class Permutation {
public:
    Permutation(std::size_t degree, u64 element, std::size_t block);

    VectorPermutation view() const { return {entries_.data(), patterns_.data()}; }
    std::size_t source(std::size_t k) const {
        const std::size_t entry = entries_[k / block_], order = entry % block_;
        return entry - order + patterns_[order * block_ + k % block_];
    }

private:
    std::size_t block_;
    std::vector<std::uint32_t> entries_, patterns_;
};

}  // namespace kernels
