#include "permutation.h"

#include <bit>

#include "ntt.h"

namespace kernels {

Permutation::Permutation(std::size_t degree, u64 element, std::size_t block)
    : block_(block), entries_(degree / block), patterns_(block * block) {
    const unsigned low_bits = std::bit_width(degree / block) - 1, high_bits = std::bit_width(block) - 1;
    for (std::size_t b = 0; b < entries_.size(); ++b) {
        const u64 exponent = 2 * u64(reverse_bits(static_cast<unsigned>(b), low_bits)) + 1;
        const u64 c = (exponent * element & (2 * degree - 1)) / 2;
        const u64 source = reverse_bits(static_cast<unsigned>(c & (entries_.size() - 1)), low_bits);
        entries_[b] = static_cast<std::uint32_t>(source * block + (c >> low_bits));
    }
    for (std::size_t order = 0; order < block; ++order) {
        for (std::size_t r = 0; r < block; ++r) {
            const u64 c = order + element * reverse_bits(static_cast<unsigned>(r), high_bits);
            patterns_[order * block + r] = reverse_bits(static_cast<unsigned>(c & (block - 1)), high_bits);
        }
    }
}

}  // namespace kernels
