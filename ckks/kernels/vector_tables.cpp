#include "vector_tables.h"

#include <cmath>
#include <vector>

#include "ntt.h"

namespace kernels {

double balanced(const Modulus& m, u64 x) {
    return x > m.q / 2 ? -static_cast<double>(m.q - x) : static_cast<double>(x);
}

VectorFactor vector_factor(const Modulus& m, u64 x) {
    const double value = balanced(m, x);
    return {value, value / static_cast<double>(m.q)};
}

namespace {

// Each step doubles the bits that are right, from three for any odd q.
u64 inverse_modulo_2_52(u64 q) {
    u64 x = q;
    for (int step = 0; step < 5; ++step) x *= 2 - q * x;
    return x & ((u64(1) << 52) - 1);
}

// Roots: those of the stages before the last ones, as many as a lane's number has bits. Those have, for every two vectors of points, 2, 4 (and 8)
// factors, each time followed by their quotients, in the order of lanes (vector_stages.h, ifma_stages.h); stage by stage for `together` such pairs.
template <class ToFactor, class Factor, class Value>
void fill(const std::vector<u64>& powers, std::size_t lanes, std::size_t together, const ToFactor& factor, Buffer<Factor>& roots, Buffer<Value>& tail) {
    constexpr unsigned orders[3][8] = {{0, 1}, {0, 2, 1, 3}, {0, 4, 1, 5, 2, 6, 3, 7}};
    const std::size_t n = powers.size(), blocks = n / (2 * lanes);
    roots = make_buffer<Factor>(n / lanes);
    for (std::size_t i = 0; i < n / lanes; ++i) roots[i] = factor(powers[i]);
    tail = make_buffer<Value>(blocks * 4 * (lanes - 1));
    Value* out = tail.get();
    for (std::size_t first = blocks; first < 2 * blocks; first += together) {
        for (std::size_t stage = 0, count = 2; count <= lanes; ++stage, count *= 2) {
            for (std::size_t block = first; block < first + together; ++block, out += 2 * count) {
                for (std::size_t lane = 0; lane < count; ++lane) {
                    const Factor w = factor(powers[block * count + orders[stage][lane]]);
                    out[lane] = w.value, out[count + lane] = w.quotient;
                }
            }
        }
    }
}

}  // namespace

VectorTables::VectorTables(std::size_t degree, const Modulus& modulus, u64 psi, const VectorKernels& kernels) : modulus_(modulus) {
    const unsigned log_degree = std::bit_width(degree) - 1;
    const auto powers = [&](u64 root) {  // root^bitrev(i)
        std::vector<u64> result(degree);
        u64 power = 1;
        for (std::size_t i = 0; i < degree; ++i, power = modulus.multiply(power, root))
            result[reverse_bits(static_cast<unsigned>(i), log_degree)] = power;
        return result;
    };
    const std::vector<u64> forward = powers(psi);
    if (kernels.whole) {
        fill_whole(forward, whole_roots_, whole_tail_);
    } else {
        fill_doubles(forward, kernels.lanes, roots_, tail_);
        fill_doubles(powers(modulus.invert(psi)), kernels.lanes, inverse_roots_, inverse_tail_);
    }
    last_factor_ = modulus.invert(forward[1]);
    degree_inverse_ = modulus.invert(degree);
    const VectorScale plain = scale(1);
    prime_ = {
        .q = static_cast<double>(modulus.q),
        .inverse = 1.0 / static_cast<double>(modulus.q),
        .grid = std::ldexp(1.5, 52 + static_cast<int>(modulus.bits) + 1),
        .max_terms = std::size_t(1) << (52 - modulus.bits),
        .log_degree = log_degree,
        .roots = roots_.get(),
        .inverse_roots = inverse_roots_.get(),
        .tail = tail_.get(),
        .inverse_tail = inverse_tail_.get(),
        .scale = {plain.factors[0], plain.factors[1]},
        .whole_roots = whole_roots_.get(),
        .whole_tail = whole_tail_.get(),
        .whole_inverse = inverse_modulo_2_52(modulus.q),
        .whole_shift = whole_factor((u64(1) << 52) % modulus.q),
        .whole_reciprocal = static_cast<u64>((u128(1) << (51 + modulus.bits)) / modulus.q) + 1,
        .whole_reciprocal_shift = modulus.bits - 1,
    };
}

void VectorTables::fill_doubles(const std::vector<u64>& powers, std::size_t lanes, Buffer<VectorFactor>& roots, Buffer<double>& tail) const {
    const auto factor = [&](u64 w) { return vector_factor(modulus_, w); };
    fill(powers, lanes, 1, factor, roots, tail);
}

// For 64 points together, so that what is loaded at once does not lie across two lines.
void VectorTables::fill_whole(const std::vector<u64>& powers, Buffer<WholeFactor>& roots, Buffer<u64>& tail) const {
    fill(powers, 8, 4, [&](u64 w) { return whole_factor(w); }, roots, tail);
}

WholeFactor VectorTables::whole_factor(u64 w) const { return {w, static_cast<u64>((u128(w) << 52) / modulus_.q)}; }

VectorScale VectorTables::scale(u64 constant) const {
    const u64 low = modulus_.multiply(degree_inverse_, constant % modulus_.q);
    return {{vector_factor(modulus_, low), vector_factor(modulus_, modulus_.multiply(low, last_factor_))}};
}

}  // namespace kernels
