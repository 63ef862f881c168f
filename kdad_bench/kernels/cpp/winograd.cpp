// Convolutions of 3x3 at stride 1 by Winograd's minimal filtering F(4x4, 3x3) (Lavin & Gray, CVPR 2016), channels last and float32,
// forward and to the weight; the gradient to the image is a forward one of the turned weight. Plain C interface; cpp_path.py loads it.
//
// A tile of 4x4 results takes 36 products per pair of channels in place of 144. The points of interpolation are 0, ±5/8, ±3/2 and
// infinity: their transforms are exact in float32 and lose about half of what the usual 0, ±1, ±2 lose. Each result is summed in
// the same order whatever tiles lie beside it, so that it does not depend on the batch or on the number of threads.

#include <algorithm>
#include <memory>

#include "shares.h"

#ifdef LANES

namespace {

constexpr i64 TAPS = 36, PANEL = 16, ROWS = 6;  // of a transformed tile, output channels and tiles of a block of the product
constexpr i64 APART = 16;  // values between the taps of a buffer, which else would take each other's places in the cache
constexpr float A = 0.625f, B = 1.5f, A2 = A * A, B2 = B * B, A3 = A2 * A, B3 = B2 * B;  // all exact
constexpr float NEAR = 1 / (2 * A2 * (A2 - B2)), FAR = 1 / (2 * B2 * (B2 - A2)), ZERO = 1 / (A2 * B2);
constexpr V8 NONE{};

#define ALWAYS __attribute__((always_inline))  // a lambda else is of the plain machine, and no part of its clone

INLINE void put(float* to, V8 value) { *(V8*)to = value; }

// The taps of the points ±5/8 and ±3/2: of even powers, and of odd ones, which change their sign with the point.
INLINE void pairs(V8 near, V8 along, V8 far, V8 across, V8* to) {
    to[1] = near + along;
    to[2] = near - along;
    to[3] = far + across;
    to[4] = far - across;
}

// The five transforms of one axis. Of an image's tile, 6 -> 6:
INLINE void of_image(const V8* d, V8* to) {
    const V8 near = d[4] - B2 * d[2], along = A * (d[3] - B2 * d[1]), far = d[4] - A2 * d[2], across = B * (d[3] - A2 * d[1]);
    to[0] = A2 * B2 * d[0] - (A2 + B2) * d[2] + d[4];
    pairs(near, along, far, across, to);
    to[5] = A2 * B2 * d[1] - (A2 + B2) * d[3] + d[5];
}
// of products, 6 -> 4:
INLINE void of_products(const V8* m, V8* to) {
    const V8 near = m[1] + m[2], along = m[1] - m[2], far = m[3] + m[4], across = m[3] - m[4];
    to[0] = m[0] + near + far;
    to[1] = A * along + B * across;
    to[2] = A2 * near + B2 * far;
    to[3] = A3 * along + B3 * across + m[5];
}
// its transpose, of a gradient's tile, 4 -> 6:
INLINE void of_gradient(const V8* d, V8* to) {
    const V8 near = d[0] + A2 * d[2], along = A * d[1] + A3 * d[3], far = d[0] + B2 * d[2], across = B * d[1] + B3 * d[3];
    to[0] = d[0];
    pairs(near, along, far, across, to);
    to[5] = d[3];
}
// of a weight, 3 -> 6:
INLINE void of_weight(const V8* g, V8* to) {
    const V8 near = NEAR * (g[0] + A2 * g[2]), along = NEAR * A * g[1], far = FAR * (g[0] + B2 * g[2]), across = FAR * B * g[1];
    to[0] = ZERO * g[0];
    pairs(near, along, far, across, to);
    to[5] = g[2];
}
// and its transpose, 6 -> 3:
INLINE void to_weight(const V8* u, V8* to) {
    const V8 near = NEAR * (u[1] + u[2]), along = NEAR * A * (u[1] - u[2]), far = FAR * (u[3] + u[4]), across = FAR * B * (u[3] - u[4]);
    to[0] = ZERO * u[0] + near + far;
    to[1] = along + across;
    to[2] = A2 * near + B2 * far + u[5];
}

// Both axes of a tile: `from(row, column)` gives it, `to(row, column, value)` takes the result.
template <int IN, int OUT, void (*ONE)(const V8*, V8*), class From, class To> INLINE void both(const From& from, const To& to) {
    V8 half[OUT][IN];
    for (int column = 0; column < IN; column++) {
        V8 given[IN], made[OUT];
        for (int row = 0; row < IN; row++) given[row] = from(row, column);
        ONE(given, made);
        for (int row = 0; row < OUT; row++) half[row][column] = made[row];
    }
    for (int row = 0; row < OUT; row++) {
        V8 made[OUT];
        ONE(half[row], made);
        for (int column = 0; column < OUT; column++) to(row, column, made[column]);
    }
}

struct Image {  // of n images of h x w pixels and c channels
    float* values;
    i64 h, w, c;
};

struct Tiles {  // of the results
    i64 down, across, per_image;
};

// The transform of `size` x `size` pixels from (top, left) on, zero outside of the image: tap t of channel k goes to to[t * stride + k].
template <int SIZE, void (*ONE)(const V8*, V8*)>
INLINE void spread(const Image& from, i64 image, i64 top, i64 left, float* to, i64 stride) {
    const float* values = from.values + image * from.h * from.w * from.c;
    const bool inside = top >= 0 && left >= 0 && top + SIZE <= from.h && left + SIZE <= from.w;
    for (i64 k = 0; k < from.c; k += 8) {
        auto give = [&](int row, int column, V8 value) ALWAYS { put(to + (row * 6 + column) * stride + k, value); };
        if (inside) {
            const float* corner = values + (top * from.w + left) * from.c + k;
            both<SIZE, 6, ONE>([&](int row, int column) ALWAYS { return at(corner + (row * from.w + column) * from.c); }, give);
        } else {
            auto take = [&](int row, int column) ALWAYS {
                const i64 y = top + row, x = left + column;
                return y >= 0 && x >= 0 && y < from.h && x < from.w ? at(values + (y * from.w + x) * from.c + k) : NONE;
            };
            both<SIZE, 6, ONE>(take, give);
        }
    }
}

// The results of one tile from its products.
INLINE void gather(const float* from, i64 stride, const Image& to, i64 image, i64 top, i64 left, const float* bias) {
    float* values = to.values + image * to.h * to.w * to.c;
    const i64 below = std::min<i64>(4, to.h - top), right = std::min<i64>(4, to.w - left);
    for (i64 k = 0; k < to.c; k += 8) {
        const V8 added = bias ? at(bias + k) : NONE;
        V8 half[4][6];
        for (int column = 0; column < 6; column++) {
            V8 given[6], made[4];
            for (int row = 0; row < 6; row++) given[row] = at(from + (row * 6 + column) * stride + k);
            of_products(given, made);
            for (int row = 0; row < 4; row++) half[row][column] = made[row];
        }
        for (int row = 0; row < below; row++) {
            V8 made[4];
            of_products(half[row], made);
            for (int column = 0; column < right; column++) put(values + ((top + row) * to.w + left + column) * to.c + k, made[column] + added);
        }
    }
}

// `R` rows of a product with one panel: to[r][0..16] = sum over k < n of left(r, k) panel[k][0..16]; added to what is there if `more`.
template <int R> INLINE void product(const float* left, i64 row, i64 step, const float* panel, i64 wide, i64 n, float* to, i64 stride, bool more) {
    V8 sums[R][2];
    for (int r = 0; r < R; r++) sums[r][0] = sums[r][1] = NONE;
    for (i64 k = 0; k < n; k++) {
        const V8 first = at(panel + k * wide), second = at(panel + k * wide + 8);
        for (int r = 0; r < R; r++) {
            const float one = left[r * row + k * step];
            sums[r][0] += one * first;
            sums[r][1] += one * second;
        }
    }
    for (int r = 0; r < R; r++)
        for (int half = 0; half < 2; half++) {
            float* place = to + r * stride + 8 * half;
            put(place, more ? at(place) + sums[r][half] : sums[r][half]);
        }
}

// `rows` rows of a product, ROWS at a time.
INLINE void products(i64 rows, const float* left, i64 row, i64 step, const float* panel, i64 wide, i64 n, float* to, i64 stride, bool more) {
    i64 r = 0;
    for (; r + ROWS <= rows; r += ROWS) product<ROWS>(left + r * row, row, step, panel, wide, n, to + r * stride, stride, more);
    switch (rows - r) {
        case 5: product<5>(left + r * row, row, step, panel, wide, n, to + r * stride, stride, more); break;
        case 4: product<4>(left + r * row, row, step, panel, wide, n, to + r * stride, stride, more); break;
        case 3: product<3>(left + r * row, row, step, panel, wide, n, to + r * stride, stride, more); break;
        case 2: product<2>(left + r * row, row, step, panel, wide, n, to + r * stride, stride, more); break;
        case 1: product<1>(left + r * row, row, step, panel, wide, n, to + r * stride, stride, more); break;
    }
}

struct Memory {  // of a thread, kept for its next call
    std::unique_ptr<float[]> values;
    i64 size = 0;
    float* of(i64 wanted) {
        if (wanted > size) {
            values.reset();
            size = 0;
            values.reset(new float[wanted]);
            size = wanted;
        }
        return values.get();
    }
};
thread_local Memory memory;

struct Forward {
    Image x, y;
    const float *weight, *bias;
    i64 tiles, pad, block;
    Tiles grid;
};

CLONES void forward_block(const Forward& f, float* spare, i64 first, i64 count) {
    const i64 in = f.x.c, out = f.y.c;
    const i64 from = f.block * in + APART, to = f.block * out + APART;  // between two taps
    float *given = spare, *made = spare + TAPS * from;
    for (i64 i = 0; i < count; i++) {
        const i64 tile = (first + i) % f.grid.per_image, image = (first + i) / f.grid.per_image;
        spread<6, of_image>(f.x, image, tile / f.grid.across * 4 - f.pad, tile % f.grid.across * 4 - f.pad, given + i * in, from);
    }
    for (i64 t = 0; t < TAPS; t++)
        for (i64 k = 0; k < out; k += PANEL)
            products(count, given + t * from, in, 1, f.weight + (t * out + k) * in, PANEL, in, made + t * to + k, out, false);
    for (i64 i = 0; i < count; i++) {
        const i64 tile = (first + i) % f.grid.per_image, image = (first + i) / f.grid.per_image;
        gather(made + i * out, to, f.y, image, tile / f.grid.across * 4, tile % f.grid.across * 4, f.bias);
    }
}

struct Weights {
    const float* weight;
    i64 outputs, inputs, out, in, down, right;  // strides
};

// Panel `number` of a weight's transform: [36][outputs / 16][inputs][16].
CLONES void pack_panel(const Weights& w, bool turned, i64 number, float* to) {
    for (i64 c = 0; c < w.inputs; c += PANEL) {
        float taps[PANEL][9][PANEL], made[TAPS][PANEL][PANEL];  // of 16 inputs, in the order of the outputs
        for (i64 k = 0; k < PANEL; k++)
            for (i64 t = 0; t < 9; t++) {
                const i64 from = turned ? 8 - t : t;
                const float* start = w.weight + (number * PANEL + k) * w.out + c * w.in + from / 3 * w.down + from % 3 * w.right;
                for (i64 i = 0; i < PANEL; i++) taps[i][t][k] = start[i * w.in];
            }
        for (i64 i = 0; i < PANEL; i++)
            for (i64 k = 0; k < PANEL; k += 8)
                both<3, 6, of_weight>([&](int row, int column) ALWAYS { return at(taps[i][row * 3 + column] + k); }, [&](int row, int column, V8 value) ALWAYS {
                    put(made[row * 6 + column][i] + k, value);
                });
        for (i64 t = 0; t < TAPS; t++) std::copy(made[t][0], made[t][0] + PANEL * PANEL, to + ((t * w.outputs / PANEL + number) * w.inputs + c) * PANEL);
    }
}

struct Backward {
    Image x, above;
    i64 pad, block, count, first;
    Tiles grid;
    float *given, *gradient, *sums;
};

CLONES void backward_tile(const Backward& b, i64 i) {
    const i64 tile = (b.first + i) % b.grid.per_image, image = (b.first + i) / b.grid.per_image;
    const i64 top = tile / b.grid.across * 4, left = tile % b.grid.across * 4;
    spread<6, of_image>(b.x, image, top - b.pad, left - b.pad, b.given + i * b.x.c, b.block * b.x.c + APART);
    spread<4, of_gradient>(b.above, image, top, left, b.gradient + i * b.above.c, b.block * b.above.c + APART);
}

CLONES void backward_tap(const Backward& b, i64 t) {
    const i64 in = b.x.c, out = b.above.c;
    for (i64 k = 0; k < out; k += PANEL)
        products(in, b.given + t * (b.block * in + APART), 1, in, b.gradient + t * (b.block * out + APART) + k, out, b.count, b.sums + t * (in * out + APART) + k, out, b.first > 0);
}

// The gradient to the weights of 16 inputs from `c` on.
CLONES void weight_block(const float* sums, const Weights& w, float* weight, i64 c) {
    for (i64 k = 0; k < w.outputs; k += 8) {
        float taps[8][9][PANEL];  // of 8 outputs, in the order of the inputs
        for (i64 i = 0; i < PANEL; i++)
            both<6, 3, to_weight>([&](int row, int column) ALWAYS { return at(sums + (row * 6 + column) * (w.inputs * w.outputs + APART) + (c + i) * w.outputs + k); },
                                  [&](int row, int column, V8 value) ALWAYS {
                                      for (int lane = 0; lane < 8; lane++) taps[lane][row * 3 + column][i] = value[lane];
                                  });
        for (i64 lane = 0; lane < 8; lane++)
            for (i64 t = 0; t < 9; t++) {
                float* start = weight + (k + lane) * w.out + c * w.in + t / 3 * w.down + t % 3 * w.right;
                for (i64 i = 0; i < PANEL; i++) start[i * w.in] = taps[lane][t][i];
            }
    }
}

Tiles grid_of(i64 h, i64 w) {
    const i64 down = (h + 3) / 4, across = (w + 3) / 4;
    return {down, across, down * across};
}

}  // namespace

extern "C" {

// Whether it is quicker than what PyTorch has: where a clone of it is run that has fused multiplications of 8 floats.
EXPORT int kdad_winograd_pays() {
#ifdef CLONED
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
#else
    return 0;
#endif
}

// The transform of a weight [outputs, inputs, 3, 3] with these strides, turned by half a circle where `turned`: 36 outputs inputs values.
EXPORT bool kdad_winograd_pack(const float* weight, i64 outputs, i64 inputs, i64 out, i64 in, i64 down, i64 right, int turned, float* to, int threads) {
    const Weights w{weight, outputs, inputs, out, in, down, right};
    return had_memory([&] { shared_out([&](i64 number) { pack_panel(w, turned, number, to); }, outputs / PANEL, threads); });
}

// y [n, h + 2 pad - 2, w + 2 pad - 2, out] of x [n, h, w, in]; `block`: so many tiles at a time. False where memory is short.
EXPORT bool kdad_winograd(const float* x, const float* weight, const float* bias, float* y, i64 n, i64 h, i64 w, i64 in, i64 out, i64 pad, i64 block, int threads) {
    const i64 oh = h + 2 * pad - 2, ow = w + 2 * pad - 2;
    const Tiles grid = grid_of(oh, ow);
    const Forward f{{(float*)x, h, w, in}, {y, oh, ow, out}, weight, bias, n * grid.per_image, pad, block, grid};
    return had_memory([&] {
        shared_out([&](i64 part) {
            forward_block(f, memory.of(TAPS * (block * (in + out) + 2 * APART)), part * block, std::min(block, f.tiles - part * block));
        }, (f.tiles + block - 1) / block, threads);
    });
}

// The gradient to the weight, with these strides, of `above` = the gradient to y. `spare`: 36 (in out + block (in + out) + 48) values.
EXPORT bool kdad_winograd_weight(const float* x, const float* above, float* weight, float* spare, i64 n, i64 h, i64 w, i64 in, i64 out, i64 pad, i64 block,
                                 i64 to_out, i64 to_in, i64 down, i64 right, int threads) {
    const i64 oh = h + 2 * pad - 2, ow = w + 2 * pad - 2;
    const Tiles grid = grid_of(oh, ow);
    float *sums = spare, *given = sums + TAPS * (in * out + APART), *gradient = given + TAPS * (block * in + APART);
    return had_memory([&] {
        for (i64 first = 0; first < n * grid.per_image; first += block) {
            const i64 count = std::min(block, n * grid.per_image - first);
            const Backward b{{(float*)x, h, w, in}, {(float*)above, oh, ow, out}, pad, block, count, first, grid, given, gradient, sums};
            shared_out([&](i64 i) { backward_tile(b, i); }, count, threads);
            shared_out([&](i64 t) { backward_tap(b, t); }, TAPS, threads);
        }
        const Weights strides{nullptr, out, in, to_out, to_in, down, right};
        shared_out([&](i64 c) { weight_block(sums, strides, weight, c * PANEL); }, in / PANEL, threads);
    });
}

}  // extern "C"

#else

extern "C" {
EXPORT int kdad_winograd_pays() { return 0; }
EXPORT bool kdad_winograd_pack(const float*, i64, i64, i64, i64, i64, i64, int, float*, int) { return false; }
EXPORT bool kdad_winograd(const float*, const float*, const float*, float*, i64, i64, i64, i64, i64, i64, i64, int) { return false; }
EXPORT bool kdad_winograd_weight(const float*, const float*, float*, float*, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64, int) { return false; }
}  // extern "C"

#endif
