// What the CPU sources share.

#pragma once

#include <cstdint>

// One copy of each inner loop per instruction set, chosen when the library is loaded.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__linux__) && !defined(KDAD_NO_CLONES)
#define CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#define CLONED 1
#else
#define CLONES
#endif
#define INLINE static inline __attribute__((always_inline))

#if defined(_WIN32)
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif

// Vectors; without them plain loops do.
#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define LANES 1
#endif
#endif
#ifdef LANES
// of 8 floats: where there is no AVX-512, one of 16 lies on the stack and is worked on in pieces
typedef float V8 __attribute__((vector_size(32), aligned(4), may_alias));
INLINE const V8& at(const float* x) { return *(const V8*)x; }
#endif

typedef int64_t i64;

INLINE float rectified(float v) { return v < 0.0f ? 0.0f : v; }  // NaN stays

// Run `body(data)` on so many threads at once.
typedef void (*Body)(void*);
void parallel(Body body, void* data, int threads);
