// SPDX-License-Identifier: Apache-2.0
// The reconstruction loss on the CPU. One task takes a unit of neighbouring positions. A position's S tokens are
// visited in blocks of 8 rows of 8 values: errors, their sum over the groups, and, that sum being known, the gradient,
// whose second look at prediction and image hits the first-level cache. Sums run in float lanes over one position and
// in double beyond, in an order fixed by the shapes, so results do not depend on the thread count.
#include "ops/loss.h"

#include <cmath>

#include "core/check.h"
#include "core/pages.h"
#include "core/parallel.h"
#include "core/simd.h"

namespace spectral {
namespace {

enum class Targets { kRaw, kNormalized, kMixed };  // mixed: tokens normalised, spectrum raw

constexpr int kRows = 8;
constexpr int64_t kPositionsAhead = 4;  // of the rows that are called for

// What one position needs, with the types resolved. T prediction, I image; kWhole: q is 8, p a multiple of 8 and the
// pixels of a row adjacent, so that every block is 8 x 8 values, and adjacent in the token.
template <class T, class I, Targets kTargets, bool kWhole>
struct Terms {
    using A = accumulator_t<T>;
    using V = Lanes<A>;

    LossParams params;
    Cube cube;
    A token_factor, spectral_factor;  // of the gradient
    bool past_caches;                 // where the gradient goes

    // Up to 8 rows of up to 8 values of one band of a token: where they begin, in the token and in the image.
    struct Block {
        int64_t value, pixel, num_rows, count;

        int64_t rows() const { return kWhole ? kRows : num_rows; }
    };

    int64_t patch_columns() const { return kWhole ? kLanes : cube.patch_columns; }

    bool is_scored(int64_t token) const {
        return params.mask[token] && (params.valid == nullptr || params.valid[token]);
    }

    // Calls body(block) for the blocks of a token.
    template <class Body>
    void visit(Body body) const {
        const int64_t rows = cube.patch_rows, columns = patch_columns();
        for (int64_t c = 0; c < cube.patch_bands; ++c) {
            for (int64_t r = 0; r < rows; r += kRows) {
                for (int64_t k = 0; k < columns; k += kLanes) {
                    body(Block{(c * rows + r) * columns + k,
                               c * cube.band_stride + r * cube.row_stride + k * cube.column_stride,
                               std::min<int64_t>(kRows, rows - r), std::min<int64_t>(kLanes, columns - k)});
                }
            }
        }
    }

    V read(const I* pixels, const Block& block) const {
        const bool whole = kWhole || (block.count == kLanes && cube.column_stride == 1);
        return whole ? load<A>(pixels) : load_some<A>(pixels, cube.column_stride, block.count);
    }
    // Lanes beyond a short row hold no pixel.
    static V only(const V& lanes, const Block& block) {
        if (kWhole) return lanes;
        V some = {};
        for (int64_t k = 0; k < block.count; ++k) some[k] = lanes[k];
        return some;
    }

    // Calls body(row) for the rows of a block; unrolled, so that arrays over rows are registers. Bodies walk pointers
    // from row to row: offsets of eight rows would fill the registers.
    template <class Body>
    static void for_rows(const Block& block, Body body) {
        if constexpr (kWhole && std::is_same_v<T, A> && std::is_same_v<I, A>) {
#pragma GCC unroll 8
            for (int64_t j = 0; j < kRows; ++j) body(j);
        } else {  // conversions of 16-bit values, eight times eight of them, would be code without end
            for (int64_t j = 0; j < block.rows(); ++j) body(j);
        }
    }

    // Mean and 1/deviation of one target token. Two passes over pixels that stay in the cache: exact, and no
    // cancellation.
    void write_statistics(const I* corner, double* out) const {
        const A values = static_cast<A>(cube.token_values());
        const auto total = [&](auto term) {
            V sums[kRows] = {};
            visit([&](const Block& block) {
                const I* row = corner + block.pixel;
                for_rows(block, [&](int64_t j) {
                    sums[j] += term(block, read(row, block));
                    row += cube.row_stride;
                });
            });
            return sum<A>(((sums[0] + sums[4]) + (sums[2] + sums[6])) + ((sums[1] + sums[5]) + (sums[3] + sums[7])));
        };
        const A mean = total([](const Block&, const V& pixel) { return pixel; }) / values;
        const A squares = total([mean](const Block& block, const V& pixel) {
            const V centred = only(pixel - mean, block);
            return centred * centred;
        });
        out[0] = mean;
        out[1] = 1 / std::sqrt(squares / (values - 1) + static_cast<A>(kVarianceEpsilon));
    }

    // One token of a position: where it is, and what its targets are scaled by.
    struct Token {
        const T* guess;
        const I* corner;
        T* gradient;
        A mean, scale;
        bool scored;  // never a zero factor instead: an invalid pixel may be NaN
    };

    // Calls use(row, error, spectral error) for each row of a block of one token.
    template <class Use>
    void errors(const Block& block, const Token& token, Use use) const {
        const I* pixels = token.corner + block.pixel;
        const T* guesses = token.guess + block.value;
        for_rows(block, [&](int64_t j) {
            const V pixel = read(pixels, block);
            const V guess = kWhole ? load<A>(guesses) : load_some<A>(guesses, 1, block.count);
            if constexpr (kTargets == Targets::kRaw) {
                use(j, guess - pixel, guess - pixel);
            } else {
                const V error = only(guess - (pixel - token.mean) * token.scale, block);
                use(j, error, kTargets == Targets::kMixed ? guess - pixel : error);
            }
            pixels += cube.row_stride;
            guesses += patch_columns();
        });
    }

    // Adds the two sums of one position and writes its gradient.
    void position(int64_t sample, int64_t place, double& token_sum, double& spectral_sum) const {
        const int64_t groups = cube.groups(), positions = cube.positions(), values = cube.token_values();
        const int64_t first = sample * cube.tokens() + place, group_stride = cube.patch_bands * cube.band_stride;
        const I* image = static_cast<const I*>(params.image);
        const I* corner = image + cube.token_offset(sample, place);
        const I* soon = image + cube.token_offset(sample, std::min(place + kPositionsAhead, positions - 1));
        const T* prediction = static_cast<const T*>(params.prediction);
        double* statistics = params.scratch + loss_statistics_offset(cube) + 2 * first;
        bool complete = true;
        for (int64_t s = 0; s < groups; ++s) {
            complete = complete && (params.valid == nullptr || params.valid[first + s * positions]);
            if (kTargets != Targets::kRaw) write_statistics(corner + s * group_stride, statistics + 2 * s * positions);
        }
        const auto token_of = [&](int64_t s) {
            const int64_t id = first + s * positions;
            Token token{prediction + id * values, corner + s * group_stride, nullptr, 0, 1, is_scored(id)};
            if (params.gradient != nullptr) token.gradient = static_cast<T*>(params.gradient) + id * values;
            if (kTargets != Targets::kRaw) {
                token.mean = static_cast<A>(statistics[2 * s * positions]);
                token.scale = static_cast<A>(statistics[2 * s * positions + 1]);
            }
            return token;
        };
        V squares = {}, spectral = {};
        visit([&](const Block& block) {
            V spectrum[kRows] = {};
            for (int64_t s = 0; s < groups; ++s) {
                const Token token = token_of(s);
                if (kWhole) prefetch(soon + s * group_stride, block);
                V part[2] = {};
                errors(block, token, [&](int64_t j, const V& error, const V& spectral_error) {
                    spectrum[j] += spectral_error;
                    part[j % 2] += error * error;
                });
                if (token.scored) squares += part[0] + part[1];
            }
            V part[2] = {};
            for_rows(block, [&](int64_t j) {
                if (complete) part[j % 2] += spectrum[j] * spectrum[j];
                spectrum[j] = complete ? spectrum[j] * spectral_factor : V{};
            });
            spectral += part[0] + part[1];
            if (params.gradient == nullptr) return;
            for (int64_t s = 0; s < groups; ++s) {
                const Token token = token_of(s);
                T* out = token.gradient + block.value;
                const auto write = [&](const V& lanes) {
                    kWhole ? store<A>(out, lanes, past_caches) : store_some<A>(out, lanes, block.count);
                    out += patch_columns();
                };
                if (token.scored) {
                    errors(block, token,
                           [&](int64_t j, const V& error, const V&) { write(error * token_factor + spectrum[j]); });
                } else {
                    for_rows(block, [&](int64_t j) { write(spectrum[j]); });
                }
            }
        });
        token_sum += static_cast<double>(sum<A>(squares));
        spectral_sum += static_cast<double>(sum<A>(spectral));
    }

    // Calls for a block of a position that is due soon: rows are too many streams for the machine to see coming. Into
    // the second-level cache, since bands and groups are often multiples of 4 KiB apart and share few places of the
    // first.
    void prefetch(const I* corner, const Block& block) const {
        const I* row = corner + block.pixel;
        for_rows(block, [&](int64_t) {
            __builtin_prefetch(row, 0, kSecondLevel);
            row += cube.row_stride;
        });
    }
};

template <class T, class I, Targets kTargets, bool kWhole>
SPECTRAL_SIMD void run_unit(const Terms<T, I, kTargets, kWhole>& shared, int64_t unit, double* partial) {
    const Terms<T, I, kTargets, kWhole> terms = shared;  // no store of a gradient can be thought to reach it
    const int64_t units = loss_units_per_sample(terms.cube), first = unit % units * kUnitPositions;
    const int64_t end = std::min(first + kUnitPositions, terms.cube.positions());
    double token = 0, spectral = 0;
    for (int64_t place = first; place < end; ++place) terms.position(unit / units, place, token, spectral);
    partial[2 * unit] = token;
    partial[2 * unit + 1] = spectral;
}

template <class T, class A>
SPECTRAL_SIMD void multiply(T* values, int64_t count, A factor) {
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) store<A>(values + i, load<A>(values + i) * factor);
    for (; i < count; ++i) values[i] = T(A(values[i]) * factor);
}

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
    const double scale = kUnderflows<T> ? 1 / scored : 1;
    const double token_weight = weight<A>(params.token_weight), spectral_weight = weight<A>(params.spectral_weight);
    const A token_factor = static_cast<A>(2 * token_weight / scored / scale);
    const A spectral_factor = static_cast<A>(2 * spectral_weight / complete / scale);

    const int64_t all = cube.batch * cube.tokens() * cube.token_values(), all_bytes = all * int64_t{sizeof(T)};
    if (params.gradient != nullptr) advise_huge_pages(params.gradient, all_bytes);
    const bool past_caches = goes_past_caches(2 * all_bytes + all * int64_t{sizeof(I)});
    double* partial = params.scratch + 2;
    const int64_t bytes = kUnitPositions * cube.groups() * cube.token_values() * int64_t{sizeof(T)} * 3;
    const auto run_units = [&](auto whole) {
        const Terms<T, I, kTargets, whole.value> terms{params, cube, token_factor, spectral_factor, past_caches};
        parallel_for(num_threads, loss_units(cube), bytes, [&](int64_t unit) { run_unit(terms, unit, partial); });
    };
    const bool whole = cube.column_stride == 1 && cube.patch_columns == kLanes && cube.patch_rows % kRows == 0;
    whole ? run_units(std::true_type{}) : run_units(std::false_type{});
    double token = 0, spectral = 0;
    for (int64_t unit = 0; unit < loss_units(cube); ++unit) {
        token += partial[2 * unit];
        spectral += partial[2 * unit + 1];
    }
    *static_cast<A*>(params.token) = static_cast<A>(token / scored);
    *static_cast<A*>(params.spectral) = static_cast<A>(spectral / complete);
    *static_cast<A*>(params.total) =
        static_cast<A>(token_weight * token / scored + spectral_weight * spectral / complete);
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

void reconstruction_loss_scale_cpu(const LossScaleParams& params, int num_threads) {
    dispatch_floating("reconstruction_loss_scale", params.dtype, [&](auto type) {
        using T = typename decltype(type)::type;
        using A = accumulator_t<T>;
        const A factor = *static_cast<const A*>(params.grad_total) * *static_cast<const A*>(params.scale);
        if (factor == 1) return;
        constexpr int64_t kChunk = 1 << 16;
        T* gradient = static_cast<T*>(params.gradient);
        parallel_for(
            num_threads, (params.count + kChunk - 1) / kChunk, kChunk * int64_t{sizeof(T)} * 2,
            [&](int64_t i) { multiply(gradient + i * kChunk, std::min(kChunk, params.count - i * kChunk), factor); });
    });
}

}  // namespace spectral
