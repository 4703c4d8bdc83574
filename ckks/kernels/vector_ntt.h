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

// Values enter in B and x0 is reduced. Products of the first stage are in m1 = 1/2 + 3B/32, those of the second in m2 = 1/2 + 3(B + m1)/32
// at most, and results in 1/2 + m1 + m2, which is in B again for B = 1.93. No sum passes B + m1 < 2.7. What enters in 3 leaves in 2.2.
inline void forward_lanes(const Field& f, V* x, V w1, V w2, V w3) {
    x[0] = f.reduce(x[0]);
    const V high0 = f.multiply(x[2], w1), high1 = f.multiply(x[3], w1);
    const V a0 = Lanes::add(x[0], high0), a2 = Lanes::sub(x[0], high0);
    const V a1 = f.multiply(Lanes::add(x[1], high1), w2), a3 = f.multiply(Lanes::sub(x[1], high1), w3);
    x[0] = Lanes::add(a0, a1), x[1] = Lanes::sub(a0, a1), x[2] = Lanes::add(a2, a3), x[3] = Lanes::sub(a2, a3);
}

// `field` by value here and below: the compiler cannot know that stores leave its members alone.
template <class Load>
void forward_pass(const Field f, const VectorFactor* roots, std::size_t block, std::size_t quarter, const Load load, double* a) {
    const V w1 = Lanes::all(roots[block].value);
    const V w2 = Lanes::all(roots[2 * block].value), w3 = Lanes::all(roots[2 * block + 1].value);
    for (std::size_t k = 0; k < quarter; k += W) {
        V x[4] = {load(k), load(k + quarter), load(k + 2 * quarter), load(k + 3 * quarter)};
        forward_lanes(f, x, w1, w2, w3);
        for (std::size_t i = 0; i < 4; ++i) Lanes::store(a + k + i * quarter, x[i]);
    }
}

template <class Store>
class Forward {
public:
    Forward(const VectorPrime& p, double* a, const Store& store) : p_(p), f_(p), a_(a), store_(store) {}

    template <class Load>
    void run(const Load& load) {
        const std::size_t n = std::size_t(1) << p_.log_degree;
        if (p_.log_degree % 2 == 0) {
            forward_pass(f_, p_.roots, 1, n / 4, load, a_);
            for (std::size_t i = 0; i < 4; ++i) block(i * n / 4, p_.log_degree - 2, 4 + i);
        } else {  // one stage: what enters in 3 leaves in 3.8, and the next pass in 2.4
            const Constant w(p_.roots[1]);
            for (std::size_t k = 0; k < n / 2; k += W) {
                const V low = load(k), high = w.times(f_, load(k + n / 2));
                Lanes::store(a_ + k, Lanes::add(low, high));
                Lanes::store(a_ + k + n / 2, Lanes::sub(low, high));
            }
            block(0, p_.log_degree - 1, 2);
            block(n / 2, p_.log_degree - 1, 3);
        }
    }

private:
    // 2^log points at `start`, log even, under the factors of number `index` of their stage.
    void block(std::size_t start, unsigned log, std::size_t index) {
        const std::size_t quarter = std::size_t(1) << (log - 2);
        if (log > kLogCached) {
            forward_pass(f_, p_.roots, index, quarter, FromMemory{a_ + start}, a_ + start);
            for (std::size_t i = 0; i < 4; ++i) block(start + i * quarter, log - 2, 4 * index + i);
            return;
        }
        std::size_t count = 1;
        for (; log > 4; log -= 2, count *= 4, index *= 4) {
            const std::size_t part = std::size_t(1) << (log - 2);
            for (std::size_t i = 0; i < count; ++i) {
                double* const x = a_ + start + (i << log);
                forward_pass(f_, p_.roots, index + i, part, FromMemory{x}, x);
            }
        }
        for (std::size_t i = 0; i < count; i += W / 4) last(start + 16 * i, index + i);
    }

    void last(std::size_t start, std::size_t index) {
        const double* const roots = &p_.roots[0].value;  // value and quotient in turn
        V x[4];
        for (std::size_t i = 0; i < 4; ++i) x[i] = Lanes::load(a_ + start + i * W);
        Lanes::to_quads(x);
        forward_lanes(f_, x, Lanes::per_block(roots + 2 * index, 2), Lanes::per_block(roots + 4 * index, 4),
                      Lanes::per_block(roots + 4 * index + 2, 4));
        Lanes::transpose(x);
        const double* const w = p_.tail + 3 * (start / 4);
        forward_lanes(f_, x, Lanes::load(w), Lanes::load(w + W), Lanes::load(w + 2 * W));
        Lanes::transpose(x);
        Lanes::from_quads(x);
        for (std::size_t i = 0; i < 4; ++i) store_(start + i * W, x[i]);
    }

    const VectorPrime& p_;
    const Field f_;
    double* const a_;
    const Store store_;
};

// Values enter in B <= 1.61. Sums of two are in 2B and of four in 4B < 6.5; differences of the second stage are multiplied. Results are
// 1/2 (x0, reduced), 2(1/2 + 3*2B/32) = 1 + 3B/8 (x1), 1/2 + 3*4B/32 (x2), less (x3): in B again for B = 1.61.
inline void inverse_lanes(const Field& f, V* x, V w1, V w2, V w3) {
    const V a0 = Lanes::add(x[0], x[1]), a1 = f.multiply(Lanes::sub(x[0], x[1]), w2);
    const V a2 = Lanes::add(x[2], x[3]), a3 = f.multiply(Lanes::sub(x[2], x[3]), w3);
    x[0] = f.reduce(Lanes::add(a0, a2)), x[1] = Lanes::add(a1, a3);
    x[2] = f.multiply(Lanes::sub(a0, a2), w1), x[3] = f.multiply(Lanes::sub(a1, a3), w1);
}

inline void inverse_pass(const Field& f, const VectorFactor* roots, std::size_t block, std::size_t quarter, double* a) {
    const V w1 = Lanes::all(roots[block].value);
    const V w2 = Lanes::all(roots[2 * block].value), w3 = Lanes::all(roots[2 * block + 1].value);
    const Field field = f;
    for (std::size_t k = 0; k < quarter; k += W) {
        V x[4];
        for (std::size_t i = 0; i < 4; ++i) x[i] = Lanes::load(a + k + i * quarter);
        inverse_lanes(field, x, w1, w2, w3);
        for (std::size_t i = 0; i < 4; ++i) Lanes::store(a + k + i * quarter, x[i]);
    }
}

class Inverse {
public:
    Inverse(const VectorPrime& p, const u64* x, double* a) : p_(p), f_(p), x_(x), a_(a) {}

    // The last pass multiplies by scale[0], its upper half by scale[1]: results in 1/2 + 6.5*3/32 < 1.2.
    template <class Store>
    void run(const VectorFactor* scale, const Store& store) {
        const std::size_t n = std::size_t(1) << p_.log_degree;
        const Constant low(scale[0]), high(scale[1]);
        if (p_.log_degree % 2 == 0) {
            for (std::size_t i = 0; i < 4; ++i) block(i * n / 4, p_.log_degree - 2, 4 + i);
            const Constant w2(p_.inverse_roots[2]), w3(p_.inverse_roots[3]);
            const std::size_t quarter = n / 4;
            for (std::size_t k = 0; k < quarter; k += W) {
                V x[4];
                for (std::size_t i = 0; i < 4; ++i) x[i] = Lanes::load(a_ + k + i * quarter);
                const V a0 = Lanes::add(x[0], x[1]), a1 = w2.times(f_, Lanes::sub(x[0], x[1]));
                const V a2 = Lanes::add(x[2], x[3]), a3 = w3.times(f_, Lanes::sub(x[2], x[3]));
                store(k, low.times(f_, Lanes::add(a0, a2)));
                store(k + quarter, low.times(f_, Lanes::add(a1, a3)));
                store(k + 2 * quarter, high.times(f_, Lanes::sub(a0, a2)));
                store(k + 3 * quarter, high.times(f_, Lanes::sub(a1, a3)));
            }
        } else {
            block(0, p_.log_degree - 1, 2);
            block(n / 2, p_.log_degree - 1, 3);
            for (std::size_t k = 0; k < n / 2; k += W) {
                const V x = Lanes::load(a_ + k), y = Lanes::load(a_ + k + n / 2);
                store(k, low.times(f_, Lanes::add(x, y)));
                store(k + n / 2, high.times(f_, Lanes::sub(x, y)));
            }
        }
    }

private:
    void block(std::size_t start, unsigned log, std::size_t index) {
        const std::size_t quarter = std::size_t(1) << (log - 2);
        if (log > kLogCached) {
            for (std::size_t i = 0; i < 4; ++i) block(start + i * quarter, log - 2, 4 * index + i);
            inverse_pass(f_, p_.inverse_roots, index, quarter, a_ + start);
            return;
        }
        std::size_t count = quarter / 4;
        index *= count;
        for (std::size_t i = 0; i < count; i += W / 4) first(start + 16 * i, index + i);
        for (unsigned size = 6; size <= log; size += 2) {
            count /= 4, index /= 4;
            for (std::size_t i = 0; i < count; ++i)
                inverse_pass(f_, p_.inverse_roots, index + i, std::size_t(1) << (size - 2), a_ + start + (i << size));
        }
    }

    void first(std::size_t start, std::size_t index) {
        const double* const roots = &p_.inverse_roots[0].value;  // value and quotient in turn
        V x[4];
        for (std::size_t i = 0; i < 4; ++i) x[i] = Lanes::load_integers(x_ + start + i * W);
        Lanes::to_quads(x);
        Lanes::transpose(x);
        const double* const w = p_.inverse_tail + 3 * (start / 4);
        inverse_lanes(f_, x, Lanes::load(w), Lanes::load(w + W), Lanes::load(w + 2 * W));
        Lanes::transpose(x);
        inverse_lanes(f_, x, Lanes::per_block(roots + 2 * index, 2), Lanes::per_block(roots + 4 * index, 4),
                      Lanes::per_block(roots + 4 * index + 2, 4));
        Lanes::from_quads(x);
        for (std::size_t i = 0; i < 4; ++i) Lanes::store(a_ + start + i * W, x[i]);
    }

    const VectorPrime& p_;
    const Field f_;
    const u64* const x_;
    double* const a_;
};

}  // namespace
}  // namespace kernels
