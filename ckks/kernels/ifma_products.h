// Sums of products with keys and with encoded weights on 52-bit integers, read as they are packed.
#pragma once

#include "ifma_sums.h"

namespace kernels {
namespace {

constexpr std::size_t kLine = 2;  // vectors a step: enough sums side by side to hide the latency of each

// Lane l of the result is lane l >> log_repeat of x, log_repeat 1 or 2.
V spread(V x, unsigned log_repeat) {
    const V half = _mm512_set_epi64(3, 3, 2, 2, 1, 1, 0, 0), quarter = _mm512_set_epi64(1, 1, 1, 1, 0, 0, 0, 0);
    return _mm512_permutexvar_epi64(log_repeat == 1 ? half : quarter, x);
}

// Into the second-level cache: the first has room for fewer lines on their way from memory.
template <std::size_t width>
void fetch_bytes(const Byte* x, std::size_t at) {
    __builtin_prefetch(x + width * at, 0, 2);
    if (width * kLine * W > 64) __builtin_prefetch(x + width * at + 64, 0, 2);
}

// A packed row at positions k..k+7, or at k..k+3 with anything above; `one`: at k in all lanes. fetch: asks for the lines of the kLine vectors from `at` on.
struct Narrow {
    static void fetch(const Byte* x, std::size_t at) { fetch_bytes<4>(x, at); }
    static V load(const Byte* x, std::size_t k) { return _mm512_cvtepu32_epi64(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + 4 * k))); }
    static V four(const Byte* x, std::size_t k) { return widen(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x + 4 * k))); }
    static V one(const Byte* x, std::size_t k) { return all(reinterpret_cast<const std::uint32_t*>(x)[k]); }
    static V widen(__m128i low) { return _mm512_castsi256_si512(_mm256_cvtepu32_epi64(low)); }
};

struct Split {
    static void fetch(const Byte* x, std::size_t at) { fetch_bytes<6>(x, at); }
    static V load(const Byte* x, std::size_t k) {
        const V high = _mm512_cvtepu16_epi64(_mm_loadu_si128(reinterpret_cast<const __m128i*>(high_of(x, k))));
        return _mm512_or_si512(Narrow::load(block(x, k), k % kVectorBlock), _mm512_slli_epi64(high, 32));
    }
    static V four(const Byte* x, std::size_t k) {
        const __m256i high = _mm256_cvtepu16_epi64(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(high_of(x, k))));
        return _mm512_or_si512(Narrow::four(block(x, k), k % kVectorBlock), _mm512_castsi256_si512(_mm256_slli_epi64(high, 32)));
    }
    static V one(const Byte* x, std::size_t k) {
        return all(reinterpret_cast<const std::uint32_t*>(block(x, k))[k % kVectorBlock] | u64(*high_of(x, k)) << 32);
    }
    static const Byte* block(const Byte* x, std::size_t k) { return x + k / kVectorBlock * kSplitBlock; }
    static const std::uint16_t* high_of(const Byte* x, std::size_t k) {
        return reinterpret_cast<const std::uint16_t*>(block(x, k) + 4 * kVectorBlock) + k % kVectorBlock;
    }
};

struct Wide {
    static void fetch(const Byte* x, std::size_t at) { fetch_bytes<8>(x, at); }
    static V load(const Byte* x, std::size_t k) { return kernels::load(whole(x) + k); }
    static V four(const Byte* x, std::size_t k) {
        return _mm512_castsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(whole(x) + k)));
    }
    static V one(const Byte* x, std::size_t k) { return all(whole(x)[k]); }
    static const u64* whole(const Byte* x) { return reinterpret_cast<const u64*>(x); }
};

// The running sums of a pair at kLine * W positions, of products of residues in [0, q), q < 2^49, or of what convert_lazily leaves, below 68q <= 2^52,
// with them. The high half of a product is below 2^46: after kMost of them, on top of the 2q that an earlier `reduce` left, `high` is below
// 2^50 + 33 * 2^46 < 2^52; `low` has room for 2^12.
constexpr std::size_t kMost = 32;

struct PairSums {
    MultiplyAdd first[kLine], second[kLine];

    using Kept = V[4 * kLine];  // an interrupted sum
    [[gnu::always_inline]] void keep(Kept& to) const {
        for (std::size_t u = 0; u < kLine; ++u)
            to[4 * u] = first[u].high, to[4 * u + 1] = first[u].low, to[4 * u + 2] = second[u].high, to[4 * u + 3] = second[u].low;
    }
    [[gnu::always_inline]] void resume(const Kept& from) {
        for (std::size_t u = 0; u < kLine; ++u) first[u] = {from[4 * u], from[4 * u + 1]}, second[u] = {from[4 * u + 2], from[4 * u + 3]};
    }

    [[gnu::always_inline]] void reduce(const Field& f) {
        for (std::size_t u = 0; u < kLine; ++u) first[u].high = f.reduce(first[u].high), second[u].high = f.reduce(second[u].high);
    }
};

// To [0, q). `divided` is below high + q + 2^12 < 2^52 and 2^-52 of the sum; one more product takes the factor away.
struct Finish {
    const Field f;
    const V inverse;
    const Factors shift;

    explicit Finish(const VectorPrime& p)
        : f(p), inverse(all(p.whole_inverse)), shift(p.whole_shift) {}

    [[gnu::always_inline]] void store(const PairSums& sums, u64* first, u64* second) const {
        for (std::size_t u = 0; u < kLine; ++u) {
            kernels::store(first + u * W, f.finish(f.times(sums.first[u].divided(f, inverse), shift)));
            kernels::store(second + u * W, f.finish(f.times(sums.second[u].divided(f, inverse), shift)));
        }
    }
};

// How digits and moved polynomials are read at kLine * W positions.
struct Direct {
    std::size_t k;
    Direct(const VectorPrime&, const KeySum&, std::size_t at) : k(at) {}
    void fetch(const u64*) const {}  // read in order: the CPU follows by itself
    V operator()(const u64* x, std::size_t u) const { return load(x + k + u * W); }
};

constexpr std::size_t kAhead = 128;  // positions, of lines that an automorphism reads out of order

struct Permuted {
    std::size_t at[kLine], next[kLine];
    V pattern[kLine];
    Permuted(const VectorPrime& p, const KeySum& s, std::size_t k) {
        const std::size_t ahead = (k + kAhead) % (std::size_t(1) << p.log_degree);
        for (std::size_t u = 0; u < kLine; ++u) {
            const std::size_t entry = s.permutation->entries[k / W + u];
            at[u] = entry / W * W;
            next[u] = s.permutation->entries[ahead / W + u] / W * W;
            pattern[u] = Narrow::load(reinterpret_cast<const Byte*>(s.permutation->patterns), entry % W * W);
        }
    }
    void fetch(const u64* x) const {
        for (std::size_t u = 0; u < kLine; ++u) __builtin_prefetch(x + next[u]);
    }
    V operator()(const u64* x, std::size_t u) const { return _mm512_permutexvar_epi64(pattern[u], load(x + at[u])); }
};

// Rows of keys and digits lie about a power of two apart: read side by side, more than a few of them put each other out of the caches before a line has
// been used. So a stretch of a few terms at a time, with the sums of the stretch kept in the first-level cache.
constexpr std::size_t kTogether = 3, kStretch = 512, kStep = kLine * W;

template <class Row, class Reader>
void key_sum_of(const VectorPrime& p, const KeySum& s, std::size_t start, std::size_t n) {
    const Finish finish(p);
    const V factor = all(static_cast<u64>(s.factor));
    PairSums::Kept kept[kStretch / kStep];
    for (std::size_t at = start; at < start + n; at += kStretch) {
        const std::size_t end = at + kStretch < start + n ? at + kStretch : start + n;
        for (std::size_t i = 0; i < s.count; i += kTogether) {
            const std::size_t stop = i + kTogether < s.count ? i + kTogether : s.count;
            for (std::size_t k = at; k < end; k += kStep) {
                const Reader read(p, s, k);
                PairSums sums;
                if (i > 0) sums.resume(kept[(k - at) / kStep]);
                if (i > 0 && i % (kMost - 2) == 0) sums.reduce(finish.f);  // a multiple of kTogether; one is left for what moves
                for (std::size_t term = i; term < stop; ++term) {
                    const KeyTerm& t = s.terms[term];
                    read.fetch(t.digit);
                    Row::fetch(s.ahead[term].first, k + s.ahead_by);
                    Row::fetch(s.ahead[term].second, k + s.ahead_by);
                    for (std::size_t u = 0; u < kLine; ++u) {
                        const V x = read(t.digit, u);
                        sums.first[u].add(x, Row::load(t.first, k + u * W));
                        sums.second[u].add(x, Row::load(t.second, k + u * W));
                    }
                }
                if (stop < s.count) {
                    sums.keep(kept[(k - at) / kStep]);
                    continue;
                }
                if (s.moved_first) {
                    read.fetch(s.moved_first);
                    for (std::size_t u = 0; u < kLine; ++u) sums.first[u].add(read(s.moved_first, u), factor);
                }
                if (s.moved_second) {
                    read.fetch(s.moved_second);
                    for (std::size_t u = 0; u < kLine; ++u) sums.second[u].add(read(s.moved_second, u), factor);
                }
                finish.store(sums, s.out_first + (k - start), s.out_second + (k - start));
            }
        }
    }
}

template <class Row>
void key_sum_in(const VectorPrime& p, const KeySum& s, std::size_t start, std::size_t n) {
    return s.permutation ? key_sum_of<Row, Permuted>(p, s, start, n) : key_sum_of<Row, Direct>(p, s, start, n);
}

void key_sum(const VectorPrime& p, const KeySum& s, std::size_t start, std::size_t n) {
    switch (s.packing) {
        case Packing::narrow: return key_sum_in<Narrow>(p, s, start, n);
        case Packing::split: return key_sum_in<Split>(p, s, start, n);
        case Packing::wide: return key_sum_in<Wide>(p, s, start, n);
    }
}

// As key_sum, a few terms at a time over the stretch, and for the same reason.

template <class Row, bool periodic>
void plain_sum_of(const VectorPrime& p, const PlainSum& s, std::size_t n) {
    const Finish finish(p);
    PairSums::Kept kept[kPlainStretch / kStep];
    for (std::size_t i = 0; i < s.count; i += kPlainTogether) {
        const std::size_t stop = i + kPlainTogether < s.count ? i + kPlainTogether : s.count;
        for (std::size_t k = 0; k < n; k += kStep) {
            const std::size_t at = s.start + k;
            PairSums sums;
            if (i > 0) sums.resume(kept[k / kStep]);
            if (i > 0 && i % kMost == 0) sums.reduce(finish.f);
            for (std::size_t term = i; term < stop; ++term) {
                const PlainTerm& t = s.terms[term];
                Row::fetch(s.terms[term + kPlainTogether].plain, at >> s.log_repeat);
                for (std::size_t u = 0; u < kLine; ++u) {
                    V x;
                    if constexpr (periodic) {
                        const std::size_t first = (at + u * W) >> s.log_repeat;
                        x = s.log_repeat >= 3 ? Row::one(t.plain, first) : spread(Row::four(t.plain, first), s.log_repeat);
                    } else {
                        x = Row::load(t.plain, at + u * W);
                    }
                    sums.first[u].add(x, load(t.first + k + u * W));
                    sums.second[u].add(x, load(t.second + k + u * W));
                }
            }
            if (stop < s.count)
                sums.keep(kept[k / kStep]);
            else
                finish.store(sums, s.out_first + at, s.out_second + at);
        }
    }
}

template <class Row>
void plain_sum_in(const VectorPrime& p, const PlainSum& s, std::size_t n) {
    return s.log_repeat ? plain_sum_of<Row, true>(p, s, n) : plain_sum_of<Row, false>(p, s, n);
}

void plain_sum(const VectorPrime& p, const PlainSum& s, std::size_t n) {
    switch (s.packing) {
        case Packing::narrow: return plain_sum_in<Narrow>(p, s, n);
        case Packing::split: return plain_sum_in<Split>(p, s, n);
        case Packing::wide: return plain_sum_in<Wide>(p, s, n);
    }
}

}  // namespace
}  // namespace kernels
