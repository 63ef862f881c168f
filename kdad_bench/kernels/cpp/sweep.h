// The sweep over pairs of feature maps: jobs as cpp_path.py packs them, tiles, and what sweep.cpp, kinds.cpp, tiles.cpp and
// loops.cpp share.
//
// Work is cut into tiles that stay in the cache between the first sweep (the sums A = |t|^2, B = |s|^2, P = t.s per pixel) and
// the second (residual of the unit vectors, gradients). Where no gradient is wanted one sweep is enough: with planes the sums
// are double, with rows float, and there only the pixels whose 1 - c float cannot resolve are read again. Every tile has its
// own slot for partial results and these are added in order, so a result does not depend on the number of threads.

#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "shares.h"

namespace kdad {

constexpr float TINY = 7.888609052210118e-31f;  // 2^-100: vectors below it count as zero, as in reference.py
constexpr int MAX_PIXELS = 2048;                // pixels of a tile, at most; NCHW is read fastest in long rows
constexpr i64 PLANES_TILE = 65536;              // values of one tensor in a tile: NCHW (stays in L2 for the second sweep) ...
constexpr i64 ROWS_TILE = 32768;                // ... and channels_last
constexpr i64 SECOND_LOOK = 4096;               // values of one tensor that stay in L1
constexpr size_t KEPT = 1 << 20;                // values of a buffer that a thread keeps for its next call, at most
constexpr float NEAR = 0.03125f;                // below it 1 - c in float is off by more than about 1e-5 of itself

constexpr float FAR = 1099511627776.0f;         // 2^40: 1/|v|^2 times a gradient may leave float32 where |v| or 1/|v| is above it

enum Kind { UNIT_L2 = 0, COSINE = 1, L2 = 2, FLAT_SUMS = 3, FLAT_GRADIENT = 4, ATTENTION = 5, FLAT_LOSS = 6 };
enum Dtype { F32 = 0, F16 = 1, BF16 = 2 };

struct View {  // strides in elements
    i64 data, sn, sc, sh, sw, dtype;
};

struct Job {  // laid out as cpp_path.py packs it
    i64 n, c, h, w;
    View teacher, student;
    i64 map;                    // float [n, h, w] contiguous, or 0
    View student_grad, teacher_grad;  // data 0: not wanted
    i64 upstream, un, uh, uw;   // float, any strides, or 0
    double factor;              // multiplies the gradients
    double weight;              // multiplies the map
    i64 sums;                   // double [n, 3] A, B, P per sample: written by FLAT_SUMS and FLAT_LOSS, read by FLAT_GRADIENT
    i64 chained;                // 1: same teacher and tiling as the job before it, so that its tile is still in the cache
};

// A tile: `outer` rows of `inner` contiguous floats; planes: rows are channels, else rows are pixels.
struct Tile {
    const float* a; i64 sa;  // teacher and its row stride
    const float* b; i64 sb;  // student
    i64 c, p;                // channels, pixels
    bool planes;
};

// A tile of a job and where it lies: sample n, pixels from p0.
struct Piece {
    const Job& job;
    Tile tile;
    i64 n, p0;
    i64 rows() const { return tile.planes ? tile.c : tile.p; }
    i64 length() const { return tile.planes ? tile.p : tile.c; }
    float* map() const { return job.map ? (float*)job.map + n * job.h * job.w + p0 : nullptr; }
};

// What a thread keeps of the tile it works on.
struct Scratch {
    std::vector<float> a, b, b2, out;
    float A[MAX_PIXELS], B[MAX_PIXELS], P[MAX_PIXELS], ia[MAX_PIXELS], ib[MAX_PIXELS], q[MAX_PIXELS], D[MAX_PIXELS];
    float B2[MAX_PIXELS], P2[MAX_PIXELS], k[MAX_PIXELS], m[MAX_PIXELS], g[MAX_PIXELS];
    double wide_A[MAX_PIXELS], wide_B[MAX_PIXELS], wide_P[MAX_PIXELS];
    void shrink() {
        for (std::vector<float>* buffer : {&a, &b, &b2, &out})
            if (buffer->capacity() > KEPT) std::vector<float>().swap(*buffer);
    }
};

// ---- loops.cpp: the inner loops ------------------------------------------------------------------------------------

void planes_sums(const Tile& t, float* A, float* B, float* P);
void rows_sums(const Tile& t, float* A, float* B, float* P);
void rows_dual_sums(const Tile& t, const Tile& o, float* A, float* B, float* P, float* B2, float* P2);
void planes_double_sums(const Tile& t, double* A, double* B, double* P);
void distances(const double* A, const double* B, const double* P, float* D, i64 n);
void planes_residual(const Tile& t, const float* ia, const float* ib, float* D);
void rows_residual(const Tile& t, const float* ia, const float* ib, float* D);
void planes_combine(const float* x, const float* y, const float* u, const float* v, float* out, i64 n);
void rows_combine(const float* x, const float* y, float u, float v, float* out, i64 n);
void planes_residual_gradient(const float* a, const float* b, const float* ia, const float* ib, const float* k, const float* m,
                              float* D, float* out, i64 n);
void planes_residual_gradient4(const float* a, i64 sa, const float* b, i64 sb, const float* ia, const float* ib, const float* k,
                               const float* m, float* D, float* out, i64 so, i64 n);
void planes_scale(const float* x, i64 sx, const float* u, float* out, i64 so, i64 rows, i64 n);
void rows_scale(const float* x, i64 sx, const float* u, float* out, i64 so, i64 rows, i64 n);
float rows_residual_gradient(const float* a, const float* b, float ia, float ib, float k, float m, float* out, i64 n);
void rows_residual_gradients(const Tile& t, const float* ia, const float* ib, const float* k, const float* m, float* D, float* out,
                             i64 so);
void row_double_sums(const float* a, const float* b, i64 n, double* out);
void inverse_lengths(const float* A, const float* B, const float* P, float* ia, float* ib, float* q, i64 n);
i64 out_of_range(const float* A, const float* B, i64 n);
void careful_pixel(const Tile& t, i64 p, float* ia, float* ib, float* q);
INLINE bool in_range(float A, float B) { return A > 1e-30f && A < 1e37f && B > 1e-30f && B < 1e37f; }

// ---- tiles.cpp: tiles of any dtype and layout ----------------------------------------------------------------------

INLINE i64 pixel_stride(const View& v, i64 w) { return w == 1 ? v.sh : v.sw; }

const float* acquire(const View& v, const Job& j, i64 n, i64 p0, i64 np, bool planes, std::vector<float>& buffer, i64* stride);
bool in_place(const View& v, const Piece& x);
i64 row_stride(const View& v, const Piece& x);
float* output_row(const View& v, const Piece& x, i64 r, float* row);
void finish_row(const View& v, const Piece& x, i64 r, const float* row);
void write_combination(const Piece& x, const View& v, const float* u, const float* w, std::vector<float>& row);
void write_flat(const Piece& x, const View& v, double u, double w, bool widely, std::vector<float>& row);
void write_one(const Piece& x, const View& v, i64 p, i64 c, float value);

// ---- kinds.cpp: one tile of one job --------------------------------------------------------------------------------

double run_tile(int kind, const Piece& x, Scratch& s, double* sums);
void run_pair(const Job* jobs, int kind, i64 n, i64 p0, i64 np, const float* a, i64 sa, Scratch& s, double* totals, i64 width);

}  // namespace kdad
