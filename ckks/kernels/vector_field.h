// Arithmetic on lanes modulo one prime. Include after a lanes_*.h.
#pragma once

namespace kernels {
namespace {

using V = Lanes::V;
constexpr std::size_t W = Lanes::width;

// q < 2^49. "x in B" means |x| <= B*q.
//
// Adding and taking away magic = 1.5*2^52 rounds to an integer while |x| < 2^51. h = a*w rounded is off by at most 2^-53 relative, l is what
// is missing, exactly. With a in A, w in 1/2 the quotient h/q is off by at most 3*2^-53 * A*q/2 < 3A/32, so r = h - quotient*q + l is in
// 1/2 + 3A/32; r, and h - quotient*q, are integers below 2^53 (A <= 8), so each step is exact. With w/q known in advance only its own rounding
// counts and r is in 1/2 + A/32.
struct Field {
    V q, inverse, magic, half;  // half: of q - 1

    explicit Field(const VectorPrime& p)
        : q(Lanes::all(p.q)), inverse(Lanes::all(p.inverse)), magic(Lanes::all(0x1.8p52)), half(Lanes::all((p.q - 1) / 2)) {
        asm("" : "+v"(magic));  // else compilers keep -magic, too, in a register
    }

    [[gnu::always_inline]] V nearest(V a, V factor) const { return Lanes::sub(Lanes::fma(a, factor, magic), magic); }
    // Into 1/2 (and the rounding of 1/q: for a in A less than A * 2^-51 more).
    [[gnu::always_inline]] V reduce(V a) const { return Lanes::fnma(nearest(a, inverse), q, a); }
    // Into [0, q), for a in A < 2^52 / q - 1/2: a - half is 1/2 or more away from a tie, and its quotient off by at most (A + 1/2) * 2^-53 < 1 / 2q
    // before it is rounded.
    [[gnu::always_inline]] V residue(V a) const { return Lanes::fnma(nearest(Lanes::sub(a, half), inverse), q, a); }
    [[gnu::always_inline]] V multiply(V a, V w) const {
        const V h = Lanes::mul(a, w), l = Lanes::fms(a, w, h);
        return Lanes::add(Lanes::fnma(nearest(h, inverse), q, h), l);
    }
    [[gnu::always_inline]] V multiply(V a, V w, V quotient) const {
        const V h = Lanes::mul(a, w), l = Lanes::fms(a, w, h);
        return Lanes::add(Lanes::fnma(nearest(a, quotient), q, h), l);
    }
};

// A constant in all lanes, or one a lane.
struct Constant {
    V value, quotient;
    Constant(V v, V over_q) : value(v), quotient(over_q) {}
    explicit Constant(const VectorFactor& f) : value(Lanes::all(f.value)), quotient(Lanes::all(f.quotient)) {}
    [[gnu::always_inline]] V times(const Field& f, V a) const { return f.multiply(a, value, quotient); }
};

// Two products step by step, a[i] * w[i]: one after the other, they would wait in a CPU's queue longer than it is.
[[gnu::always_inline]] inline void multiply_two(const Field& f, V& a, V& b, const Constant& v, const Constant& w) {
    const V g = Lanes::mul(a, v.value), h = Lanes::mul(b, w.value);
    V s = Lanes::fma(a, v.quotient, f.magic), t = Lanes::fma(b, w.quotient, f.magic);
    a = Lanes::fms(a, v.value, g), b = Lanes::fms(b, w.value, h);
    s = Lanes::sub(s, f.magic), t = Lanes::sub(t, f.magic);
    s = Lanes::fnma(s, f.q, g), t = Lanes::fnma(t, f.q, h);
    a = Lanes::add(a, s), b = Lanes::add(b, t);
}

}  // namespace
}  // namespace kernels
