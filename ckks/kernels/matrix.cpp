// Stacks of ciphertexts times a matrix of scalars, row by row.
#include "matrix.h"

#include <algorithm>
#include <cmath>

#include "accumulate.h"
#include "engine.h"

namespace kernels {

namespace {

constexpr std::size_t kStretchBytes = 256 << 10;  // of all inputs, as doubles: what a task reads again for every output stays in the second-level cache
constexpr unsigned kSplitBits = 32;               // primes up to here: two sums without compensation (SplitSum in vector_matrix.h)

std::size_t stretch_of(std::size_t inputs, std::size_t degree) {
    return std::clamp(std::bit_floor(kStretchBytes / sizeof(double) / inputs), kVectorBlock, degree);
}

// The weights of one prime as doubles: one a term, or low and high parts where the prime is small.
struct Weights {
    Buffer<double> values;
    double shift = 0.0;  // 2^h, or 0 for whole weights
    std::size_t max_terms = 0;

    Weights(const Modulus& modulus, const u64* factors, std::size_t terms) : values(make_buffer<double>(2 * std::max<std::size_t>(terms, 1))) {
        if (modulus.bits > kSplitBits) {
            for (std::size_t t = 0; t < terms; ++t) values[t] = balanced(modulus, factors[t]);
            return;
        }
        const unsigned h = (modulus.bits + 1) / 2;
        shift = std::ldexp(1.0, static_cast<int>(h));
        max_terms = (std::size_t(1) << (54 - modulus.bits - h)) - 1;
        for (std::size_t t = 0; t < terms; ++t) {
            const double whole = balanced(modulus, factors[t]), high = std::nearbyint(whole / shift);
            values[2 * t] = whole - high * shift;
            values[2 * t + 1] = high;
        }
    }
};

}  // namespace

void Engine::matrix(const std::vector<const u64*>& inputs, std::size_t polys, const Matrix& m, const u64* factors, u64* out, const Rows& rows) {
    const std::size_t member = polys * rows.size() * degree_, terms = m.columns.size();
    std::vector<std::uint8_t> alike(m.outputs, 0);
    for (std::size_t o = 0; o + 1 < m.outputs; ++o) {
        const auto start = m.columns.begin() + m.starts[o], middle = m.columns.begin() + m.starts[o + 1];
        alike[o] = std::equal(start, middle, middle, m.columns.begin() + m.starts[o + 2]);
    }
    for (std::size_t r = 0; r < rows.size(); ++r) {
        const Row& row = rows_[rows[r]];
        const u64* const scalars = factors + r * terms;
        if (row.on_lanes()) {
            const Weights weights(row.modulus(), scalars, terms);
            const std::size_t stretch = stretch_of(inputs.size(), degree_), tiles = degree_ / stretch;
            pool_.run(polys * tiles, [&](std::size_t task) {
                const std::size_t at = (task / tiles * rows.size() + r) * degree_ + task % tiles * stretch;
                const Buffer<double> staged = make_buffer<double>(inputs.size() * stretch);
                for (std::size_t i = 0; i < inputs.size(); ++i) kernels_->stage(inputs[i] + at, staged.get() + i * stretch, stretch);
                kernels_->matrix(row.vector().prime(), {staged.get(), stretch, m.columns.data(), weights.values.get(), m.starts.data(),
                                                        alike.data(), m.outputs, out + at, member, weights.shift, weights.max_terms});
            });
        } else {
            constexpr std::size_t block = Accumulator::kBlock;
            const std::size_t tiles = degree_ / block;
            pool_.run(polys * tiles, [&](std::size_t task) {
                const std::size_t at = (task / tiles * rows.size() + r) * degree_ + task % tiles * block;
                for (std::size_t o = 0; o < m.outputs; ++o) {
                    Accumulator sums(row.modulus(), block);
                    for (std::size_t t = m.starts[o]; t < m.starts[o + 1]; ++t) sums.add_scaled(inputs[m.columns[t]] + at, scalars[t]);
                    sums.store(out + o * member + at);
                }
            });
        }
    }
}

}  // namespace kernels
