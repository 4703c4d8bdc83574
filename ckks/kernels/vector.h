// Vector kernels for primes below 2^49, compiled once per instruction set (vector_*.cpp) and chosen at run time.
//
// Two arithmetics: doubles with fused multiply-add (vector_field.h), and 52-bit integers where a CPU multiplies those (ifma_field.h). In memory
// the callers' arrays hold uint64 in [0, q); anything else lives in scratch only. Nothing here is a template or inline
// function: those would be compiled with different flags under one name.
#pragma once

#include <cstddef>
#include <cstdint>

namespace kernels {

using u64 = std::uint64_t;

constexpr u64 kVectorPrimeLimit = u64(1) << 49;

// Shortest contiguous stretch that kernels work on; every degree is a multiple.
constexpr std::size_t kVectorBlock = 64;

// Most source limbs of a conversion (MultiplyAdd in vector_sums.h).
constexpr std::size_t kMaxSources = 11;

// A constant factor w in [-q/2, q/2] and the double nearest to w/q.
struct VectorFactor {
    double value, quotient;
};

// The same for integers: w in [0, q) and floor(w * 2^52 / q).
struct WholeFactor {
    u64 value, quotient;
};

// One prime. Tables: VectorTables in vector_tables.h.
struct VectorPrime {
    double q, inverse;      // 1/q, rounded
    double grid;            // 1.5 * 2^(52+G), G = bits+1: see MultiplyAdd in vector_sums.h
    std::size_t max_terms;  // products of two residues in [0, q) that may be summed before a flush: 2^(52-bits)
    unsigned log_degree;
    const VectorFactor *roots, *inverse_roots;  // psi^(+-bitrev(i)), i < N / lanes
    const double *tail, *inverse_tail;          // the stages of lanes: kTail in vector_stages.h
    VectorFactor scale[2];                      // N^-1 and N^-1 times the last stage's factor

    // In place of the roots and tails above, for kernels on integers, both ways: i < N/8, and the last three stages, per 16 points 2, 4 and 8 values, each time
    // followed by their quotients; the first of these stages of 64 points, then the second of the 64, then the third.
    const WholeFactor* whole_roots;
    const u64* whole_tail;
    u64 whole_inverse;       // q^-1 modulo 2^52
    WholeFactor whole_shift; // 2^52
    u64 whole_reciprocal;   // 2^(52 + shift) / q, rounded up; 2^shift < q < 2^(shift+1)
    unsigned whole_reciprocal_shift;
};

// The centred conversion to one prime, sum_i y_i * D/q_i with y_0 as VectorKernels::overflow leaves it.
struct VectorConversion {
    std::size_t count;
    const double* factors;  // D/q_i, balanced: [count]
    double grid;
    // For kernels on integers: D/q_i times 2^52 modulo the prime (for one source: not used), then -count * D, in [0, q).
    const u64* whole;
};

// An automorphism on NTT order: output positions [w*b, w*b+w) come from the w positions of block entries[b]/w, within
// it by patterns[entries[b]%w].
struct VectorPermutation {
    const std::uint32_t* entries;   // [N/w]
    const std::uint32_t* patterns;  // [w][w] lane numbers
};

// What is kept for long, evaluation keys and encoded weights, lies in memory packed: one residue behind the other, little-endian, each in the bytes
// that its prime needs (`width`, 4 to 7 below kVectorPrimeLimit). Rows are whole blocks of kVectorBlock residues and start on a cache line: packed.h.
using Byte = unsigned char;

// Whole rows: a digit, and the pair of a key that it meets.
struct KeyTerm {
    const u64* digit;
    const Byte *first, *second;
};

// sum_i digit_i * (first_i, second_i) + factor * (moved_first, moved_second).
// Digits and moved polynomials are read through the permutation, if there is one; the moved ones may be null (both, or the second). A stretch
// of positions from `start` on goes to out_first[0], out_second[0], ..
struct KeySum {
    const KeyTerm* terms;
    std::size_t count;
    std::size_t width;  // of the keys' residues
    const VectorPermutation* permutation;
    const u64 *moved_first, *moved_second;
    double factor;
    u64 *out_first, *out_second;
    const KeyTerm* ahead;  // as many; the lines of their keys at k + ahead_by are asked for when position k has its turn
    std::size_t ahead_by;
};

// Longest stretch of a PlainSum, and how many plaintexts it reads at a time.
constexpr std::size_t kPlainStretch = 1024, kPlainTogether = 4;

// A whole row of a plaintext and a stretch of a pair of polynomials, as integers or (VectorKernels::stage) as doubles: whatever the kernels compute with.
struct PlainTerm {
    const Byte* plain;
    const u64 *first, *second;
};

// sum_i plain_i * (first_i, second_i) on a stretch from position `start`, a multiple of kVectorBlock; results go to start, too. Each residue of
// a plaintext stands for 2^log_repeat positions.
struct PlainSum {
    const PlainTerm* terms;  // and kPlainTogether more: plaintexts that come next, whose lines are asked for ahead
    std::size_t count;
    std::size_t width;  // of the plaintexts' residues
    unsigned log_repeat;
    std::size_t start;
    u64 *out_first, *out_second;
};

// One stretch of a matrix product: output o at out + o*out_stride is the sum over its terms of inputs[columns[t]] * weights[t].
struct VectorMatrix {
    const double* inputs;  // [inputs][stretch], residues; stretch a multiple of kVectorBlock
    std::size_t stretch;
    const std::uint32_t* columns;
    const double* weights;  // balanced; with shift != 0 low and high parts, weight = low + high * shift
    const std::size_t* starts;
    const std::uint8_t* alike;  // by output: whether the next one has the same columns
    std::size_t outputs;
    u64* out;
    std::size_t out_stride;
    double shift;
    std::size_t max_terms;  // with shift != 0: products in a sum before a flush (SplitSum in vector_matrix.h)
};

struct VectorKernels {
    const char* name;
    std::size_t lanes;
    bool whole;  // on 52-bit integers: which tables transforms read, what sums with plaintexts take

    // Whole rows of N; uint64 results in [0, q). `forward` takes values below 3q. x and out may be the same.
    void (*forward)(const VectorPrime&, const u64* x, u64* out);
    void (*inverse)(const VectorPrime&, const u64* x, u64* out);
    // With factors of its own in place of VectorPrime::scale, to numbers of the kernels' own: doubles, |y| < q; or integers in [0, q). y: as below, from a
    // source's first number on; room: N words.
    void (*inverse_scaled)(const VectorPrime&, const VectorFactor* scale, const u64* x, u64* y, std::size_t count, u64* room);
    // y: [N/8][count][8], the numbers of `count` sources at eight positions side by side, as `overflow` leaves it. The transform of the converted
    // polynomial; what key_sum takes in its place; (x - transform) * factor.
    void (*convert_forward)(const VectorPrime&, const VectorConversion&, const u64* y, u64* out);
    void (*convert_lazily)(const VectorPrime&, const VectorConversion&, const u64* y, u64* out);
    void (*convert_divide)(const VectorPrime&, const VectorConversion&, const VectorFactor& factor, const u64* y, const u64* x, u64* out);
    // With u = round(sum_i y_i / q_i): y_0 - u*q_0 in place of y_0 (integers: y_0 + (count - u) * q_0), so that no term of u is left. Returns how many
    // positions were too near a tie to be sure, and lists them.
    std::size_t (*overflow)(u64* y, const double* inverses, const double* moduli, std::size_t count, std::size_t n, std::uint32_t* doubtful);

    // Any stretch of kVectorBlock positions or a multiple.
    void (*key_sum)(const VectorPrime&, const KeySum&, std::size_t start, std::size_t n);
    void (*plain_sum)(const VectorPrime&, const PlainSum&, std::size_t n);
    void (*stage)(const u64* x, double* out, std::size_t n);
    void (*matrix)(const VectorPrime&, const VectorMatrix&);
    void (*multiply)(const VectorPrime&, const u64* a, const u64* b, u64* out, std::size_t n);
    void (*scale)(const VectorPrime&, const VectorFactor& factor, const u64* a, u64* out, std::size_t n);
    void (*tensor)(const VectorPrime&, const u64* const a[2], const u64* const b[2], u64* const out[3], std::size_t n);
    void (*add)(u64 q, const u64* a, const u64* b, u64* out, std::size_t n);  // any q below 2^62
    void (*subtract)(u64 q, const u64* a, const u64* b, u64* out, std::size_t n);
    void (*permute)(const VectorPermutation&, const u64* x, u64* out, std::size_t n);
};

// Null where this build has no such kernels (another architecture).
const VectorKernels* avx2_kernels();
const VectorKernels* avx512_kernels();
const VectorKernels* avx512ifma_kernels();

}  // namespace kernels
