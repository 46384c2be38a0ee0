// Loops that the compiler vectorizes, and conversions between float32 and 16 bits.
#pragma once

#include <cstdint>
#include <cstring>
#include <initializer_list>

namespace {

enum Dtype { DTYPES };

constexpr int LANES = 16;       // floats in the widest vectors; narrower processors use several
constexpr int64_t AHEAD = 512;  // elements; hardware prefetching stops at the end of each page

// Calls body(i, lane) for each of n elements of some columns. The compiler vectorizes the inner loop.
template <typename T, typename Body> inline void sweep(std::initializer_list<const T *> columns, int64_t n, Body body) {
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        for (const T *column : columns) __builtin_prefetch(column + i + AHEAD);
#pragma omp simd
        for (int lane = 0; lane < LANES; lane++) body(i + lane, lane);
    }
    for (int lane = 0; i < n; i++, lane++) body(i, lane);
}

inline uint32_t bits_of(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof x);
    return bits;
}

inline float float_of(uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

// Integer operations, which every processor has and every compiler vectorizes. Rounding is to nearest, ties to even.
struct Bfloat16 {
    static float widen(uint16_t h) { return float_of(uint32_t(h) << 16); }
    static uint16_t narrow(float x) {
        const uint32_t bits = bits_of(x), rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
        return (bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded;  // NaN
    }
};

struct Float16 {
    static constexpr uint32_t BIAS = 112u << 23;                    // between the exponents of the two
    static constexpr uint32_t LEAST = 113u << 23, END = 143u << 23;  // smallest normal number; first one out of range

    static float widen(uint16_t h) {
        const uint32_t magnitude = uint32_t(h & 0x7fff) << 13;
        const uint32_t subnormal = bits_of(float_of(magnitude + LEAST) - float_of(LEAST));
        const uint32_t normal = magnitude + BIAS, special = magnitude + 2 * BIAS;  // special: infinity and NaN
        const uint32_t bits = h & 0x4000 && normal >= END ? special : h & 0x7c00 ? normal : subnormal;
        return float_of(bits | uint32_t(h & 0x8000) << 16);
    }
    static uint16_t narrow(float x) {
        const uint32_t bits = bits_of(x), magnitude = bits & 0x7fffffff;
        const uint32_t normal = (magnitude - BIAS + 0xfff + (magnitude >> 13 & 1)) >> 13;
        const uint32_t subnormal = bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f);  // 2^-24 is an ulp of 0.5
        const uint32_t special = magnitude > 0x7f800000 ? 0x7e00 : 0x7c00;
        return (bits >> 16 & 0x8000) | (magnitude >= END ? special : magnitude < LEAST ? subnormal : normal);
    }
};

template <typename Narrow> void widen(const uint16_t *from, float *__restrict to, int64_t n) {
    sweep({from}, n, [&](int64_t i, int) { to[i] = Narrow::widen(from[i]); });
}

template <typename Narrow> void narrow(const float *__restrict from, uint16_t *to, int64_t n) {
    sweep<float>({}, n, [&](int64_t i, int) { to[i] = Narrow::narrow(from[i]); });
}

}  // namespace
