// The stages of transforms on doubles, on values in registers, and how they keep values small.
#pragma once

#include "vector_field.h"

namespace kernels {
namespace {

// A pass of S stages: 2^S rows of values, 2^S - 1 factors, those of the first stage first.
template <unsigned S>
constexpr std::size_t kRows = std::size_t(1) << S;

// The factors of S stages, 1 + 2 + .. of them, of block b.
template <unsigned S>
struct StageFactors {
    const VectorFactor* const roots;
    const std::size_t b;
    template <unsigned T>
    [[gnu::always_inline]] Constant at(std::size_t i) const {
        return Constant(roots[(b << T) + i]);
    }
};

// q < 2^45: errors of quotients are 16 times smaller, so a product of what is in A is in 1/2 + A/512, and the quotient of a sum in 100 can be told.
constexpr double kSmallPrime = 0x1p45;

// Forward, a butterfly keeps x and multiplies y: results are in X + 1/2 + Y/32. What enters a transform is in 3.
//   kSmall: nothing is reduced. Each stage adds 1/2 + 13/512 at most, so sixteen of them lead from 3 to less than 13.
//   otherwise: the first row of a pass, from which all its results descend, is reduced. From B <= 3, three stages lead to
//     1/2 + m1 + m2 + m3, m1 = 1/2 + B/32, m2 = 1/2 + (B + m1)/32, m3 = 1/2 + (B + m1 + m2)/32: 2.4 at most. The last stages, of lanes, reduce
//     nothing: 2.4 leads to 3.6 in two, to 4.2 in three.
// Two at a time: (x, y) with v, (z, u) with w.
[[gnu::always_inline]] inline void butterflies(const Field& f, V& x, V& y, const Constant& v, V& z, V& u, const Constant& w) {
    multiply_two(f, y, u, v, w);
    const V below = Lanes::sub(x, y), beside = Lanes::sub(z, u);
    x = Lanes::add(x, y), z = Lanes::add(z, u);
    y = below, u = beside;
}

template <unsigned S, unsigned T>
[[gnu::always_inline]] inline void forward_stage(const Field& f, V* x, const StageFactors<S>& w) {
    constexpr std::size_t distance = kRows<S> >> (T + 1);
    for (std::size_t c = 0; c < kRows<S> / 2; c += 2) {
        const std::size_t i = c / distance * distance + c, j = (c + 1) / distance * distance + c + 1;
        butterflies(f, x[i], x[i + distance], w.template at<T>(c / distance), x[j], x[j + distance], w.template at<T>((c + 1) / distance));
    }
}

template <unsigned S, bool kSmall>
[[gnu::always_inline]] inline void forward_stages(const Field& f, V* x, const StageFactors<S>& w) {
    if constexpr (!kSmall) x[0] = f.reduce(x[0]);
    forward_stage<S, 0>(f, x, w);
    forward_stage<S, 1>(f, x, w);
    if constexpr (S == 3) forward_stage<S, 2>(f, x, w);
}

// The inverse: sums are kept, differences multiplied. What enters a pass is in 4/3 (kSmall: in 8 after the stages of lanes, else in 2.2), and so
// are its results.
//   kSmall: after three stages the first row is in 64, and is reduced; the second, a sum of four products of what was in 16, is in 2.2.
//   otherwise: sums are in 8/3 after the first stage, in 16/3 after the second, where the two rows that are sums of sums are reduced, if a third follows.
//     That leads to 1 in the first row, 4 * (1/2 + 8/96) in the second, which is reduced at the end, and 2 * (1/2 + 16/96) = 4/3 in the third.
[[gnu::always_inline]] inline void inverse_butterfly(const Field& f, V& x, V& y, const Constant& w) {
    const V difference = Lanes::sub(x, y);
    x = Lanes::add(x, y);
    y = w.times(f, difference);
}

template <unsigned S, unsigned T>
[[gnu::always_inline]] inline void inverse_stage(const Field& f, V* x, const StageFactors<S>& w) {
    constexpr std::size_t distance = kRows<S> >> (T + 1);
    for (std::size_t block = 0; block < kRows<T>; ++block) {
        const Constant factor = w.template at<T>(block);
        for (std::size_t i = 2 * block * distance; i < (2 * block + 1) * distance; ++i) inverse_butterfly(f, x[i], x[i + distance], factor);
    }
}

// The stages of a pass before its last.
template <unsigned S, bool kSmall>
[[gnu::always_inline]] inline void inverse_before_last(const Field& f, V* x, const StageFactors<S>& w) {
    if constexpr (S == 3) inverse_stage<S, 2>(f, x, w);
    inverse_stage<S, 1>(f, x, w);
    if constexpr (S == 3 && !kSmall) x[0] = f.reduce(x[0]), x[4] = f.reduce(x[4]);
}

template <unsigned S, bool kSmall>
[[gnu::always_inline]] inline void inverse_stages(const Field& f, V* x, const StageFactors<S>& w) {
    inverse_before_last<S, kSmall>(f, x, w);
    inverse_stage<S, 0>(f, x, w);
    if constexpr (S == 2 || kSmall) x[0] = f.reduce(x[0]);
    if constexpr (S == 3 && !kSmall) x[1] = f.reduce(x[1]);
}

// The last stages of a forward transform, the first of an inverse, each on 2W points in two vectors: as many as a lane's number has bits. A bit of a
// point's number chooses the vector, the others the lane, from the highest. W = 4 and 2 the bit that the third last stage works on:
//   vector 2, lanes 0 1: as passes before leave them, which turn the lanes 1 0 of the first loads; then by exchanging the vector's bit with one of the
//   lanes', vector 1, lanes 0 2; vector 0, lanes 1 2; and vector 2, lanes 1 0.
// W = 8: vector 3, lanes 1 0 2, from 2 1 0; vector 2, lanes 1 0 3; vector 1, lanes 2 0 3; vector 0, lanes 2 1 3; vector 3, lanes 2 1 0.
constexpr unsigned kLaneStages = W == 4 ? 2 : 3;
constexpr std::size_t kGroup = 8;  // vectors at a time

// VectorTables::fill_doubles lays them out: for every 2W points 2, 4 (and 8) factors, each time followed by their quotients.
constexpr std::size_t kTail = 4 * (W - 1);

template <unsigned T>
[[gnu::always_inline]] inline Constant tail_factors(const double* p) {
    constexpr std::size_t count = std::size_t(2) << T, start = 2 * (count - 2);
    return {Lanes::load_part<T>(p + start), Lanes::load_part<T>(p + start + count)};
}

template <unsigned T>
[[gnu::always_inline]] inline void exchange(V* x) {
    for (std::size_t i = 0; i < kGroup; i += 2) Lanes::exchange<T>(x[i], x[i + 1]);
}

template <unsigned T>
[[gnu::always_inline]] inline void forward_tail(const Field& f, V* x, const double* tail) {
    for (std::size_t i = 0; i < kGroup / 2; i += 2) {
        const double* const next = tail + (i + 1) * kTail;
        butterflies(f, x[2 * i], x[2 * i + 1], tail_factors<T>(tail + i * kTail), x[2 * i + 2], x[2 * i + 3], tail_factors<T>(next));
    }
}

template <unsigned T>
[[gnu::always_inline]] inline void inverse_tail(const Field& f, V* x, const double* tail) {
    for (std::size_t i = 0; i < kGroup / 2; ++i) inverse_butterfly(f, x[2 * i], x[2 * i + 1], tail_factors<T>(tail + i * kTail));
}

}  // namespace
}  // namespace kernels
