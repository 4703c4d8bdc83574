// Independent tasks over a few threads.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <functional>
#include <list>
#include <mutex>
#include <thread>
#include <vector>

#include <sys/types.h>

namespace kernels {

// Threads that wait for work, started at the first call. A process that was forked has none of its parent's threads: it starts its own.
class Pool {
public:
    explicit Pool(std::size_t threads) : threads_(threads) {}
    ~Pool();
    Pool(const Pool&) = delete;

    std::size_t threads() const { return threads_; }

    // Runs task(0) .. task(count-1), which must not throw, on the caller's thread too; any number of callers at a time.
    void run(std::size_t count, const std::function<void(std::size_t)>& task);

private:
    struct Job {
        const std::function<void(std::size_t)>* task;
        std::size_t count, next = 0, finished = 0;
    };
    struct State {
        std::mutex mutex;
        std::condition_variable work, done;
        std::list<Job*> jobs;  // those with tasks not yet taken
        bool stop = false;
        std::vector<std::thread> helpers;
        pid_t process;
    };

    State& state();
    static void help(State& state);
    static void take_one(State& state, Job& job, std::unique_lock<std::mutex>& lock);

    const std::size_t threads_;
    std::mutex start_;
    State* state_ = nullptr;
};

}  // namespace kernels
