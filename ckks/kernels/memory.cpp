#include "memory.h"

#include <map>
#include <mutex>
#include <new>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace kernels {

namespace {

constexpr std::size_t kIdle = std::size_t(256) << 20;  // bytes kept at most while nobody uses them
constexpr std::size_t kHuge = std::size_t(2) << 20;    // a huge page of x86-64 and of most arm64

struct Idle {
    std::mutex mutex;
    std::map<std::size_t, std::vector<void*>> blocks;  // by size
    std::size_t bytes = 0;
};

Idle& idle() {
    static Idle* const kept = new Idle;  // never destroyed: arrays may outlive everything else
    return *kept;
}

std::align_val_t alignment(std::size_t bytes) { return std::align_val_t(bytes >= kHuge ? kHuge : 64); }

}  // namespace

void* take_block(std::size_t bytes) {
#if !defined(__SANITIZE_ADDRESS__)  // which then sees every overrun and use after release
    {
        const std::lock_guard lock(idle().mutex);
        const auto found = idle().blocks.find(bytes);
        if (found != idle().blocks.end() && !found->second.empty()) {
            void* const block = found->second.back();
            found->second.pop_back();
            idle().bytes -= bytes;
            return block;
        }
    }
#endif
    void* const block = ::operator new(bytes, alignment(bytes));
#if defined(__linux__)
    if (bytes >= kHuge) madvise(block, bytes / kHuge * kHuge, MADV_HUGEPAGE);  // a wish: sums read dozens of arrays side by side
#endif
    return block;
}

void give_block(void* block, std::size_t bytes) noexcept {
#if !defined(__SANITIZE_ADDRESS__)
    try {
        const std::lock_guard lock(idle().mutex);
        if (idle().bytes + bytes <= kIdle) {
            idle().blocks[bytes].push_back(block);
            idle().bytes += bytes;
            return;
        }
    } catch (const std::bad_alloc&) {  // no room to remember it
    }
#endif
    ::operator delete(block, alignment(bytes));
}

}  // namespace kernels
