// Runs unmodified CUDA kernels on the CPU, for tests: every thread of a block is a fiber, __syncthreads() passes on to the next one.
//
// Between two barriers a fiber runs without interruption, so a missing barrier shows as a result that depends on the order of the threads.
// Races within a warp, launch limits and speed do not show. Static shared memory, one-dimensional blocks, one launch at a time.
#pragma once

#include <math.h>
#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#define __global__
#define __device__
#define __forceinline__ inline
#define __shared__ static
#define __align__(n) __attribute__((aligned(n)))
#define __launch_bounds__(...)

struct dim3 {
    unsigned x, y, z;
};
static dim3 threadIdx, blockIdx, blockDim, gridDim;

static inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return static_cast<unsigned long long>((static_cast<unsigned __int128>(a) * b) >> 64);
}
static inline unsigned __brev(unsigned x) {
    x = __builtin_bswap32(x);
    x = (x >> 4 & 0x0f0f0f0fu) | (x & 0x0f0f0f0fu) << 4;
    x = (x >> 2 & 0x33333333u) | (x & 0x33333333u) << 2;
    return (x >> 1 & 0x55555555u) | (x & 0x55555555u) << 1;
}
// The lower word of high:low shifted right by shift modulo 32.
static inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
    return static_cast<unsigned>((static_cast<unsigned long long>(high) << 32 | low) >> (shift & 31));
}
// Built with -ffp-contract=off: every operation is rounded by itself, and a fused one once.
static inline double __dadd_rn(double a, double b) { return a + b; }
static inline double __dsub_rn(double a, double b) { return a - b; }
static inline double __dmul_rn(double a, double b) { return a * b; }
static inline double __fma_rn(double a, double b, double c) { return __builtin_fma(a, b, c); }
static inline double __longlong_as_double(long long bits) {
    double x;
    memcpy(&x, &bits, sizeof x);
    return x;
}
static inline long long __double_as_longlong(double x) {
    long long bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}
static inline unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }

namespace shim {

constexpr unsigned kMaxThreads = 1024;
constexpr size_t kStack = 32768 + 576;  // not a multiple of the page: the tops of the stacks must not share cache sets

enum class Order : unsigned { kForward, kReverse, kShuffled };
enum Result : int { kDone, kUnknownKernel, kDiverged, kNoMemory };

struct Fiber {
    jmp_buf state;
    bool started, running;
};

using Kernel = void (*)(const uint64_t*);
struct Entry {
    const char* name;
    Kernel kernel;
};

static Fiber fibers[kMaxThreads];
static jmp_buf scheduler;
static unsigned current;
static Kernel kernel;
static const uint64_t* arguments;

// A fiber lives as long as the library: it runs its thread, stops, and runs the thread of a later block when it is resumed.
static void fiber() {
    for (;;) {
        kernel(arguments);
        fibers[current].running = false;
        if (!_setjmp(fibers[current].state)) _longjmp(scheduler, 1);
    }
}

[[gnu::noinline]] static void barrier() {
    if (!_setjmp(fibers[current].state)) _longjmp(scheduler, 1);
}

[[gnu::noinline]] static bool resume(unsigned thread) {
    Fiber& f = fibers[thread];
    current = thread;
    threadIdx.x = thread;
    if (_setjmp(scheduler)) return true;
    if (f.started) _longjmp(f.state, 1);
    static ucontext_t context;
    getcontext(&context);
    context.uc_stack.ss_sp = malloc(kStack);
    context.uc_stack.ss_size = kStack;
    context.uc_link = nullptr;
    if (!context.uc_stack.ss_sp) return false;
    f.started = true;
    makecontext(&context, fiber, 0);
    setcontext(&context);
    return false;
}

static Result run_block(unsigned threads, Order order) {
    static unsigned turn[kMaxThreads];
    static uint32_t random = 1;
    for (unsigned i = 0; i < threads; ++i) {
        turn[i] = order == Order::kReverse ? threads - 1 - i : i;
        fibers[i].running = true;
    }
    for (unsigned left = threads; left;) {
        if (order == Order::kShuffled)
            for (unsigned i = threads - 1; i > 0; --i) {
                random = random * 1664525u + 1013904223u;
                const unsigned j = static_cast<unsigned>(static_cast<uint64_t>(random) * (i + 1) >> 32), t = turn[i];
                turn[i] = turn[j];
                turn[j] = t;
            }
        unsigned ended = 0;
        for (unsigned i = 0; i < threads; ++i) {
            if (!resume(turn[i])) return kNoMemory;
            ended += !fibers[turn[i]].running;
        }
        if (ended && ended < left) return kDiverged;  // some threads wait at a barrier that others will never reach
        left -= ended;
    }
    return kDone;
}

static Result launch(Kernel which, const uint64_t* words, dim3 grid, unsigned threads, Order order) {
    kernel = which;
    arguments = words;
    gridDim = grid;
    blockDim = {threads, 1, 1};
    for (unsigned z = 0; z < grid.z; ++z)
        for (unsigned y = 0; y < grid.y; ++y)
            for (unsigned x = 0; x < grid.x; ++x) {
                blockIdx = {x, y, z};
                if (const Result result = run_block(threads, order); result != kDone) return result;
            }
    return kDone;
}

// Every argument travels as a 64-bit word.
template <class T>
struct As {
    static T from(uint64_t word) { return static_cast<T>(word); }
};
template <class T>
struct As<T*> {
    static T* from(uint64_t word) { return reinterpret_cast<T*>(word); }
};
template <auto Function>
struct Call;
template <class... A, void (*Function)(A...)>
struct Call<Function> {
    template <size_t... I>
    struct Indices {};
    template <size_t N, size_t... I>
    struct Count : Count<N - 1, N - 1, I...> {};
    template <size_t... I>
    struct Count<0, I...> {
        using type = Indices<I...>;
    };
    template <size_t... I>
    static void with(const uint64_t* words, Indices<I...>) {
        Function(As<A>::from(words[I])...);
    }
    static void run(const uint64_t* words) { with(words, typename Count<sizeof...(A)>::type{}); }
};

}  // namespace shim

#define __syncthreads() shim::barrier()
