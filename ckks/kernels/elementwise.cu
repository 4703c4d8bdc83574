// One thread for one position of one row: the grid is (N / kWide, rows of all polynomials), a block is kWide threads.
#include "packed.cuh"

constexpr unsigned kWide = 256;

__device__ __forceinline__ unsigned position() { return blockIdx.x * kWide + threadIdx.x; }

// a, out: [polynomial][row_count][N]; b: the last b_rows of these rows, used again for every polynomial.
extern "C" __global__ void __launch_bounds__(kWide)
add_rows(const word* a, const word* b, word* out, const Prime* primes, const unsigned* rows, unsigned row_count, unsigned b_rows, unsigned log_n) {
    const size_t at = (static_cast<size_t>(grid_row()) << log_n) + position(), other = (static_cast<size_t>(grid_row() % b_rows) << log_n) + position();
    out[at] = add(a[at], b[other], primes[rows[grid_row() % row_count]].q);
}

extern "C" __global__ void __launch_bounds__(kWide)
subtract_rows(const word* a, const word* b, word* out, const Prime* primes, const unsigned* rows, unsigned row_count, unsigned b_rows, unsigned log_n) {
    const size_t at = (static_cast<size_t>(grid_row()) << log_n) + position(), other = (static_cast<size_t>(grid_row() % b_rows) << log_n) + position();
    out[at] = subtract(a[at], b[other], primes[rows[grid_row() % row_count]].q);
}

extern "C" __global__ void __launch_bounds__(kWide)
multiply_rows(const word* a, const word* b, word* out, const Prime* primes, const unsigned* rows, unsigned row_count, unsigned b_rows, unsigned log_n) {
    const size_t at = (static_cast<size_t>(grid_row()) << log_n) + position(), other = (static_cast<size_t>(grid_row() % b_rows) << log_n) + position();
    with_field(primes[rows[grid_row() % row_count]], [&](const auto& f) { out[at] = f.residue(f.product(f.enter(a[at]), f.enter(b[other]))); });
}

// Row r of a polynomial of a [polynomial][a_rows][N] times scalars[r] -> row r of out [polynomial][out_rows][N]; the grid has out's rows, and
// those beyond a_rows become 0.
extern "C" __global__ void __launch_bounds__(kWide)
multiply_rows_by_scalars(const word* a, const word* scalars, word* out, const Prime* primes, const unsigned* rows, unsigned a_rows, unsigned out_rows,
                         unsigned log_n) {
    const unsigned polynomial = grid_row() / out_rows, r = grid_row() % out_rows;
    const size_t at = (static_cast<size_t>(grid_row()) << log_n) + position();
    const word* from = a + (static_cast<size_t>(polynomial * a_rows + r) << log_n);
    if (r < a_rows)
        with_field(primes[rows[r]], [&](const auto& f) { out[at] = f.residue(f.product(f.enter(from[position()]), f.enter(scalars[r]))); });
    else
        out[at] = 0;
}

// a, out: [polynomial][row_count][N]; scalars: [row_count].
extern "C" __global__ void __launch_bounds__(kWide)
add_scalars_rows(const word* a, const word* scalars, word* out, const Prime* primes, const unsigned* rows, unsigned row_count, unsigned log_n) {
    const size_t at = (static_cast<size_t>(grid_row()) << log_n) + position();
    const unsigned r = grid_row() % row_count;
    out[at] = add(a[at], scalars[r], primes[rows[r]].q);
}

// a, b: [2][row][N]; out: [3][row][N]; the grid has one polynomial's rows.
extern "C" __global__ void __launch_bounds__(kWide)
tensor_rows(const word* a, const word* b, word* out, const Prime* primes, const unsigned* rows, unsigned log_n) {
    const size_t at = (static_cast<size_t>(blockIdx.y) << log_n) + position(), half = static_cast<size_t>(gridDim.y) << log_n;
    with_field(primes[rows[blockIdx.y]], [&](const auto& f) {
        const auto a0 = f.enter(a[at]), a1 = f.enter(a[at + half]), b0 = f.enter(b[at]), b1 = f.enter(b[at + half]);
        auto cross = f.sum();
        f.add(cross, a0, b1);
        f.add(cross, a1, b0);
        out[at] = f.residue(f.product(a0, b0));
        out[at + half] = f.residue(f.reduced(cross));
        out[at + 2 * half] = f.residue(f.product(a1, b1));
    });
}

extern "C" __global__ void __launch_bounds__(kWide)
automorphism_rows(const word* x, word* out, unsigned element, unsigned log_n) {
    const size_t at = static_cast<size_t>(grid_row()) << log_n;
    out[at + position()] = x[at + source_position(position(), element, log_n)];
}

// out [sum][2][row][N]: the grid is (N / kWide, rows, sums). table: where the products of each sum begin, and where the last ends, then for
// each product the addresses of its term [2][row][N] and of its plaintext, packed [row][N >> log_repeat] as plain_rows say.
extern "C" __global__ void __launch_bounds__(kWide)
multiply_sums_rows(const word* table, const PackedRow* plain_rows, word* out, const Prime* primes, const unsigned* rows, unsigned log_repeat,
                   unsigned log_n) {
    const size_t at = (static_cast<size_t>(blockIdx.y) << log_n) + position(), half = static_cast<size_t>(gridDim.y) << log_n;
    const unsigned kept = position() >> log_repeat;
    const PackedRow plain_row = plain_rows[blockIdx.y];
    const word* products = table + gridDim.z + 1;
    word* to = out + 2 * half * blockIdx.z;
    with_field(primes[rows[blockIdx.y]], [&](const auto& f) {
        auto first = f.sum(), second = f.sum();
        unsigned room = f.kProducts;
        for (word i = table[blockIdx.z]; i < table[blockIdx.z + 1]; ++i) {
            const word* term = reinterpret_cast<const word*>(products[2 * i]);
            const auto plain = f.enter(packed_value(reinterpret_cast<const unsigned char*>(products[2 * i + 1]), plain_row, kept));
            if (room == 0) {
                f.fold(first);
                f.fold(second);
                room = f.kProducts;
            }
            --room;
            f.add(first, f.enter(term[at]), plain);
            f.add(second, f.enter(term[at + half]), plain);
        }
        to[at] = f.residue(f.reduced(first));
        to[at + half] = f.residue(f.reduced(second));
    });
}

// out [output][polynomial][row][N]: the grid is (N / kWide, row_count rows of all polynomials, outputs). table: where the terms of each output
// begin, and where the last ends, then for each term the address of its input [polynomial][row][N]. factors: [row][term].
extern "C" __global__ void __launch_bounds__(kWide)
matrix_rows(const word* table, const word* factors, word* out, const Prime* primes, const unsigned* rows, unsigned row_count, unsigned term_count,
            unsigned log_n) {
    const size_t at = (static_cast<size_t>(blockIdx.y) << log_n) + position(), size = static_cast<size_t>(gridDim.y) << log_n;
    const unsigned r = blockIdx.y % row_count;
    const word* inputs = table + gridDim.z + 1;
    const word* row_factors = factors + static_cast<size_t>(r) * term_count;
    with_field(primes[rows[r]], [&](const auto& f) {
        auto sum = f.sum();
        unsigned room = f.kProducts;
        for (word t = table[blockIdx.z]; t < table[blockIdx.z + 1]; ++t) {
            if (room == 0) {
                f.fold(sum);
                room = f.kProducts;
            }
            --room;
            f.add(sum, f.enter(reinterpret_cast<const word*>(inputs[t])[at]), f.enter(row_factors[t]));
        }
        out[size * blockIdx.z + at] = f.residue(f.reduced(sum));
    });
}
