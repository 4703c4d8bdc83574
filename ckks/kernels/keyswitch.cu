// Basis conversion, mod-up, key product, mod-down (Halevi, Polyakov and Shoup 2019, section 2; Han and Ki 2020, section 3).
//
// Sources come in groups (the limbs of a digit, the special limbs of a polynomial): y [group * sources][N] holds y_i = x_i * (D/q_i)^-1 mod
// q_i for the group's product D; the last group may be short. The centred representative is sum_i y_i * (D/q_i) - u*D with
// u = round(sum_i y_i/q_i).
#include "ntt.cuh"
#include "packed.cuh"

// Whether sum_i y_i/q_i is beyond u + 1/2, exactly: the sign of 2 * sum_i y_i * (D/q_i) - (2u + 1) * D, word by word from below.
// words: [count+1][length], D/q_i and then D; y: one position of every source, 2^log_n apart.
__device__ bool rounds_up(const word* y, const word* words, unsigned count, unsigned length, word u, unsigned log_n) {
    word low = 0, middle = 0, high = 0;  // what the words below carry over: up to 64 products of 61 and 64 bits
    word borrow = 0;
    for (unsigned k = 0; k < length; ++k) {
        for (unsigned i = 0; i < count; ++i) {
            const word a = 2 * y[static_cast<size_t>(i) << log_n], b = words[i * length + k], product = a * b;
            low += product;
            const word carried = __umul64hi(a, b) + (low < product);
            middle += carried;
            high += middle < carried;
        }
        // The same digit of (2u + 1) * D, a small multiple, taken away with its own carry.
        const word factor = 2 * u + 1, digit = words[count * length + k] * factor, taken = digit + borrow;
        const word carry = __umul64hi(words[count * length + k], factor) + (taken < digit);
        borrow = carry + (low < taken);
        low = middle;
        middle = high;
        high = 0;
    }
    return low >= borrow;  // both numbers are below 2 * count * D < 2^(64 * length): nothing is left of the first but its last carry
}

// u for every position: the grid is (N / kThreads, groups). source_rows: the primes of y's rows, the same
// for every row_count of them.
extern "C" __global__ void __launch_bounds__(kThreads)
overflow_rows(const word* y, word* overflow, const Prime* primes, const unsigned* source_rows, unsigned row_count, const word* words,
              unsigned words_per_group, unsigned sources, unsigned y_rows, unsigned log_n) {
    const unsigned start = grid_row() * sources, count = min(sources, y_rows - start), k = blockIdx.x * kThreads + threadIdx.x;
    const word* values = y + (static_cast<size_t>(start) << log_n) + k;
    word whole = 0, part = 1ull << 63;
    for (unsigned i = 0; i < count; ++i) {
        const Prime p = primes[source_rows[(start + i) % row_count]];
        const word value = values[static_cast<size_t>(i) << log_n];
        // y_i/q_i as a multiple of 2^-64, less than 3 * 2^-64 too small: y_i < 2^bits times an inverse cut by less than one, and two cuts.
        const word fraction = top(__umul64hi(value, p.inverse), value * p.inverse, p.bits);
        part += fraction;
        whole += part < fraction;
    }
    if (part >= -static_cast<word>(3 * count)) whole += rounds_up(values, words + static_cast<size_t>(grid_row()) * words_per_group, count, sources, whole, log_n);
    overflow[(static_cast<size_t>(grid_row()) << log_n) + k] = whole;
}

// One position's sum_i y_i * c[i] + overflow * c[count] modulo the field's prime, small.
template <class Field>
__device__ __forceinline__ typename Field::Value converted(const Field& f, const word* y, word overflow, const word* c, unsigned count, unsigned sources,
                                                           unsigned log_n) {
    auto s = f.sum();
    unsigned room = f.kProducts;
    for (unsigned i = 0; i < count; ++i) {
        if (room == 0) {
            f.fold(s);
            room = f.kProducts;
        }
        --room;
        f.add(s, f.enter(y[static_cast<size_t>(i) << log_n]), f.enter(c[i]));
    }
    f.add(s, f.enter(overflow), f.enter(c[sources]));  // below 2^6: room for it is always left
    return f.reduced(s);
}

// The representative modulo each target row, and the columns' pass of its transform: the grid is (tiles, groups * row_count), out
// [group][row_count][N]. constants: [group][row_count][sources+1], D/q_i and then -D modulo the row's prime. Of digits (own = 1) group g's own
// rows, g*sources and on, are left alone. wide: some source has more than Doubles::kBits bits.
extern "C" __global__ void __launch_bounds__(kThreads)
convert_columns(const word* y, const word* overflow, word* out, const word* constants, unsigned constants_per_group, const Factor* twiddles,
                const Prime* primes, const unsigned* rows, unsigned row_count, unsigned sources, unsigned y_rows, unsigned own, unsigned wide,
                unsigned log_n) {
    __shared__ Tile tile;
    const unsigned group = grid_row() / row_count, r = grid_row() % row_count, row = rows[r];
    const unsigned start = group * sources, count = min(sources, y_rows - start);
    if (own && r - start < count) return;
    const Prime p = primes[row];
    const word* c = constants + static_cast<size_t>(group) * constants_per_group + r * (sources + 1);
    const word* values = y + (static_cast<size_t>(start) << log_n);
    const word* counts = overflow + (static_cast<size_t>(group) << log_n);
    with_field(p, [&](const auto& f) {
        const auto load = [&](unsigned k) {
            if (f.kBits == Whole::kBits || !wide) return converted(f, values + k, counts[k], c, count, sources, log_n);
            const Whole whole(p);
            return f.enter(whole.residue(converted(whole, values + k, counts[k], c, count, sources, log_n)));
        };
        forward_columns(f, tile, load, out + (static_cast<size_t>(grid_row()) << log_n), twiddles + (static_cast<size_t>(row) << log_n), log_n);
    });
}

// The blocks' pass for digits, in place; a digit's own rows are copied from x [y_rows][N].
extern "C" __global__ void __launch_bounds__(kThreads)
digits_blocks(const word* x, word* out, const Factor* twiddles, const Prime* primes, const unsigned* rows, unsigned row_count, unsigned sources,
              unsigned y_rows, unsigned log_n) {
    __shared__ Tile tile;
    const unsigned start = grid_row() / row_count * sources, count = min(sources, y_rows - start), r = grid_row() % row_count, row = rows[r];
    word* to = out + (static_cast<size_t>(grid_row()) << log_n);
    if (r - start < count) {
        const Blocks place = {blockIdx.x};
        for (unsigned e = threadIdx.x; e < kTile; e += kThreads) to[place(e)] = x[(static_cast<size_t>(r) << log_n) + place(e)];
        return;
    }
    with_field(primes[row], [&](const auto& f) {
        forward_blocks(f, tile, to, [&](unsigned k, auto v) { to[k] = f.residue(v); }, twiddles + (static_cast<size_t>(row) << log_n), log_n);
    });
}

// The blocks' pass for a division, in place: (x - representative) / D. x: [polynomial][x_rows][N]; inverses: [row_count].
extern "C" __global__ void __launch_bounds__(kThreads)
divide_blocks(const word* x, word* out, const Factor* inverses, const Factor* twiddles, const Prime* primes, const unsigned* rows, unsigned row_count,
              unsigned x_rows, unsigned log_n) {
    __shared__ Tile tile;
    const unsigned r = grid_row() % row_count, row = rows[r];
    const word* from = x + (static_cast<size_t>(grid_row() / row_count * x_rows + r) << log_n);
    word* to = out + (static_cast<size_t>(grid_row()) << log_n);
    with_field(primes[row], [&](const auto& f) {
        const auto inverse = *f.constants(inverses + r);
        const auto store = [&](unsigned k, auto v) { to[k] = f.residue(f.multiply(f.subtract(f.enter(from[k]), v), inverse)); };
        forward_blocks(f, tile, to, store, twiddles + (static_cast<size_t>(row) << log_n), log_n);
    });
}

// out [2][row_count][N]: sum_j A(digits[j]) * key[j], A the automorphism `element`; the grid is (N / kThreads, row_count). digits:
// [digit][row_count][N]; key: [digit][2][key_bytes], packed as layout says of each of the row_count rows. moved
// [moved_halves][moved_rows][N] moves along; over data rows only it is multiplied by P, whose residues are special_product.
extern "C" __global__ void __launch_bounds__(kThreads)
key_product_rows(const word* digits, const unsigned char* key, const PackedRow* layout, const word* moved, word* out, const Factor* special_product, const Prime* primes,
                 const unsigned* rows, unsigned row_count, unsigned digit_count, unsigned key_bytes, unsigned moved_halves,
                 unsigned moved_rows, unsigned element, unsigned log_n) {
    const unsigned r = blockIdx.y, k = blockIdx.x * kThreads + threadIdx.x, from = source_position(k, element, log_n);
    const PackedRow key_row = layout[r];
    const Prime p = primes[rows[r]];
    const size_t at = (static_cast<size_t>(r) << log_n) + k, half = static_cast<size_t>(row_count) << log_n;
    with_field(p, [&](const auto& f) {
        auto first = f.sum(), second = f.sum();
        unsigned room = f.kProducts;
        for (unsigned j = 0; j < digit_count; ++j) {
            const auto digit = f.enter(digits[(static_cast<size_t>(j * row_count + r) << log_n) + from]);
            const unsigned char* pair = key + static_cast<size_t>(2 * j) * key_bytes;
            if (room == 0) {
                f.fold(first);
                f.fold(second);
                room = f.kProducts;
            }
            --room;
            f.add(first, digit, f.enter(packed_value(pair, key_row, k)));
            f.add(second, digit, f.enter(packed_value(pair + key_bytes, key_row, k)));
        }
        word results[2] = {f.residue(f.reduced(first)), f.residue(f.reduced(second))};
#pragma unroll
        for (unsigned h = 0; h < 2; ++h) {
            if (h < moved_halves && r < moved_rows) {
                word x = moved[(static_cast<size_t>(h * moved_rows + r) << log_n) + from];
                if (moved_rows < row_count) x = f.residue(f.multiply(f.enter(x), *f.constants(special_product + r)));
                results[h] = add(results[h], x, p.q);
            }
            out[at + h * half] = results[h];
        }
    });
}
