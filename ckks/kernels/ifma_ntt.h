// The transforms on 52-bit integers.
//
// Two or three stages a pass, depth first; the last six stages run on 64 points at a time in registers. First loads and last stores are the
// caller's, so conversions cost no pass.
#pragma once

#include <algorithm>

#include "ifma_stages.h"

namespace kernels {
namespace {

constexpr unsigned kLogCached = 12;  // a block of 32 KiB: its passes run one after the other
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
        const unsigned log = p_.log_degree, stages = stages_of(log);
        const std::size_t n = std::size_t(1) << log;
        const auto raised = [&](std::size_t k) { return k < n / 2 ? add(load(k), start) : load(k); };
        pass<true>(f, stages, 1, log, 0, raised, downwards(load.address(), a_));
        for (std::size_t i = 0; i < std::size_t(1) << stages; ++i) blocks(i << (log - stages), log - stages, (std::size_t(1) << stages) + i, 1);
    }

private:
    template <bool kFirst, class Load>
    [[gnu::always_inline]] void pass(const Field& f, unsigned stages, std::size_t index, unsigned log, std::size_t start, const Load& load,
                                     bool down = false) const {
        if (stages == 3)
            pass_of<3, kFirst>(f, index, log, start, load, down);
        else
            pass_of<2, kFirst>(f, index, log, start, load, down);
    }

    template <unsigned S, bool kFirst, class Load>
    [[gnu::always_inline]] void pass_of(const Field& f, std::size_t index, unsigned log, std::size_t start, const Load& load, bool down) const {
        const StageFactors factors(p_.whole_roots, index);
        u64* const a = a_;
        const std::size_t distance = std::size_t(1) << (log - S);
        for (std::size_t step = 0; step < distance; step += W) {
            const std::size_t k = start + (down ? distance - W - step : step);
            V x[kRows<S>];
            for (std::size_t i = 0; i < kRows<S>; ++i) x[i] = load(k + i * distance);
            const auto put = [&](std::size_t i) { kernels::store(a + k + i * distance, kFirst ? turn(x[i]) : x[i]); };
            forward_stages_to<S, R, kFirst>(f, x, factors.w, put);
        }
    }

    // `count` times 2^log points from `start`, under the factors from number `index` of their stage.
    void blocks(std::size_t start, unsigned log, std::size_t index, std::size_t count) const {
        if (log == kLogLast) return last(start, index, count);
        const Field f(p_);  // local here and below: no store can change it, as the compiler sees
        const auto load_back = [a = a_](std::size_t k) { return kernels::load(a + k); };
        const unsigned stages = stages_of(log), rest = log - stages;
        for (std::size_t i = 0; i < count; ++i) pass<false>(f, stages, index + i, log, start + (i << log), load_back);
        if (log <= kLogCached) return blocks(start, rest, index << stages, count << stages);
        for (std::size_t i = 0; i < count << stages; ++i) blocks(start + (i << rest), rest, (index << stages) + i, 1);
    }

    // The last six stages of `count` times 64 points. The last three of one 64 run beside the first three of the next: alone they would wait for each
    // other, and for the exchanges.
    [[gnu::noinline]] void last(std::size_t start, std::size_t index, std::size_t count) const {
        const Field f(p_);
        const Store store = store_;
        const u64 *const a = a_, *tail = p_.whole_tail + start / kLastPoints * kTail;
        const WholeFactor* const roots = p_.whole_roots;
        V x[8], next[8];
        for (std::size_t i = 0; i < 8; ++i) x[i] = load(a + start + i * W);
        forward_stages<3, R, false>(f, x, StageFactors(roots, index).w);
        for (std::size_t left = count; left > 1; --left, start += kLastPoints, tail += kTail) {
            const StageFactors factors(roots, ++index);
            exchange_lowest(x);
            for (std::size_t i = 0; i < 8; ++i) next[i] = load(a + start + kLastPoints + i * W);
            enter<3, R>(f, next);
            forward_stage<3, 0, R>(f, next, factors.w);
            finish_stage<0>(f, x, tail);
            forward_stage<3, 1, R>(f, next, factors.w);
            finish_stage<1>(f, x, tail);
            forward_stage<3, 2, R>(f, next, factors.w);
            finish_stage<2>(f, x, tail);
            for (std::size_t i = 0; i < 8; ++i) store(start + i * W, R == Room::tight ? f.reduce(x[i]) : x[i]);
            std::copy_n(next, 8, x);
        }
        exchange_lowest(x);
        finish_stage<0>(f, x, tail);
        finish_stage<1>(f, x, tail);
        finish_stage<2>(f, x, tail);
        for (std::size_t i = 0; i < 8; ++i) store(start + i * W, R == Room::tight ? f.reduce(x[i]) : x[i]);
    }

    template <unsigned T>
    [[gnu::always_inline]] static void finish_stage(const Field& f, V* x, const u64* tail) {
        if constexpr (T == 0 && R == Room::tight)
            for (std::size_t i = 0; i < 8; i += 2) x[i] = f.reduce(x[i]);
        forward_tail<T, R>(f, x, tail);
        if constexpr (T == 0) exchange_highest(x);
        if constexpr (T == 1) exchange_middle(x);
        if constexpr (T == 2) exchange_lowest(x);
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
//
// The factors are those of the forward transform: of m blocks in a stage, block i has the inverse of factor i, and that is minus factor m-1-i. So rows and
// lanes of a block are taken in reverse, and differences the other way round; tables of its own would be as long again, and come from memory.
template <Room R, class Store>
class Inverse {
public:
    Inverse(const VectorPrime& p, const u64* x, u64* a) : p_(p), x_(x), a_(a) {}

    void run(const WholeFactor* scale, const Store& store) const {
        const Field f(p_);
        const u64* const a = a_;
        const std::size_t n = std::size_t(1) << p_.log_degree, distance = n / 8;
        for (std::size_t i = 0; i < 8; ++i) blocks(i * distance, p_.log_degree - 3, 8 + i, 1);
        const Factors low(scale[0]), high(scale[1]);
        const StageFactors factors(p_.whole_roots, 1);
        const V offset = this->offset(f);
        for (std::size_t k = 0; k < distance; k += W) {
            V x[8];
            for (std::size_t i = 0; i < 8; ++i) x[7 - i] = load(a + k + i * distance);
            inverse_first_of_three<R>(f, offset, x, factors.w);
            inverse_second_of_three<R>(f, offset, x, factors.w);
            for (std::size_t i = 0; i < 4; ++i) {
                store(k + i * distance, turn_back(f.times(add(x[7 - i], x[3 - i]), low)));
                store(k + (i + 4) * distance, turn_back(f.times(sub(add(x[7 - i], offset), x[3 - i]), high)));
            }
        }
    }

private:
    static V offset(const Field& f) { return all(offset_of(R) * f.prime); }

    // The block whose factors serve block `index` of a stage of blocks of 2^log points.
    std::size_t opposite(std::size_t index, unsigned log) const { return (std::size_t(3) << (p_.log_degree - log)) - 1 - index; }

    template <Room T>
    [[gnu::always_inline]] static void three(const Field& f, V offset, V* x, const Factors* w) {
        inverse_first_of_three<T>(f, offset, x, w);
        inverse_second_of_three<T>(f, offset, x, w);
        inverse_third_of_three<T>(f, offset, x, w);
    }

    template <unsigned S>
    [[gnu::always_inline]] void pass(const Field& f, std::size_t index, unsigned log, std::size_t start) const {
        const StageFactors factors(p_.whole_roots, opposite(index, log));
        const V offset = this->offset(f);
        u64* const a = a_;
        const std::size_t distance = std::size_t(1) << (log - S);
        for (std::size_t k = start; k < start + distance; k += W) {
            V x[kRows<S>];
            for (std::size_t i = 0; i < kRows<S>; ++i) x[kRows<S> - 1 - i] = load(a + k + i * distance);
            if constexpr (S == 3)
                three<R>(f, offset, x, factors.w);
            else
                inverse_two<R>(f, offset, x, factors.w);
            for (std::size_t i = 0; i < kRows<S>; ++i) kernels::store(a + k + i * distance, x[kRows<S> - 1 - i]);
        }
    }

    void blocks(std::size_t start, unsigned log, std::size_t index, std::size_t count) const {
        if (log == kLogLast) return first(start, index, count);
        const Field f(p_);
        const unsigned stages = stages_of(log), rest = log - stages;
        if (log <= kLogCached)
            blocks(start, rest, index << stages, count << stages);
        else
            for (std::size_t i = 0; i < count << stages; ++i) blocks(start + (i << rest), rest, (index << stages) + i, 1);
        for (std::size_t i = 0; i < count; ++i) {
            if (stages == 3)
                pass<3>(f, index + i, log, start + (i << log));
            else
                pass<2>(f, index + i, log, start + (i << log));
        }
    }

    // The first six stages of `count` times 64 points. The first three lead from 1 to 8 (tight: 4), and run beside the last three of the 64 before.
    [[gnu::noinline]] void first(std::size_t start, std::size_t index, std::size_t count) const {
        constexpr Room kSecond = R == Room::roomy ? R : Room::tight;
        const Field f(p_);
        const V offset = this->offset(f);
        std::size_t block = opposite(index, kLogLast);
        const u64 *const from = x_, *tail = p_.whole_tail + (block - (std::size_t(1) << (p_.log_degree - kLogLast))) * kTail;
        const WholeFactor* const roots = p_.whole_roots;
        u64* const a = a_;
        V x[8], next[8];
        for (std::size_t i = 0; i < 8; ++i) x[7 - i] = reverse(load(from + start + i * W));
        begin_stage<2>(f, offset, x, tail);
        begin_stage<1>(f, offset, x, tail);
        begin_stage<0>(f, offset, x, tail);
        for (std::size_t left = count; left > 1; --left, start += kLastPoints) {
            const StageFactors factors(roots, block--);
            tail -= kTail;
            for (std::size_t i = 0; i < 8; ++i) next[7 - i] = reverse(load(from + start + kLastPoints + i * W));
            begin_stage<2>(f, offset, next, tail);
            inverse_first_of_three<kSecond>(f, offset, x, factors.w);
            begin_stage<1>(f, offset, next, tail);
            inverse_second_of_three<kSecond>(f, offset, x, factors.w);
            begin_stage<0>(f, offset, next, tail);
            inverse_third_of_three<kSecond>(f, offset, x, factors.w);
            for (std::size_t i = 0; i < 8; ++i) kernels::store(a + start + i * W, x[7 - i]);
            std::copy_n(next, 8, x);
        }
        three<kSecond>(f, offset, x, StageFactors(roots, block).w);
        for (std::size_t i = 0; i < 8; ++i) kernels::store(a + start + i * W, x[7 - i]);
    }

    template <unsigned T>
    [[gnu::always_inline]] static void begin_stage(const Field& f, V offset, V* x, const u64* tail) {
        if constexpr (T == 2) exchange_lowest(x);
        if constexpr (T == 1) exchange_middle(x);
        if constexpr (T == 0) exchange_highest(x);
        inverse_tail<T>(f, offset, x, tail);
        if constexpr (T == 1 && R == Room::tight)
            for (std::size_t i = 1; i < 8; i += 2) x[i] = f.reduce(x[i]);
        if constexpr (T == 0) exchange_lowest(x);
    }

    const VectorPrime& p_;
    const u64* const x_;
    u64* const a_;
};

template <class Store>
void transform_back(const VectorPrime& p, const VectorFactor* scale, const u64* x, u64* a, const Store& store) {
    const Field f(p);
    const WholeFactor factors[2] = {f.factor(scale[0].value), f.factor(scale[1].value)};
    switch (room(f.prime)) {
        case Room::roomy: return Inverse<Room::roomy, Store>(p, x, a).run(factors, store);
        case Room::usual: return Inverse<Room::usual, Store>(p, x, a).run(factors, store);
        case Room::tight: return Inverse<Room::tight, Store>(p, x, a).run(factors, store);
    }
}

}  // namespace
}  // namespace kernels
