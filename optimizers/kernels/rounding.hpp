// float32 copies of 16-bit weights, and the ways to round them back of bellwether.optimizers.rounding.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "vectors.hpp"

namespace {

enum Conversion { CONVERSIONS };

struct Row {  // of one block: float32 and 16-bit weights, and what Kahan summation keeps
    float *__restrict wide;
    uint16_t *__restrict narrow, *__restrict kept;
};

template <typename Narrow> void widen_weights(const Row &t, int64_t n) {
    if (!t.kept) return widen<Narrow>(t.narrow, t.wide, n);
    sweep({t.narrow, t.kept}, n, [&](int64_t i, int) { t.wide[i] = Narrow::widen(t.narrow[i]) + Narrow::widen(t.kept[i]); });
}

template <typename Narrow> void round_and_keep(const Row &t, int64_t n) {
    sweep({t.wide}, n, [&](int64_t i, int) {
        const uint16_t rounded = Narrow::narrow(t.wide[i]);
        t.narrow[i] = rounded;
        t.kept[i] = Narrow::narrow(t.wide[i] - Narrow::widen(rounded));
    });
}

// murmur3's finalizer.
inline uint32_t mix(uint32_t h) {
    h = (h ^ h >> 16) * 0x85ebca6b;
    h = (h ^ h >> 13) * 0xc2b2ae35;
    return h ^ h >> 16;
}

inline float round_up_or_down(Bfloat16, float x, uint32_t random) {
    return float_of((bits_of(x) + (random & 0xffff)) & 0xffff0000);
}

inline float round_up_or_down(Float16, float x, uint32_t random) {
    const float subnormal = std::floor(x * 0x1p24f + float(random & 0xffff) / 65536) * 0x1p-24f;
    const float normal = float_of((bits_of(x) + (random & 0x1fff)) & 0xffffe000);
    return std::fabs(x) < 0x1p-14f ? subnormal : normal;
}

// `start`: index of the first element in its parameter.
template <typename Narrow> void round_stochastically(const Row &t, int64_t n, int64_t start, uint32_t key) {
    sweep({t.wide}, n, [&](int64_t i, int) {
        const uint64_t index = uint64_t(start) + uint64_t(i);
        const uint32_t random = mix(mix(uint32_t(index) ^ key) ^ uint32_t(index >> 32) ^ 0x9e3779b9);
        const float x = t.wide[i];
        const bool is_finite = (bits_of(x) & 0x7f800000) != 0x7f800000;
        t.narrow[i] = Narrow::narrow(is_finite ? round_up_or_down(Narrow(), x, random) : x);
    });
}

template <typename Narrow>
void convert(Conversion conversion, const Row &t, int64_t n, int64_t start, uint32_t key) {
    if (conversion == WIDEN) widen_weights<Narrow>(t, n);
    else if (conversion == KAHAN) round_and_keep<Narrow>(t, n);
    else round_stochastically<Narrow>(t, n, start, key);
}

}  // namespace

// Of each block, `table` has tensor, offset, length, parameter and index of the first element in the parameter [5];
// `columns` has the pointers of each tensor [3] as in Row, `keys` that of each parameter (stochastic rounding).
extern "C" void bellwether_convert(int conversion, int dtype, void *const *columns, const int64_t *table, int64_t blocks,
                                   const int64_t *keys, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t k = 0; k < blocks; k++) {
        const int64_t *block = table + 5 * k, offset = block[1];
        void *const *at = columns + 3 * block[0];
        auto *kept = static_cast<uint16_t *>(at[2]);
        const Row t{static_cast<float *>(at[0]) + offset, static_cast<uint16_t *>(at[1]) + offset, kept ? kept + offset : kept};
        const uint32_t key = keys ? uint32_t(keys[block[3]]) : 0;
        auto *run = dtype == BFLOAT16 ? convert<Bfloat16> : convert<Float16>;
        run(Conversion(conversion), t, block[2], block[4], key);
    }
}
