// SPDX-License-Identifier: Apache-2.0
// Image cube <-> tokens on the CPU. One task moves one row of tokens (sample, group, y): its w tokens are contiguous,
// and its pixels are t bands of p whole image rows. A run of q pixels is one copy of constant size for the usual q.
#include "ops/patchify.h"

#include <algorithm>
#include <type_traits>

#include "core/check.h"
#include "core/pages.h"
#include "core/parallel.h"
#include "core/simd.h"

namespace spectral {
namespace {

enum class Direction { kToTokens, kToImage };

constexpr int64_t kTokensAhead = 2;

// Copies the pixels of one token and calls for those of another that is due soon: on the image's side a permutation is
// not a stream that the machine would see coming. Columns > 0: q known at compile time and pixels of a row adjacent.
// The cube is a copy: no store can be thought to reach it. Tokens are written whole and may go past the caches; rows of
// an image come in pieces.
template <Direction D, int Columns, class T>
inline void copy_token(const Cube cube, T* token, T* pixels, const T* soon, bool past_caches) {
    constexpr bool kReads = D == Direction::kToTokens;  // the image
    for (int64_t c = 0; c < cube.patch_bands; ++c) {
#pragma GCC unroll 8
        for (int64_t r = 0; r < cube.patch_rows; ++r) {
            const int64_t at = c * cube.band_stride + r * cube.row_stride;
            __builtin_prefetch(soon + at, !kReads, kSecondLevel);
            T* row = pixels + at;
            if constexpr (Columns > 0) {
                using Run __attribute__((vector_size(Columns * sizeof(T)))) = uint8_t;
                Run run;
                std::memcpy(&run, kReads ? row : token, sizeof run);
                if (kReads && past_caches) {
                    stream(token, run);
                } else {
                    std::memcpy(kReads ? token : row, &run, sizeof run);
                }
                token += Columns;
            } else {
                for (int64_t k = 0; k < cube.patch_columns; ++k, ++token) {
                    T& pixel = row[k * cube.column_stride];
                    kReads ? * token = pixel : pixel = *token;
                }
            }
        }
    }
}

template <Direction D, int Columns, class T>
SPECTRAL_SIMD void copy_token_row(const Cube& cube, T* tokens, T* pixels, const T* next_pixels, bool past_caches) {
    const int64_t columns = cube.grid_columns(), values = cube.token_values();
    const int64_t step = cube.patch_columns * cube.column_stride;
    for (int64_t x = 0; x < columns; ++x, tokens += values, pixels += step, next_pixels += step) {
        copy_token<D, Columns>(cube, tokens, pixels, next_pixels, past_caches);
    }
}

// Calls body(integral_constant) with the q to compile for, 0 for any.
template <class Body>
void dispatch_columns(const Cube& cube, Body body) {
    switch (cube.column_stride == 1 ? cube.patch_columns : 0) {
        case 4: return body(std::integral_constant<int, 4>{});
        case 8: return body(std::integral_constant<int, 8>{});
        case 16: return body(std::integral_constant<int, 16>{});
        default: return body(std::integral_constant<int, 0>{});
    }
}

template <Direction D, class T>
void copy_grid(const Cube& cube, T* tokens, T* image, int num_threads) {
    const int64_t grid_rows = cube.grid_rows(), rows = cube.groups() * grid_rows, total = cube.batch * rows;
    const int64_t values = cube.grid_columns() * cube.token_values();
    const int64_t all_bytes = total * values * int64_t{sizeof(T)};
    const bool past_caches = goes_past_caches(2 * all_bytes);
    advise_huge_pages(D == Direction::kToTokens ? tokens : image, all_bytes);
    const auto pixels = [&](int64_t row) {
        return image + cube.token_offset(row / rows, row % rows / grid_rows, row % grid_rows, 0);
    };
    dispatch_columns(cube, [&](auto columns) {
        parallel_for(num_threads, total, values * int64_t{sizeof(T)} * 2, [&](int64_t row) {
            copy_token_row<D, columns.value>(cube, tokens + row * values, pixels(row),
                                             pixels(std::min(row + 1, total - 1)), past_caches);
        });
    });
}

template <int Columns, class T>
SPECTRAL_SIMD void gather_tokens(const Cube& cube, T* tokens, T* image, int64_t sample, const int64_t* ids,
                                 int64_t count) {
    const int64_t values = cube.token_values();
    T* pixels[kTokensAhead + 1];  // of a token and of those after it
    const auto find = [&](int64_t k) { return image + cube.token_offset(sample, ids[std::min(k, count - 1)]); };
    for (int64_t k = 0; k < kTokensAhead; ++k) pixels[k] = find(k);
    for (int64_t k = 0; k < count; ++k, tokens += values) {
        pixels[kTokensAhead] = find(k + kTokensAhead);
        copy_token<Direction::kToTokens, Columns>(cube, tokens, pixels[0], pixels[kTokensAhead], false);
        for (int64_t i = 0; i < kTokensAhead; ++i) pixels[i] = pixels[i + 1];
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
        dispatch_columns(cube, [&](auto columns) {
            parallel_for(num_threads, params.num_keep ? cube.batch : 0,
                         params.num_keep * values * int64_t{sizeof(T)} * 2, [&](int64_t sample) {
                             gather_tokens<columns.value>(
                                 cube, static_cast<T*>(params.output) + sample * params.num_keep * values, image,
                                 sample, params.ids_keep + sample * params.num_keep, params.num_keep);
                         });
        });
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
