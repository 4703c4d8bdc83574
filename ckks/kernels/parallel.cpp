#include "parallel.h"

#include <unistd.h>

namespace kernels {

// The parent's state, after a fork, may hold a locked mutex and names of threads that do not exist here: it is left alone, never destroyed.
Pool::State& Pool::state() {
    if (!state_ || state_->process != getpid()) {
        state_ = new State;
        state_->process = getpid();
        for (std::size_t i = 1; i < threads_; ++i) state_->helpers.emplace_back([state = state_] { help(*state); });
    }
    return *state_;
}

Pool::~Pool() {
    if (!state_ || state_->process != getpid()) return;
    {
        const std::lock_guard lock(state_->mutex);
        state_->stop = true;
    }
    state_->work.notify_all();
    for (std::thread& helper : state_->helpers) helper.join();
    delete state_;
}

void Pool::run(std::size_t count, const std::function<void(std::size_t)>& task) {
    if (threads_ == 1 || count <= 1) {
        for (std::size_t i = 0; i < count; ++i) task(i);
        return;
    }
    State& s = [&]() -> State& {
        const std::lock_guard lock(start_);
        return state();
    }();
    Job job{&task, count};
    std::unique_lock lock(s.mutex);
    s.jobs.push_back(&job);
    if (count > 2)
        s.work.notify_all();
    else
        s.work.notify_one();
    while (job.next < job.count) take_one(s, job, lock);
    s.done.wait(lock, [&] { return job.finished == job.count; });
}

void Pool::take_one(State& s, Job& job, std::unique_lock<std::mutex>& lock) {
    const std::size_t i = job.next++;
    if (job.next == job.count) s.jobs.remove(&job);
    lock.unlock();
    (*job.task)(i);
    lock.lock();
    if (++job.finished == job.count) s.done.notify_all();
}

void Pool::help(State& s) {
    std::unique_lock lock(s.mutex);
    while (true) {
        s.work.wait(lock, [&] { return s.stop || !s.jobs.empty(); });
        if (s.stop) return;
        take_one(s, *s.jobs.front(), lock);
    }
}

}  // namespace kernels
