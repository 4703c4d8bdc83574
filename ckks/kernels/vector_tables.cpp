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

VectorTables::VectorTables(std::size_t degree, const Modulus& modulus, u64 psi, const VectorKernels& kernels) : modulus_(modulus) {
    const unsigned log_degree = std::bit_width(degree) - 1;
    const auto powers = [&](u64 root) {  // root^bitrev(i)
        std::vector<u64> result(degree);
        u64 power = 1;
        for (std::size_t i = 0; i < degree; ++i, power = modulus.multiply(power, root))
            result[reverse_bits(static_cast<unsigned>(i), log_degree)] = power;
        return result;
    };
    const std::vector<u64> forward = powers(psi), inverse = powers(modulus.invert(psi));
    if (kernels.whole) {
        fill_whole(forward, whole_roots_, whole_tail_);
        fill_whole(inverse, whole_inverse_roots_, whole_inverse_tail_);
    } else {
        fill_doubles(forward, kernels.lanes, roots_, tail_);
        fill_doubles(inverse, kernels.lanes, inverse_roots_, inverse_tail_);
    }
    last_factor_ = inverse[1];
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
        .whole_inverse_roots = whole_inverse_roots_.get(),
        .whole_tail = whole_tail_.get(),
        .whole_inverse_tail = whole_inverse_tail_.get(),
    };
}

void VectorTables::fill_doubles(const std::vector<u64>& powers, std::size_t lanes, Buffer<VectorFactor>& roots, Buffer<double>& tail) const {
    const std::size_t quarter = powers.size() / 4;
    roots = make_buffer<VectorFactor>(quarter);
    tail = make_buffer<double>(3 * quarter);
    for (std::size_t i = 0; i < quarter; ++i) {  // four points each: one factor of their last stage but one, two of the last
        roots[i] = vector_factor(modulus_, powers[i]);
        const std::size_t group = quarter + i;
        double* const out = tail.get() + i / lanes * 3 * lanes + i % lanes;
        out[0] = balanced(modulus_, powers[group]);
        out[lanes] = balanced(modulus_, powers[2 * group]);
        out[2 * lanes] = balanced(modulus_, powers[2 * group + 1]);
    }
}

void VectorTables::fill_whole(const std::vector<u64>& powers, Buffer<WholeFactor>& roots, Buffer<u64>& tail) const {
    constexpr std::size_t lanes = 8;
    const std::size_t eighth = powers.size() / 8;
    const auto factor = [&](u64 w) { return WholeFactor{w, static_cast<u64>((u128(w) << 52) / modulus_.q)}; };
    roots = make_buffer<WholeFactor>(eighth);
    tail = make_buffer<u64>(14 * eighth);
    for (std::size_t i = 0; i < eighth; ++i) {  // eight points each: one factor of their last stage but two, two of the next, four of the last
        roots[i] = factor(powers[i]);
        const std::size_t group = eighth + i;
        u64* const out = tail.get() + i / lanes * 14 * lanes + i % lanes;
        for (std::size_t stage = 0, at = 0; stage < 3; ++stage) {
            for (std::size_t k = 0; k < (std::size_t(1) << stage); ++k, ++at) {
                const WholeFactor w = factor(powers[(group << stage) + k]);
                out[2 * at * lanes] = w.value;
                out[(2 * at + 1) * lanes] = w.quotient;
            }
        }
    }
}

VectorScale VectorTables::scale(u64 constant) const {
    const u64 low = modulus_.multiply(degree_inverse_, constant % modulus_.q);
    return {{vector_factor(modulus_, low), vector_factor(modulus_, modulus_.multiply(low, last_factor_))}};
}

}  // namespace kernels
