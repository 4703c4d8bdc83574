// The stages of transforms on 52-bit integers, on values in registers, and how they keep values small.
#pragma once

#include "ifma_field.h"

namespace kernels {
namespace {

// A pass of S stages: 2^S rows of values, 2^S - 1 factors, those of the first stage first.
template <unsigned S>
constexpr std::size_t kRows = std::size_t(1) << S;

// How values are kept below 2^52 on their way through the stages of a forward transform. A butterfly keeps x and multiplies y, giving x +- r with
// r in 2; x may have any size below 2^52, and so may y. What enters a transform is in 4. N <= 2^16.
//   roomy, 70q <= 2^52: half of the values, from which all results descend, start with 2*log2(N) more, so that differences stay positive; after at
//     most 16 stages they are below 4 + 32 + 32.
//   usual, 16q <= 2^52: differences have 2q added. The first pass leads from 4 to 10 at most. In each pass after it the first row, from which all its
//     results descend, is reduced to 2, and three stages lead to 8; the second row, kept for two stages, enters in 10 and grows to 14 before
//     it is multiplied. The last three stages lead from 8 to 14.
//   tight, 8q < 2^52: every row that the first stage of a pass keeps is reduced, so no row passes 8; results are reduced once more.
enum class Room { roomy, usual, tight };

Room room(u64 q) {
    constexpr u64 limit = u64(1) << 52;
    return q <= limit / 70 ? Room::roomy : q <= limit / 16 ? Room::usual : Room::tight;
}

// Results are below this multiple of q.
constexpr u64 bound_of(Room r) { return r == Room::roomy ? 68 : r == Room::usual ? 14 : 2; }

// Whether floor(x * reciprocal / 2^(52 + shift)) = floor(x / q) for all x below bound_of(R) * q. The reciprocal times q exceeds 2^(52 + shift) by `excess`, so
// what is rounded down exceeds x / q by x * excess / (q * 2^(52 + shift)); x / q is at least 1/q below the next integer. It holds for all
// primes below 2^44.9, and below 2^47.5 from where they are `usual`; above, for those that divide with a small excess.
bool exact(const VectorPrime& p) {
    using u128 = unsigned __int128;
    const u64 q = static_cast<u64>(p.q);
    const u128 power = u128(1) << (52 + p.whole_reciprocal_shift), excess = u128(p.whole_reciprocal) * q - power;
    return bound_of(room(q)) * q * excess <= power;
}

// x + r is made on top of x, then x - r = 2x - (x + r): one operation less than by way of r. 2x is made by a shift: this and the multiplications have
// execution units of their own, on Zen 4, where an addition may be given one of either.
template <Room R>
[[gnu::always_inline]] inline void butterfly(const Field& f, V& x, V& y, const Factors& w) {
    const V quotient = add_high(_mm512_setzero_si512(), y, w.quotient), twice = _mm512_slli_epi64(x, 1);
    const V above = R == Room::roomy ? twice : add(twice, f.twice);
    x = add_low(add_low(x, y, w.value), quotient, f.minus);
    y = sub(above, x);
}

// What precedes the stages of a pass. kFirst: of the first.
template <unsigned S, Room R, bool kFirst = false>
[[gnu::always_inline]] inline void enter(const Field& f, V* x) {
    if constexpr (R == Room::usual && !kFirst) x[0] = f.reduce(x[0]);
    if constexpr (R == Room::tight)
        for (std::size_t i = 0; i < kRows<S> / 2; ++i) x[i] = f.reduce(x[i]);
}

// Stage T of a pass.
template <unsigned S, unsigned T, Room R>
[[gnu::always_inline]] inline void forward_stage(const Field& f, V* x, const Factors* w) {
    constexpr std::size_t distance = kRows<S> >> (T + 1);
    for (std::size_t block = 0; block < kRows<T>; ++block)
        for (std::size_t i = 2 * block * distance; i < (2 * block + 1) * distance; ++i)
            butterfly<R>(f, x[i], x[i + distance], w[kRows<T> - 1 + block]);
}

template <unsigned S, Room R, bool kFirst>
[[gnu::always_inline]] inline void forward_stages(const Field& f, V* x, const Factors* w) {
    enter<S, R, kFirst>(f, x);
    forward_stage<S, 0, R>(f, x, w);
    forward_stage<S, 1, R>(f, x, w);
    if constexpr (S == 3) forward_stage<S, 2, R>(f, x, w);
}

// The same for values on their way to memory: put(i) as soon as x[i] is made. A result that waits for its turn to be stored is read from the register
// file, by a port that multiply-adds need: on Zen 4 it then costs 1.4 cycles, and nothing where it is stored at once.
template <unsigned S, Room R, bool kFirst, class Put>
[[gnu::always_inline]] inline void forward_stages_to(const Field& f, V* x, const Factors* w, const Put& put) {
    enter<S, R, kFirst>(f, x);
    forward_stage<S, 0, R>(f, x, w);
    for (std::size_t half = 0; half < kRows<S>; half += kRows<S> / 2) {
        if constexpr (S == 3)
            for (std::size_t i = half; i < half + 2; ++i) butterfly<R>(f, x[i], x[i + 2], w[1 + half / 4]);
        for (std::size_t i = half; i < half + kRows<S> / 2; i += 2) {
            butterfly<R>(f, x[i], x[i + 1], w[kRows<S> / 2 - 1 + i / 2]);
            put(i), put(i + 1);
        }
    }
}

// The inverse, on rows in reverse order (class Inverse in ifma_ntt.h): of two rows the second becomes the sum, the first minus the second is multiplied,
// offset_of(R) added before. What enters a pass is in 8 (roomy) or 4, and so are its results.
//   roomy: sums are in 64 after three stages, sums of products in 8; the last row is reduced at the end. No value that is taken away is above 32,
//     and 32 + 32 < 70.
//   usual: sums are in 8 after the first stage and in 16 after the second, where the two rows that are sums of sums are reduced to 2, if a third
//     follows; that leads to 4, or 8 in the last row but one, which is reduced at the end. Differences are of 8 at most.
//   tight: sums of the first stage are in 8 and reduced to 2, those of the second in 4, of the third in 8: the last two rows, reduced at the end.
constexpr u64 offset_of(Room r) { return r == Room::roomy ? 32 : r == Room::usual ? 8 : 4; }

[[gnu::always_inline]] inline void inverse_butterfly(const Field& f, V offset, V& x, V& y, const Factors& w) {
    const V difference = sub(add(x, offset), y);
    y = add(x, y);
    x = f.times(difference, w);
}

template <unsigned S, unsigned T>
[[gnu::always_inline]] inline void inverse_stage(const Field& f, V offset, V* x, const Factors* w) {
    constexpr std::size_t distance = kRows<S> >> (T + 1);
    for (std::size_t block = 0; block < kRows<T>; ++block)
        for (std::size_t i = 2 * block * distance; i < (2 * block + 1) * distance; ++i)
            inverse_butterfly(f, offset, x[i], x[i + distance], w[kRows<T> - 1 + block]);
}

// The first stage, then the second, of a pass of three; and what is reduced after them.
template <Room R>
[[gnu::always_inline]] inline void inverse_first_of_three(const Field& f, V offset, V* x, const Factors* w) {
    inverse_stage<3, 2>(f, offset, x, w);
    if constexpr (R == Room::tight)
        for (std::size_t i = 1; i < 8; i += 2) x[i] = f.reduce(x[i]);
}

template <Room R>
[[gnu::always_inline]] inline void inverse_second_of_three(const Field& f, V offset, V* x, const Factors* w) {
    inverse_stage<3, 1>(f, offset, x, w);
    if constexpr (R == Room::usual) x[3] = f.reduce(x[3]), x[7] = f.reduce(x[7]);
}

template <Room R>
[[gnu::always_inline]] inline void inverse_third_of_three(const Field& f, V offset, V* x, const Factors* w) {
    inverse_stage<3, 0>(f, offset, x, w);
    if constexpr (R != Room::usual) x[7] = f.reduce(x[7]);
    if constexpr (R != Room::roomy) x[6] = f.reduce(x[6]);
}

template <Room R>
[[gnu::always_inline]] inline void inverse_two(const Field& f, V offset, V* x, const Factors* w) {
    inverse_stage<2, 1>(f, offset, x, w);
    if constexpr (R == Room::tight) x[1] = f.reduce(x[1]), x[3] = f.reduce(x[3]);
    inverse_stage<2, 0>(f, offset, x, w);
    if constexpr (R != Room::tight) x[3] = f.reduce(x[3]);
}

// The last three stages of a forward transform, the first of an inverse, each on sixteen points in two vectors. A bit of a point's number chooses the
// vector, three others the lane, from the highest; here 2 is the bit that the third last stage works on, and so on:
//   vector 3, lanes 1 0 2: as passes before leave them, which turn the lanes 2 1 0 of the first loads; then by exchanging the vector's bit with one of
//   the lanes', vector 2, lanes 1 0 3; vector 1, lanes 2 0 3; vector 0, lanes 2 1 3; and vector 3, lanes 2 1 0.
// These exchanges read two vectors each and no pattern: permutations of two vectors by a pattern take turns with multiplications.
V turn(V x) { return _mm512_permutexvar_epi64(_mm512_set_epi64(7, 3, 6, 2, 5, 1, 4, 0), x); }
V turn_back(V x) { return _mm512_permutexvar_epi64(_mm512_set_epi64(0, 2, 4, 6, 1, 3, 5, 7), x); }  // from lanes in reverse
V reverse(V x) { return _mm512_permutexvar_epi64(_mm512_set_epi64(0, 1, 2, 3, 4, 5, 6, 7), x); }

[[gnu::always_inline]] inline void exchange_lowest(V* x) {
    for (std::size_t i = 0; i < 8; i += 2) {
        const V low = _mm512_unpacklo_epi64(x[i], x[i + 1]);
        x[i + 1] = _mm512_unpackhi_epi64(x[i], x[i + 1]);
        x[i] = low;
    }
}

[[gnu::always_inline]] inline void exchange_middle(V* x) {
    for (std::size_t i = 0; i < 8; i += 2) {
        const V low = _mm512_mask_permutex_epi64(x[i], 0xCC, x[i + 1], 0x4E);
        x[i + 1] = _mm512_mask_permutex_epi64(x[i + 1], 0x33, x[i], 0x4E);
        x[i] = low;
    }
}

[[gnu::always_inline]] inline void exchange_highest(V* x) {
    for (std::size_t i = 0; i < 8; i += 2) {
        const V low = _mm512_shuffle_i64x2(x[i], x[i + 1], 0x44);
        x[i + 1] = _mm512_shuffle_i64x2(x[i], x[i + 1], 0xEE);
        x[i] = low;
    }
}

// The factors of 64 points, from a cache line on, as VectorTables::fill_whole lays them out: for every sixteen points 2 values and their quotients; then
// 4 and 4; then 8 and 8.
constexpr std::size_t kTail = 4 * 28;

template <unsigned T>
[[gnu::always_inline]] inline Factors tail_factors(const u64* p, std::size_t sixteen) {
    if constexpr (T == 0) return Factors(load_two(p + 4 * sixteen), load_two(p + 4 * sixteen + 2));
    if constexpr (T == 1) return load_four(p + 16 + 8 * sixteen);
    if constexpr (T == 2) return Factors(load(p + 48 + 16 * sixteen), load(p + 56 + 16 * sixteen));
}

template <unsigned T, Room R>
[[gnu::always_inline]] inline void forward_tail(const Field& f, V* x, const u64* tail) {
    for (std::size_t i = 0; i < 4; ++i) butterfly<R>(f, x[2 * i], x[2 * i + 1], tail_factors<T>(tail, i));
}

template <unsigned T>
[[gnu::always_inline]] inline void inverse_tail(const Field& f, V offset, V* x, const u64* tail) {
    for (std::size_t i = 0; i < 4; ++i) inverse_butterfly(f, offset, x[2 * i], x[2 * i + 1], tail_factors<T>(tail, i));
}

// The factors of three stages, 1 + 2 + 4 of them, of block b.
struct StageFactors {
    const Factors w[7];
    [[gnu::always_inline]] StageFactors(const WholeFactor* r, std::size_t b)
        : w{Factors(r[b]),         Factors(r[2 * b]),     Factors(r[2 * b + 1]), Factors(r[4 * b]),
            Factors(r[4 * b + 1]), Factors(r[4 * b + 2]), Factors(r[4 * b + 3])} {}
};

}  // namespace
}  // namespace kernels
