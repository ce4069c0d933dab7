// SPDX-License-Identifier: Apache-2.0
// Masks on CUDA: one block per sample, one launch, nothing sorted and nothing stored but the result.
//
// A token's key is its word with its index below: distinct, and ordered as the definition says. The K-th smallest key
// is found by radix selection: passes over the keys' bytes, from the top, with a 256-bin histogram in shared memory;
// each pass fixes one byte. As soon as few keys begin with the bytes that are fixed, usually after the first pass,
// these are compared with each other instead. A thread keeps its first four words; those beyond, of sequences of more
// than 1024 tokens, are drawn anew in each pass, since L is unbounded. A last pass in token order ranks the tokens.
#include "ops/masking.h"

#include <algorithm>

#include "core/device.cuh"
#include "core/philox.h"

namespace spectral {
namespace {

constexpr int kThreads = 256;  // at most
constexpr int kWarps = kThreads / kWarp;
constexpr int kBins = 256, kBinsPerLane = kBins / kWarp;

// The words of one sample. The first of each thread's draws stays in registers.
class Draws {
  public:
    SPECTRAL_DEVICE Draws(const RandomMaskParams& params, int64_t sample)
        : seed_(static_cast<uint64_t>(*params.seed)),
          sample_id_(static_cast<uint64_t>(params.sample_ids[sample])),
          step_(static_cast<uint32_t>(*params.step)),
          tokens_(static_cast<int>(params.num_tokens)),
          held_(draw(thread_index())) {}

    // Calls body(four words, how many of them there are, the first one's token) on every thread of the block alike.
    template <class Body>
    SPECTRAL_DEVICE void visit(Body body) const {
        for (int start = 0; start < tokens_; start += 4 * block_size()) {
            const int token = start + 4 * thread_index(), left = tokens_ - token;
            const PhiloxWords words = start == 0 ? held_ : draw(token / 4);
            body(words.word, left > 4 ? 4 : left > 0 ? left : 0, token);
        }
    }

  private:
    SPECTRAL_DEVICE PhiloxWords draw(int index) const {
        if (4 * index >= tokens_) return {};
        return sample_words(seed_, sample_id_, step_, kPurposeMask, static_cast<uint32_t>(index));
    }

    uint64_t seed_, sample_id_;
    uint32_t step_;
    int tokens_;
    PhiloxWords held_;
};

SPECTRAL_DEVICE uint64_t key(uint32_t word, int token) { return uint64_t{word} << 32 | static_cast<uint32_t>(token); }

// Which keys are left: all at first, then those that begin with the bytes found so far.
struct Search {
    uint64_t prefix = 0;
    int shift = 64;  // how many bits are open
    int rest = 0;    // the place of the K-th smallest key among those that are left

    SPECTRAL_DEVICE bool has(uint32_t word, int token) const {
        if (shift == 64) return true;
        if (shift == 56) return word >> 24 == static_cast<uint32_t>(prefix);  // few searches go beyond one byte
        return key(word, token) >> shift == prefix;
    }
    SPECTRAL_DEVICE int next_byte(uint32_t word, int token) const {
        return static_cast<int>(shift == 64 ? word >> 24 : key(word, token) >> (shift - 8) & 255u);
    }
};

struct Workspace {
    alignas(16) int histogram[kBins];
    alignas(16) int scratch[2][kWarps];
    int bin;         // where the K-th smallest key is
    int rest;        // its place among the keys there
    int candidates;  // how many these are
    int listed;
    uint64_t list[kWarp];
    uint64_t chosen[kWarps];
};

// By one warp: the bin in which the rest-th smallest key lies.
SPECTRAL_DEVICE void find_bin(Workspace& shared, int rest) {
    int sum = 0;
    const Pack<int, kBinsPerLane> counts = load_pack<kBinsPerLane>(&shared.histogram[lane_index() * kBinsPerLane]);
    SPECTRAL_UNROLL
    for (int i = 0; i < kBinsPerLane; ++i) sum += counts.value[i];
    int below = warp_inclusive_scan(sum) - sum;
    if (below >= rest || rest > below + sum) return;  // all lanes but one
    SPECTRAL_UNROLL
    for (int i = 0; i < kBinsPerLane; ++i) {
        if (below < rest && rest <= below + counts.value[i]) {
            shared.bin = lane_index() * kBinsPerLane + i;
            shared.rest = rest - below;
            shared.candidates = counts.value[i];
        }
        below += counts.value[i];
    }
}

// The K-th smallest key, K at least 1.
SPECTRAL_DEVICE uint64_t select(const Draws& draws, int num_keep, Workspace& shared) {
    Search search;
    search.rest = num_keep;
    do {
        for (int bin = thread_index(); bin < kBins; bin += block_size()) shared.histogram[bin] = 0;
        shared.listed = 0;
        block_sync();
        draws.visit([&](const uint32_t* words, int count, int token) {
            SPECTRAL_UNROLL
            for (int i = 0; i < 4; ++i) {
                if (i < count && search.has(words[i], token + i))
                    atomic_add(&shared.histogram[search.next_byte(words[i], token + i)], 1);
            }
        });
        block_sync();
        if (warp_index() == 0) find_bin(shared, search.rest);
        block_sync();
        search.prefix = search.prefix << 8 | static_cast<uint64_t>(shared.bin);
        search.shift -= 8;
        search.rest = shared.rest;
    } while (shared.candidates > kWarp);
    const int candidates = shared.candidates;
    draws.visit([&](const uint32_t* words, int count, int token) {
        SPECTRAL_UNROLL
        for (int i = 0; i < 4; ++i) {
            if (i < count && search.has(words[i], token + i))
                shared.list[fetch_add(&shared.listed, 1)] = key(words[i], token + i);
        }
    });
    block_sync();
    if (lane_index() < candidates) {  // each warp for itself, whatever the order of the list
        const uint64_t own = shared.list[lane_index()];
        int rank = 0;
        for (int i = 0; i < candidates; ++i) rank += shared.list[i] <= own;
        if (rank == search.rest) shared.chosen[warp_index()] = own;
    }
    warp_sync();
    return shared.chosen[warp_index()];
}

// kWide: four places, and four flags, may be written at once.
template <bool kWide>
SPECTRAL_KERNEL SPECTRAL_BOUNDS(kThreads, 4) void random_kernel(RandomMaskParams params) {
    SPECTRAL_SHARED Workspace shared;
    const int keep = static_cast<int>(params.num_keep);
    const Draws draws(params, block_index());
    const uint64_t chosen = keep > 0 ? select(draws, keep, shared) : 0;
    int64_t* ids_keep = params.ids_keep + block_index() * keep;
    int64_t* ids_restore = params.ids_restore + block_index() * params.num_tokens;
    bool* mask = params.mask + block_index() * params.num_tokens;
    int kept = 0, round = 0;  // tokens before this round
    draws.visit([&](const uint32_t* words, int count, int token) {
        int mine = 0, total = 0;
        bool keeps[4];
        SPECTRAL_UNROLL
        for (int i = 0; i < 4; ++i) mine += keeps[i] = i < count && keep > 0 && key(words[i], token + i) <= chosen;
        int rank = kept + block_exclusive_scan(mine, shared.scratch[round++ % 2], total);
        kept += total;
        Pack<int64_t, 4> places;
        Pack<bool, 4> removed;
        SPECTRAL_UNROLL
        for (int i = 0; i < 4; ++i) {
            if (keeps[i]) ids_keep[rank] = token + i;
            places.value[i] = keeps[i] ? rank : keep + token + i - rank;
            removed.value[i] = !keeps[i];
            rank += keeps[i];
        }
        if (kWide && count > 0) {
            store_pack(ids_restore + token, places);
            store_pack(mask + token, removed);
            return;
        }
        SPECTRAL_UNROLL
        for (int i = 0; i < 4; ++i) {
            if (i >= count) continue;
            ids_restore[token + i] = places.value[i];
            mask[token + i] = removed.value[i];
        }
    });
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
    const bool wide = params.num_tokens % 4 == 0 && is_aligned(params.ids_restore) && is_aligned(params.mask);
    const int64_t warps = std::clamp<int64_t>((params.num_tokens + 4 * kWarp - 1) / (4 * kWarp), 1, kWarps);
    launch(op, wide ? random_kernel<true> : random_kernel<false>, params.batch, static_cast<int>(warps) * kWarp,
           static_cast<Stream>(stream), params);
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
