// SPDX-License-Identifier: Apache-2.0
// The reconstruction loss on CUDA: one warp per position, and a fixed number of blocks that walk over the positions.
//
// A lane owns the same few values of the position's S tokens, so the sum over the groups is a sum in registers and the
// gradient follows at once. Up to 4 groups of 192 values (12 bands in patches of 3 x 8 x 8) stay in registers, two
// neighbours a lane, so that no lane idles, and all loads under way before the first is used; larger positions are
// looked at twice, the second time in the cache, by 16 bytes where layout and alignment allow. Sums: float over one
// position, double beyond; a block's partial sums have a fixed place and are added in a fixed order, so results are
// bitwise repeatable. The mask is counted first (integers, exact in any order), because the gradient needs the count.
// Nothing waits for the host.
#include "ops/loss.h"

#include <algorithm>

#include "core/device.cuh"
#include "cuda/loss_position.cuh"

namespace spectral {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kWarp;
constexpr int64_t kBlocks = 2048;  // some times what any GPU runs at once; fixed, so that sums are the same on all
constexpr int64_t kCountBlocks = 256;

// scratch[0] += scored tokens, scratch[1] += complete positions.
SPECTRAL_KERNEL void count_kernel(LossParams params, LossGrid grid) {
    SPECTRAL_SHARED double scratch[kWarps];
    constexpr int kPack = 16;
    const int64_t positions = grid.positions.value(), tokens = positions * grid.groups,
                  count = params.cube.batch * tokens;
    const int64_t start = block_index() * kThreads + thread_index(), stride = grid_size() * kThreads;
    const bool packs = is_aligned(params.mask) && (params.valid == nullptr || is_aligned(params.valid));
    const int64_t packed = packs ? count / kPack * kPack : 0;
    int64_t scored = 0, complete = 0;
    for (int64_t i = start * kPack; i < packed; i += stride * kPack) {
        const Pack<bool, kPack> mask = load_pack<kPack>(params.mask + i);
        const Pack<bool, kPack> valid = params.valid == nullptr ? mask : load_pack<kPack>(params.valid + i);
        for (int k = 0; k < kPack; ++k) scored += mask.value[k] && valid.value[k];
    }
    for (int64_t i = packed + start; i < count; i += stride) scored += is_scored(params, i);
    if (params.valid == nullptr) {
        complete = start == 0 ? params.cube.batch * positions : 0;
    } else {
        for (int64_t i = start; i < params.cube.batch * positions; i += stride) {
            int place = 0;
            const int64_t sample = grid.positions.divide(static_cast<int>(i), place);
            complete += is_complete(params, sample * tokens + place, grid.groups, positions);
        }
    }
    const double all_scored = block_sum(static_cast<double>(scored), scratch);
    const double all_complete = block_sum(static_cast<double>(complete), scratch);
    if (thread_index() == 0) {
        atomic_add(&params.scratch[0], all_scored);
        atomic_add(&params.scratch[1], all_complete);
    }
}

enum class Way { kTwoLooks, kRaw, kNormalized };  // the latter two in registers

// Blocks of a multiprocessor, as many as registers allow for: 16-bit predictions take fewer.
template <class T, class I, Way kWay>
constexpr int kBlocksAtOnce = sizeof(T) < sizeof(I) && kWay != Way::kTwoLooks ? 6 : 4;

template <class T, class I, int N, Way kWay>
SPECTRAL_KERNEL SPECTRAL_BOUNDS(kThreads, (kBlocksAtOnce<T, I, kWay>)) void loss_kernel(LossParams params,
                                                                                        LossGrid grid, int count) {
    SPECTRAL_SHARED double partial[kWarps];
    LossPosition<T, I, N> position(params, grid);
    int64_t offsets[kHeldSteps];
    SPECTRAL_UNROLL
    for (int step = 0; step < kHeldSteps; ++step)
        offsets[step] = position.pixel_offset((step * kWarp + lane_index()) * N);
    double token = 0, spectral = 0;
    const int stride = static_cast<int>(grid_size()) * kWarps;
    for (int64_t number = block_index() * kWarps + warp_index(); number < count; number += stride) {
        position.move_to(static_cast<int>(number));
        if constexpr (kWay == Way::kTwoLooks) {
            position.visit();
        } else {
            position.template visit_held<kWay == Way::kNormalized>(offsets);
        }
        token += static_cast<double>(position.token_sum);
        spectral += static_cast<double>(position.spectral_sum);
    }
    token = block_sum(token, partial);
    spectral = block_sum(spectral, partial);
    if (thread_index() == 0) {
        params.scratch[2 + 2 * block_index()] = token;
        params.scratch[2 + 2 * block_index() + 1] = spectral;
    }
}

template <class T>
SPECTRAL_KERNEL void finish_kernel(LossParams params, int64_t blocks) {
    using A = accumulator_t<T>;
    SPECTRAL_SHARED double scratch[kWarps];
    double token = 0, spectral = 0;
    for (int64_t block = thread_index(); block < blocks; block += kThreads) {
        token += params.scratch[2 + 2 * block];
        spectral += params.scratch[2 + 2 * block + 1];
    }
    token = block_sum(token, scratch);
    spectral = block_sum(spectral, scratch);
    if (thread_index() > 0) return;
    device_check(params.scratch[0] > 0, "reconstruction_loss: expected at least one scored token (masked and valid)",
                 0);
    const LossFactors factor = factors<T>(params);
    token /= factor.scored;
    spectral /= factor.complete;
    *static_cast<A*>(params.token) = static_cast<A>(token);
    *static_cast<A*>(params.spectral) = static_cast<A>(spectral);
    *static_cast<A*>(params.total) =
        static_cast<A>(weight<A>(params.token_weight) * token + weight<A>(params.spectral_weight) * spectral);
    *static_cast<A*>(params.scale) = static_cast<A>(factor.scale);
}

template <class T, int N>
SPECTRAL_KERNEL void scale_kernel(LossScaleParams params) {
    using A = accumulator_t<T>;
    const A factor = *static_cast<const A*>(params.grad_total) * *static_cast<const A*>(params.scale);
    if (factor == 1) return;
    T* gradient = static_cast<T*>(params.gradient);
    for (int64_t i = (block_index() * kThreads + thread_index()) * N; i < params.count;
         i += grid_size() * kThreads * N) {
        Pack<T, N> pack = load_pack<N>(gradient + i);
        for (int k = 0; k < N; ++k) pack.value[k] = T(A(pack.value[k]) * factor);
        store_pack(gradient + i, pack);
    }
}

// Whether N neighbouring values can be read and written at once, in prediction, gradient and image.
template <class T, class I, int N>
bool fits(const LossParams& params) {
    const Cube& cube = params.cube;
    return cube.column_stride == 1 && cube.patch_columns % N == 0 && cube.row_stride % N == 0 &&
           cube.band_stride % N == 0 && cube.batch_stride % N == 0 &&
           is_aligned(params.prediction, alignof(Pack<T, N>)) && is_aligned(params.gradient, alignof(Pack<T, N>)) &&
           is_aligned(params.image, alignof(Pack<I, N>));
}

}  // namespace

void reconstruction_loss_cuda(const LossParams& params, int device, void* stream) {
    constexpr const char* op = "reconstruction_loss";
    const DeviceGuard guard(op, device);
    const auto on = static_cast<Stream>(stream);
    check(params.cube.token_values() < kMaxGrid, op, ": expected tokens below 2^31 values, got ",
          params.cube.token_values());
    const int64_t positions = params.cube.batch * params.cube.positions();
    check(positions < kMaxGrid, op, ": expected fewer than 2^31 positions in the batch, got ", positions);
    const LossGrid grid(params.cube);
    fill_zero(op, params.scratch, 2 * sizeof(double), on);
    const int64_t count_blocks = (params.cube.batch * params.cube.tokens() / 16 + kThreads) / kThreads;
    launch(op, count_kernel, std::min(count_blocks, kCountBlocks), kThreads, on, params, grid);
    dispatch_loss(params, [&](auto prediction, auto image) {
        using T = typename decltype(prediction)::type;
        using I = typename decltype(image)::type;
        constexpr int kWide = 16 / sizeof(T);
        auto kernel =
            fits<T, I, kWide>(params) ? loss_kernel<T, I, kWide, Way::kTwoLooks> : loss_kernel<T, I, 1, Way::kTwoLooks>;
        if constexpr (sizeof(I) <= 4) {
            if (grid.groups <= kHeldGroups && grid.values == kHeldValues && fits<T, I, kHeldPack>(params))
                kernel = params.normalize_targets ? loss_kernel<T, I, kHeldPack, Way::kNormalized>
                                                  : loss_kernel<T, I, kHeldPack, Way::kRaw>;
        }
        const int64_t blocks = std::min((positions + kUnitPositions - 1) / kUnitPositions, kBlocks);
        launch(op, kernel, blocks, kThreads, on, params, grid, static_cast<int>(positions));
        launch(op, finish_kernel<T>, int64_t{1}, kThreads, on, params, blocks);
    });
}

void reconstruction_loss_scale_cuda(const LossScaleParams& params, int device, void* stream) {
    constexpr const char* op = "reconstruction_loss_scale";
    const DeviceGuard guard(op, device);
    dispatch_floating(op, params.dtype, [&](auto type) {
        using T = typename decltype(type)::type;
        constexpr int kWide = 16 / sizeof(T);
        const bool wide = params.count % kWide == 0 && is_aligned(params.gradient);
        const int64_t values = kThreads * (wide ? kWide : 1), blocks = (params.count + values - 1) / values;
        launch(op, wide ? scale_kernel<T, kWide> : scale_kernel<T, 1>, std::min(blocks, kBlocks), kThreads,
               static_cast<Stream>(stream), params);
    });
}

}  // namespace spectral
