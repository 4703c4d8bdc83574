// The transforms on lanes. Include after a lanes_*.h.
//
// Forward: two stages a pass, depth first once a block fits the first-level cache; the last four stages run on 16 points at a time in
// registers, transposed so that lanes never mix. First loads and last stores are the caller's, so conversions cost no pass.
#pragma once

#include "vector_field.h"

namespace kernels {
namespace {

constexpr unsigned kLogCached = 10;  // a block of 8 KiB: its passes run one after the other

struct FromMemory {
    const double* x;
    V operator()(std::size_t k) const { return Lanes::load(x + k); }
};
struct ToMemory {
    double* x;
    void operator()(std::size_t k, V v) const { Lanes::store(x + k, v); }
};

// Values enter in B and x0 is reduced first. Products of the first stage are in m1 = 1/2 + 3B/32, those of the second in m2 = 1/2 + 3(B + m1)/32
// at most, and results in 1/2 + m1 + m2, which is in B again for B = 1.93. No sum passes B + m1 < 2.7. What enters in 3 leaves in 2.2.
//
// kSmall, q < 2^45: the errors of quotients are 16 times smaller, products in 0.56 for any sum in 10, and nothing need be reduced on the way: each
// pass adds 1.12, so eight of them (N = 2^16) and one stage lead from 3 to less than 13, well below 2^53 / q.
constexpr double kSmallPrime = 0x1p45;

template <bool kSmall>
[[gnu::always_inline]] inline void forward_lanes(const Field& f, V* x, V w1, V w2, V w3) {
    if constexpr (!kSmall) x[0] = f.reduce(x[0]);
    const V high0 = f.multiply(x[2], w1), high1 = f.multiply(x[3], w1);
    const V a0 = Lanes::add(x[0], high0), a2 = Lanes::sub(x[0], high0);
    const V a1 = f.multiply(Lanes::add(x[1], high1), w2), a3 = f.multiply(Lanes::sub(x[1], high1), w3);
    x[0] = Lanes::add(a0, a1), x[1] = Lanes::sub(a0, a1), x[2] = Lanes::add(a2, a3), x[3] = Lanes::sub(a2, a3);
}

template <bool kSmall, class Load>
[[gnu::always_inline]] inline void forward_pass(const Field& f, const VectorFactor* roots, std::size_t block, std::size_t quarter, const Load& load, double* a) {
    const V w1 = Lanes::all(roots[block].value);
    const V w2 = Lanes::all(roots[2 * block].value), w3 = Lanes::all(roots[2 * block + 1].value);
    for (std::size_t k = 0; k < quarter; k += W) {
        V x[4] = {load(k), load(k + quarter), load(k + 2 * quarter), load(k + 3 * quarter)};
        forward_lanes<kSmall>(f, x, w1, w2, w3);
        for (std::size_t i = 0; i < 4; ++i) Lanes::store(a + k + i * quarter, x[i]);
    }
}

template <class Store, bool kSmall>
class Forward {
public:
    Forward(const VectorPrime& p, double* a, const Store& store) : p_(p), a_(a), store_(store) {}

    template <class Load>
    void run(const Load& load) {
        const Field f(p_);
        const std::size_t n = std::size_t(1) << p_.log_degree;
        if (p_.log_degree % 2 == 0) {
            forward_pass<kSmall>(f, p_.roots, 1, n / 4, load, a_);
            for (std::size_t i = 0; i < 4; ++i) block(i * n / 4, p_.log_degree - 2, 4 + i);
        } else {  // one stage: what enters in 3 leaves in 3.8, and the next pass in 2.4
            const Constant w(p_.roots[1]);
            for (std::size_t k = 0; k < n / 2; k += W) {
                const V low = load(k), high = w.times(f, load(k + n / 2));
                Lanes::store(a_ + k, Lanes::add(low, high));
                Lanes::store(a_ + k + n / 2, Lanes::sub(low, high));
            }
            block(0, p_.log_degree - 1, 2);
            block(n / 2, p_.log_degree - 1, 3);
        }
    }

private:
    // 2^log points at `start`, log even, under the factors of number `index` of their stage.
    void block(std::size_t start, unsigned log, std::size_t index) const {
        const Field f(p_);  // local here and below: no store can change it, as the compiler sees
        const Store store = store_;
        const std::size_t quarter = std::size_t(1) << (log - 2);
        if (log > kLogCached) {
            forward_pass<kSmall>(f, p_.roots, index, quarter, FromMemory{a_ + start}, a_ + start);
            for (std::size_t i = 0; i < 4; ++i) block(start + i * quarter, log - 2, 4 * index + i);
            return;
        }
        std::size_t count = 1;
        for (; log > 4; log -= 2, count *= 4, index *= 4) {
            const std::size_t part = std::size_t(1) << (log - 2);
            for (std::size_t i = 0; i < count; ++i) {
                double* const x = a_ + start + (i << log);
                forward_pass<kSmall>(f, p_.roots, index + i, part, FromMemory{x}, x);
            }
        }
        for (std::size_t i = 0; i < count; i += W / 4) last(f, store, start + 16 * i, index + i);
    }

    [[gnu::always_inline]] void last(const Field& f, const Store& store, std::size_t start, std::size_t index) const {
        const double* const roots = &p_.roots[0].value;  // value and quotient in turn
        V x[4];
        for (std::size_t i = 0; i < 4; ++i) x[i] = Lanes::load(a_ + start + i * W);
        Lanes::to_quads(x);
        forward_lanes<kSmall>(f, x, Lanes::per_block(roots + 2 * index, 2), Lanes::per_block(roots + 4 * index, 4),
                      Lanes::per_block(roots + 4 * index + 2, 4));
        Lanes::transpose(x);
        const double* const w = p_.tail + 3 * (start / 4);
        forward_lanes<kSmall>(f, x, Lanes::load(w), Lanes::load(w + W), Lanes::load(w + 2 * W));
        Lanes::transpose(x);
        Lanes::from_quads(x);
        for (std::size_t i = 0; i < 4; ++i) store(start + i * W, x[i]);
    }

    const VectorPrime& p_;
    double* const a_;
    const Store store_;
};

// The transform of load(0), load(W), .. goes to store(0, v), .., v in 2 (kSmall: in 13); `a` is room for the passes between.
template <class Load, class Store>
void transform(const VectorPrime& p, const Load& load, double* a, const Store& store) {
    if (p.q < kSmallPrime)
        Forward<Store, true>(p, a, store).run(load);
    else
        Forward<Store, false>(p, a, store).run(load);
}

// Values enter in B <= 1.61. Sums of two are in 2B and of four in 4B < 6.5; differences of the second stage are multiplied. Results are
// 1/2 (x0, reduced), 2(1/2 + 3*2B/32) = 1 + 3B/8 (x1), 1/2 + 3*4B/32 (x2), less (x3): in B again for B = 1.61.
[[gnu::always_inline]] inline void inverse_lanes(const Field& f, V* x, V w1, V w2, V w3) {
    const V a0 = Lanes::add(x[0], x[1]), a1 = f.multiply(Lanes::sub(x[0], x[1]), w2);
    const V a2 = Lanes::add(x[2], x[3]), a3 = f.multiply(Lanes::sub(x[2], x[3]), w3);
    x[0] = f.reduce(Lanes::add(a0, a2)), x[1] = Lanes::add(a1, a3);
    x[2] = f.multiply(Lanes::sub(a0, a2), w1), x[3] = f.multiply(Lanes::sub(a1, a3), w1);
}

[[gnu::always_inline]] inline void inverse_pass(const Field& f, const VectorFactor* roots, std::size_t block, std::size_t quarter, double* a) {
    const V w1 = Lanes::all(roots[block].value);
    const V w2 = Lanes::all(roots[2 * block].value), w3 = Lanes::all(roots[2 * block + 1].value);
    for (std::size_t k = 0; k < quarter; k += W) {
        V x[4];
        for (std::size_t i = 0; i < 4; ++i) x[i] = Lanes::load(a + k + i * quarter);
        inverse_lanes(f, x, w1, w2, w3);
        for (std::size_t i = 0; i < 4; ++i) Lanes::store(a + k + i * quarter, x[i]);
    }
}

class Inverse {
public:
    Inverse(const VectorPrime& p, const u64* x, double* a) : p_(p), x_(x), a_(a) {}

    // The last pass multiplies by scale[0], its upper half by scale[1]: results in 1/2 + 6.5*3/32 < 1.2.
    template <class Store>
    void run(const VectorFactor* scale, const Store& store) {
        const std::size_t n = std::size_t(1) << p_.log_degree;
        const Constant low(scale[0]), high(scale[1]);
        const Field f(p_);
        if (p_.log_degree % 2 == 0) {
            for (std::size_t i = 0; i < 4; ++i) block(i * n / 4, p_.log_degree - 2, 4 + i);
            const Constant w2(p_.inverse_roots[2]), w3(p_.inverse_roots[3]);
            const std::size_t quarter = n / 4;
            for (std::size_t k = 0; k < quarter; k += W) {
                V x[4];
                for (std::size_t i = 0; i < 4; ++i) x[i] = Lanes::load(a_ + k + i * quarter);
                const V a0 = Lanes::add(x[0], x[1]), a1 = w2.times(f, Lanes::sub(x[0], x[1]));
                const V a2 = Lanes::add(x[2], x[3]), a3 = w3.times(f, Lanes::sub(x[2], x[3]));
                store(k, low.times(f, Lanes::add(a0, a2)));
                store(k + quarter, low.times(f, Lanes::add(a1, a3)));
                store(k + 2 * quarter, high.times(f, Lanes::sub(a0, a2)));
                store(k + 3 * quarter, high.times(f, Lanes::sub(a1, a3)));
            }
        } else {
            block(0, p_.log_degree - 1, 2);
            block(n / 2, p_.log_degree - 1, 3);
            for (std::size_t k = 0; k < n / 2; k += W) {
                const V x = Lanes::load(a_ + k), y = Lanes::load(a_ + k + n / 2);
                store(k, low.times(f, Lanes::add(x, y)));
                store(k + n / 2, high.times(f, Lanes::sub(x, y)));
            }
        }
    }

private:
    void block(std::size_t start, unsigned log, std::size_t index) const {
        const Field f(p_);
        const std::size_t quarter = std::size_t(1) << (log - 2);
        if (log > kLogCached) {
            for (std::size_t i = 0; i < 4; ++i) block(start + i * quarter, log - 2, 4 * index + i);
            inverse_pass(f, p_.inverse_roots, index, quarter, a_ + start);
            return;
        }
        std::size_t count = quarter / 4;
        index *= count;
        for (std::size_t i = 0; i < count; i += W / 4) first(f, start + 16 * i, index + i);
        for (unsigned size = 6; size <= log; size += 2) {
            count /= 4, index /= 4;
            for (std::size_t i = 0; i < count; ++i)
                inverse_pass(f, p_.inverse_roots, index + i, std::size_t(1) << (size - 2), a_ + start + (i << size));
        }
    }

    [[gnu::always_inline]] void first(const Field& f, std::size_t start, std::size_t index) const {
        const double* const roots = &p_.inverse_roots[0].value;  // value and quotient in turn
        V x[4];
        for (std::size_t i = 0; i < 4; ++i) x[i] = Lanes::load_integers(x_ + start + i * W);
        Lanes::to_quads(x);
        Lanes::transpose(x);
        const double* const w = p_.inverse_tail + 3 * (start / 4);
        inverse_lanes(f, x, Lanes::load(w), Lanes::load(w + W), Lanes::load(w + 2 * W));
        Lanes::transpose(x);
        inverse_lanes(f, x, Lanes::per_block(roots + 2 * index, 2), Lanes::per_block(roots + 4 * index, 4),
                      Lanes::per_block(roots + 4 * index + 2, 4));
        Lanes::from_quads(x);
        for (std::size_t i = 0; i < 4; ++i) Lanes::store(a_ + start + i * W, x[i]);
    }

    const VectorPrime& p_;
    const u64* const x_;
    double* const a_;
};

}  // namespace
}  // namespace kernels
