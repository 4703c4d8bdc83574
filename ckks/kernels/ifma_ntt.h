// The transforms on 52-bit integers.
//
// Two or three stages a pass, depth first; the last six stages run on 64 points at a time in registers, transposed in between so that lanes
// never mix. First loads and last stores are the caller's, so conversions cost no pass.
#pragma once

#include "ifma_field.h"

namespace kernels {
namespace {

// A pass of S stages: 2^S rows of values, 2^S - 1 factors, those of the first stage first.
template <unsigned S>
constexpr std::size_t kRows = std::size_t(1) << S;

// How values are kept below 2^52 on their way through the stages of a forward transform. A butterfly keeps x and multiplies y, giving x +- r with
// r in 2; x may have any size below 2^52, and so may y. N <= 2^16.
//   roomy, 70q <= 2^52: what enters is in 4; half of the values, from which all results descend, start with 2*log2(N) more, so that differences stay
//     positive; after at most 16 stages they are below 4 + 32 + 32 .
//   usual, 12q <= 2^52, and tight: in each pass the first row (tight: every row that the first stage keeps) is reduced to 2, and differences have 2q
//     added. Three stages lead from 2 to 8; the rows of the upper half enter in 8 and are multiplied at once. Usual: the second row,
//     kept for two stages, grows from 8 to 12 before it is multiplied. Tight: no row passes 8, and 8q < 2^52; results are reduced once more.
enum class Room { roomy, usual, tight };

Room room(u64 q) {
    constexpr u64 limit = u64(1) << 52;
    return q <= limit / 70 ? Room::roomy : q <= limit / 12 ? Room::usual : Room::tight;
}

// x + r is made on top of x, then x - r = 2x - (x + r): one operation less than by way of r.
// Results are below this multiple of q.
constexpr u64 bound_of(Room r) { return r == Room::roomy ? 68 : r == Room::usual ? 8 : 2; }

template <Room R>
[[gnu::always_inline]] inline void butterfly(const Field& f, V twice, V& x, V& y, const Factors& w) {
    const V quotient = add_high(_mm512_setzero_si512(), y, w.quotient), double_x = add(x, R == Room::roomy ? x : add(x, twice));
    x = add_low(add_low(x, y, w.value), quotient, f.minus);
    y = sub(double_x, x);
}

template <unsigned S, Room R>
[[gnu::always_inline]] inline void forward_stages(const Field& f, V* x, const Factors* w) {
    const V twice = add(f.q, f.q);
    if constexpr (R == Room::usual) x[0] = f.reduce(x[0]);
    if constexpr (R == Room::tight)
        for (std::size_t i = 0; i < kRows<S> / 2; ++i) x[i] = f.reduce(x[i]);
    constexpr std::size_t n = kRows<S>;  // stage by stage: loops of known length, whose values stay in registers
    for (std::size_t i = 0; i < n / 2; ++i) butterfly<R>(f, twice, x[i], x[i + n / 2], w[0]);
    for (std::size_t i = 0; i < n / 4; ++i) butterfly<R>(f, twice, x[i], x[i + n / 4], w[1]);
    for (std::size_t i = n / 2; i < 3 * n / 4; ++i) butterfly<R>(f, twice, x[i], x[i + n / 4], w[2]);
    if constexpr (S == 3)
        for (std::size_t i = 0; i < 4; ++i) butterfly<R>(f, twice, x[2 * i], x[2 * i + 1], w[3 + i]);
}

// Differences of an inverse transform have `offset` added, then are multiplied.
//   roomy: what enters is in 8, its sums are in 64 after three stages; sums of products are in 8. The first row is reduced at the end.
//     offset = 32q: no value that is taken away is larger, and 32 + 32 < 68.
//   else: what enters is in 4; sums of the first stage are in 8 and reduced to 2, those of the second in 4, of the third in 8; two rows, the sums of four
//     products in the second, are reduced at the end. offset = 4q, and 8q < 2^52. With two stages nothing passes 4 in the second.
[[gnu::always_inline]] inline void inverse_butterfly(const Field& f, V offset, V& x, V& y, const Factors& w) {
    const V difference = sub(add(x, offset), y);
    x = add(x, y);
    y = f.times(difference, w);
}

// All stages but the last.
template <unsigned S, bool kRoomy>
[[gnu::always_inline]] inline void inverse_first_stages(const Field& f, V offset, V* x, const Factors* w) {
    constexpr std::size_t n = kRows<S>;
    for (std::size_t i = 0; i < n / 2; ++i) {
        inverse_butterfly(f, offset, x[2 * i], x[2 * i + 1], w[n / 2 - 1 + i]);
        if constexpr (!kRoomy) x[2 * i] = f.reduce(x[2 * i]);
    }
    if constexpr (S == 3) {
        for (std::size_t i = 0; i < 2; ++i) inverse_butterfly(f, offset, x[i], x[i + 2], w[1]);
        for (std::size_t i = 4; i < 6; ++i) inverse_butterfly(f, offset, x[i], x[i + 2], w[2]);
    }
}

template <unsigned S, bool kRoomy>
[[gnu::always_inline]] inline void inverse_stages(const Field& f, V offset, V* x, const Factors* w) {
    inverse_first_stages<S, kRoomy>(f, offset, x, w);
    for (std::size_t i = 0; i < kRows<S> / 2; ++i) inverse_butterfly(f, offset, x[i], x[i + kRows<S> / 2], w[0]);
    if constexpr (kRoomy || S == 3) x[0] = f.reduce(x[0]);
    if constexpr (!kRoomy && S == 3) x[1] = f.reduce(x[1]);
}

// Eight vectors as rows of a matrix: its transpose.
[[gnu::always_inline]] inline void transpose(V* x) {
    V pairs[8];  // columns c, c+2, c+4, c+6 of two rows
    for (std::size_t i = 0; i < 8; i += 2)
        pairs[i] = _mm512_unpacklo_epi64(x[i], x[i + 1]), pairs[i + 1] = _mm512_unpackhi_epi64(x[i], x[i + 1]);
    for (std::size_t c = 0; c < 2; ++c) {
        const V a = _mm512_shuffle_i64x2(pairs[c], pairs[2 + c], 0x88), b = _mm512_shuffle_i64x2(pairs[4 + c], pairs[6 + c], 0x88);
        const V d = _mm512_shuffle_i64x2(pairs[c], pairs[2 + c], 0xDD), e = _mm512_shuffle_i64x2(pairs[4 + c], pairs[6 + c], 0xDD);
        x[c] = _mm512_shuffle_i64x2(a, b, 0x88), x[c + 4] = _mm512_shuffle_i64x2(a, b, 0xDD);
        x[c + 2] = _mm512_shuffle_i64x2(d, e, 0x88), x[c + 6] = _mm512_shuffle_i64x2(d, e, 0xDD);
    }
}

// The factors of three stages, 1 + 2 + 4 of them: of one block, or of a block a lane.
struct StageFactors {
    const Factors w[7];
    [[gnu::always_inline]] StageFactors(const WholeFactor* r, std::size_t b)
        : w{Factors(r[b]),         Factors(r[2 * b]),     Factors(r[2 * b + 1]), Factors(r[4 * b]),
            Factors(r[4 * b + 1]), Factors(r[4 * b + 2]), Factors(r[4 * b + 3])} {}
    [[gnu::always_inline]] explicit StageFactors(const u64* p)
        : w{Factors(p),         Factors(p + 2 * W),  Factors(p + 4 * W), Factors(p + 6 * W),
            Factors(p + 8 * W), Factors(p + 10 * W), Factors(p + 12 * W)} {}
};

constexpr unsigned kLogLast = 6;  // stages in registers
constexpr std::size_t kLastPoints = std::size_t(1) << kLogLast;

// Stages of the first pass over a block of 2^log points, so that those after it come out even.
constexpr unsigned stages_of(unsigned log) { return (log - kLogLast) % 3 == 0 ? 3 : 2; }

// Whether to go through x downwards while results go to `a`. A load waits for an earlier store whose address agrees in the low 12 bits, on most CPUs:
// it would, all the way, if x lay a line or a few before `a` modulo 4096 and were read upwards.
bool downwards(const void* x, const void* a) {
    return (reinterpret_cast<std::uintptr_t>(x) - reinterpret_cast<std::uintptr_t>(a)) % 4096 > 2048;
}

// Load: value at position k, in 4; address: where that of position 0 comes from. Store: position k, value below bound_of(R).
template <Room R, class Store>
class Forward {
public:
    Forward(const VectorPrime& p, u64* a, const Store& store) : p_(p), a_(a), store_(store) {}

    template <class Load>
    void run(const Load& load) const {
        const Field f(p_);
        const V start = all(R == Room::roomy ? 2 * p_.log_degree * f.prime : 0);
        const std::size_t n = std::size_t(1) << p_.log_degree;
        pass<3>(f, 1, n, 0, [&](std::size_t k) { return k < n / 2 ? add(load(k), start) : load(k); }, downwards(load.address(), a_));
        for (std::size_t i = 0; i < 8; ++i) block(i * n / 8, p_.log_degree - 3, 8 + i);
    }

private:
    template <unsigned S, class Load>
    [[gnu::always_inline]] void pass(const Field& f, std::size_t index, std::size_t size, std::size_t start, const Load& load,
                                     bool down = false) const {
        const StageFactors factors(p_.whole_roots, index);
        const std::size_t distance = size / kRows<S>;
        for (std::size_t step = 0; step < distance; step += W) {
            const std::size_t k = start + (down ? distance - W - step : step);
            V x[kRows<S>];
            for (std::size_t i = 0; i < kRows<S>; ++i) x[i] = load(k + i * distance);
            forward_stages<S, R>(f, x, factors.w);
            for (std::size_t i = 0; i < kRows<S>; ++i) kernels::store(a_ + k + i * distance, x[i]);
        }
    }

    // 2^log points at `start`, under the factors of number `index` of their stage.
    void block(std::size_t start, unsigned log, std::size_t index) const {
        const Field f(p_);  // local here and below: no store can change it, as the compiler sees
        const Store store = store_;
        if (log == kLogLast) return last(f, store, start, index);
        const auto load_back = [a = a_](std::size_t k) { return kernels::load(a + k); };
        const unsigned stages = stages_of(log);
        if (stages == 3)
            pass<3>(f, index, std::size_t(1) << log, start, load_back);
        else
            pass<2>(f, index, std::size_t(1) << log, start, load_back);
        for (std::size_t i = 0; i < std::size_t(1) << stages; ++i)
            if (log - stages == kLogLast)
                last(f, store, start + i * kLastPoints, (index << stages) + i);
            else
                block(start + (i << (log - stages)), log - stages, (index << stages) + i);
    }

    [[gnu::always_inline]] void last(const Field& f, const Store& store, std::size_t start, std::size_t index) const {
        V x[8];
        for (std::size_t i = 0; i < 8; ++i) x[i] = load(a_ + start + i * W);
        forward_stages<3, R>(f, x, StageFactors(p_.whole_roots, index).w);
        transpose(x);
        forward_stages<3, R>(f, x, StageFactors(p_.whole_tail + start / 8 * 14).w);
        transpose(x);
        for (std::size_t i = 0; i < 8; ++i) store(start + i * W, R == Room::tight ? f.reduce(x[i]) : x[i]);
    }

    const VectorPrime& p_;
    u64* const a_;
    const Store store_;
};

// The transform of load(0), load(W), .. goes to store(0, v), ..; `a` is room for the passes between.
template <class Load, class Store>
void transform(const VectorPrime& p, const Load& load, u64* a, const Store& store) {
    switch (room(static_cast<u64>(p.q))) {
        case Room::roomy: return Forward<Room::roomy, Store>(p, a, store).run(load);
        case Room::usual: return Forward<Room::usual, Store>(p, a, store).run(load);
        case Room::tight: return Forward<Room::tight, Store>(p, a, store).run(load);
    }
}

// From x in [0, q). The last pass multiplies by scale[0], its upper half by scale[1]: store(k, v), v in 2.
template <bool kRoomy, class Store>
class Inverse {
public:
    Inverse(const VectorPrime& p, const u64* x, u64* a) : p_(p), x_(x), a_(a) {}

    void run(const WholeFactor* scale, const Store& store) const {
        const Field f(p_);
        const std::size_t n = std::size_t(1) << p_.log_degree, distance = n / 8;
        for (std::size_t i = 0; i < 8; ++i) block(i * distance, p_.log_degree - 3, 8 + i);
        const Factors low(scale[0]), high(scale[1]);
        const StageFactors factors(p_.whole_inverse_roots, 1);
        const V offset = this->offset(f);
        for (std::size_t k = 0; k < distance; k += W) {
            V x[8];
            for (std::size_t i = 0; i < 8; ++i) x[i] = load(a_ + k + i * distance);
            inverse_first_stages<3, kRoomy>(f, offset, x, factors.w);
            for (std::size_t i = 0; i < 4; ++i) {
                store(k + i * distance, f.times(add(x[i], x[i + 4]), low));
                store(k + (i + 4) * distance, f.times(sub(add(x[i], offset), x[i + 4]), high));
            }
        }
    }

private:
    static V offset(const Field& f) { return all((kRoomy ? 32 : 4) * f.prime); }

    template <unsigned S>
    [[gnu::always_inline]] void pass(const Field& f, std::size_t index, std::size_t size, std::size_t start) const {
        const StageFactors factors(p_.whole_inverse_roots, index);
        const V offset = this->offset(f);
        const std::size_t distance = size / kRows<S>;
        for (std::size_t k = start; k < start + distance; k += W) {
            V x[kRows<S>];
            for (std::size_t i = 0; i < kRows<S>; ++i) x[i] = load(a_ + k + i * distance);
            inverse_stages<S, kRoomy>(f, offset, x, factors.w);
            for (std::size_t i = 0; i < kRows<S>; ++i) kernels::store(a_ + k + i * distance, x[i]);
        }
    }

    void block(std::size_t start, unsigned log, std::size_t index) const {
        const Field f(p_);
        const unsigned stages = log == kLogLast ? 0 : stages_of(log);
        for (std::size_t i = 0; i < std::size_t(1) << stages; ++i)
            if (log - stages == kLogLast)
                first(f, start + i * kLastPoints, (index << stages) + i);
            else
                block(start + (i << (log - stages)), log - stages, (index << stages) + i);
        if (stages == 3) pass<3>(f, index, std::size_t(1) << log, start);
        if (stages == 2) pass<2>(f, index, std::size_t(1) << log, start);
    }

    [[gnu::always_inline]] void first(const Field& f, std::size_t start, std::size_t index) const {
        const V offset = this->offset(f);
        V x[8];
        for (std::size_t i = 0; i < 8; ++i) x[i] = load(x_ + start + i * W);
        transpose(x);
        inverse_stages<3, kRoomy>(f, offset, x, StageFactors(p_.whole_inverse_tail + start / 8 * 14).w);
        transpose(x);
        inverse_stages<3, kRoomy>(f, offset, x, StageFactors(p_.whole_inverse_roots, index).w);
        for (std::size_t i = 0; i < 8; ++i) kernels::store(a_ + start + i * W, x[i]);
    }

    const VectorPrime& p_;
    const u64* const x_;
    u64* const a_;
};

template <class Store>
void transform_back(const VectorPrime& p, const VectorFactor* scale, const u64* x, u64* a, const Store& store) {
    const Field f(p);
    const WholeFactor factors[2] = {f.factor(scale[0].value), f.factor(scale[1].value)};
    if (room(f.prime) == Room::roomy)
        Inverse<true, Store>(p, x, a).run(factors, store);
    else
        Inverse<false, Store>(p, x, a).run(factors, store);
}

}  // namespace
}  // namespace kernels
