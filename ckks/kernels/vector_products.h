// Sums of products with keys and with encoded weights, read as they are packed. Include after a lanes_*.h.
#pragma once

#include "vector_sums.h"

namespace kernels {
namespace {

constexpr std::size_t kAhead = 128;  // positions, of lines that an automorphism reads out of order
constexpr std::size_t kLine = 2;  // vectors a step: enough sums side by side to hide the latency of each

// Into the second-level cache: the first has room for fewer lines on their way from memory.
template <std::size_t width>
void fetch_bytes(const Byte* x, std::size_t at) {
    __builtin_prefetch(x + width * at, 0, 2);
    if (width * kLine * W > 64) __builtin_prefetch(x + width * at + 64, 0, 2);
}

// A packed row at positions k..k+W-1; or one that holds each value once for 2^log_repeat positions.
// `fetch` asks for the cache lines of the kLine vectors from `at` on.
struct Narrow {
    static void fetch(const Byte* x, std::size_t at) { fetch_bytes<4>(x, at); }
    static V load(const Byte* x, std::size_t k) { return Lanes::load_narrow(low(x) + k); }
    static V repeated(const Byte* x, std::size_t k, unsigned log_repeat) {
        return Lanes::to_double(Lanes::repeat(low(x) + (k >> log_repeat), log_repeat));
    }
    static const std::uint32_t* low(const Byte* x) { return reinterpret_cast<const std::uint32_t*>(x); }
};

struct Split {
    static void fetch(const Byte* x, std::size_t at) { fetch_bytes<6>(x, at); }
    static V load(const Byte* x, std::size_t k) {
        const Byte* const block = x + k / kVectorBlock * kSplitBlock;
        return Lanes::load_split(Narrow::low(block) + k % kVectorBlock, high(block) + k % kVectorBlock);
    }
    static V repeated(const Byte* x, std::size_t k, unsigned log_repeat) {
        const std::size_t at = k >> log_repeat;
        const Byte* const block = x + at / kVectorBlock * kSplitBlock;
        return Lanes::to_double(Lanes::repeat(Narrow::low(block) + at % kVectorBlock, log_repeat),
                                Lanes::repeat(high(block) + at % kVectorBlock, log_repeat));
    }
    static const std::uint16_t* high(const Byte* block) { return reinterpret_cast<const std::uint16_t*>(block + 4 * kVectorBlock); }
};

struct Wide {
    static void fetch(const Byte* x, std::size_t at) { fetch_bytes<8>(x, at); }
    static V load(const Byte* x, std::size_t k) { return Lanes::load_integers(whole(x) + k); }
    static V repeated(const Byte* x, std::size_t k, unsigned log_repeat) {
        return Lanes::load_repeated(whole(x) + (k >> log_repeat), log_repeat);
    }
    static const u64* whole(const Byte* x) { return reinterpret_cast<const u64*>(x); }
};

// The running sums of a pair at 8 positions.
struct PairSums {
    const V grid;
    const std::size_t max_terms;
    std::size_t room;
    MultiplyAdd first[kLine], second[kLine];

    explicit PairSums(const VectorPrime& p) : grid(Lanes::all(p.grid)), max_terms(p.max_terms), room(p.max_terms) {
        for (std::size_t u = 0; u < kLine; ++u) first[u] = second[u] = {grid, Lanes::all(0.0)};
    }
    // Interrupts a sum, and goes on with it; the room that is left is the same at all positions.
    [[gnu::always_inline]] std::size_t keep(MultiplyAdd* kept_first, MultiplyAdd* kept_second) const {
        for (std::size_t u = 0; u < kLine; ++u) kept_first[u] = first[u], kept_second[u] = second[u];
        return room;
    }
    [[gnu::always_inline]] void resume(const MultiplyAdd* kept_first, const MultiplyAdd* kept_second, std::size_t left) {
        for (std::size_t u = 0; u < kLine; ++u) first[u] = kept_first[u], second[u] = kept_second[u];
        room = left;
    }
    // Before each product.
    [[gnu::always_inline]] void make_room(const Field& f) {
        if (room == 0) {
            for (std::size_t u = 0; u < kLine; ++u)
                first[u] = {grid, first[u].flush(f, grid)}, second[u] = {grid, second[u].flush(f, grid)};
            room = max_terms;
        }
        --room;
    }
    [[gnu::always_inline]] void store(const Field& f, u64* out_first, u64* out_second) const {
        for (std::size_t u = 0; u < kLine; ++u) {
            Lanes::store_integers(out_first + u * W, first[u].flush(f, grid), f.q);
            Lanes::store_integers(out_second + u * W, second[u].flush(f, grid), f.q);
        }
    }
};

// How digits and moved polynomials are read at 8 positions.
struct Direct {
    std::size_t k;
    Direct(const VectorPrime&, const KeySum&, std::size_t at) : k(at) {}
    void fetch(const u64*) const {}  // read in order: the CPU follows by itself
    V operator()(const u64* x, std::size_t u) const { return Lanes::load_integers(x + k + u * W); }
};

struct Permuted {
    std::size_t at[kLine], next[kLine];
    Lanes::Pattern pattern[kLine];
    Permuted(const VectorPrime& p, const KeySum& s, std::size_t k) {
        const std::size_t ahead = (k + kAhead) % (std::size_t(1) << p.log_degree);
        for (std::size_t u = 0; u < kLine; ++u) {
            const std::size_t entry = s.permutation->entries[k / W + u];
            at[u] = entry / W * W;
            next[u] = s.permutation->entries[ahead / W + u] / W * W;
            pattern[u] = Lanes::pattern(s.permutation->patterns + entry % W * W);
        }
    }
    void fetch(const u64* x) const {
        for (std::size_t u = 0; u < kLine; ++u) __builtin_prefetch(x + next[u]);
    }
    V operator()(const u64* x, std::size_t u) const { return Lanes::to_double(Lanes::permute(Lanes::load_bits(x + at[u]), pattern[u])); }
};

// Rows of keys and digits lie about a power of two apart: read side by side, more than a few of them put each other out of the caches before a line has
// been used. So a stretch of a few terms at a time, with the sums of the stretch kept in the first-level cache.
constexpr std::size_t kTogether = 3, kStretch = 512;

template <class Row, class Reader>
void key_sum_of(const VectorPrime& p, const KeySum& s, std::size_t start, std::size_t n) {
    constexpr std::size_t step = kLine * W;
    const Field f(p);
    const V factor = Lanes::all(s.factor);
    MultiplyAdd kept[kStretch / step][2][kLine];
    for (std::size_t at = start; at < start + n; at += kStretch) {
        const std::size_t end = at + kStretch < start + n ? at + kStretch : start + n;
        std::size_t room = p.max_terms;
        for (std::size_t i = 0; i < s.count; i += kTogether) {
            const std::size_t stop = i + kTogether < s.count ? i + kTogether : s.count;
            std::size_t left = room;
            for (std::size_t k = at; k < end; k += step) {
                const Reader read(p, s, k);
                auto& [first, second] = kept[(k - at) / step];
                PairSums sums(p);
                if (i > 0) sums.resume(first, second, room);
                for (std::size_t term = i; term < stop; ++term) {
                    sums.make_room(f);
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
                    left = sums.keep(first, second);
                    continue;
                }
                if (s.moved_first) {
                    sums.make_room(f);
                    read.fetch(s.moved_first);
                    for (std::size_t u = 0; u < kLine; ++u) sums.first[u].add(read(s.moved_first, u), factor);
                    if (s.moved_second) {
                        read.fetch(s.moved_second);
                        for (std::size_t u = 0; u < kLine; ++u) sums.second[u].add(read(s.moved_second, u), factor);
                    }
                }
                sums.store(f, s.out_first + (k - start), s.out_second + (k - start));
            }
            room = left;
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
    constexpr std::size_t step = kLine * W;
    const Field f(p);
    MultiplyAdd kept[kPlainStretch / step][2][kLine];
    std::size_t room = p.max_terms;
    for (std::size_t i = 0; i < s.count; i += kPlainTogether) {
        const std::size_t stop = i + kPlainTogether < s.count ? i + kPlainTogether : s.count;
        std::size_t left = room;
        for (std::size_t k = 0; k < n; k += step) {
            const std::size_t at = s.start + k;
            auto& [first, second] = kept[k / step];
            PairSums sums(p);
            if (i > 0) sums.resume(first, second, room);
            for (std::size_t term = i; term < stop; ++term) {
                sums.make_room(f);
                const PlainTerm& t = s.terms[term];
                Row::fetch(s.terms[term + kPlainTogether].plain, at >> s.log_repeat);
                for (std::size_t u = 0; u < kLine; ++u) {
                    V x;
                    if constexpr (periodic)
                        x = Row::repeated(t.plain, at + u * W, s.log_repeat);
                    else
                        x = Row::load(t.plain, at + u * W);
                    sums.first[u].add(x, Lanes::load(reinterpret_cast<const double*>(t.first) + k + u * W));
                    sums.second[u].add(x, Lanes::load(reinterpret_cast<const double*>(t.second) + k + u * W));
                }
            }
            if (stop < s.count)
                left = sums.keep(first, second);
            else
                sums.store(f, s.out_first + at, s.out_second + at);
        }
        room = left;
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

void stage(const u64* x, double* out, std::size_t n) {
    for (std::size_t k = 0; k < n; k += W) Lanes::store(out + k, Lanes::load_integers(x + k));
}

}  // namespace
}  // namespace kernels
