// Memory that starts on a cache line.
#pragma once

#include <cstddef>
#include <memory>
#include <new>

namespace kernels {

template <class T>
struct AlignedDelete {
    void operator()(T* p) const { ::operator delete(p, std::align_val_t(64)); }
};

// For numbers only: not initialised.
template <class T>
using Buffer = std::unique_ptr<T[], AlignedDelete<T>>;

template <class T>
Buffer<T> make_buffer(std::size_t size) {
    return Buffer<T>(static_cast<T*>(::operator new(size * sizeof(T), std::align_val_t(64))));
}

}  // namespace kernels
