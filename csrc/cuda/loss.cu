// SPDX-License-Identifier: Apache-2.0
// The reconstruction loss on CUDA: one warp per position, a block per unit of positions.
//
// A lane owns the same few values of the position's S tokens, so the sum over the groups is a sum in registers and the
// gradient follows at once; its second look at prediction and image hits the cache. Loads are 16 bytes where layout and
// alignment allow. Sums: float lanes over one position, double beyond; partial sums go to fixed places and one block
// adds them in a fixed order, so results are bitwise repeatable. The mask is counted first (integers, exact in any
// order), because the gradient needs the count. Nothing waits for the host.
#include "ops/loss.h"

#include <cmath>

#include "core/device.cuh"

namespace spectral {
namespace {

constexpr int kThreads = static_cast<int>(kUnitPositions) * kWarp;
constexpr int kWarps = kThreads / kWarp;
constexpr int64_t kCountBlocks = 1024;
constexpr int64_t kScaleBlocks = 1 << 14;

SPECTRAL_DEVICE bool is_scored(const LossParams& params, int64_t token) {
    return params.mask[token] && (params.valid == nullptr || params.valid[token]);
}

SPECTRAL_DEVICE bool is_complete(const LossParams& params, int64_t first, int64_t groups, int64_t positions) {
    bool complete = true;
    if (params.valid != nullptr) {
        for (int64_t s = 0; s < groups; ++s) complete = complete && params.valid[first + s * positions];
    }
    return complete;
}

// scratch[0] += scored tokens, scratch[1] += complete positions.
SPECTRAL_KERNEL void count_kernel(LossParams params) {
    SPECTRAL_SHARED double scratch[kWarps];
    const Cube& cube = params.cube;
    const int64_t positions = cube.positions(), tokens = cube.tokens(), groups = cube.groups();
    const int64_t start = block_index() * kThreads + thread_index(), stride = grid_size() * kThreads;
    double scored = 0, complete = 0;
    for (int64_t i = start; i < cube.batch * tokens; i += stride) scored += is_scored(params, i);
    for (int64_t i = start; i < cube.batch * positions; i += stride) {
        complete += is_complete(params, i / positions * tokens + i % positions, groups, positions);
    }
    scored = block_sum(scored, scratch);
    complete = block_sum(complete, scratch);
    if (thread_index() == 0) {
        atomic_add(&params.scratch[0], scored);
        atomic_add(&params.scratch[1], complete);
    }
}

struct Factors {
    double scored, complete, scale;  // scored values, complete values, the gradient's scale
};

template <class T>
SPECTRAL_DEVICE Factors factors(const LossParams& params) {
    const double values = static_cast<double>(params.cube.token_values());
    const double scored = params.scratch[0] * values,
                 complete = (params.scratch[1] > 0 ? params.scratch[1] : 1) * values;
    return {scored, complete, kUnderflows<T> ? 1 / scored : 1};
}

// What a lane sees of one value run: N values of a token and the pixels under them.
template <class T, class I, class A, int N>
struct Lane {
    const LossParams& params;
    const I* corner;  // first pixel of the position's token of group 0
    int64_t first;    // that token's index in (B, L)
    double* statistics;

    SPECTRAL_DEVICE int64_t pixel_offset(int value) const {
        const int q = static_cast<int>(params.cube.patch_columns), p = static_cast<int>(params.cube.patch_rows),
                  run = value / q;
        return run / p * params.cube.band_stride + run % p * params.cube.row_stride +
               value % q * params.cube.column_stride;
    }

    SPECTRAL_DEVICE Pack<I, N> pixels(int64_t s, int64_t offset) const {
        return *reinterpret_cast<const Pack<I, N>*>(corner + s * params.cube.patch_bands * params.cube.band_stride +
                                                    offset);
    }

    // Mean and 1/deviation of group s, by the whole warp.
    SPECTRAL_DEVICE void write_statistics(int64_t s, int64_t positions) const {
        const int values = static_cast<int>(params.cube.token_values());
        A sum = 0, squares = 0;
        for (int v = lane_index() * N; v < values; v += kWarp * N) {
            const Pack<I, N> pixel = pixels(s, pixel_offset(v));
            for (int k = 0; k < N; ++k) sum += A(pixel.value[k]);
        }
        const A mean = warp_sum(sum) / A(values);
        for (int v = lane_index() * N; v < values; v += kWarp * N) {
            const Pack<I, N> pixel = pixels(s, pixel_offset(v));
            for (int k = 0; k < N; ++k) squares += (A(pixel.value[k]) - mean) * (A(pixel.value[k]) - mean);
        }
        squares = warp_sum(squares);
        if (lane_index() == 0) {
            statistics[2 * s * positions] = static_cast<double>(mean);
            statistics[2 * s * positions + 1] =
                1 / sqrt(static_cast<double>(squares) / (values - 1) + kVarianceEpsilon);
        }
    }

    // Errors of group s for the token term and for the spectrum.
    SPECTRAL_DEVICE void errors(int64_t s, int64_t positions, int value, int64_t offset, A* error,
                                A* spectral_error) const {
        const int64_t values = params.cube.token_values(), at = (first + s * positions) * values + value;
        const Pack<T, N> guess = *reinterpret_cast<const Pack<T, N>*>(static_cast<const T*>(params.prediction) + at);
        const Pack<I, N> pixel = pixels(s, offset);
        A mean = 0, scale = 1;
        if (params.normalize_targets) {
            mean = static_cast<A>(statistics[2 * s * positions]);
            scale = static_cast<A>(statistics[2 * s * positions + 1]);
        }
        for (int k = 0; k < N; ++k) {
            error[k] = A(guess.value[k]) - (A(pixel.value[k]) - mean) * scale;
            spectral_error[k] = params.spectral_raw ? A(guess.value[k]) - A(pixel.value[k]) : error[k];
        }
    }
};

template <class T, class I, int N>
SPECTRAL_KERNEL void loss_kernel(LossParams params) {
    using A = accumulator_t<T>;
    SPECTRAL_SHARED double partial[2 * kWarps];
    const Cube& cube = params.cube;
    const int64_t units = loss_units_per_sample(cube), positions = cube.positions(), groups = cube.groups();
    const int64_t sample = block_index() / units, place = block_index() % units * kUnitPositions + warp_index();
    A token_sum = 0, spectral_sum = 0;
    if (place < positions) {  // the same for a whole warp
        const Factors factor = factors<T>(params);
        const A token_factor = static_cast<A>(2 * weight<A>(params.token_weight) / factor.scored / factor.scale);
        const A spectral_factor =
            static_cast<A>(2 * weight<A>(params.spectral_weight) / factor.complete / factor.scale);
        const int64_t first = sample * cube.tokens() + place;
        const Lane<T, I, A, N> lane{params, static_cast<const I*>(params.image) + cube.token_offset(sample, place),
                                    first, params.scratch + loss_statistics_offset(cube) + 2 * first};
        const bool complete = is_complete(params, first, groups, positions);
        if (params.normalize_targets) {
            for (int64_t s = 0; s < groups; ++s) lane.write_statistics(s, positions);
            warp_sync();
        }
        const int values = static_cast<int>(cube.token_values());
        for (int value = lane_index() * N; value < values; value += kWarp * N) {
            const int64_t offset = lane.pixel_offset(value);
            A spectrum[N] = {}, error[N], spectral_error[N];
            for (int64_t s = 0; s < groups; ++s) {
                lane.errors(s, positions, value, offset, error, spectral_error);
                const bool scored = is_scored(params, first + s * positions);
                for (int k = 0; k < N; ++k) {
                    spectrum[k] += spectral_error[k];
                    token_sum += scored ? error[k] * error[k] : A(0);  // no zero factor: an invalid pixel may be NaN
                }
            }
            for (int k = 0; k < N; ++k) {
                spectral_sum += complete ? spectrum[k] * spectrum[k] : A(0);
                spectrum[k] = complete ? spectrum[k] * spectral_factor : A(0);
            }
            if (params.gradient == nullptr) continue;
            for (int64_t s = 0; s < groups; ++s) {
                lane.errors(s, positions, value, offset, error, spectral_error);
                const bool scored = is_scored(params, first + s * positions);
                Pack<T, N> gradient;
                for (int k = 0; k < N; ++k)
                    gradient.value[k] = T(scored ? token_factor * error[k] + spectrum[k] : spectrum[k]);
                *reinterpret_cast<Pack<T, N>*>(static_cast<T*>(params.gradient) + (first + s * positions) * values +
                                               value) = gradient;
            }
        }
        token_sum = warp_sum(token_sum);
        spectral_sum = warp_sum(spectral_sum);
    }
    if (lane_index() == 0) {
        partial[2 * warp_index()] = static_cast<double>(token_sum);
        partial[2 * warp_index() + 1] = static_cast<double>(spectral_sum);
    }
    block_sync();
    if (thread_index() < 2) {
        double sum = 0;
        for (int warp = 0; warp < kWarps; ++warp) sum += partial[2 * warp + thread_index()];
        params.scratch[2 + 2 * block_index() + thread_index()] = sum;
    }
}

template <class T>
SPECTRAL_KERNEL void finish_kernel(LossParams params) {
    using A = accumulator_t<T>;
    SPECTRAL_SHARED double scratch[kWarps];
    double token = 0, spectral = 0;
    for (int64_t unit = thread_index(); unit < loss_units(params.cube); unit += kThreads) {
        token += params.scratch[2 + 2 * unit];
        spectral += params.scratch[2 + 2 * unit + 1];
    }
    token = block_sum(token, scratch);
    spectral = block_sum(spectral, scratch);
    if (thread_index() > 0) return;
    device_check(params.scratch[0] > 0, "reconstruction_loss: expected at least one scored token (masked and valid)",
                 0);
    const Factors factor = factors<T>(params);
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
    const auto aligned = [](const void* address, size_t bytes) {
        return reinterpret_cast<uintptr_t>(address) % bytes == 0;
    };
    return cube.column_stride == 1 && cube.patch_columns % N == 0 && cube.row_stride % N == 0 &&
           cube.band_stride % N == 0 && cube.batch_stride % N == 0 && aligned(params.prediction, alignof(Pack<T, N>)) &&
           aligned(params.gradient, alignof(Pack<T, N>)) && aligned(params.image, alignof(Pack<I, N>));
}

}  // namespace

void reconstruction_loss_cuda(const LossParams& params, int device, void* stream) {
    constexpr const char* op = "reconstruction_loss";
    const DeviceGuard guard(op, device);
    const auto on = static_cast<Stream>(stream);
    check(params.cube.token_values() < kMaxGrid, op, ": expected tokens below 2^31 values, got ",
          params.cube.token_values());
    const int64_t count_blocks = (params.cube.batch * params.cube.tokens() + kThreads - 1) / kThreads;
    launch(op, count_kernel, count_blocks < kCountBlocks ? count_blocks : kCountBlocks, kThreads, on, params);
    dispatch_loss(params, [&](auto prediction, auto image) {
        using T = typename decltype(prediction)::type;
        using I = typename decltype(image)::type;
        constexpr int kWide = 16 / sizeof(T);
        const auto kernel = fits<T, I, kWide>(params) ? loss_kernel<T, I, kWide> : loss_kernel<T, I, 1>;
        launch(op, kernel, loss_units(params.cube), kThreads, on, params);
        launch(op, finish_kernel<T>, int64_t{1}, kThreads, on, params);
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
        launch(op, wide ? scale_kernel<T, kWide> : scale_kernel<T, 1>, blocks < kScaleBlocks ? blocks : kScaleBlocks,
               kThreads, static_cast<Stream>(stream), params);
    });
}

}  // namespace spectral
