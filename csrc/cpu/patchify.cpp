// SPDX-License-Identifier: Apache-2.0
// Image cube <-> tokens on the CPU. One task moves one row of tokens (sample, group, y): its w tokens are contiguous,
// and its pixels are t bands of p whole image rows. A run of q pixels is one copy of constant size for the usual q, and
// two image rows are passed over together, since for q = 8 floats they fill a cache line of each token.
#include "ops/patchify.h"

#include <algorithm>

#include "core/check.h"
#include "core/parallel.h"
#include "core/simd.h"

namespace spectral {
namespace {

enum class Direction { kToTokens, kToImage };

constexpr int64_t kTokensAhead = 2;

// Copies the pixels of one token. Columns > 0: q known at compile time and pixels of a row adjacent.
template <Direction D, int Columns, class T>
void copy_token(const Cube& cube, T* token, T* pixels) {
    for (int64_t c = 0; c < cube.patch_bands; ++c) {
        for (int64_t r = 0; r < cube.patch_rows; ++r) {
            T* row = pixels + c * cube.band_stride + r * cube.row_stride;
            if constexpr (Columns > 0) {
                std::memcpy(D == Direction::kToTokens ? token : row, D == Direction::kToTokens ? row : token,
                            Columns * sizeof(T));
                token += Columns;
            } else {
                for (int64_t k = 0; k < cube.patch_columns; ++k, ++token) {
                    T& pixel = row[k * cube.column_stride];
                    D == Direction::kToTokens ? * token = pixel : pixel = *token;
                }
            }
        }
    }
}

// A row of `columns` neighbouring tokens, by pairs of image rows, each passed over in one stretch while the tokens stay
// in the first-level cache. What the next row of tokens will touch is called for meanwhile: neither side of a
// permutation is a stream that the machine would see coming.
template <Direction D, int Columns, class T>
SPECTRAL_SIMD void copy_token_row(const Cube& cube, T* tokens, T* pixels, T* next_tokens, T* next_pixels,
                                  int64_t columns) {
    constexpr bool kReads = D == Direction::kToTokens;  // the image
    const int64_t values = cube.token_values(), stretch = columns * Columns;
    for (int64_t c = 0; c < cube.patch_bands; ++c) {
        for (int64_t r = 0; r < cube.patch_rows; r += 2) {
            const int64_t band_row = c * cube.patch_rows + r, rows = std::min<int64_t>(2, cube.patch_rows - r);
            const int64_t corner = c * cube.band_stride + r * cube.row_stride;
            prefetch<!kReads>(next_pixels + corner, stretch);
            prefetch<!kReads>(next_pixels + corner + (rows - 1) * cube.row_stride, stretch);
            prefetch<kReads>(next_tokens + band_row * stretch, rows * stretch);
            T* upper = pixels + corner;
            T* lower = upper + cube.row_stride;
            T* token = tokens + band_row * Columns;
            for (int64_t x = 0; x < columns; ++x, token += values, upper += Columns, lower += Columns) {
                constexpr size_t kBytes = Columns * sizeof(T);
                std::memcpy(kReads ? token : upper, kReads ? upper : token, kBytes);
                if (rows == 2) std::memcpy(kReads ? token + Columns : lower, kReads ? lower : token + Columns, kBytes);
            }
        }
    }
}

template <Direction D, class T>
void copy_grid(const Cube& cube, T* tokens, T* image, int num_threads) {
    const int64_t rows = cube.groups() * cube.grid_rows(), columns = cube.grid_columns(), values = cube.token_values();
    const auto pixels = [&](int64_t row) {
        return image + cube.token_offset(row / rows, row % rows / cube.grid_rows(), row % cube.grid_rows(), 0);
    };
    const auto for_rows = [&](auto body) {
        parallel_for(num_threads, cube.batch * rows, columns * values * int64_t{sizeof(T)} * 2, body);
    };
    const auto copy_with = [&](auto copy) {
        for_rows([&](int64_t row) {
            const int64_t next = std::min(row + 1, cube.batch * rows - 1);
            copy(cube, tokens + row * columns * values, pixels(row), tokens + next * columns * values, pixels(next),
                 columns);
        });
    };
    const int64_t adjacent = cube.column_stride == 1 ? cube.patch_columns : 0;
    if (adjacent == 8) return copy_with(copy_token_row<D, 8, T>);
    if (adjacent == 16) return copy_with(copy_token_row<D, 16, T>);
    if (adjacent == 4) return copy_with(copy_token_row<D, 4, T>);
    for_rows([&](int64_t row) {
        for (int64_t x = 0; x < columns; ++x) {
            copy_token<D, 0>(cube, tokens + (row * columns + x) * values,
                             pixels(row) + x * cube.patch_columns * cube.column_stride);
        }
    });
}

// Scattered tokens, each called for while the ones before it are copied.
template <int Columns, class T>
SPECTRAL_SIMD void gather_tokens(const Cube& cube, T* tokens, T* image, int64_t sample, const int64_t* ids,
                                 int64_t count) {
    const int64_t values = cube.token_values();
    for (int64_t k = 0; k < count; ++k) {
        const int64_t ahead = std::min(k + kTokensAhead, count - 1);
        const T* next = image + cube.token_offset(sample, ids[ahead]);
        for (int64_t c = 0; c < cube.patch_bands; ++c) {
            for (int64_t r = 0; r < cube.patch_rows; ++r) {
                prefetch<false>(next + c * cube.band_stride + r * cube.row_stride,
                                Columns ? Columns : cube.patch_columns);
            }
        }
        copy_token<Direction::kToTokens, Columns>(cube, tokens + k * values, image + cube.token_offset(sample, ids[k]));
    }
}

void check_ids(const char* op, const GatherParams& params) {
    const int64_t tokens = params.cube.tokens();
    for (int64_t i = 0; i < params.cube.batch * params.num_keep; ++i) {
        const int64_t id = params.ids_keep[i];
        if (id < 0 || id >= tokens) {
            fail<IndexError>(op, ": expected token ids in [0, ", tokens, "), got ", id, " at sample ",
                             i / params.num_keep, ", place ", i % params.num_keep);
        }
    }
}

}  // namespace

void patchify3d_cpu(const PatchifyParams& params, int num_threads) {
    dispatch_element_size("patchify3d", params.element_size, [&](auto type) {
        using T = typename decltype(type)::type;
        T* image = const_cast<T*>(static_cast<const T*>(params.input));  // only read in this direction
        copy_grid<Direction::kToTokens>(params.cube, static_cast<T*>(params.output), image, num_threads);
    });
}

void unpatchify3d_cpu(const PatchifyParams& params, int num_threads) {
    dispatch_element_size("unpatchify3d", params.element_size, [&](auto type) {
        using T = typename decltype(type)::type;
        T* tokens = const_cast<T*>(static_cast<const T*>(params.input));  // only read in this direction
        copy_grid<Direction::kToImage>(params.cube, tokens, static_cast<T*>(params.output), num_threads);
    });
}

void gather_patchify3d_cpu(const GatherParams& params, int num_threads) {
    check_ids("gather_patchify3d", params);
    const Cube& cube = params.cube;
    dispatch_element_size("gather_patchify3d", params.element_size, [&](auto type) {
        using T = typename decltype(type)::type;
        T* image = const_cast<T*>(static_cast<const T*>(params.input));  // only read
        const int64_t values = cube.token_values();
        const auto copy_with = [&](auto copy) {
            parallel_for(num_threads, cube.batch, params.num_keep * values * int64_t{sizeof(T)} * 2,
                         [&](int64_t sample) {
                             const int64_t* ids = params.ids_keep + sample * params.num_keep;
                             T* tokens = static_cast<T*>(params.output) + sample * params.num_keep * values;
                             copy(cube, tokens, image, sample, ids, params.num_keep);
                         });
        };
        const int64_t adjacent = cube.column_stride == 1 ? cube.patch_columns : 0;
        if (adjacent == 8) return copy_with(gather_tokens<8, T>);
        if (adjacent == 16) return copy_with(gather_tokens<16, T>);
        copy_with(gather_tokens<0, T>);
    });
}

void gather_patchify3d_backward_cpu(const GatherParams& params, int num_threads) {
    check_ids("gather_patchify3d_backward", params);
    const Cube& cube = params.cube;
    dispatch_floating("gather_patchify3d_backward", params.dtype, [&](auto type) {
        using T = typename decltype(type)::type;
        using A = accumulator_t<T>;
        const int64_t values = cube.token_values(), pixels = cube.bands * cube.height * cube.width;
        parallel_for(num_threads, cube.batch, pixels * int64_t{sizeof(T)}, [&](int64_t sample) {
            T* image = static_cast<T*>(params.output);
            std::memset(static_cast<void*>(image + sample * cube.batch_stride), 0, pixels * sizeof(T));
            const T* grad = static_cast<const T*>(params.input) + sample * params.num_keep * values;
            for (int64_t k = 0; k < params.num_keep;
                 ++k, grad += values) {  // a token kept twice gets both gradients, in order
                T* token = image + cube.token_offset(sample, params.ids_keep[sample * params.num_keep + k]);
                for (int64_t v = 0; v < values; ++v) {
                    T& pixel = token[cube.value_offset(v)];
                    pixel = T(A(pixel) + A(grad[v]));
                }
            }
        });
    });
}

}  // namespace spectral
