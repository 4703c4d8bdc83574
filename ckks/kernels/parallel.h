// Independent tasks over a few threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <thread>
#include <vector>

namespace kernels {

// Runs task(0) .. task(count-1), which must not throw. Threads live for one call: a pool would not survive fork(), and starting one
// costs some 20 us where a call takes milliseconds.
template <class Task>
void parallel(std::size_t threads, std::size_t count, const Task& task) {
    std::atomic<std::size_t> next{0};
    const auto work = [&] {
        for (std::size_t i = next++; i < count; i = next++) task(i);
    };
    std::vector<std::jthread> helpers;  // joins when it goes out of scope
    for (std::size_t t = 1; t < std::min(threads, count); ++t) helpers.emplace_back(work);
    work();
}

}  // namespace kernels
