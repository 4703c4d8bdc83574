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

VectorTables::VectorTables(std::size_t degree, const Modulus& modulus, u64 psi, std::size_t lanes)
    : modulus_(modulus),
      roots_(make_buffer<VectorFactor>(degree / 4)),
      inverse_roots_(make_buffer<VectorFactor>(degree / 4)),
      tail_(make_buffer<double>(3 * degree / 4)),
      inverse_tail_(make_buffer<double>(3 * degree / 4)) {
    const unsigned log_degree = std::bit_width(degree) - 1;
    const auto fill = [&](u64 root, VectorFactor* roots, double* tail) {
        std::vector<u64> powers(degree);  // root^bitrev(i)
        u64 power = 1;
        for (std::size_t i = 0; i < degree; ++i, power = modulus.multiply(power, root))
            powers[reverse_bits(static_cast<unsigned>(i), log_degree)] = power;
        for (std::size_t i = 0; i < degree / 4; ++i) roots[i] = vector_factor(modulus, powers[i]);
        for (std::size_t i = 0; i < degree / 4; ++i) {  // four points each: one factor of their last stage but one, two of the last
            const std::size_t group = degree / 4 + i;
            double* const out = tail + i / lanes * 3 * lanes + i % lanes;
            out[0] = balanced(modulus, powers[group]);
            out[lanes] = balanced(modulus, powers[2 * group]);
            out[2 * lanes] = balanced(modulus, powers[2 * group + 1]);
        }
        return powers[1];
    };
    fill(psi, roots_.get(), tail_.get());
    last_factor_ = fill(modulus.invert(psi), inverse_roots_.get(), inverse_tail_.get());
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
    };
}

VectorScale VectorTables::scale(u64 constant) const {
    const u64 low = modulus_.multiply(degree_inverse_, constant % modulus_.q);
    return {{vector_factor(modulus_, low), vector_factor(modulus_, modulus_.multiply(low, last_factor_))}};
}

}  // namespace kernels
