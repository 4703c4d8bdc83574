// Transforms of many rows: the grid is (tiles of a row, rows of all polynomials), a block is kThreads threads.
#include "ntt.cuh"

// x, out: [polynomial][row_count][N]; rows[r]: index of a row's prime. Leaves values for ntt_forward_blocks.
extern "C" __global__ void __launch_bounds__(kThreads)
ntt_forward_columns(const word* x, word* out, const Factor* twiddles, const Prime* primes, const unsigned* rows, unsigned row_count, unsigned log_n) {
    __shared__ Tile tile;
    const unsigned row = rows[grid_row() % row_count];
    const size_t at = static_cast<size_t>(grid_row()) << log_n;
    with_field(primes[row], [&](const auto& f) {
        forward_columns(f, tile, [&](unsigned k) { return f.enter(x[at + k]); }, out + at, twiddles + (static_cast<size_t>(row) << log_n), log_n);
    });
}

extern "C" __global__ void __launch_bounds__(kThreads)
ntt_forward_blocks(word* out, const Factor* twiddles, const Prime* primes, const unsigned* rows, unsigned row_count, unsigned log_n) {
    __shared__ Tile tile;
    const unsigned row = rows[grid_row() % row_count];
    word* to = out + (static_cast<size_t>(grid_row()) << log_n);
    with_field(primes[row], [&](const auto& f) {
        forward_blocks(f, tile, to, [&](unsigned k, auto v) { to[k] = f.residue(v); }, twiddles + (static_cast<size_t>(row) << log_n), log_n);
    });
}

// Rows offset..offset+row_count-1 of each polynomial of x [polynomial][x_rows][N] -> out [polynomial][row_count][N], for
// ntt_inverse_columns.
extern "C" __global__ void __launch_bounds__(kThreads)
ntt_inverse_blocks(const word* x, word* out, const Factor* twiddles, const Prime* primes, const unsigned* rows, unsigned row_count,
                   unsigned x_rows, unsigned offset, unsigned log_n) {
    __shared__ Tile tile;
    const unsigned r = grid_row() % row_count, row = rows[r];
    const Blocks place = {blockIdx.x};
    const word* from = x + (static_cast<size_t>(grid_row() / row_count * x_rows + offset + r) << log_n);
    word* to = out + (static_cast<size_t>(grid_row()) << log_n);
    const unsigned first = (1u << (log_n - 1)) + (blockIdx.x << (kLogTile - 1));
    with_field(primes[row], [&](const auto& f) {
        for (unsigned e = threadIdx.x; e < kTile; e += kThreads) tile[e] = f.written(f.enter(from[place(e)]));
        inverse_stages(f, tile, f.constants(twiddles + (static_cast<size_t>(row) << log_n)), first, 0, kLogBlock);
    });
    for (unsigned e = threadIdx.x; e < kTile; e += kThreads) to[place(e)] = tile[e];
}

// scales: [row_count], 1/N times what else the coefficients are to be multiplied with.
extern "C" __global__ void __launch_bounds__(kThreads)
ntt_inverse_columns(word* out, const Factor* twiddles, const Factor* scales, const Prime* primes, const unsigned* rows, unsigned row_count, unsigned log_n) {
    __shared__ Tile tile;
    const unsigned r = grid_row() % row_count, row = rows[r];
    const Columns place(blockIdx.x, log_n);
    word* to = out + (static_cast<size_t>(grid_row()) << log_n);
    for (unsigned e = threadIdx.x; e < kTile; e += kThreads) tile[e] = to[place(e)];
    with_field(primes[row], [&](const auto& f) {
        const auto scale = *f.constants(scales + r);
        const unsigned stages = log_n - kLogBlock;
        inverse_stages(f, tile, f.constants(twiddles + (static_cast<size_t>(row) << log_n)), 1u << (stages - 1), place.log_width, stages);
        for (unsigned e = threadIdx.x; e < kTile; e += kThreads) to[place(e)] = f.residue(f.multiply(f.read(tile[e]), scale));
    });
}
