// Memory for results and scratch. Fresh memory from the system costs more than most kernels take on it (a page fault each 4 KiB), so
// blocks are kept for the next array of their size.
#pragma once

#include <cstddef>
#include <memory>

namespace kernels {

// At least `bytes`, on a cache line, not initialised. Throws std::bad_alloc.
void* take_block(std::size_t bytes);
void give_block(void* block, std::size_t bytes) noexcept;

template <class T>
struct GiveBack {
    std::size_t size;
    void operator()(T* p) const { give_block(p, size * sizeof(T)); }
};

// For numbers only: not initialised.
template <class T>
using Buffer = std::unique_ptr<T[], GiveBack<T>>;

template <class T>
Buffer<T> make_buffer(std::size_t size) {
    return Buffer<T>(static_cast<T*>(take_block(size * sizeof(T))), GiveBack<T>{size});
}

}  // namespace kernels
