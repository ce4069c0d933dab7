// SPDX-License-Identifier: Apache-2.0
// The two-target reconstruction loss with its gradient, one pass over prediction and image.
//
// e = prediction - target;  token = mean of e^2 over scored tokens;  spectral = mean over complete positions of (sum of
// e over the S groups)^2 gradient * scale = d(token_weight * token + spectral_weight * spectral) / d prediction, with
// scale 1, or 1/(scored tokens * P) for float16 gradients, which would underflow.
#pragma once

#include <cstdint>

#include "core/cube.h"
#include "core/dtype.h"

namespace spectral {

struct LossParams {
    void* total;  // scalars: float, or double for a double prediction
    void* token;
    void* spectral;
    void* scale;
    void* gradient;            // (B, L, P) contiguous, the prediction's dtype; null: not wanted
    double* scratch;           // reconstruction_loss_scratch() doubles, of any content
    const void* prediction;    // (B, L, P) contiguous
    const void* image;         // at the cube's strides
    const bool* mask;          // (B, L) true = removed
    const bool* valid;         // (B, L); null: all valid
    const void* token_weight;  // scalars of the type of total
    const void* spectral_weight;
    Dtype prediction_dtype;  // with image_dtype one of: equal, or 16-bit with float32
    Dtype image_dtype;
    bool normalize_targets;  // each target token to zero mean, unit unbiased variance
    bool spectral_raw;       // the spectral term sums raw tokens all the same
    Cube cube;
};

// A weight, for the double arithmetic of the factors.
template <class A>
SPECTRAL_HOST_DEVICE double weight(const void* scalar) {
    return static_cast<double>(*static_cast<const A*>(scalar));
}

struct LossScaleParams {
    void* gradient;          // contiguous; multiplied in place, unless the product of the factors is 1
    const void* grad_total;  // scalars: float, or double for a double gradient
    const void* scale;
    int64_t count;
    Dtype dtype;
};

constexpr double kVarianceEpsilon = 1e-6;

// Scratch layout: [0] scored tokens, [1] complete positions, then per unit (a run of positions of one sample; on CUDA a
// block) its two partial sums, then, with normalised targets, mean and 1/deviation of each target token.
constexpr int64_t kUnitPositions = 8;  // positions per unit

SPECTRAL_HOST_DEVICE int64_t loss_units_per_sample(const Cube& cube) {
    return (cube.positions() + kUnitPositions - 1) / kUnitPositions;
}
SPECTRAL_HOST_DEVICE int64_t loss_units(const Cube& cube) { return cube.batch * loss_units_per_sample(cube); }

SPECTRAL_HOST_DEVICE int64_t loss_statistics_offset(const Cube& cube) { return 2 + 2 * loss_units(cube); }

inline int64_t reconstruction_loss_scratch(const Cube& cube, bool normalize_targets) {
    return loss_statistics_offset(cube) + (normalize_targets ? 2 * cube.batch * cube.tokens() : 0);
}

// Calls body(Type<prediction>{}, Type<image>{}) for the pairs the kernels are built for.
template <class Body>
void dispatch_loss(const LossParams& params, Body body) {
    const bool same = params.prediction_dtype == params.image_dtype;
    check(same || (params.image_dtype == Dtype::kFloat32 && params.prediction_dtype != Dtype::kFloat64),
          "reconstruction_loss: expected an image of the prediction's dtype or float32, got codes ",
          static_cast<int>(params.prediction_dtype), " and ", static_cast<int>(params.image_dtype));
    dispatch_floating("reconstruction_loss", params.prediction_dtype, [&](auto prediction) {
        if (same) return body(prediction, prediction);
        if constexpr (sizeof(typename decltype(prediction)::type) == 2) body(prediction, Type<float>{});
    });
}

void reconstruction_loss_cpu(const LossParams& params, int num_threads);
void reconstruction_loss_scale_cpu(const LossScaleParams& params, int num_threads);

void reconstruction_loss_cuda(const LossParams& params, int device, void* stream);
void reconstruction_loss_scale_cuda(const LossScaleParams& params, int device, void* stream);

}  // namespace spectral
