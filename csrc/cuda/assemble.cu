// SPDX-License-Identifier: Apache-2.0
// Assembly on CUDA. A block works on one token of several samples (forward) or of all (backward), a thread on a few
// neighbouring channels of it: positions are read, or their gradient summed, in registers, and every row of the large
// tensor is passed over once, in 16-byte pieces where layout and alignment allow. The mask token's gradient goes
// through one partial sum per token, added up in a fixed order: no atomics, bitwise repeatable. Places are checked by
// extra blocks of the same launch.
#include "ops/assemble.h"

#include "core/device.cuh"

namespace spectral {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kWarp;
constexpr int64_t kSamples = 8;  // per block of the forward; of the backward, samples whose rows are in flight at once

// By one block: the places of a sample are each of 0 .. K-1 once, and others.
SPECTRAL_DEVICE void check_places(const int64_t* ids, int64_t num_tokens, int64_t num_keep) {
    SPECTRAL_SHARED uint64_t scratch[kWarps];
    uint64_t difference = 0;  // between the hashes found and those expected; wraps around, and that is no matter
    uint64_t count = 0;
    for (int64_t token = thread_index(); token < num_tokens; token += kThreads) {
        device_check(ids[token] >= 0, "assemble_tokens: expected ids_restore of at least 0", ids[token]);
        if (ids[token] >= num_keep) continue;
        difference += place_hash(ids[token]);
        ++count;
    }
    for (int64_t place = thread_index(); place < num_keep; place += kThreads) difference -= place_hash(place);
    count = block_sum(count, scratch);
    difference = block_sum(difference, scratch);
    if (thread_index() == 0) {
        device_check(difference == 0 && count == static_cast<uint64_t>(num_keep),
                     "assemble_tokens: expected ids_restore to hold each visible place once per sample",
                     static_cast<int64_t>(count));
    }
}

template <class O, class V, int N>
SPECTRAL_KERNEL void assemble_kernel(AssembleParams params, int64_t work_blocks) {
    using A = accumulator_t<O>;
    const int64_t tokens = params.num_tokens, channels = params.channels;
    if (block_index() >= work_blocks) {
        check_places(params.ids_restore + (block_index() - work_blocks) * tokens, tokens, params.num_keep);
        return;
    }
    const int64_t token = block_index() % tokens, first = block_index() / tokens * kSamples;
    const int64_t end = first + kSamples < params.batch ? first + kSamples : params.batch;
    for (int64_t d = thread_index() * N; d < channels; d += kThreads * N) {
        const Pack<A, N> position = load_pack<N>(static_cast<const A*>(params.positions) + token * channels + d);
        const Pack<A, N> mask = load_pack<N>(static_cast<const A*>(params.mask_token) + d);
        for (int64_t sample = first; sample < end; ++sample) {
            const int64_t place = params.ids_restore[sample * tokens + token];
            Pack<O, N> out;
            if (place < params.num_keep && place >= 0) {
                const V* visible = static_cast<const V*>(params.visible);
                const Pack<V, N> own = load_pack<N>(visible + (sample * params.num_keep + place) * channels + d);
                for (int k = 0; k < N; ++k) out.value[k] = O(A(own.value[k]) + position.value[k]);
            } else {
                for (int k = 0; k < N; ++k) out.value[k] = O(mask.value[k] + position.value[k]);
            }
            store_pack(static_cast<O*>(params.output) + (sample * tokens + token) * channels + d, out);
        }
    }
}

template <class G, class V, int N>
SPECTRAL_KERNEL void backward_kernel(AssembleBackwardParams params) {
    using A = accumulator_t<G>;
    const int64_t tokens = params.num_tokens, channels = params.channels, batch = params.batch;
    if (block_index() >= tokens) {
        check_places(params.ids_restore + (block_index() - tokens) * tokens, tokens, params.num_keep);
        return;
    }
    const int64_t token = block_index();
    for (int64_t d = thread_index() * N; d < channels; d += kThreads * N) {
        A position[N] = {}, mask[N] = {};
        for (int64_t first = 0; first < batch; first += kSamples) {
            Pack<G, N> rows[kSamples];
            for (int64_t i = 0; i < kSamples && first + i < batch; ++i) {
                rows[i] =
                    load_pack<N>(static_cast<const G*>(params.grad) + ((first + i) * tokens + token) * channels + d);
            }
            A position_part[N] = {}, mask_part[N] = {};  // eight by eight, so that long sums stay exact
            for (int64_t i = 0; i < kSamples && first + i < batch; ++i) {
                const int64_t sample = first + i, place = params.ids_restore[sample * tokens + token];
                for (int k = 0; k < N; ++k) position_part[k] += A(rows[i].value[k]);
                if (place < params.num_keep && place >= 0) {
                    Pack<V, N> own;
                    for (int k = 0; k < N; ++k) own.value[k] = V(A(rows[i].value[k]));
                    V* visible = static_cast<V*>(params.visible_grad);
                    store_pack(visible + (sample * params.num_keep + place) * channels + d, own);
                } else {
                    for (int k = 0; k < N; ++k) mask_part[k] += A(rows[i].value[k]);
                }
            }
            for (int k = 0; k < N; ++k) {
                position[k] += position_part[k];
                mask[k] += mask_part[k];
            }
        }
        Pack<A, N> position_out, mask_out;
        for (int k = 0; k < N; ++k) {
            position_out.value[k] = position[k];
            mask_out.value[k] = mask[k];
        }
        store_pack(static_cast<A*>(params.positions_grad) + token * channels + d, position_out);
        store_pack(static_cast<A*>(params.scratch) + token * channels + d, mask_out);
    }
}

// The mask token's gradient: a lane adds up one channel of every kWarps-th token, warps are added in order.
template <class A>
SPECTRAL_KERNEL void finish_kernel(AssembleBackwardParams params) {
    SPECTRAL_SHARED double sums[kThreads];
    const int64_t channel = block_index() * kWarp + lane_index();
    double sum = 0;
    for (int64_t token = warp_index(); channel < params.channels && token < params.num_tokens; token += kWarps) {
        sum += static_cast<double>(static_cast<const A*>(params.scratch)[token * params.channels + channel]);
    }
    sums[thread_index()] = sum;
    block_sync();
    if (warp_index() > 0 || channel >= params.channels) return;
    for (int warp = 1; warp < kWarps; ++warp) sum += sums[warp * kWarp + lane_index()];
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
        launch(op, kernel, blocks + (blocks > 0 ? params.batch : 0), kThreads, static_cast<Stream>(stream), params,
               blocks);
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
        launch(op, kernel, params.num_tokens + params.batch, kThreads, on, params);
        launch(op, finish_kernel<accumulator_t<G>>, (params.channels + kWarp - 1) / kWarp, kThreads, on, params);
    });
}

}  // namespace spectral
