// SPDX-License-Identifier: Apache-2.0
// The image cube, its grid of tokens, and where each value lives. Shared by host and device, so both index alike.
//
// Sizes: B batch, C bands, H W pixels, (t, p, q) patch of bands, rows, columns, S = C/t groups, h = H/p, w = W/q, L =
// S*h*w tokens, P = t*p*q values. Token `(s*h + y)*w + x` covers bands s*t.., rows y*p.., columns x*q..; value `(c*p +
// r)*q + k` of it is band c, row r, column k.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define SPECTRAL_HOST_DEVICE __host__ __device__ inline
#else
#define SPECTRAL_HOST_DEVICE inline
#endif

namespace spectral {

struct Cube {
    int64_t batch, bands, height, width;  // B, C, H, W
    int64_t batch_stride, band_stride, row_stride,
        column_stride;                               // in elements; any, so crops and permuted views need no copy
    int64_t patch_bands, patch_rows, patch_columns;  // t, p, q

    SPECTRAL_HOST_DEVICE int64_t groups() const { return bands / patch_bands; }
    SPECTRAL_HOST_DEVICE int64_t grid_rows() const { return height / patch_rows; }
    SPECTRAL_HOST_DEVICE int64_t grid_columns() const { return width / patch_columns; }
    SPECTRAL_HOST_DEVICE int64_t positions() const { return grid_rows() * grid_columns(); }
    SPECTRAL_HOST_DEVICE int64_t tokens() const { return groups() * positions(); }
    SPECTRAL_HOST_DEVICE int64_t token_values() const { return patch_bands * patch_rows * patch_columns; }

    // First pixel of a token: offset from the start of the image buffer.
    SPECTRAL_HOST_DEVICE int64_t token_offset(int64_t sample, int64_t group, int64_t y, int64_t x) const {
        return sample * batch_stride + group * patch_bands * band_stride + y * patch_rows * row_stride +
               x * patch_columns * column_stride;
    }

    // The same for a token id in [0, L).
    SPECTRAL_HOST_DEVICE int64_t token_offset(int64_t sample, int64_t token) const {
        const int64_t columns = grid_columns(), rows = grid_rows();
        const int64_t row = token / columns, group = row / rows;  // divisions are dear: no more than two
        return token_offset(sample, group, row - group * rows, token - row * columns);
    }

    // One value of a token, from the token's first pixel.
    SPECTRAL_HOST_DEVICE int64_t value_offset(int64_t value) const {
        const int64_t column = value % patch_columns, row = value / patch_columns % patch_rows;
        return value / (patch_columns * patch_rows) * band_stride + row * row_stride + column * column_stride;
    }
};

}  // namespace spectral
