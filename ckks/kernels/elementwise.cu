// One thread for one position of one row: the grid is (N / kWide, rows of all polynomials), a block is kWide threads.
#include "packed.cuh"

constexpr unsigned kWide = 256;

__device__ __forceinline__ unsigned position() { return blockIdx.x * kWide + threadIdx.x; }

// a, out: [polynomial][row_count][N]; b: the last b_rows of these rows, used again for every polynomial.
extern "C" __global__ void __launch_bounds__(kWide)
add_rows(const word* a, const word* b, word* out, const Prime* primes, const unsigned* rows, unsigned row_count, unsigned b_rows, unsigned log_n) {
    const size_t at = (static_cast<size_t>(blockIdx.y) << log_n) + position(), other = (static_cast<size_t>(blockIdx.y % b_rows) << log_n) + position();
    out[at] = add(a[at], b[other], primes[rows[blockIdx.y % row_count]].q);
}

extern "C" __global__ void __launch_bounds__(kWide)
subtract_rows(const word* a, const word* b, word* out, const Prime* primes, const unsigned* rows, unsigned row_count, unsigned b_rows, unsigned log_n) {
    const size_t at = (static_cast<size_t>(blockIdx.y) << log_n) + position(), other = (static_cast<size_t>(blockIdx.y % b_rows) << log_n) + position();
    out[at] = subtract(a[at], b[other], primes[rows[blockIdx.y % row_count]].q);
}

extern "C" __global__ void __launch_bounds__(kWide)
multiply_rows(const word* a, const word* b, word* out, const Prime* primes, const unsigned* rows, unsigned row_count, unsigned b_rows, unsigned log_n) {
    const size_t at = (static_cast<size_t>(blockIdx.y) << log_n) + position(), other = (static_cast<size_t>(blockIdx.y % b_rows) << log_n) + position();
    out[at] = multiply(a[at], b[other], primes[rows[blockIdx.y % row_count]]);
}

// Row r of a polynomial of a [polynomial][a_rows][N] times scalars[r] -> row r of out [polynomial][out_rows][N]; the grid has out's rows, and
// those beyond a_rows become 0.
extern "C" __global__ void __launch_bounds__(kWide)
multiply_rows_by_scalars(const word* a, const word* scalars, word* out, const Prime* primes, const unsigned* rows, unsigned a_rows, unsigned out_rows,
                         unsigned log_n) {
    const unsigned polynomial = blockIdx.y / out_rows, r = blockIdx.y % out_rows;
    const size_t at = (static_cast<size_t>(blockIdx.y) << log_n) + position();
    if (r < a_rows)
        out[at] = multiply(a[(static_cast<size_t>(polynomial * a_rows + r) << log_n) + position()], scalars[r], primes[rows[r]]);
    else
        out[at] = 0;
}

// a, b: [2][row][N]; out: [3][row][N]; the grid has one polynomial's rows.
extern "C" __global__ void __launch_bounds__(kWide)
tensor_rows(const word* a, const word* b, word* out, const Prime* primes, const unsigned* rows, unsigned log_n) {
    const size_t at = (static_cast<size_t>(blockIdx.y) << log_n) + position(), half = static_cast<size_t>(gridDim.y) << log_n;
    const Prime p = primes[rows[blockIdx.y]];
    const word a0 = a[at], a1 = a[at + half], b0 = b[at], b1 = b[at + half];
    Sum cross = {0, 0};
    cross.add(a0, b1);
    cross.add(a1, b0);
    out[at] = multiply(a0, b0, p);
    out[at + half] = cross.reduced(p);
    out[at + 2 * half] = multiply(a1, b1, p);
}

extern "C" __global__ void __launch_bounds__(kWide)
automorphism_rows(const word* x, word* out, unsigned element, unsigned log_n) {
    const size_t at = static_cast<size_t>(blockIdx.y) << log_n;
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
    const Prime p = primes[rows[blockIdx.y]];
    const word* products = table + gridDim.z + 1;
    Sum first = {0, 0}, second = {0, 0};
    unsigned room = kProducts;
    for (word i = table[blockIdx.z]; i < table[blockIdx.z + 1]; ++i) {
        const word* term = reinterpret_cast<const word*>(products[2 * i]);
        const word plain = packed_value(reinterpret_cast<const unsigned char*>(products[2 * i + 1]), plain_row, kept);
        if (room == 0) {
            first.fold(p);
            second.fold(p);
            room = kProducts;
        }
        --room;
        first.add(term[at], plain);
        second.add(term[at + half], plain);
    }
    word* to = out + 2 * half * blockIdx.z;
    to[at] = first.reduced(p);
    to[at + half] = second.reduced(p);
}
