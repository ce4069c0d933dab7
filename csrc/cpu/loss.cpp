// SPDX-License-Identifier: Apache-2.0
// The reconstruction loss on the CPU. One task takes a unit of neighbouring positions; a position's S tokens stay in
// the first-level cache while its q-pixel rows are visited: errors, their sum over the groups, and, that sum being
// known, the gradient. Sums run in float lanes over one position and in double beyond, in an order fixed by the shapes,
// so results do not depend on the thread count.
#include "ops/loss.h"

#include <cmath>

#include "core/check.h"
#include "core/parallel.h"

namespace spectral {
namespace {

enum class Targets { kRaw, kNormalized, kMixed };  // mixed: tokens normalised, spectrum raw

// What one position needs, with the types resolved. T prediction, I image, A accumulator.
template <class T, class I, class A, Targets kTargets>
struct Terms {
    const LossParams& params;
    const Cube& cube;
    A token_factor, spectral_factor;  // of the gradient

    struct Sums {
        double token = 0, spectral = 0;
    };

    static constexpr int kLanes = 8;

    bool is_scored(int64_t token) const {
        return params.mask[token] && (params.valid == nullptr || params.valid[token]);
    }

    // Calls body(pixels, count) for each run of a token's pixels in a row, in the order of the token's values.
    template <int Columns, class Body>
    void visit_runs(const I* corner, Body body) const {
        const int64_t q = Columns > 0 ? Columns : cube.patch_columns;
        for (int64_t c = 0; c < cube.patch_bands; ++c) {
            for (int64_t r = 0; r < cube.patch_rows; ++r) {
                const I* row = corner + c * cube.band_stride + r * cube.row_stride;
                for (int64_t start = 0; start < q; start += kLanes) {
                    body(row + start * cube.column_stride,
                         Columns > 0 ? int64_t{kLanes} : std::min<int64_t>(kLanes, q - start));
                }
            }
        }
    }

    // Mean and 1/deviation of one target token. Two passes over pixels that stay in the cache: exact, and no
    // cancellation.
    template <int Columns>
    void write_statistics(const I* corner, double* out) const {
        const int64_t stride = Columns > 0 ? 1 : cube.column_stride;
        const A values = static_cast<A>(cube.token_values());
        A sums[kLanes] = {}, squares[kLanes] = {}, sum = 0, square = 0;
        visit_runs<Columns>(corner, [&](const I* pixel, int64_t lanes) {
            for (int64_t k = 0; k < lanes; ++k) sums[k] += A(pixel[k * stride]);
        });
        for (const A lane : sums) sum += lane;
        const A mean = sum / values;
        visit_runs<Columns>(corner, [&](const I* pixel, int64_t lanes) {
            for (int64_t k = 0; k < lanes; ++k)
                squares[k] += (A(pixel[k * stride]) - mean) * (A(pixel[k * stride]) - mean);
        });
        for (const A lane : squares) square += lane;
        out[0] = mean;
        out[1] = 1 / std::sqrt(square / (values - 1) + static_cast<A>(kVarianceEpsilon));
    }

    // One position: S tokens, visited row by row. Columns > 0: q known at compile time and pixels of a row adjacent.
    template <int Columns>
    Sums position(int64_t sample, int64_t place) const {
        const int64_t groups = cube.groups(), positions = cube.positions(), first = sample * cube.tokens() + place;
        const int64_t group_stride = cube.patch_bands * cube.band_stride;
        const I* corner = static_cast<const I*>(params.image) + cube.token_offset(sample, place);
        double* statistics = params.scratch + loss_statistics_offset(cube) + 2 * first;
        bool complete = true;
        for (int64_t s = 0; s < groups; ++s) {
            complete = complete && (params.valid == nullptr || params.valid[first + s * positions]);
            if (kTargets != Targets::kRaw)
                write_statistics<Columns>(corner + s * group_stride, statistics + 2 * s * positions);
        }
        Sums sums;
        int64_t value = 0;
        visit_runs<Columns>(corner, [&](const I* pixels, int64_t lanes) {
            run_of_values<Columns>(first, value, lanes, pixels, statistics, complete, sums);
            value += lanes;
        });
        return sums;
    }

    // Up to kLanes neighbouring values of the position's S tokens: errors and their sum over the groups, then the
    // gradient.
    template <int Columns>
    void run_of_values(int64_t first, int64_t value, int64_t count, const I* pixels, const double* statistics,
                       bool complete, Sums& sums) const {
        const int64_t lanes = Columns > 0 ? int64_t{kLanes} : count, stride = Columns > 0 ? 1 : cube.column_stride;
        const int64_t groups = cube.groups(), positions = cube.positions(), values = cube.token_values();
        const int64_t group_stride = cube.patch_bands * cube.band_stride;
        A spectrum[kLanes] = {}, squares[kLanes] = {};
        const auto errors = [&](int64_t s, A* error,
                                A* spectral_error) {  // of group s; two arrays when the targets are mixed
            const T* guess = static_cast<const T*>(params.prediction) + (first + s * positions) * values + value;
            const I* pixel = pixels + s * group_stride;
            const A mean = kTargets == Targets::kRaw ? A(0) : static_cast<A>(statistics[2 * s * positions]);
            const A scale = kTargets == Targets::kRaw ? A(1) : static_cast<A>(statistics[2 * s * positions + 1]);
            for (int64_t k = 0; k < lanes; ++k) {
                const A raw = A(pixel[k * stride]);
                error[k] = A(guess[k]) - (kTargets == Targets::kRaw ? raw : (raw - mean) * scale);
                spectral_error[k] = kTargets == Targets::kMixed ? A(guess[k]) - raw : error[k];
            }
        };
        A error[kLanes] = {}, spectral_error[kLanes] = {};
        for (int64_t s = 0; s < groups; ++s) {
            errors(s, error, spectral_error);
            for (int64_t k = 0; k < kLanes; ++k) spectrum[k] += spectral_error[k];
            if (!is_scored(first + s * positions)) continue;  // no zero factor: an invalid pixel may be NaN
            for (int64_t k = 0; k < kLanes; ++k) squares[k] += error[k] * error[k];
        }
        A token = 0, spectral = 0;
        for (int64_t k = 0; k < kLanes; ++k) token += squares[k];
        for (int64_t k = 0; k < kLanes; ++k) spectral += spectrum[k] * spectrum[k];
        sums.token += token;
        sums.spectral += complete ? spectral : A(0);
        if (params.gradient == nullptr) return;
        for (int64_t k = 0; k < kLanes; ++k) spectrum[k] = complete ? spectrum[k] * spectral_factor : A(0);
        for (int64_t s = 0; s < groups; ++s) {
            errors(s, error, spectral_error);
            T* gradient = static_cast<T*>(params.gradient) + (first + s * positions) * values + value;
            if (is_scored(first + s * positions)) {
                for (int64_t k = 0; k < lanes; ++k) gradient[k] = T(token_factor * error[k] + spectrum[k]);
            } else {
                for (int64_t k = 0; k < lanes; ++k) gradient[k] = T(spectrum[k]);
            }
        }
    }
};

struct Counts {
    int64_t scored = 0, complete = 0;
};

Counts count(const LossParams& params) {
    const Cube& cube = params.cube;
    const int64_t positions = cube.positions(), groups = cube.groups();
    Counts counts;
    for (int64_t i = 0; i < cube.batch * cube.tokens(); ++i)
        counts.scored += params.mask[i] && (params.valid == nullptr || params.valid[i]);
    if (params.valid == nullptr) {
        counts.complete = cube.batch * positions;
        return counts;
    }
    for (int64_t i = 0; i < cube.batch * positions; ++i) {
        const bool* valid = params.valid + i / positions * cube.tokens() + i % positions;
        bool complete = true;
        for (int64_t s = 0; s < groups; ++s) complete = complete && valid[s * positions];
        counts.complete += complete;
    }
    return counts;
}

template <class T, class I, Targets kTargets>
void run(const LossParams& params, int num_threads) {
    using A = accumulator_t<T>;
    const Cube& cube = params.cube;
    const Counts counts = count(params);
    check(counts.scored > 0, "reconstruction_loss: expected at least one scored token (masked and valid), got none");
    const double values = static_cast<double>(cube.token_values());
    const double scored = static_cast<double>(counts.scored) * values;
    const double complete = static_cast<double>(std::max<int64_t>(1, counts.complete)) * values;
    const double scale = sizeof(T) == 2 ? 1 / scored : 1;
    const Terms<T, I, A, kTargets> terms{params, cube, static_cast<A>(2 * params.weights[0] / scored / scale),
                                         static_cast<A>(2 * params.weights[1] / complete / scale)};

    const int64_t units = loss_units_per_sample(cube), positions = cube.positions();
    const bool adjacent = cube.column_stride == 1 && cube.patch_columns == 8;
    double* partial = params.scratch + 2;
    const int64_t bytes = kUnitPositions * cube.groups() * cube.token_values() * int64_t{sizeof(T)} * 3;
    parallel_for(num_threads, cube.batch * units, bytes, [&](int64_t unit) {
        const int64_t first = unit % units * kUnitPositions;
        double token = 0, spectral = 0;
        for (int64_t place = first; place < std::min(first + kUnitPositions, positions); ++place) {
            const auto sums = adjacent ? terms.template position<8>(unit / units, place)
                                       : terms.template position<0>(unit / units, place);
            token += sums.token;
            spectral += sums.spectral;
        }
        partial[2 * unit] = token;
        partial[2 * unit + 1] = spectral;
    });
    double token = 0, spectral = 0;
    for (int64_t unit = 0; unit < cube.batch * units; ++unit) {
        token += partial[2 * unit];
        spectral += partial[2 * unit + 1];
    }
    *static_cast<A*>(params.token) = static_cast<A>(token / scored);
    *static_cast<A*>(params.spectral) = static_cast<A>(spectral / complete);
    *static_cast<A*>(params.total) =
        static_cast<A>(params.weights[0] * token / scored + params.weights[1] * spectral / complete);
    *static_cast<A*>(params.scale) = static_cast<A>(scale);
}

}  // namespace

void reconstruction_loss_cpu(const LossParams& params, int num_threads) {
    dispatch_loss(params, [&](auto prediction, auto image) {
        using T = typename decltype(prediction)::type;
        using I = typename decltype(image)::type;
        if (!params.normalize_targets) return run<T, I, Targets::kRaw>(params, num_threads);
        if (!params.spectral_raw) return run<T, I, Targets::kNormalized>(params, num_threads);
        run<T, I, Targets::kMixed>(params, num_threads);
    });
}

}  // namespace spectral
