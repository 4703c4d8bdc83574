// Sums of products with keys and with encoded weights, read as they are packed. Include after a lanes_*.h.
#pragma once

#include "vector_sums.h"

namespace kernels {
namespace {

// See pair_sums.h.
struct Arithmetic {
    using Sum = MultiplyAdd;
    using Pattern = Lanes::Pattern;
    const Field f;
    const V grid;
    const std::size_t most;

    explicit Arithmetic(const VectorPrime& p) : f(p), grid(Lanes::all(p.grid)), most(p.max_terms) {}

    Sum zero() const { return {grid, Lanes::all(0.0)}; }
    [[gnu::always_inline]] void reduce(Sum& sum) const { sum = {grid, sum.flush(f, grid)}; }
    [[gnu::always_inline]] void store(u64* to, const Sum& sum) const { Lanes::store_integers(to, sum.flush(f, grid), f.q); }

    static V factor(double w) { return Lanes::all(w); }
    static V read(const u64* x) { return Lanes::load_integers(x); }
    static V read(const u64* x, const Pattern& pattern) { return Lanes::to_double(Lanes::permute(Lanes::load_bits(x), pattern)); }
    static V read_staged(const u64* x) { return Lanes::load(reinterpret_cast<const double*>(x)); }
    static Pattern pattern(const std::uint32_t* lanes) { return Lanes::pattern(lanes); }
};

template <std::size_t width, unsigned repeat>
struct Rows {
    const unsigned log_repeat;
    // Of a row, vector u of the step at position k.
    V read(const Byte* x, std::size_t k, std::size_t u) const {
        if constexpr (W >> repeat < 2)
            return Lanes::all(static_cast<double>(packed_one<width>(x + width * ((k + u * W) >> log_repeat))));
        else
            return Lanes::unpack<width, repeat>(x + width * (k >> repeat), u);
    }
};

}  // namespace
}  // namespace kernels

#include "pair_sums.h"

namespace kernels {
namespace {

void stage(const u64* x, double* out, std::size_t n) {
    for (std::size_t k = 0; k < n; k += W) Lanes::store(out + k, Lanes::load_integers(x + k));
}

}  // namespace
}  // namespace kernels
