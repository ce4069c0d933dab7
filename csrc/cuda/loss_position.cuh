// SPDX-License-Identifier: Apache-2.0
// What the loss does at one position, by one warp: reads the S tokens' values and pixels there, adds up their errors
// and writes their gradient.
#pragma once

#include <cmath>

#include "core/device.cuh"
#include "core/divisor.h"
#include "ops/loss.h"

namespace spectral {

constexpr int kHeldGroups = 4, kHeldValues = 192, kHeldPack = 2, kHeldSteps = kHeldValues / (kWarp * kHeldPack);

// The sizes that index arithmetic needs, in 32 bits.
struct LossGrid {
    Divisor positions, columns, patch_rows, patch_columns;
    int groups, values;

    explicit LossGrid(const Cube& cube)
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

struct LossFactors {
    double scored, complete, scale;  // scored values, complete values, the gradient's scale
};

template <class T>
SPECTRAL_DEVICE LossFactors factors(const LossParams& params) {
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
struct LossPosition {
    using A = accumulator_t<T>;

    const LossParams& params;
    const LossGrid& grid;
    A token_factor, spectral_factor;  // of the gradient
    const I* corner = nullptr;        // first pixel of the token of group 0
    int64_t first = 0;                // that token's index in (B, L)
    A token_sum = 0, spectral_sum = 0;

    SPECTRAL_DEVICE LossPosition(const LossParams& all, const LossGrid& sizes) : params(all), grid(sizes) {
        const LossFactors factor = factors<T>(params);
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

    // Of the values that visit(use) calls use(value) with, on all lanes of a warp: twice, since the deviations are from
    // the mean.
    template <class Visit>
    SPECTRAL_DEVICE Statistics<A> statistics(Visit visit) const {
        A sum = 0, squares = 0;
        visit([&](A value) { sum += value; });
        const A mean = warp_sum(sum) / A(grid.values);
        visit([&](A value) { squares += (value - mean) * (value - mean); });
        const A variance = warp_sum(squares) / A(grid.values - 1) + static_cast<A>(kVarianceEpsilon);
        return {mean, static_cast<A>(1 / sqrt(variance))};
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
        const auto read_guesses = [&](int s) {
            SPECTRAL_UNROLL
            for (int step = 0; step < kHeldSteps; ++step) {
                guess[s][step] = load_pack<N>(prediction + s * next + step * kWarp * N);
            }
        };
        const bool masked = lane < grid.groups && params.mask[token(lane)];  // a lane looks up one group's flags
        const bool valid = lane >= grid.groups || params.valid == nullptr || params.valid[token(lane)];
        SPECTRAL_UNROLL
        for (int s = 0; s < kHeldGroups; ++s) {
            if (s >= grid.groups) continue;
            SPECTRAL_UNROLL
            for (int step = 0; step < kHeldSteps; ++step) {
                pixel[s][step] = load_pack<N>(corner + s * next_pixels + offsets[step]);
            }
            if (!kLate) read_guesses(s);
        }
        const uint32_t scored = ballot(masked && valid);
        const bool complete = ballot(valid) == ~0u;
        Statistics<A> target[kHeldGroups];
        SPECTRAL_UNROLL
        for (int s = 0; s < kHeldGroups; ++s) {
            target[s] = {0, 1};
            if (!kNormalized) continue;
            target[s] = statistics([&](auto use) {
                SPECTRAL_UNROLL
                for (int step = 0; step < kHeldSteps; ++step) {
                    SPECTRAL_UNROLL
                    for (int k = 0; k < N; ++k) use(A(pixel[s][step].value[k]));
                }
            });
        }
        SPECTRAL_UNROLL
        for (int s = 0; s < kHeldGroups && kLate; ++s) {
            if (s < grid.groups) read_guesses(s);
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
        const Statistics<A> target = statistics([&](auto use) {
            for (int v = lane_index() * N; v < grid.values; v += kWarp * N) {
                const Pack<I, N> pixel = pixels(group, pixel_offset(v));
                for (int k = 0; k < N; ++k) use(A(pixel.value[k]));
            }
        });
        if (lane_index() == 0) {
            out[0] = static_cast<double>(target.mean);
            out[1] = static_cast<double>(target.scale);
        }
    }
};

}  // namespace spectral
