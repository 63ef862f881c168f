// Sharing out parts of a work among threads.

#pragma once

#include <algorithm>
#include <atomic>
#include <exception>
#include <new>
#include <thread>
#include <vector>

#include "cpu.h"

// Whether `work` found the memory that it asked for: no exception may leave a function of C, nor the body of a thread.
template <class Work> bool had_memory(const Work& work) {
    try { work(); } catch (const std::exception&) { return false; }
    return true;
}

// Runs work(part) for each of `parts`. Every thread starts with its own stretch of them, the caller with the first, as matrix
// products divide rows: what one of those just wrote is then in this core's cache. Who is done early takes over from others. Raises
// std::bad_alloc where a part did.
template <class Work> void shared_out(const Work& work, i64 parts, int threads) {
    struct alignas(64) Stretch { std::atomic<i64> next{0}; i64 end = 0; };
    struct Queue {
        const Work* work;
        std::vector<Stretch> stretches;
        std::atomic<int> joined;
        std::thread::id caller;
        std::atomic<bool> complete;
    };
    threads = (int)std::max<i64>(1, std::min<i64>(threads, parts));
    Queue queue{&work, std::vector<Stretch>(threads), {1}, std::this_thread::get_id(), {true}};
    for (int k = 0; k < threads; k++) { queue.stretches[k].next = k * parts / threads; queue.stretches[k].end = (k + 1) * parts / threads; }
    auto body = [](void* raw) {
        Queue& q = *(Queue*)raw;
        const int own = std::this_thread::get_id() == q.caller ? 0 : q.joined.fetch_add(1, std::memory_order_relaxed);
        const int all = (int)q.stretches.size();
        for (int k = 0; k < all; k++) {
            Stretch& s = q.stretches[(own + k) % all];
            for (i64 part; (part = s.next.fetch_add(1, std::memory_order_relaxed)) < s.end;)
                if (!had_memory([&] { (*q.work)(part); })) q.complete = false;
        }
    };
    parallel(body, &queue, threads);
    if (!queue.complete) throw std::bad_alloc();
}
