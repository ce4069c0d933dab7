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
#include <cmath>

#include "core/device.cuh"
#include "core/divisor.h"

namespace spectral {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kWarp;
constexpr int64_t kBlocks = 2048;  // some times what any GPU runs at once; fixed, so that sums are the same on all
constexpr int64_t kCountBlocks = 256;
constexpr int kHeldGroups = 4, kHeldValues = 192, kHeldPack = 2, kHeldSteps = kHeldValues / (kWarp * kHeldPack);

// The sizes that index arithmetic needs, in 32 bits.
struct Grid {
    Divisor positions, columns, patch_rows, patch_columns;
    int groups, values;

    explicit Grid(const Cube& cube)
        : positions(cube.positions()),
          columns(cube.grid_columns()),
          patch_rows(cube.patch_rows),
          patch_columns(cube.patch_columns),
          groups(static_cast<int>(cube.groups())),
          values(static_cast<int>(cube.token_values())) {}
};

SPECTRAL_DEVICE bool is_scored(const LossParams& params, int64_t token) {
    return params.mask[token] && (params.valid == nullptr || params.valid[token]);
}

SPECTRAL_DEVICE bool is_complete(const LossParams& params, int64_t first, int groups, int64_t positions) {
    bool complete = true;
    if (params.valid != nullptr) {
        for (int s = 0; s < groups; ++s) complete = complete && params.valid[first + s * positions];
    }
    return complete;
}

// scratch[0] += scored tokens, scratch[1] += complete positions.
SPECTRAL_KERNEL void count_kernel(LossParams params, Grid grid) {
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

// A target token's mean and 1/deviation.
template <class A>
struct Statistics {
    A mean, scale;
};

// One position by one warp. Value v of a token lies at the same place in each of its S tokens.
template <class T, class I, int N>
struct Position {
    using A = accumulator_t<T>;

    const LossParams& params;
    const Grid& grid;
    A token_factor, spectral_factor;  // of the gradient
    const I* corner = nullptr;        // first pixel of the token of group 0
    int64_t first = 0;                // that token's index in (B, L)
    A token_sum = 0, spectral_sum = 0;

    SPECTRAL_DEVICE Position(const LossParams& all, const Grid& sizes) : params(all), grid(sizes) {
        const Factors factor = factors<T>(params);
        token_factor = static_cast<A>(2 * weight<A>(params.token_weight) / factor.scored / factor.scale);
        spectral_factor = static_cast<A>(2 * weight<A>(params.spectral_weight) / factor.complete / factor.scale);
    }

    SPECTRAL_DEVICE void move_to(int number) {
        int place = 0, x = 0;
        const int64_t sample = grid.positions.divide(number, place);
        const int y = grid.columns.divide(place, x);
        corner = static_cast<const I*>(params.image) + params.cube.token_offset(sample, 0, y, x);
        first = sample * grid.positions.value() * grid.groups + place;
        token_sum = spectral_sum = 0;
    }

    // From the token's first pixel to that of a value; of N neighbours the first.
    SPECTRAL_DEVICE int64_t pixel_offset(int value) const {
        int column = 0, row = 0;
        const int run = grid.patch_columns.divide(value, column), band = grid.patch_rows.divide(run, row);
        return band * params.cube.band_stride + row * params.cube.row_stride + column * params.cube.column_stride;
    }

    SPECTRAL_DEVICE int64_t token(int group) const { return first + int64_t{group} * grid.positions.value(); }

    SPECTRAL_DEVICE Pack<I, N> pixels(int group, int64_t offset) const {
        return load_pack<N>(corner + group * params.cube.patch_bands * params.cube.band_stride + offset);
    }
    SPECTRAL_DEVICE Pack<T, N> guesses(int group, int value) const {
        return load_pack<N>(static_cast<const T*>(params.prediction) + token(group) * grid.values + value);
    }
    SPECTRAL_DEVICE void write_gradient(int group, int value, const Pack<T, N>& gradient) const {
        store_pack(static_cast<T*>(params.gradient) + token(group) * grid.values + value, gradient);
    }

    // From sums over the values of a warp.
    SPECTRAL_DEVICE A mean(A sum) const { return warp_sum(sum) / A(grid.values); }
    SPECTRAL_DEVICE A scale(A squares) const {
        return 1 / sqrt(warp_sum(squares) / A(grid.values - 1) + static_cast<A>(kVarianceEpsilon));
    }

    // Errors for the token term, and added to the spectrum.
    SPECTRAL_DEVICE void errors(const Pack<T, N>& guess, const Pack<I, N>& pixel, const Statistics<A>& target, A* error,
                                A* spectrum) const {
        SPECTRAL_UNROLL
        for (int k = 0; k < N; ++k) {
            error[k] = A(guess.value[k]) - (A(pixel.value[k]) - target.mean) * target.scale;
            spectrum[k] += params.spectral_raw ? A(guess.value[k]) - A(pixel.value[k]) : error[k];
        }
    }
    SPECTRAL_DEVICE void add_token(const A* error, bool scored) {
        SPECTRAL_UNROLL
        for (int k = 0; k < N; ++k) token_sum += scored ? error[k] * error[k] : A(0);  // an invalid pixel may be NaN
    }
    // Adds the spectrum's squares and turns it into its part of the gradient.
    SPECTRAL_DEVICE void add_spectrum(A* spectrum, bool complete) {
        SPECTRAL_UNROLL
        for (int k = 0; k < N; ++k) {
            spectral_sum += complete ? spectrum[k] * spectrum[k] : A(0);
            spectrum[k] = complete ? spectrum[k] * spectral_factor : A(0);
        }
    }
    SPECTRAL_DEVICE Pack<T, N> gradient(const A* error, const A* spectrum, bool scored) const {
        Pack<T, N> pack;
        SPECTRAL_UNROLL
        for (int k = 0; k < N; ++k) pack.value[k] = T(scored ? token_factor * error[k] + spectrum[k] : spectrum[k]);
        return pack;
    }

    // Up to kHeldGroups tokens of kHeldValues values, in registers. Offsets are those of this lane's pixels.
    template <bool kNormalized>
    SPECTRAL_DEVICE void visit_held(const int64_t* offsets) {
        constexpr bool kLate = kNormalized && sizeof(T) == 2;  // read when the statistics' registers are free again
        const int lane = lane_index();
        const int64_t at = first * kHeldValues + lane * N, next = int64_t{grid.positions.value()} * kHeldValues;
        const int64_t next_pixels = params.cube.patch_bands * params.cube.band_stride;
        const T* prediction = static_cast<const T*>(params.prediction) + at;
        Pack<T, N> guess[kHeldGroups][kHeldSteps] = {};
        Pack<I, N> pixel[kHeldGroups][kHeldSteps] = {};
        const bool masked = lane < grid.groups && params.mask[token(lane)];  // a lane looks up one group's flags
        const bool valid = lane >= grid.groups || params.valid == nullptr || params.valid[token(lane)];
        SPECTRAL_UNROLL
        for (int s = 0; s < kHeldGroups; ++s) {
            if (s >= grid.groups) continue;
            SPECTRAL_UNROLL
            for (int step = 0; step < kHeldSteps; ++step) {
                pixel[s][step] = load_pack<N>(corner + s * next_pixels + offsets[step]);
                if (!kLate) guess[s][step] = load_pack<N>(prediction + s * next + step * kWarp * N);
            }
        }
        const uint32_t scored = ballot(masked && valid);
        const bool complete = ballot(valid) == ~0u;
        Statistics<A> target[kHeldGroups];
        SPECTRAL_UNROLL
        for (int s = 0; s < kHeldGroups; ++s) target[s] = kNormalized ? statistics(pixel[s]) : Statistics<A>{0, 1};
        SPECTRAL_UNROLL
        for (int s = 0; s < kHeldGroups && kLate; ++s) {
            if (s >= grid.groups) continue;
            SPECTRAL_UNROLL
            for (int step = 0; step < kHeldSteps; ++step)
                guess[s][step] = load_pack<N>(prediction + s * next + step * kWarp * N);
        }
        T* out = static_cast<T*>(params.gradient) + at;
        SPECTRAL_UNROLL
        for (int step = 0; step < kHeldSteps; ++step) {
            A spectrum[N] = {}, error[kHeldGroups][N];
            SPECTRAL_UNROLL
            for (int s = 0; s < kHeldGroups; ++s) {
                errors(guess[s][step], pixel[s][step], target[s], error[s], spectrum);
                add_token(error[s], scored >> s & 1u);
            }
            add_spectrum(spectrum, complete);
            if (params.gradient == nullptr) continue;
            SPECTRAL_UNROLL
            for (int s = 0; s < kHeldGroups; ++s) {
                if (s < grid.groups)
                    store_pack(out + s * next + step * kWarp * N, gradient(error[s], spectrum, scored >> s & 1u));
            }
        }
    }

    SPECTRAL_DEVICE Statistics<A> statistics(const Pack<I, N> (&pixel)[kHeldSteps]) const {
        A sum = 0, squares = 0;
        SPECTRAL_UNROLL
        for (int step = 0; step < kHeldSteps; ++step) {
            SPECTRAL_UNROLL
            for (int k = 0; k < N; ++k) sum += A(pixel[step].value[k]);
        }
        const A middle = mean(sum);
        SPECTRAL_UNROLL
        for (int step = 0; step < kHeldSteps; ++step) {
            SPECTRAL_UNROLL
            for (int k = 0; k < N; ++k)
                squares += (A(pixel[step].value[k]) - middle) * (A(pixel[step].value[k]) - middle);
        }
        return {middle, scale(squares)};
    }

    // Any number of tokens of any size. Their statistics go through scratch.
    SPECTRAL_DEVICE void visit() {
        double* statistics = params.scratch + loss_statistics_offset(params.cube);
        const bool complete = is_complete(params, first, grid.groups, grid.positions.value());
        if (params.normalize_targets) {
            for (int s = 0; s < grid.groups; ++s) write_statistics(s, statistics + 2 * token(s));
            warp_sync();
        }
        const auto target = [&](int s) {
            if (!params.normalize_targets) return Statistics<A>{0, 1};
            return Statistics<A>{static_cast<A>(statistics[2 * token(s)]),
                                 static_cast<A>(statistics[2 * token(s) + 1])};
        };
        for (int v = lane_index() * N; v < grid.values; v += kWarp * N) {
            const int64_t offset = pixel_offset(v);
            A spectrum[N] = {}, error[N], no_matter[N] = {};
            for (int s = 0; s < grid.groups; ++s) {
                errors(guesses(s, v), pixels(s, offset), target(s), error, spectrum);
                add_token(error, is_scored(params, token(s)));
            }
            add_spectrum(spectrum, complete);
            for (int s = 0; s < grid.groups && params.gradient != nullptr; ++s) {
                errors(guesses(s, v), pixels(s, offset), target(s), error, no_matter);
                write_gradient(s, v, gradient(error, spectrum, is_scored(params, token(s))));
            }
        }
    }
    SPECTRAL_DEVICE void write_statistics(int group, double* out) const {
        A sum = 0, squares = 0;
        for (int v = lane_index() * N; v < grid.values; v += kWarp * N) {
            const Pack<I, N> pixel = pixels(group, pixel_offset(v));
            for (int k = 0; k < N; ++k) sum += A(pixel.value[k]);
        }
        const A middle = mean(sum);
        for (int v = lane_index() * N; v < grid.values; v += kWarp * N) {
            const Pack<I, N> pixel = pixels(group, pixel_offset(v));
            for (int k = 0; k < N; ++k) squares += (A(pixel.value[k]) - middle) * (A(pixel.value[k]) - middle);
        }
        const A inverse = scale(squares);
        if (lane_index() == 0) {
            out[0] = static_cast<double>(middle);
            out[1] = static_cast<double>(inverse);
        }
    }
};

enum class Way { kTwoLooks, kRaw, kNormalized };  // the latter two in registers

// Blocks of a multiprocessor, as many as registers allow for: 16-bit predictions take fewer.
template <class T, class I, Way kWay>
constexpr int kBlocksAtOnce = sizeof(T) < sizeof(I) && kWay != Way::kTwoLooks ? 6 : 4;

template <class T, class I, int N, Way kWay>
SPECTRAL_KERNEL SPECTRAL_BOUNDS(kThreads, (kBlocksAtOnce<T, I, kWay>)) void loss_kernel(LossParams params, Grid grid,
                                                                                        int count) {
    SPECTRAL_SHARED double partial[kWarps];
    Position<T, I, N> position(params, grid);
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
    const int64_t positions = params.cube.batch * params.cube.positions();
    check(positions < kMaxGrid, op, ": expected fewer than 2^31 positions in the batch, got ", positions);
    const Grid grid(params.cube);
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
