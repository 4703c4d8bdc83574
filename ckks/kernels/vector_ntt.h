// The transforms on doubles.
//
// Two or three stages a pass, depth first; the last stages, of lanes, have a pass of their own: behind three others in registers, each group of points
// would wait for itself longer than a CPU looks ahead. First loads and last stores are the caller's, so conversions cost no pass.
#pragma once

#include "vector_stages.h"

namespace kernels {
namespace {

constexpr unsigned kLogCached = 11;  // a block of 16 KiB: its passes run one after the other

// Stages of the first pass over a block of 2^log points, so that those after it come out even.
constexpr unsigned stages_of(unsigned log) { return (log - kLaneStages) % 3 == 0 ? 3 : 2; }

// Load: value at position k, in 3. Store: position k, value in 4.2 (small primes: 13).
template <bool kSmall, class Store>
class Forward {
public:
    Forward(const VectorPrime& p, double* a, const Store& store) : p_(p), a_(a), store_(store) {}

    template <class Load>
    void run(const Load& load) const {
        const Field f(p_);
        const unsigned rest = p_.log_degree - 2;
        pass<2, true>(f, 1, p_.log_degree, 0, load);  // of three, eight rows read and eight written meet in one set of the first-level cache
        for (std::size_t i = 0; i < 4; ++i) blocks(i << rest, rest, 4 + i, 1);
    }

private:
    template <unsigned S, bool kFirst, class Load>
    [[gnu::always_inline]] void pass(const Field& f, std::size_t index, unsigned log, std::size_t start, const Load& load) const {
        const StageFactors<S> factors{p_.roots, index};
        double* const a = a_;
        const std::size_t distance = std::size_t(1) << (log - S);
        for (std::size_t k = start; k < start + distance; k += W) {
            V x[kRows<S>];
            for (std::size_t i = 0; i < kRows<S>; ++i) x[i] = load(k + i * distance);
            forward_stages<S, kSmall>(f, x, factors);
            for (std::size_t i = 0; i < kRows<S>; ++i) Lanes::store(a + k + i * distance, kFirst ? Lanes::turn(x[i]) : x[i]);
        }
    }

    // `count` times 2^log points from `start`, under the factors from number `index` of their stage.
    void blocks(std::size_t start, unsigned log, std::size_t index, std::size_t count) const {
        if (log == kLaneStages) return last(start, start + count * W);
        const Field f(p_);  // local here and below: no store can change it, as the compiler sees
        const auto load_back = [a = a_](std::size_t k) { return Lanes::load(a + k); };
        const unsigned stages = stages_of(log), rest = log - stages;
        for (std::size_t i = 0; i < count; ++i) {
            if (stages == 3)
                pass<3, false>(f, index + i, log, start + (i << log), load_back);
            else
                pass<2, false>(f, index + i, log, start + (i << log), load_back);
        }
        if (log <= kLogCached) return blocks(start, rest, index << stages, count << stages);
        for (std::size_t i = 0; i < count << stages; ++i) blocks(start + (i << rest), rest, (index << stages) + i, 1);
    }

    [[gnu::noinline]] void last(std::size_t start, std::size_t end) const {
        const Field f(p_);
        const Store store = store_;
        const double *const a = a_, *tail = p_.tail + start / (2 * W) * kTail;
        for (; start < end; start += kGroup * W, tail += kGroup / 2 * kTail) {
            V x[kGroup];
            for (std::size_t i = 0; i < kGroup; ++i) x[i] = Lanes::load(a + start + i * W);
            exchange<0>(x);
            forward_tail<0>(f, x, tail);
            exchange<1>(x);
            forward_tail<1>(f, x, tail);
            exchange<2>(x);
            if constexpr (kLaneStages == 3) {
                forward_tail<2>(f, x, tail);
                exchange<3>(x);
            }
            for (std::size_t i = 0; i < kGroup; ++i) store(start + i * W, x[i]);
        }
    }

    const VectorPrime& p_;
    double* const a_;
    const Store store_;
};

// The transform of load(0), load(W), .. goes to store(0, v), ..; `a` is room for the passes between.
template <class Load, class Store>
void transform(const VectorPrime& p, const Load& load, double* a, const Store& store) {
    if (p.q < kSmallPrime)
        Forward<true, Store>(p, a, store).run(load);
    else
        Forward<false, Store>(p, a, store).run(load);
}

// From x in [0, q). The last pass multiplies by scale[0], its upper half by scale[1]: store(k, v), v in 1/2 + 6/32 at most.
template <bool kSmall, class Store>
class Inverse {
public:
    Inverse(const VectorPrime& p, const u64* x, double* a) : p_(p), x_(x), a_(a) {}

    void run(const VectorFactor* scale, const Store& store) const {
        const Field f(p_);
        const double* const a = a_;
        const std::size_t n = std::size_t(1) << p_.log_degree, distance = n / 8;
        for (std::size_t i = 0; i < 8; ++i) blocks(i * distance, p_.log_degree - 3, 8 + i, 1);
        const Constant low(scale[0]), high(scale[1]);
        const StageFactors<3> factors{p_.inverse_roots, 1};
        for (std::size_t k = 0; k < distance; k += W) {
            V x[8];
            for (std::size_t i = 0; i < 8; ++i) x[i] = Lanes::load(a + k + i * distance);
            inverse_before_last<3, kSmall>(f, x, factors);
            for (std::size_t i = 0; i < 4; ++i) {
                store(k + i * distance, Lanes::turn_back(low.times(f, Lanes::add(x[i], x[i + 4]))));
                store(k + (i + 4) * distance, Lanes::turn_back(high.times(f, Lanes::sub(x[i], x[i + 4]))));
            }
        }
    }

private:
    template <unsigned S>
    [[gnu::always_inline]] void pass(const Field& f, std::size_t index, unsigned log, std::size_t start) const {
        const StageFactors<S> factors{p_.inverse_roots, index};
        double* const a = a_;
        const std::size_t distance = std::size_t(1) << (log - S);
        for (std::size_t k = start; k < start + distance; k += W) {
            V x[kRows<S>];
            for (std::size_t i = 0; i < kRows<S>; ++i) x[i] = Lanes::load(a + k + i * distance);
            inverse_stages<S, kSmall>(f, x, factors);
            for (std::size_t i = 0; i < kRows<S>; ++i) Lanes::store(a + k + i * distance, x[i]);
        }
    }

    void blocks(std::size_t start, unsigned log, std::size_t index, std::size_t count) const {
        if (log == kLaneStages) return first(start, start + count * W);
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

    // Two stages on lanes lead from 1 to 4; then, but for small primes, the sums are reduced.
    [[gnu::noinline]] void first(std::size_t start, std::size_t end) const {
        const Field f(p_);
        const u64* const from = x_;
        const double* tail = p_.inverse_tail + start / (2 * W) * kTail;
        double* const a = a_;
        for (; start < end; start += kGroup * W, tail += kGroup / 2 * kTail) {
            V x[kGroup];
            for (std::size_t i = 0; i < kGroup; ++i) x[i] = Lanes::load_integers(from + start + i * W);
            if constexpr (kLaneStages == 3) {
                exchange<3>(x);
                inverse_tail<2>(f, x, tail);
            }
            exchange<2>(x);
            inverse_tail<1>(f, x, tail);
            if constexpr (kLaneStages == 3 && !kSmall)
                for (std::size_t i = 0; i < kGroup; i += 2) x[i] = f.reduce(x[i]);
            exchange<1>(x);
            inverse_tail<0>(f, x, tail);
            if constexpr (kLaneStages == 2 && !kSmall)
                for (std::size_t i = 0; i < kGroup; i += 2) x[i] = f.reduce(x[i]);
            exchange<0>(x);
            for (std::size_t i = 0; i < kGroup; ++i) Lanes::store(a + start + i * W, x[i]);
        }
    }

    const VectorPrime& p_;
    const u64* const x_;
    double* const a_;
};

template <class Store>
void transform_back(const VectorPrime& p, const VectorFactor* scale, const u64* x, double* a, const Store& store) {
    if (p.q < kSmallPrime)
        Inverse<true, Store>(p, x, a).run(scale, store);
    else
        Inverse<false, Store>(p, x, a).run(scale, store);
}

}  // namespace
}  // namespace kernels
