// SPDX-License-Identifier: Apache-2.0
// Which tokens stay visible: by Philox words keyed per sample, or by the order of given noise.
#pragma once

#include <cstdint>

#include "core/dtype.h"

namespace spectral {

struct RandomMaskParams {
    int64_t* ids_keep;          // (B, K) ascending
    int64_t* ids_restore;       // (B, L) place of each token in [kept, removed]
    bool* mask;                 // (B, L) true = removed
    const int64_t* sample_ids;  // (B,)
    const int64_t* seed;        // one value on the device: a captured graph reads it at every replay
    const int64_t* step;        // one value, low 32 bits used
    int64_t batch;              // B
    int64_t num_tokens;         // L <= 2^26
    int64_t num_keep;           // K
};

struct NoiseMaskParams {
    int64_t* ids_keep;     // (B, K) in the order of the noise
    int64_t* ids_restore;  // (B, L)
    bool* mask;            // (B, L)
    int64_t* order;        // (B, L) scratch of the CPU kernel
    const void* noise;     // (B, L) float32 or float64
    Dtype dtype;
    int64_t batch;       // B
    int64_t num_tokens;  // L
    int64_t num_keep;    // K
};

void random_cube_mask_cpu(const RandomMaskParams& params, int num_threads);
void cube_mask_from_noise_cpu(const NoiseMaskParams& params, int num_threads);

void random_cube_mask_cuda(const RandomMaskParams& params, int device, void* stream);
void cube_mask_from_noise_cuda(const NoiseMaskParams& params, int device, void* stream);

}  // namespace spectral
