// SPDX-License-Identifier: Apache-2.0
// Masks on CUDA: one block per sample, one launch, nothing sorted and nothing stored but the result.
//
// The K smallest of L words are found by radix selection: four passes over the words' bytes, from the top, with a
// 256-bin histogram in shared memory; each pass fixes one byte of the K-th smallest word. Words are drawn anew in each
// pass (a Philox call of four words per thread costs less than keeping them, and L is unbounded). A last pass in token
// order ranks the tokens by a block-wide scan.
#include "ops/masking.h"

#include "core/device.cuh"
#include "core/philox.h"

namespace spectral {
namespace {

constexpr int kThreads = 256;  // as many as histogram bins
constexpr int kWarps = kThreads / kWarp;

struct Selection {
    uint32_t word;  // the K-th smallest word
    int rest;       // how many tokens with exactly this word are kept (lowest index first); 1 but for ties
};

SPECTRAL_DEVICE PhiloxWords draw(const RandomMaskParams& params, int64_t sample, int64_t index) {
    return sample_words(static_cast<uint64_t>(*params.seed), static_cast<uint64_t>(params.sample_ids[sample]),
                        static_cast<uint32_t>(*params.step), kPurposeMask, static_cast<uint32_t>(index));
}

SPECTRAL_DEVICE Selection select(const RandomMaskParams& params, int64_t sample, int* histogram, int* scratch,
                                 int* found) {
    const int64_t tokens = params.num_tokens, draws = (tokens + 3) / 4;
    uint32_t prefix = 0;
    int rest = static_cast<int>(params.num_keep);
    for (int shift = 24; shift >= 0; shift -= 8) {
        histogram[thread_index()] = 0;
        block_sync();
        for (int64_t index = thread_index(); index < draws; index += kThreads) {
            const PhiloxWords words = draw(params, sample, index);
            for (int i = 0; i < 4 && 4 * index + i < tokens; ++i) {
                const bool candidate = shift == 24 || words.word[i] >> (shift + 8) == prefix;
                if (candidate) atomic_add(&histogram[words.word[i] >> shift & 255u], 1);
            }
        }
        block_sync();
        const int count = histogram[thread_index()];
        int total = 0;
        const int below = block_exclusive_scan(count, scratch, total);
        if (below < rest && rest <= below + count) {  // true for exactly one bin
            found[0] = thread_index();
            found[1] = rest - below;
        }
        block_sync();
        prefix = prefix << 8 | static_cast<uint32_t>(found[0]);
        rest = found[1];
        block_sync();
    }
    return {prefix, rest};
}

SPECTRAL_KERNEL void random_kernel(RandomMaskParams params) {
    SPECTRAL_SHARED int histogram[kThreads];
    SPECTRAL_SHARED int scratch[kWarps];
    SPECTRAL_SHARED int found[2];
    const int64_t sample = block_index(), tokens = params.num_tokens, keep = params.num_keep;
    const Selection chosen = keep > 0 ? select(params, sample, histogram, scratch, found) : Selection{0, 0};

    int64_t smaller = 0, equal = 0;  // tokens before this chunk with a smaller or an equal word
    for (int64_t first = 0; first < tokens; first += 4 * kThreads) {
        const int64_t token = first + 4 * thread_index();
        const PhiloxWords words = token < tokens ? draw(params, sample, token / 4) : PhiloxWords{};
        const int count = static_cast<int>(token + 4 <= tokens ? 4 : token < tokens ? tokens - token : 0);
        int mine = 0;  // smaller in the low half, equal in the high half: a chunk has 1024 tokens
        for (int i = 0; i < count; ++i)
            mine += words.word[i] < chosen.word ? 1 : words.word[i] == chosen.word ? 1 << 16 : 0;
        int total = 0;
        const int before = block_exclusive_scan(mine, scratch, total);
        int64_t smaller_here = smaller + (before & 0xFFFF), equal_here = equal + (before >> 16);
        for (int i = 0; i < count; ++i) {
            const bool is_smaller = words.word[i] < chosen.word, is_equal = words.word[i] == chosen.word;
            const bool kept = keep > 0 && (is_smaller || (is_equal && equal_here < chosen.rest));
            const int64_t rank = keep > 0 ? smaller_here + (equal_here < chosen.rest ? equal_here : chosen.rest) : 0;
            if (kept) params.ids_keep[sample * keep + rank] = token + i;
            params.ids_restore[sample * tokens + token + i] = kept ? rank : keep + token + i - rank;
            params.mask[sample * tokens + token + i] = !kept;
            smaller_here += is_smaller;
            equal_here += is_equal;
        }
        smaller += total & 0xFFFF;
        equal += total >> 16;
    }
}

// Rank of each token by counting: L^2 comparisons per sample, all independent, tiles of noise in shared memory. NaN is
// largest, ties by index.
template <class T>
SPECTRAL_KERNEL void noise_kernel(NoiseMaskParams params) {
    SPECTRAL_SHARED T tile[kThreads];
    const int64_t tokens = params.num_tokens, chunks = (tokens + kThreads - 1) / kThreads;
    const int64_t sample = block_index() / chunks, token = block_index() % chunks * kThreads + thread_index();
    const T* noise = static_cast<const T*>(params.noise) + sample * tokens;
    const T mine = token < tokens ? noise[token] : T(0);
    int64_t rank = 0;
    for (int64_t first = 0; first < tokens; first += kThreads) {
        if (first + thread_index() < tokens) tile[thread_index()] = noise[first + thread_index()];
        block_sync();
        for (int i = 0; i < kThreads && first + i < tokens; ++i) {
            const T other = tile[i];
            const bool nan_other = other != other, nan_mine = mine != mine;
            const bool same = nan_other || nan_mine ? nan_other && nan_mine : other == mine;
            const bool before = same ? first + i < token : nan_mine || other < mine;
            rank += before;
        }
        block_sync();
    }
    if (token >= tokens) return;
    if (rank < params.num_keep) params.ids_keep[sample * params.num_keep + rank] = token;
    params.ids_restore[sample * tokens + token] = rank;
    params.mask[sample * tokens + token] = rank >= params.num_keep;
}

}  // namespace

void random_cube_mask_cuda(const RandomMaskParams& params, int device, void* stream) {
    constexpr const char* op = "random_cube_mask";
    const DeviceGuard guard(op, device);
    launch(op, random_kernel, params.batch, kThreads, static_cast<Stream>(stream), params);
}

void cube_mask_from_noise_cuda(const NoiseMaskParams& params, int device, void* stream) {
    constexpr const char* op = "cube_mask_from_noise";
    const DeviceGuard guard(op, device);
    const int64_t blocks = params.batch * ((params.num_tokens + kThreads - 1) / kThreads);
    if (params.dtype == Dtype::kFloat64) {
        launch(op, noise_kernel<double>, blocks, kThreads, static_cast<Stream>(stream), params);
    } else {
        launch(op, noise_kernel<float>, blocks, kThreads, static_cast<Stream>(stream), params);
    }
}

}  // namespace spectral
