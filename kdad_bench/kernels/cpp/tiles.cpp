// Reading and writing tiles of any dtype and layout; see sweep.h.

#include <cstdint>
#include <cstring>

#include "sweep.h"

namespace kdad {

namespace {

// ---- 16-bit floats -------------------------------------------------------------------------------------------------

INLINE float from_bits(uint32_t x) { float f; std::memcpy(&f, &x, 4); return f; }
INLINE uint32_t to_bits(float f) { uint32_t x; std::memcpy(&x, &f, 4); return x; }

INLINE float half_to_float(uint16_t h) {
    const uint32_t sign = (uint32_t)(h & 0x8000) << 16, magnitude = h & 0x7fff;
    const uint32_t normal = (magnitude << 13) + (magnitude >= 0x7c00 ? (224u << 23) : (112u << 23));
    const uint32_t subnormal = to_bits((float)(int32_t)magnitude * 5.9604644775390625e-8f);  // 2^-24
    return from_bits(sign | (magnitude < 0x400 ? subnormal : normal));
}

INLINE uint16_t float_to_half(float f) {  // to nearest even
    const uint32_t x = to_bits(f), magnitude = x & 0x7fffffff;
    const uint32_t normal = (magnitude + 0xfff + ((magnitude >> 13) & 1) - (112u << 23)) >> 13;
    const uint32_t subnormal = to_bits(from_bits(magnitude) + 0.5f) - 0x3f000000u;
    uint32_t r = magnitude < 0x38800000u ? subnormal : normal;
    r = magnitude >= 0x47800000u ? 0x7c00u : r;
    r = magnitude > 0x7f800000u ? 0x7e00u : r;
    return (uint16_t)(r | ((x >> 16) & 0x8000));
}

INLINE float bfloat_to_float(uint16_t h) { return from_bits((uint32_t)h << 16); }

INLINE uint16_t float_to_bfloat(float f) {
    const uint32_t x = to_bits(f), rounded = (x + 0x7fff + ((x >> 16) & 1)) >> 16;
    return (uint16_t)((x & 0x7fffffff) > 0x7f800000u ? 0x7fc0u : rounded);
}

CLONES void half_row_to_float(const uint16_t* __restrict in, float* __restrict out, i64 n) {
    for (i64 i = 0; i < n; i++) out[i] = half_to_float(in[i]);
}
CLONES void bfloat_row_to_float(const uint16_t* __restrict in, float* __restrict out, i64 n) {
    for (i64 i = 0; i < n; i++) out[i] = bfloat_to_float(in[i]);
}
CLONES void float_row_to_half(const float* __restrict in, uint16_t* __restrict out, i64 n) {
    for (i64 i = 0; i < n; i++) out[i] = float_to_half(in[i]);
}
CLONES void float_row_to_bfloat(const float* __restrict in, uint16_t* __restrict out, i64 n) {
    for (i64 i = 0; i < n; i++) out[i] = float_to_bfloat(in[i]);
}

INLINE bool flat(const View& v, i64 h, i64 w) { return h == 1 || w == 1 || v.sh == v.sw * w; }

INLINE bool row_is_contiguous(const View& v, const Job& j, bool planes) {
    if (!flat(v, j.h, j.w)) return false;
    return planes ? (pixel_stride(v, j.w) == 1 || j.h * j.w == 1) : (v.sc == 1 || j.c == 1);
}

INLINE float load_one(const View& v, i64 offset) {
    if (v.dtype == F32) return ((const float*)v.data)[offset];
    const uint16_t x = ((const uint16_t*)v.data)[offset];
    return v.dtype == F16 ? half_to_float(x) : bfloat_to_float(x);
}

INLINE void store_one(const View& v, i64 offset, float x) {
    if (v.dtype == F32) ((float*)v.data)[offset] = x;
    else ((uint16_t*)v.data)[offset] = v.dtype == F16 ? float_to_half(x) : float_to_bfloat(x);
}

}  // namespace

// A pointer to the tile of `v` at sample n, pixels [p0, p0 + np), as rows of floats; copied to `buffer` only if it has to be.
const float* acquire(const View& v, const Job& j, i64 n, i64 p0, i64 np, bool planes, std::vector<float>& buffer, i64* stride) {
    const i64 rows = planes ? j.c : np, length = planes ? np : j.c;
    if (row_is_contiguous(v, j, planes)) {
        const i64 ps = pixel_stride(v, j.w), start = n * v.sn + p0 * ps, rs = planes ? v.sc : ps;
        if (v.dtype == F32) { *stride = rs; return (const float*)v.data + start; }
        if ((i64)buffer.size() < rows * length) buffer.resize(rows * length);
        *stride = length;
        for (i64 r = 0; r < rows; r++) {
            const uint16_t* in = (const uint16_t*)v.data + start + r * rs;
            if (v.dtype == F16) half_row_to_float(in, buffer.data() + r * length, length);
            else bfloat_row_to_float(in, buffer.data() + r * length, length);
        }
        return buffer.data();
    }
    if ((i64)buffer.size() < rows * length) buffer.resize(rows * length);
    *stride = length;
    for (i64 p = 0; p < np; p++) {
        const i64 start = n * v.sn + ((p0 + p) / j.w) * v.sh + ((p0 + p) % j.w) * v.sw;
        for (i64 c = 0; c < j.c; c++) buffer[planes ? c * length + p : p * length + c] = load_one(v, start + c * v.sc);
    }
    return buffer.data();
}

// Where to write row r of an output tile (a pointer into the output, or `row` if it must be converted by `finish_row`).
float* output_row(const View& v, const Piece& x, i64 r, float* row) {
    if (!in_place(v, x)) return row;
    return (float*)v.data + x.n * v.sn + x.p0 * pixel_stride(v, x.job.w) + r * row_stride(v, x);
}

// Whether the rows of an output tile can be written in place.
bool in_place(const View& v, const Piece& x) { return v.dtype == F32 && row_is_contiguous(v, x.job, x.tile.planes); }

i64 row_stride(const View& v, const Piece& x) { return x.tile.planes ? v.sc : pixel_stride(v, x.job.w); }

void finish_row(const View& v, const Piece& x, i64 r, const float* row) {
    const i64 length = x.length(), w = x.job.w;
    if (row_is_contiguous(v, x.job, x.tile.planes)) {
        if (v.dtype == F32) return;
        const i64 start = x.n * v.sn + x.p0 * pixel_stride(v, w) + r * row_stride(v, x);
        if (v.dtype == F16) float_row_to_half(row, (uint16_t*)v.data + start, length);
        else float_row_to_bfloat(row, (uint16_t*)v.data + start, length);
        return;
    }
    for (i64 i = 0; i < length; i++) {
        const i64 p = x.p0 + (x.tile.planes ? i : r), c = x.tile.planes ? r : i;
        store_one(v, x.n * v.sn + (p / w) * v.sh + (p % w) * v.sw + c * v.sc, row[i]);
    }
}

// grads = u * first + v * second for every row, the coefficients given per pixel
void write_combination(const Piece& x, const View& v, const float* u, const float* w, std::vector<float>& row) {
    const Tile& t = x.tile;
    const i64 rows = x.rows(), length = x.length();
    if ((i64)row.size() < length) row.resize(length);
    for (i64 r = 0; r < rows; r++) {
        float* out = output_row(v, x, r, row.data());
        const float *a = t.a + r * t.sa, *b = t.b + r * t.sb;
        if (t.planes) planes_combine(a, b, u, w, out, length);
        else rows_combine(a, b, u[r], w[r], out, length);
        finish_row(v, x, r, out);
    }
}

// One value of a gradient, at pixel p of the tile.
void write_one(const Piece& x, const View& v, i64 p, i64 c, float value) {
    const i64 at = x.p0 + p, w = x.job.w;
    store_one(v, x.n * v.sn + (at / w) * v.sh + (at % w) * v.sw + c * v.sc, value);
}

// grads = u * first + v * second for every value; `widely`: in double precision, for coefficients that leave float32.
void write_flat(const Piece& x, const View& v, double wide_u, double wide_w, bool widely, std::vector<float>& row) {
    const Tile& t = x.tile;
    const float u = (float)wide_u, w = (float)wide_w;
    const i64 rows = x.rows(), length = x.length();
    if ((i64)row.size() < length) row.resize(length);
    const bool dense = !widely && t.sa == length && t.sb == length && in_place(v, x) && row_stride(v, x) == length;
    if (dense) return rows_combine(t.a, t.b, u, w, output_row(v, x, 0, nullptr), rows * length);
    for (i64 r = 0; r < rows; r++) {
        float* out = output_row(v, x, r, row.data());
        const float *a = t.a + r * t.sa, *b = t.b + r * t.sb;
        if (!widely) rows_combine(a, b, u, w, out, length);
        else for (i64 i = 0; i < length; i++) out[i] = (float)(wide_u * a[i] + wide_w * b[i]);
        finish_row(v, x, r, out);
    }
}

}  // namespace kdad
