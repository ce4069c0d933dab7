// SPDX-License-Identifier: Apache-2.0
// Masks on the CPU, one task per sample, no sort of the sequence: the K smallest of L random words are found by a
// histogram of their top bytes; only the words that share the byte of the K-th (L/256 of them) are ordered. The outputs
// serve as scratch until they are written.
#include "ops/masking.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/check.h"
#include "core/parallel.h"
#include "core/philox.h"
#include "core/simd.h"

#if defined(SPECTRAL_PICKS_AVX2)
#include <immintrin.h>
#endif

namespace spectral {
namespace {

using Word __attribute__((may_alias)) = uint32_t;

// The first `count` words of a sample's stream.
#if defined(SPECTRAL_PICKS_AVX2)
__attribute__((target("default")))
#endif
void draw_words(uint64_t seed, uint64_t id, uint32_t step, Word* words, int64_t count) {
    for (int64_t first = 0; first < count; first += 4) {
        const PhiloxWords drawn = sample_words(seed, id, step, kPurposeMask, static_cast<uint32_t>(first / 4));
        std::memcpy(words + first, drawn.word, static_cast<size_t>(std::min<int64_t>(4, count - first)) * sizeof(Word));
    }
}

#if defined(SPECTRAL_PICKS_AVX2)
// The same, sixteen draws at a time. No compiler turns the product of two 32-bit numbers into the instruction that
// there is for eight of them, which is why this is written out.
__attribute__((target("avx2"))) void draw_words(uint64_t seed, uint64_t id, uint32_t step, Word* words, int64_t count) {
    using Draws = Lanes<uint32_t>;  // one word each of eight draws
    using Pairs __attribute__((vector_size(sizeof(Draws)))) = uint64_t;
    constexpr int kAtOnce = 2;  // the rounds of one wait for each other: two fill the time
    constexpr int64_t kWords = kAtOnce * kLanes * 4;
    for (int64_t first = 0; first < count; first += kWords) {
        Draws c0[kAtOnce], c1[kAtOnce], c2[kAtOnce], c3[kAtOnce];
        for (int u = 0; u < kAtOnce; ++u) {
            const auto draw = kPurposeMask << 24 | static_cast<uint32_t>(first / 4 + u * kLanes);
            c0[u] = Draws{} + static_cast<uint32_t>(id);
            c1[u] = Draws{} + static_cast<uint32_t>(id >> 32);
            c2[u] = Draws{} + step;
            c3[u] = Draws{0, 1, 2, 3, 4, 5, 6, 7} + draw;
        }
        auto k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
        for (int round = 0; round < 10; ++round, k0 += kPhiloxWeyl0, k1 += kPhiloxWeyl1) {
            for (int u = 0; u < kAtOnce; ++u) {
                Draws high[2], low[2];
                for (int i = 0; i < 2; ++i) {
                    const auto factor = (__m256i)(Draws{} + (i == 0 ? kPhiloxMultiplier0 : kPhiloxMultiplier1));
                    const auto value = (Pairs)(i == 0 ? c0[u] : c2[u]);
                    const auto even = (Pairs)_mm256_mul_epu32((__m256i)value, factor),
                               odd = (Pairs)_mm256_mul_epu32((__m256i)(value >> 32), factor);
                    high[i] = (Draws)_mm256_blend_epi32((__m256i)(even >> 32), (__m256i)odd, 0xAA);
                    low[i] = (Draws)_mm256_blend_epi32((__m256i)even, (__m256i)(odd << 32), 0xAA);
                }
                c0[u] = high[1] ^ c1[u] ^ k0;
                c1[u] = low[1];
                c2[u] = high[0] ^ c3[u] ^ k1;
                c3[u] = low[0];
            }
        }
        uint32_t drawn[kWords];
        for (int u = 0; u < kAtOnce; ++u) {
            for (int k = 0; k < kLanes; ++k) {
                const uint32_t draw[4] = {c0[u][k], c1[u][k], c2[u][k], c3[u][k]};
                std::memcpy(drawn + (u * kLanes + k) * 4, draw, sizeof draw);
            }
        }
        std::memcpy(words + first, drawn, static_cast<size_t>(std::min(kWords, count - first)) * sizeof(Word));
    }
}
#endif

SPECTRAL_SIMD void mask_sample(const RandomMaskParams& params, int64_t sample) {
    const int64_t tokens = params.num_tokens, keep = params.num_keep;
    bool* mask = params.mask + sample * tokens;
    int64_t* ids_keep = params.ids_keep + sample * keep;
    int64_t* ids_restore = params.ids_restore + sample * tokens;
    // Words in the upper half of ids_restore. Keys (word << 32 | index: distinct, and ordered as the definition says)
    // of the few tokens that need ordering grow from its start and never reach a word that is still to be read.
    Word* words = reinterpret_cast<Word*>(ids_restore) + tokens;
    auto* keys = reinterpret_cast<uint64_t*>(ids_restore);

    const auto seed = static_cast<uint64_t>(*params.seed), id = static_cast<uint64_t>(params.sample_ids[sample]);
    const auto step = static_cast<uint32_t>(*params.step);
    int32_t histogram[256] = {};
    draw_words(seed, id, step, words, tokens);
    for (int64_t token = 0; token < tokens; ++token) ++histogram[words[token] >> 24];
    uint32_t pivot = 0;  // top byte of the K-th smallest key; all below it are kept
    int64_t below = 0;
    while (pivot < 255 && below + histogram[pivot] < keep) below += histogram[pivot++];

    int64_t ties = 0;
    for (int64_t token = 0; token < tokens; ++token) mask[token] = words[token] >> 24 >= pivot;
    for (int64_t token = 0; token < tokens; ++token) {
        const uint32_t word = words[token];
        if (word >> 24 == pivot) keys[ties++] = static_cast<uint64_t>(word) << 32 | static_cast<uint64_t>(token);
    }
    const int64_t wanted = keep - below;
    std::nth_element(keys, keys + wanted, keys + ties);
    for (int64_t i = 0; i < wanted; ++i) mask[keys[i] & 0xFFFFFFFFu] = false;

    int64_t token = 0, kept = 0;  // kept tokens ascending, removed tokens ascending after them
    for (; kept < keep; ++token) {
        const bool removed = mask[token];
        ids_keep[kept] = token;  // overwritten by the next unless this one is kept
        ids_restore[token] = kept + removed * (keep + token - 2 * kept);  // no machine would foresee a branch
        kept += !removed;
    }
    for (; token < tokens; ++token) ids_restore[token] = token;
}

template <class T>
void mask_noise(const NoiseMaskParams& params, int64_t sample) {
    const int64_t tokens = params.num_tokens;
    const T* noise = static_cast<const T*>(params.noise) + sample * tokens;
    int64_t* order = params.order + sample * tokens;
    std::iota(order, order + tokens, int64_t{0});
    std::sort(order, order + tokens, [noise](int64_t a, int64_t b) {  // NaN last, equal noise by index: a total order
        const bool nan_a = std::isnan(noise[a]), nan_b = std::isnan(noise[b]);
        if (nan_a || nan_b) return nan_a == nan_b ? a < b : nan_b;
        return noise[a] != noise[b] ? noise[a] < noise[b] : a < b;
    });
    for (int64_t rank = 0; rank < tokens; ++rank) {
        params.ids_restore[sample * tokens + order[rank]] = rank;
        params.mask[sample * tokens + order[rank]] = rank >= params.num_keep;
    }
    std::copy_n(order, params.num_keep, params.ids_keep + sample * params.num_keep);
}

}  // namespace

void random_cube_mask_cpu(const RandomMaskParams& params, int num_threads) {
    parallel_for(num_threads, params.batch, params.num_tokens * 32,
                 [&](int64_t sample) { mask_sample(params, sample); });
}

void cube_mask_from_noise_cpu(const NoiseMaskParams& params, int num_threads) {
    parallel_for(num_threads, params.batch, params.num_tokens * 256, [&](int64_t sample) {
        params.dtype == Dtype::kFloat64 ? mask_noise<double>(params, sample) : mask_noise<float>(params, sample);
    });
}

}  // namespace spectral
