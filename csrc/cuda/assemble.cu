// SPDX-License-Identifier: Apache-2.0
// Assembly on CUDA. A block works on one token of several samples (forward), or on some channels of one token of all
// samples (backward), a thread on a few neighbouring channels: positions are read, or their gradient summed, in
// registers, and every row of the large tensor is passed over once, in 16-byte pieces where layout and alignment allow.
// The mask token's gradient goes through one partial sum per token, added up in a fixed order: no atomics, bitwise
// repeatable. Places are checked by extra blocks of the same launch.
#include "ops/assemble.h"

#include <algorithm>

#include "core/device.cuh"
#include "core/divisor.h"

namespace spectral {
namespace {

constexpr int kWarps = 4;  // of a block of the forward, at most
constexpr int kBackwardWarps = 8;
constexpr int kFinishWarps = 16;  // of a block that adds up the mask token's gradient
constexpr int kSamples = 8;       // per block of the forward; of the backward, those whose rows are in flight at once

// By one block: the places of a sample are each of 0 .. K-1 once, and others.
SPECTRAL_DEVICE void check_places(const int64_t* ids, int64_t num_tokens, int64_t num_keep) {
    SPECTRAL_SHARED uint64_t scratch[kBackwardWarps];
    uint64_t difference = 0;  // between the hashes found and those expected; wraps around, and that is no matter
    uint64_t count = 0;
    for (int64_t token = thread_index(); token < num_tokens; token += block_size()) {
        device_check(ids[token] >= 0, "assemble_tokens: expected ids_restore of at least 0", ids[token]);
        if (ids[token] >= num_keep) continue;
        difference += place_hash(ids[token]);
        ++count;
    }
    for (int64_t place = thread_index(); place < num_keep; place += block_size()) difference -= place_hash(place);
    count = block_sum(count, scratch);
    difference = block_sum(difference, scratch);
    if (thread_index() == 0) {
        device_check(difference == 0 && count == static_cast<uint64_t>(num_keep),
                     "assemble_tokens: expected ids_restore to hold each visible place once per sample",
                     static_cast<int64_t>(count));
    }
}

SPECTRAL_DEVICE bool is_visible(int64_t place, int64_t num_keep) { return place >= 0 && place < num_keep; }

template <class O, class V, int N>
SPECTRAL_KERNEL void assemble_kernel(AssembleParams params, Divisor all_tokens, int work_blocks) {
    using A = accumulator_t<O>;
    const int64_t tokens = params.num_tokens, channels = params.channels;
    if (block_index() >= work_blocks) {
        check_places(params.ids_restore + (block_index() - work_blocks) * tokens, tokens, params.num_keep);
        return;
    }
    int token = 0;
    const int64_t first = int64_t{kSamples} * all_tokens.divide(static_cast<int>(block_index()), token);
    int64_t places[kSamples];
    SPECTRAL_UNROLL
    for (int i = 0; i < kSamples; ++i) {
        places[i] = first + i < params.batch ? params.ids_restore[(first + i) * tokens + token] : -1;
    }
    for (int64_t d = thread_index() * N; d < channels; d += block_size() * N) {
        const Pack<A, N> position = load_pack<N>(static_cast<const A*>(params.positions) + token * channels + d);
        const Pack<A, N> mask = load_pack<N>(static_cast<const A*>(params.mask_token) + d);
        Pack<O, N> hidden;
        SPECTRAL_UNROLL
        for (int k = 0; k < N; ++k) hidden.value[k] = O(mask.value[k] + position.value[k]);
        Pack<V, N> own[kSamples];  // all read before the first is written: a store could reach what is still to be read
        SPECTRAL_UNROLL
        for (int i = 0; i < kSamples; ++i) {
            if (is_visible(places[i], params.num_keep))
                own[i] = load_pack<N>(static_cast<const V*>(params.visible) +
                                      ((first + i) * params.num_keep + places[i]) * channels + d);
        }
        SPECTRAL_UNROLL
        for (int i = 0; i < kSamples; ++i) {
            if (first + i >= params.batch) continue;
            Pack<O, N> out = hidden;
            if (is_visible(places[i], params.num_keep)) {
                SPECTRAL_UNROLL
                for (int k = 0; k < N; ++k) out.value[k] = O(A(own[i].value[k]) + position.value[k]);
            }
            store_pack(static_cast<O*>(params.output) + ((first + i) * tokens + token) * channels + d, out);
        }
    }
}

// A block sums one token's kWarp * N channels over all samples: each warp over a run of them, then warp after warp.
template <class G, class V, int N>
SPECTRAL_KERNEL void backward_kernel(AssembleBackwardParams params, Divisor pieces, int work_blocks) {
    using A = accumulator_t<G>;
    SPECTRAL_SHARED A shared[2][kBackwardWarps][kWarp * N];
    const int64_t tokens = params.num_tokens, channels = params.channels, batch = params.batch;
    if (block_index() >= work_blocks) {
        check_places(params.ids_restore + (block_index() - work_blocks) * tokens, tokens, params.num_keep);
        return;
    }
    int piece = 0;
    const int64_t token = pieces.divide(static_cast<int>(block_index()), piece);
    const int64_t d = (int64_t{piece} * kWarp + lane_index()) * N;
    const int64_t run = (batch + kBackwardWarps - 1) / kBackwardWarps, start = warp_index() * run;
    const int64_t end = start + run < batch ? start + run : batch;
    A position[N] = {}, mask[N] = {};
    for (int64_t first = start; first < end && d < channels; first += kSamples) {
        Pack<G, N> rows[kSamples];
        int64_t places[kSamples];
        SPECTRAL_UNROLL
        for (int i = 0; i < kSamples; ++i) {
            if (first + i >= end) continue;
            const int64_t row = (first + i) * tokens + token;
            rows[i] = load_pack<N>(static_cast<const G*>(params.grad) + row * channels + d);
            places[i] = params.ids_restore[row];
        }
        A position_part[N] = {}, mask_part[N] = {};  // eight by eight, so that long sums stay exact
        SPECTRAL_UNROLL
        for (int i = 0; i < kSamples; ++i) {
            if (first + i >= end) continue;
            SPECTRAL_UNROLL
            for (int k = 0; k < N; ++k) position_part[k] += A(rows[i].value[k]);
            if (is_visible(places[i], params.num_keep)) {
                Pack<V, N> own;
                SPECTRAL_UNROLL
                for (int k = 0; k < N; ++k) own.value[k] = V(A(rows[i].value[k]));
                V* visible = static_cast<V*>(params.visible_grad);
                store_pack(visible + ((first + i) * params.num_keep + places[i]) * channels + d, own);
            } else {
                SPECTRAL_UNROLL
                for (int k = 0; k < N; ++k) mask_part[k] += A(rows[i].value[k]);
            }
        }
        SPECTRAL_UNROLL
        for (int k = 0; k < N; ++k) {
            position[k] += position_part[k];
            mask[k] += mask_part[k];
        }
    }
    SPECTRAL_UNROLL
    for (int k = 0; k < N; ++k) {
        shared[0][warp_index()][k * kWarp + lane_index()] = position[k];
        shared[1][warp_index()][k * kWarp + lane_index()] = mask[k];
    }
    block_sync();
    if (warp_index() > 1 || d >= channels) return;  // the first warp ends the positions' sums, the second the mask's
    Pack<A, N> sum;
    SPECTRAL_UNROLL
    for (int k = 0; k < N; ++k) {
        A total = 0;
        SPECTRAL_UNROLL
        for (int warp = 0; warp < kBackwardWarps; ++warp) total += shared[warp_index()][warp][k * kWarp + lane_index()];
        sum.value[k] = total;
    }
    store_pack(static_cast<A*>(warp_index() == 0 ? params.positions_grad : params.scratch) + token * channels + d, sum);
}

// The mask token's gradient: a lane adds up one channel of every kFinishWarps-th token, warps are added in order.
template <class A>
SPECTRAL_KERNEL void finish_kernel(AssembleBackwardParams params) {
    SPECTRAL_SHARED double sums[kFinishWarps * kWarp];
    const int64_t channel = block_index() * kWarp + lane_index();
    double sum = 0;
    for (int64_t token = warp_index(); channel < params.channels && token < params.num_tokens; token += kFinishWarps) {
        sum += static_cast<double>(static_cast<const A*>(params.scratch)[token * params.channels + channel]);
    }
    sums[thread_index()] = sum;
    block_sync();
    if (warp_index() > 0 || channel >= params.channels) return;
    for (int warp = 1; warp < kFinishWarps; ++warp) sum += sums[warp * kWarp + lane_index()];
    static_cast<A*>(params.mask_grad)[channel] = static_cast<A>(sum);
}

}  // namespace

void assemble_tokens_cuda(const AssembleParams& params, int device, void* stream) {
    constexpr const char* op = "assemble_tokens";
    const DeviceGuard guard(op, device);
    const int64_t blocks = params.num_tokens * ((params.batch + kSamples - 1) / kSamples);
    dispatch_pair(op, params.output_dtype, params.visible_dtype, [&](auto output, auto visible) {
        using O = typename decltype(output)::type;
        using V = typename decltype(visible)::type;
        constexpr int kWide = 16 / sizeof(O);
        const bool wide = params.channels % kWide == 0 && is_aligned(params.output) && is_aligned(params.visible) &&
                          is_aligned(params.positions) && is_aligned(params.mask_token);
        const auto kernel = wide ? assemble_kernel<O, V, kWide> : assemble_kernel<O, V, 1>;
        const int64_t span = kWarp * (wide ? kWide : 1),
                      warps = std::clamp<int64_t>((params.channels + span - 1) / span, 1, kWarps);
        launch(op, kernel, blocks + (blocks > 0 ? params.batch : 0), kWarp * static_cast<int>(warps),
               static_cast<Stream>(stream), params, Divisor(params.num_tokens), static_cast<int>(blocks));
    });
}

void assemble_tokens_backward_cuda(const AssembleBackwardParams& params, int device, void* stream) {
    constexpr const char* op = "assemble_tokens_backward";
    const DeviceGuard guard(op, device);
    const auto on = static_cast<Stream>(stream);
    dispatch_pair(op, params.grad_dtype, params.visible_dtype, [&](auto grad, auto visible) {
        using G = typename decltype(grad)::type;
        using V = typename decltype(visible)::type;
        constexpr int kWide = 16 / sizeof(G);
        const bool wide = params.channels % kWide == 0 && is_aligned(params.grad) && is_aligned(params.visible_grad) &&
                          is_aligned(params.positions_grad) && is_aligned(params.scratch);
        const auto kernel = wide ? backward_kernel<G, V, kWide> : backward_kernel<G, V, 1>;
        const int64_t span = kWarp * (wide ? kWide : 1), pieces = (params.channels + span - 1) / span;
        const int64_t blocks = params.num_tokens * pieces;
        launch(op, kernel, blocks + params.batch, kBackwardWarps * kWarp, on, params, Divisor(pieces),
               static_cast<int>(blocks));
        launch(op, finish_kernel<accumulator_t<G>>, (params.channels + kWarp - 1) / kWarp, kFinishWarps * kWarp, on,
               params);
    });
}

}  // namespace spectral
