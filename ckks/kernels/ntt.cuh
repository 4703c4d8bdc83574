// Negacyclic transforms of tiles in shared memory, two passes for N = 2^12..2^17 (Longa and Naehrig 2016, algorithms 1 and 2).
//
// A polynomial is a matrix of N/512 rows and 512 columns. The columns' pass works on some columns of all rows at once, the blocks' pass on
// four rows; both see a tile of 2048 values in which a butterfly joins values a power of two apart. A thread takes 8 or 4 of them through 3
// or 2 stages in registers.
#pragma once

#include "doubles.cuh"

constexpr unsigned kLogTile = 11, kTile = 1u << kLogTile, kThreads = 256;
constexpr unsigned kLogBlock = 9;  // columns of the matrix: the stages of the blocks' pass

struct Tile {
    word values[kTile + kTile / 8];
    // A gap after every 8 values keeps the strides of all rounds off the same memory banks.
    __device__ __forceinline__ word& operator[](unsigned e) { return values[e + (e >> 3)]; }
};

// Where value e of tile number `tile` lies in a polynomial.
struct Blocks {
    unsigned tile;
    __device__ __forceinline__ unsigned operator()(unsigned e) const { return tile << kLogTile | e; }
};
struct Columns {
    unsigned tile, log_width;  // width: columns in a tile, 2^11 / (N/512)
    __device__ __forceinline__ Columns(unsigned tile, unsigned log_n) : tile(tile), log_width(kLogTile + kLogBlock - log_n) {}
    __device__ __forceinline__ unsigned operator()(unsigned e) const {
        return (e >> log_width) << kLogBlock | tile << log_width | (e & ((1u << log_width) - 1));
    }
};

// Stages whose butterflies are 2^log_distance apart and less. first: the twiddle of the tile's first butterfly in the first stage; the
// twiddles of a stage lie behind each other, twice as many as in the stage before.
template <unsigned K, class Field>
__device__ __forceinline__ void forward_round(const Field& f, Tile& tile, const typename Field::Constant* twiddles, unsigned first, unsigned log_distance) {
    const unsigned log_step = log_distance - (K - 1);
    for (unsigned g = threadIdx.x; g < kTile >> K; g += kThreads) {
        const unsigned low = g & ((1u << log_step) - 1), high = g >> log_step, base = high << (log_step + K) | low;
        typename Field::Value x[1 << K];
#pragma unroll
        for (unsigned u = 0; u < 1u << K; ++u) x[u] = f.read(tile[base + (u << log_step)]);
#pragma unroll
        for (unsigned d = 0; d < K; ++d) {
            const unsigned half = 1u << (K - 1 - d);
#pragma unroll
            for (unsigned u = 0; u < 1u << K; ++u) {
                if (u & half) continue;
                const auto a = f.addend(x[u], d), b = f.multiply(x[u | half], twiddles[((first + high) << d) + (u >> (K - d))]);
                x[u] = f.add(a, b);
                x[u | half] = f.subtract(a, b);
            }
        }
#pragma unroll
        for (unsigned u = 0; u < 1u << K; ++u) tile[base + (u << log_step)] = f.written(x[u]);
    }
}

template <class Field>
__device__ __forceinline__ void forward_stages(const Field& f, Tile& tile, const typename Field::Constant* twiddles, unsigned first, unsigned log_distance,
                                               unsigned stages) {
    while (stages) {
        __syncthreads();
        const unsigned k = stages == 2 || stages == 4 ? 2 : 3;
        if (k == 3)
            forward_round<3>(f, tile, twiddles, first, log_distance);
        else
            forward_round<2>(f, tile, twiddles, first, log_distance);
        first <<= k;
        log_distance -= k;
        stages -= k;
    }
    __syncthreads();
}

// Stages whose butterflies are 2^log_step apart and more.
template <unsigned K, class Field>
__device__ __forceinline__ void inverse_round(const Field& f, Tile& tile, const typename Field::Constant* twiddles, unsigned first, unsigned log_step) {
    for (unsigned g = threadIdx.x; g < kTile >> K; g += kThreads) {
        const unsigned low = g & ((1u << log_step) - 1), high = g >> log_step, base = high << (log_step + K) | low;
        typename Field::Value x[1 << K];
#pragma unroll
        for (unsigned u = 0; u < 1u << K; ++u) x[u] = f.read(tile[base + (u << log_step)]);
#pragma unroll
        for (unsigned d = 0; d < K; ++d) {
            const unsigned half = 1u << d;
#pragma unroll
            for (unsigned u = 0; u < 1u << K; ++u) {
                if (u & half) continue;
                const auto w = twiddles[(first >> d) + (high << (K - 1 - d)) + (u >> (d + 1))];
                const auto sum = f.add(x[u], x[u | half]), difference = f.subtract(x[u], x[u | half]);
                x[u] = f.folded(sum, d, u);
                x[u | half] = f.multiply(difference, w);
            }
        }
#pragma unroll
        for (unsigned u = 0; u < 1u << K; ++u) tile[base + (u << log_step)] = f.written(x[u]);
    }
}

template <class Field>
__device__ __forceinline__ void inverse_stages(const Field& f, Tile& tile, const typename Field::Constant* twiddles, unsigned first, unsigned log_step,
                                               unsigned stages) {
    while (stages) {
        __syncthreads();
        const unsigned k = stages == 2 || stages == 4 ? 2 : 3;
        if (k == 3)
            inverse_round<3>(f, tile, twiddles, first, log_step);
        else
            inverse_round<2>(f, tile, twiddles, first, log_step);
        first >>= k;
        log_step += k;
        stages -= k;
    }
    __syncthreads();
}

// The two passes of a forward transform of one row. load(k): coefficient k, small. store(k, value): value k, small.
template <class Field, class Load>
__device__ __forceinline__ void forward_columns(const Field& f, Tile& tile, const Load& load, word* out, const Factor* twiddles, unsigned log_n) {
    const Columns place(blockIdx.x, log_n);
    for (unsigned e = threadIdx.x; e < kTile; e += kThreads) tile[e] = f.written(load(place(e)));
    forward_stages(f, tile, f.constants(twiddles), 1, kLogTile - 1, log_n - kLogBlock);
    for (unsigned e = threadIdx.x; e < kTile; e += kThreads) out[place(e)] = tile[e];
}

template <class Field, class Store>
__device__ __forceinline__ void forward_blocks(const Field& f, Tile& tile, const word* x, const Store& store, const Factor* twiddles, unsigned log_n) {
    const Blocks place = {blockIdx.x};
    for (unsigned e = threadIdx.x; e < kTile; e += kThreads) tile[e] = x[place(e)];
    const unsigned first = (1u << (log_n - kLogBlock)) + (blockIdx.x << (kLogTile - kLogBlock));
    forward_stages(f, tile, f.constants(twiddles), first, kLogBlock - 1, kLogBlock);
    for (unsigned e = threadIdx.x; e < kTile; e += kThreads) store(place(e), f.settled(f.read(tile[e])));
}
