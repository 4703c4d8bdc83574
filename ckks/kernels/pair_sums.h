// Sums of products with keys and with encoded weights, read as they are packed, on either arithmetic. Include after one that has
//   Arithmetic      a prime's constants; `most` products fit a Sum before `reduce`, 8 or more, also after it
//   Rows<width, r>  residues of `width` bytes, each for 2^r positions in a row, to lanes; r = 3: for 2^log_repeat, 3 or more
#pragma once

namespace kernels {
namespace {

constexpr std::size_t kStep = kLine * W;

// Products whose sums are kept side by side.
struct Pairs {
    Arithmetic::Sum first[kLine], second[kLine];
};

// Sums that wait while others have their turn; not zeroed before.
union Waiting {
    Pairs sums;
    Waiting() {}
};

[[gnu::always_inline]] inline void copy(const Pairs& from, Pairs& to) {
    for (std::size_t u = 0; u < kLine; ++u) to.first[u] = from.first[u], to.second[u] = from.second[u];
}

// The running sums of a pair at kStep positions.
struct PairSums : Pairs {
    const Arithmetic& f;

    [[gnu::always_inline]] explicit PairSums(const Arithmetic& arithmetic) : f(arithmetic) {
        for (std::size_t u = 0; u < kLine; ++u) first[u] = second[u] = f.zero();
    }
    [[gnu::always_inline]] void reduce() {
        for (std::size_t u = 0; u < kLine; ++u) f.reduce(first[u]), f.reduce(second[u]);
    }
    [[gnu::always_inline]] void store(u64* to_first, u64* to_second) const {
        for (std::size_t u = 0; u < kLine; ++u) f.store(to_first + u * W, first[u]), f.store(to_second + u * W, second[u]);
    }
};

// Whether sums must be reduced before `count` more products, fewer than a Sum has room for.
struct Capacity {
    const std::size_t most;
    std::size_t left = most;

    bool short_of(std::size_t count) {
        const bool reduce = count > left;
        left = (reduce ? most : left) - count;
        return reduce;
    }
};

// Asks for the cache lines that a step's residues from x on lie in. Into the second-level cache: the first has room for fewer lines on their way from memory.
template <std::size_t width, unsigned repeat>
void fetch_packed(const Byte* x) {
    __builtin_prefetch(x, 0, 2);
    if (width * kStep >> repeat > 64) __builtin_prefetch(x + 64, 0, 2);
}

// How digits and moved polynomials are read at kStep positions.
struct Direct {
    std::size_t k;
    Direct(const VectorPrime&, const KeySum&, std::size_t at) : k(at) {}
    void fetch(const u64*) const {}  // read in order: the CPU follows by itself
    V operator()(const u64* x, std::size_t u) const { return Arithmetic::read(x + k + u * W); }
};

constexpr std::size_t kAhead = 128;  // positions, of lines that an automorphism reads out of order

struct Permuted {
    std::size_t at[kLine], next[kLine];
    Arithmetic::Pattern pattern[kLine];
    Permuted(const VectorPrime& p, const KeySum& s, std::size_t k) {
        const std::size_t ahead = (k + kAhead) % (std::size_t(1) << p.log_degree);
        for (std::size_t u = 0; u < kLine; ++u) {
            const std::size_t entry = s.permutation->entries[k / W + u];
            at[u] = entry / W * W;
            next[u] = s.permutation->entries[ahead / W + u] / W * W;
            pattern[u] = Arithmetic::pattern(s.permutation->patterns + entry % W * W);
        }
    }
    void fetch(const u64* x) const {
        for (std::size_t u = 0; u < kLine; ++u) __builtin_prefetch(x + next[u]);
    }
    V operator()(const u64* x, std::size_t u) const { return Arithmetic::read(x + at[u], pattern[u]); }
};

// Rows of keys and digits lie about a power of two apart: read side by side, more than a few of them put each other out of the caches before a line has
// been used. So a stretch of a few terms at a time, with the sums of the stretch kept in the first-level cache.
constexpr std::size_t kTogether = 3, kStretch = 512;

template <std::size_t width, class Reader>
void key_sum_of(const VectorPrime& p, const KeySum& s, std::size_t start, std::size_t n) {
    const Arithmetic f(p);
    const Rows<width, 0> rows{0};
    const V factor = f.factor(s.factor);
    Waiting waiting[kStretch / kStep];
    for (std::size_t at = start; at < start + n; at += kStretch) {
        const std::size_t end = at + kStretch < start + n ? at + kStretch : start + n;
        Capacity room{f.most};
        for (std::size_t i = 0; i < s.count; i += kTogether) {
            const bool last = i + kTogether >= s.count;
            const std::size_t stop = last ? s.count : i + kTogether;
            const bool reduce = room.short_of(stop - i + last);  // what moves is a product, too
            for (std::size_t k = at; k < end; k += kStep) {
                const Reader read(p, s, k);
                Pairs& kept = waiting[(k - at) / kStep].sums;
                PairSums sums(f);
                if (i > 0) copy(kept, sums);
                if (reduce) sums.reduce();
                for (std::size_t term = i; term < stop; ++term) {
                    const KeyTerm& t = s.terms[term];
                    read.fetch(t.digit);
                    fetch_packed<width, 0>(s.ahead[term].first + width * (k + s.ahead_by));
                    fetch_packed<width, 0>(s.ahead[term].second + width * (k + s.ahead_by));
                    for (std::size_t u = 0; u < kLine; ++u) {
                        const V x = read(t.digit, u);
                        sums.first[u].add(x, rows.read(t.first, k, u));
                        sums.second[u].add(x, rows.read(t.second, k, u));
                    }
                }
                if (!last) {
                    copy(sums, kept);
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
                sums.store(s.out_first + (k - start), s.out_second + (k - start));
            }
        }
    }
}

// As key_sum, a few terms at a time over the stretch, and for the same reason.
template <std::size_t width, unsigned repeat>
void plain_sum_of(const VectorPrime& p, const PlainSum& s, std::size_t n) {
    const Arithmetic f(p);
    const Rows<width, repeat> rows{s.log_repeat};
    Waiting waiting[kPlainStretch / kStep];
    Capacity room{f.most};
    for (std::size_t i = 0; i < s.count; i += kPlainTogether) {
        const bool last = i + kPlainTogether >= s.count;
        const std::size_t stop = last ? s.count : i + kPlainTogether;
        const bool reduce = room.short_of(stop - i);
        for (std::size_t k = 0; k < n; k += kStep) {
            const std::size_t at = s.start + k;
            Pairs& kept = waiting[k / kStep].sums;
            PairSums sums(f);
            if (i > 0) copy(kept, sums);
            if (reduce) sums.reduce();
            for (std::size_t term = i; term < stop; ++term) {
                const PlainTerm& t = s.terms[term];
                fetch_packed<width, repeat>(s.terms[term + kPlainTogether].plain + width * (at >> s.log_repeat));
                for (std::size_t u = 0; u < kLine; ++u) {
                    const V x = rows.read(t.plain, at, u);
                    V first = Arithmetic::read_staged(t.first + k + u * W), second = Arithmetic::read_staged(t.second + k + u * W);
                    asm("" : "+v"(first), "+v"(second));  // else compilers read each of them twice
                    sums.first[u].add(x, first);
                    sums.second[u].add(x, second);
                }
            }
            if (last)
                sums.store(s.out_first + at, s.out_second + at);
            else
                copy(sums, kept);
        }
    }
}

template <std::size_t width>
void key_sum_in(const VectorPrime& p, const KeySum& s, std::size_t start, std::size_t n) {
    return s.permutation ? key_sum_of<width, Permuted>(p, s, start, n) : key_sum_of<width, Direct>(p, s, start, n);
}

void key_sum(const VectorPrime& p, const KeySum& s, std::size_t start, std::size_t n) {
    constexpr decltype(&key_sum_in<4>) of_width[] = {key_sum_in<4>, key_sum_in<5>, key_sum_in<6>, key_sum_in<7>};
    of_width[s.width - 4](p, s, start, n);
}

template <std::size_t width>
void plain_sum_in(const VectorPrime& p, const PlainSum& s, std::size_t n) {
    switch (s.log_repeat) {
        case 0: return plain_sum_of<width, 0>(p, s, n);
        case 1: return plain_sum_of<width, 1>(p, s, n);
        case 2: return plain_sum_of<width, 2>(p, s, n);
        default: return plain_sum_of<width, 3>(p, s, n);
    }
}

void plain_sum(const VectorPrime& p, const PlainSum& s, std::size_t n) {
    constexpr decltype(&plain_sum_in<4>) of_width[] = {plain_sum_in<4>, plain_sum_in<5>, plain_sum_in<6>, plain_sum_in<7>};
    of_width[s.width - 4](p, s, n);
}

}  // namespace
}  // namespace kernels
