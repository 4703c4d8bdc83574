// One stretch of a matrix product over residues. Include after a lanes_*.h.
#pragma once

#include "vector_sums.h"

namespace kernels {
namespace {

// Primes below 2^32: a weight is high * 2^h + low, h = ceil(bits/2), |high| and |low| <= 2^(h-1), and both sums stay exact as they are: a product
// is below 2^(bits+h-1), so room for 2^(54-bits-h) of them keeps |sum| <= 2^53; one is given up for what an earlier flush left.
struct SplitSum {
    V high, low;

    [[gnu::always_inline]] void add(V x, const double* w) {
        low = Lanes::fma(x, Lanes::all(w[0]), low);
        high = Lanes::fma(x, Lanes::all(w[1]), high);
    }
    // Into 1/2. |reduced high| * 2^h + |reduced low| < 2^(bits+h) <= 2^48.
    [[gnu::always_inline]] V flush(const Field& f, V shift) const { return f.reduce(Lanes::fma(f.reduce(high), shift, f.reduce(low))); }
};

// Other primes: see MultiplyAdd; weights are at most q/2 in size, which only adds room.
struct WholeSum {
    MultiplyAdd sum;

    [[gnu::always_inline]] void add(V x, const double* w) { sum.add(x, Lanes::all(w[0])); }
    [[gnu::always_inline]] V flush(const Field& f, V grid) const { return sum.flush(f, grid); }
};

// `Outputs` of them from o on, all with the columns of the first: every stretch of an input is then loaded once for all.
template <std::size_t Outputs, std::size_t Together, class Sum, std::size_t Weights, class Start>
void matrix_rows(const Field& f, const VectorMatrix& m, std::size_t o, std::size_t room_at_first, V constant, const Start& start) {
    const std::size_t first = m.starts[o], count = m.starts[o + 1] - first;
    const double* weights[Outputs];
    for (std::size_t j = 0; j < Outputs; ++j) weights[j] = m.weights + Weights * m.starts[o + j];
    for (std::size_t k = 0; k < m.stretch; k += Together * W) {
        Sum sums[Outputs][Together];
        for (auto& row : sums)
            for (Sum& s : row) s = start(Lanes::all(0.0));
        std::size_t room = room_at_first;
        for (std::size_t t = 0; t < count; ++t) {
            if (room == 0) {
                for (auto& row : sums)
                    for (Sum& s : row) s = start(s.flush(f, constant));
                room = room_at_first;
            }
            --room;
            const double* const x = m.inputs + m.columns[first + t] * m.stretch + k;
            for (std::size_t u = 0; u < Together; ++u) {
                const V value = Lanes::load(x + u * W);
                for (std::size_t j = 0; j < Outputs; ++j) sums[j][u].add(value, weights[j] + Weights * t);
            }
        }
        for (std::size_t j = 0; j < Outputs; ++j)
            for (std::size_t u = 0; u < Together; ++u)
                Lanes::store_integers(m.out + (o + j) * m.out_stride + k + u * W, sums[j][u].flush(f, constant), f.q);
    }
}

template <class Sum, std::size_t Weights, class Start>
void matrix_of(const VectorPrime& p, const VectorMatrix& m, std::size_t room, V constant, const Start& start) {
    constexpr std::size_t together = W == 8 ? 4 : 2;  // as many sums as registers hold: 32 of AVX-512, 16 of AVX2
    const Field f(p);
    for (std::size_t o = 0; o < m.outputs;) {
        if (m.alike[o] && o + 1 < m.outputs)
            matrix_rows<2, together, Sum, Weights>(f, m, o, room, constant, start), o += 2;
        else
            matrix_rows<1, 4, Sum, Weights>(f, m, o, room, constant, start), o += 1;
    }
}

void matrix(const VectorPrime& p, const VectorMatrix& m) {
    if (m.shift != 0.0)
        return matrix_of<SplitSum, 2>(p, m, m.max_terms, Lanes::all(m.shift), [](V rest) { return SplitSum{Lanes::all(0.0), rest}; });
    const V grid = Lanes::all(p.grid);
    matrix_of<WholeSum, 1>(p, m, p.max_terms, grid, [&](V rest) { return WholeSum{{grid, rest}}; });
}

}  // namespace
}  // namespace kernels
