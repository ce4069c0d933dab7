// SPDX-License-Identifier: Apache-2.0
// Image cube <-> tokens. Permutations: dispatched on element size, exact for every dtype.
#pragma once

#include <cstdint>

#include "core/cube.h"
#include "core/dtype.h"

namespace spectral {

struct PatchifyParams {
    void* output;          // tokens (B, L, P) contiguous; for unpatchify the image, at the cube's strides
    const void* input;     // the image at the cube's strides; for unpatchify the tokens
    int64_t element_size;  // bytes
    Cube cube;
};

struct GatherParams {
    void* output;             // tokens (B, K, P) contiguous; for the backward the image gradient, at the cube's strides
    const void* input;        // the image at the cube's strides; for the backward the token gradient (B, K, P)
    const int64_t* ids_keep;  // (B, K), each in [0, L)
    int64_t num_keep;         // K
    int64_t element_size;     // bytes (forward)
    Dtype dtype;              // backward: sums need arithmetic
    Cube cube;
};

void patchify3d_cpu(const PatchifyParams& params, int num_threads);
void unpatchify3d_cpu(const PatchifyParams& params, int num_threads);
void gather_patchify3d_cpu(const GatherParams& params, int num_threads);
void gather_patchify3d_backward_cpu(const GatherParams& params, int num_threads);

void patchify3d_cuda(const PatchifyParams& params, int device, void* stream);
void unpatchify3d_cuda(const PatchifyParams& params, int device, void* stream);
void gather_patchify3d_cuda(const GatherParams& params, int device, void* stream);
void gather_patchify3d_backward_cuda(const GatherParams& params, int device, void* stream);

}  // namespace spectral
