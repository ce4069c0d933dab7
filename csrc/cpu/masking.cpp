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

namespace spectral {
namespace {

using Word __attribute__((may_alias)) = uint32_t;

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
    for (int64_t first = 0; first < tokens; first += 4) {
        const PhiloxWords drawn = sample_words(seed, id, step, kPurposeMask, static_cast<uint32_t>(first / 4));
        if (first + 4 <= tokens) {
            std::memcpy(words + first, drawn.word, sizeof drawn.word);
        } else {
            for (int64_t i = 0; first + i < tokens; ++i) words[first + i] = drawn.word[i];
        }
    }
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
