// What residual networks do between their convolutions at inference, channels last and float32: addition and ReLU in one reading,
// and maximum pooling without the places of the maxima. Plain C interface; cpp_path.py loads them. Each value is what PyTorch's
// kernels give, to the bit: a sum of two values, and comparisons in the order of the pixels. Both are false where memory is short.

#include <algorithm>

#include "shares.h"

namespace {

constexpr i64 TILE = 1 << 14;  // values that a thread takes at a time

CLONES void add_rectified(float* __restrict y, const float* __restrict other, i64 n) {
    for (i64 i = 0; i < n; i++) y[i] = rectified(y[i] + other[i]);
}

INLINE float larger(float x, float most) { return x > most || x != x ? x : most; }  // NaN wins and stays

INLINE void largest(const float* const* window, i64 pixels, i64 c, float* __restrict to) {  // of so many pixels, in their order
    if (pixels == 9) {
        const float *__restrict x0 = window[0], *__restrict x1 = window[1], *__restrict x2 = window[2], *__restrict x3 = window[3];
        const float *__restrict x4 = window[4], *__restrict x5 = window[5], *__restrict x6 = window[6], *__restrict x7 = window[7];
        const float* __restrict x8 = window[8];
        for (i64 k = 0; k < c; k++) {
            float v = larger(x2[k], larger(x1[k], x0[k]));
            v = larger(x5[k], larger(x4[k], larger(x3[k], v)));
            to[k] = larger(x8[k], larger(x7[k], larger(x6[k], v)));
        }
        return;
    }
    std::copy(window[0], window[0] + c, to);
    for (i64 i = 1; i < pixels; i++) {
        const float* __restrict x = window[i];
        for (i64 k = 0; k < c; k++) to[k] = larger(x[k], to[k]);
    }
}

struct Pool {
    const float* x;
    float* y;
    i64 h, w, oh, ow, c;
};

CLONES void pool_row(const Pool& p, i64 number) {  // of the rows of all images
    const i64 image = number / p.oh, row = number % p.oh, top = std::max<i64>(0, 2 * row - 1), below = std::min(p.h, 2 * row + 2);
    for (i64 column = 0; column < p.ow; column++) {
        const i64 left = std::max<i64>(0, 2 * column - 1), right = std::min(p.w, 2 * column + 2);
        const float* window[9] = {};
        i64 pixels = 0;
        for (i64 i = top; i < below; i++)
            for (i64 k = left; k < right; k++) window[pixels++] = p.x + ((image * p.h + i) * p.w + k) * p.c;
        largest(window, pixels, p.c, p.y + (number * p.ow + column) * p.c);
    }
}

}  // namespace

extern "C" {

// y = relu(y + other), n values each.
EXPORT bool kdad_add_rectified(float* y, const float* other, i64 n, int threads) {
    return had_memory([&] {
        shared_out([&](i64 part) { add_rectified(y + part * TILE, other + part * TILE, std::min(TILE, n - part * TILE)); },
                   (n + TILE - 1) / TILE, threads);
    });
}

// Maximum of windows of 3x3 pixels at stride 2 with a border of one: x [n, h, w, c] -> y [n, (h + 1) / 2, (w + 1) / 2, c].
EXPORT bool kdad_max_pool(const float* x, float* y, i64 n, i64 h, i64 w, i64 c, int threads) {
    const Pool p{x, y, h, w, (h + 1) / 2, (w + 1) / 2, c};
    return had_memory([&] { shared_out([&](i64 row) { pool_row(p, row); }, n * p.oh, threads); });
}

}  // extern "C"
