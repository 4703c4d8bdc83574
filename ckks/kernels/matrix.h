// A sparse matrix of residues, by outputs: what Engine::matrix multiplies stacks by.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace kernels {

// Terms of output o are starts[o] .. starts[o+1]; columns: the input of each term.
struct Matrix {
    std::size_t outputs;
    std::vector<std::size_t> starts;
    std::vector<std::uint32_t> columns;
};

}  // namespace kernels
