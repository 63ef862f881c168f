// Numbers of the bytes of tensors, by which a write of any kind is seen. Plain C interface; digest.py loads it.
//
// Every step is a bijection of what it goes on from and of the word that it takes up: another value of one word always gives another
// number, and others of several give the same one in 2^64 cases. The number depends on neither threads nor the instruction set.

#include <algorithm>
#include <cstring>

#include "shares.h"

namespace {

constexpr i64 WIDE = 64;        // words of 32 bits that are taken up at a time, each by a state of its own
constexpr i64 BLOCK = 4 * WIDE;  // bytes
constexpr i64 PIECE = 1 << 18;   // bytes that a thread takes at a time; whole blocks
constexpr uint32_t FACTOR = 0x9E3779B1u;
constexpr uint64_t LONG_FACTOR = 0x9E3779B97F4A7C15u;

struct Words { uint32_t of[WIDE]; };

CLONES void take_up(Words& states, const unsigned char* bytes, i64 blocks) {
    Words s = states;
    for (i64 b = 0; b < blocks; b++) {
        Words w;
        std::memcpy(w.of, bytes + b * BLOCK, BLOCK);
        for (i64 k = 0; k < WIDE; k++) {
            const uint32_t v = (s.of[k] ^ w.of[k]) * FACTOR;
            s.of[k] = v ^ (v >> 15);  // the upper bits reach the lower ones: the signs of two words would cancel out
        }
    }
    states = s;
}

uint64_t taken_up(uint64_t state, uint64_t word) {
    const uint64_t v = (state ^ word) * LONG_FACTOR;
    return v ^ (v >> 32);
}

uint64_t of_piece(const unsigned char* bytes, i64 n) {
    Words states;
    for (i64 k = 0; k < WIDE; k++) states.of[k] = (uint32_t)(k + 1) * FACTOR;
    take_up(states, bytes, n / BLOCK);
    if (n % BLOCK) {
        unsigned char rest[BLOCK] = {};
        std::memcpy(rest, bytes + n / BLOCK * BLOCK, n % BLOCK);
        take_up(states, rest, 1);
    }
    uint64_t found = (uint64_t)n;
    for (i64 k = 0; k < WIDE; k++) found = taken_up(found, states.of[k]);
    return found;
}

}  // namespace

extern "C" {

// found[k] of the sizes[k] bytes at starts[k], which may lie nowhere; false where memory is short.
EXPORT bool kdad_digest(const unsigned char* const* starts, const i64* sizes, i64 n, uint64_t* found, int threads) {
    return had_memory([&] {
        struct Piece { i64 tensor, from; };
        std::vector<Piece> pieces;
        for (i64 k = 0; k < n; k++)
            for (i64 from = 0; starts[k] && from < sizes[k]; from += PIECE) pieces.push_back({k, from});
        std::vector<uint64_t> parts(pieces.size());
        shared_out([&](i64 i) {
            const Piece p = pieces[i];
            parts[i] = of_piece(starts[p.tensor] + p.from, std::min(PIECE, sizes[p.tensor] - p.from));
        }, (i64)pieces.size(), threads);
        std::fill(found, found + n, 0);
        for (size_t i = 0; i < pieces.size(); i++) found[pieces[i].tensor] = taken_up(found[pieces[i].tensor], parts[i]);
    });
}

}  // extern "C"
