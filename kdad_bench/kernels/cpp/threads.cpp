// The threads of all CPU sources, and which sources they were.

#include <cstdint>
#include <exception>
#include <thread>
#include <vector>

#include "cpu.h"

namespace {

typedef void (*GompParallel)(Body, void*, unsigned, unsigned);
GompParallel gomp_parallel = nullptr;  // of the pool torch already has

}  // namespace

void parallel(Body body, void* data, int threads) {
    if (threads <= 1) { body(data); return; }
    if (gomp_parallel) { gomp_parallel(body, data, (unsigned)threads, 0); return; }
    std::vector<std::thread> others;
    try {  // fewer do all of the work, where there are no more
        for (int i = 1; i < threads; i++) others.emplace_back(body, data);
    } catch (const std::exception&) {}
    body(data);
    for (auto& other : others) other.join();
}

extern "C" {

EXPORT void kdad_use_gomp(void* function) { gomp_parallel = (GompParallel)function; }

EXPORT uint32_t kdad_source() { return KDAD_SOURCE; }  // of setup.py: which sources this was built from

}  // extern "C"
