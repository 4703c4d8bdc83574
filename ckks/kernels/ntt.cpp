#include "ntt.h"

namespace kernels {

unsigned reverse_bits(unsigned x, unsigned bits) {
    unsigned result = 0;
    for (; bits > 0; --bits, x >>= 1) result = result << 1 | (x & 1);
    return result;
}

Ntt::Ntt(std::size_t degree, u64 prime, u64 psi)
    : degree_(degree), modulus_(prime), roots_(degree), inverse_roots_(degree) {
    const unsigned bits = std::bit_width(degree) - 1;
    const u64 psi_inverse = modulus_.invert(psi);
    u64 power = 1, inverse_power = 1;
    for (std::size_t i = 0; i < degree; ++i) {
        const unsigned position = reverse_bits(static_cast<unsigned>(i), bits);
        roots_[position] = modulus_.factor(power);
        inverse_roots_[position] = modulus_.factor(inverse_power);
        power = modulus_.multiply(power, psi);
        inverse_power = modulus_.multiply(inverse_power, psi_inverse);
    }
}

Ntt::Scale Ntt::scale(u64 constant) const {
    const u64 low = modulus_.multiply(modulus_.invert(degree_), constant % modulus_.q);
    return {modulus_.factor(low), modulus_.factor(modulus_.multiply(low, inverse_roots_[1].value))};
}

// Two stages at a time, which halves the memory traffic. Values enter a pass below 8q and its first sums are cut below 4q; every product
// is below 2q, so sums and shifted differences are below 6q after one stage and 8q < 2^63 after two.
void Ntt::forward_lazy(u64* a) const {
    const Modulus m = modulus_;
    const u64 two_q = 2 * m.q, four_q = 4 * m.q;
    const auto butterfly = [&](u64& x, u64& y, Factor w) {
        const u64 low = x, high = m.multiply_lazy(y, w);
        x = low + high;
        y = low - high + two_q;
    };
    std::size_t groups = 1;
    for (std::size_t quarter = degree_ / 4; quarter >= 1; quarter /= 4, groups *= 4) {
        for (std::size_t g = 0; g < groups; ++g) {
            const Factor w = roots_[groups + g], w0 = roots_[2 * (groups + g)], w1 = roots_[2 * (groups + g) + 1];
            u64* const p0 = a + 4 * g * quarter;
            u64 *const p1 = p0 + quarter, *const p2 = p1 + quarter, *const p3 = p2 + quarter;
            for (std::size_t j = 0; j < quarter; ++j) {
                u64 x0 = Modulus::minus_if(p0[j], four_q), x1 = Modulus::minus_if(p1[j], four_q), x2 = p2[j], x3 = p3[j];
                butterfly(x0, x2, w);
                butterfly(x1, x3, w);
                butterfly(x0, x1, w0);
                butterfly(x2, x3, w1);
                p0[j] = x0, p1[j] = x1, p2[j] = x2, p3[j] = x3;
            }
        }
    }
    if (groups < degree_) {  // an odd number of stages leaves one
        for (std::size_t g = 0; g < groups; ++g) {
            a[2 * g] = Modulus::minus_if(a[2 * g], four_q);
            butterfly(a[2 * g], a[2 * g + 1], roots_[groups + g]);
        }
    }
}

// Values enter a pass below 4q. Sums are below 8q after one stage and 16q < 2^64 after two, then cut below 4q; a product is below 2q
// whatever 64-bit value is multiplied, so only the first of the four results needs cutting.
void Ntt::inverse(u64* a, const Scale& scale) const {
    const Modulus m = modulus_;
    const u64 two_q = 2 * m.q, four_q = 4 * m.q, eight_q = 8 * m.q;
    const auto butterfly = [&](u64& x, u64& y, Factor w, u64 bound) {  // y <= bound, a multiple of q
        const u64 difference = x - y + bound;
        x += y;
        y = m.multiply_lazy(difference, w);
    };
    std::size_t groups = degree_ / 2, half = 1;
    for (; groups >= 4; groups /= 4, half *= 4) {
        for (std::size_t g = 0; g < groups / 2; ++g) {
            const Factor w0 = inverse_roots_[groups + 2 * g], w1 = inverse_roots_[groups + 2 * g + 1];
            const Factor w = inverse_roots_[groups / 2 + g];
            u64* const p0 = a + 4 * g * half;
            u64 *const p1 = p0 + half, *const p2 = p1 + half, *const p3 = p2 + half;
            for (std::size_t j = 0; j < half; ++j) {
                u64 x0 = p0[j], x1 = p1[j], x2 = p2[j], x3 = p3[j];
                butterfly(x0, x1, w0, four_q);
                butterfly(x2, x3, w1, four_q);
                butterfly(x0, x2, w, eight_q);
                butterfly(x1, x3, w, two_q);
                p0[j] = Modulus::minus_if(Modulus::minus_if(x0, eight_q), four_q), p1[j] = x1, p2[j] = x2, p3[j] = x3;
            }
        }
    }
    if (groups == 2) {
        for (std::size_t g = 0; g < 2; ++g) {
            for (std::size_t j = 0; j < half; ++j) {
                u64& x = a[2 * g * half + j];
                butterfly(x, a[(2 * g + 1) * half + j], inverse_roots_[2 + g], four_q);
                x = Modulus::minus_if(x, four_q);
            }
        }
        half *= 2;
    }
    // The last stage carries the scaling, and its results are exact.
    for (std::size_t j = 0; j < half; ++j) {
        const u64 x = a[j], y = a[half + j];
        a[j] = m.multiply(x + y, scale.low);
        a[half + j] = m.multiply(x - y + four_q, scale.high);
    }
}

}  // namespace kernels
