// SPDX-License-Identifier: Apache-2.0
// Visible tokens back into the whole sequence: out[b, l] = (r < K ? visible[b, r] : mask_token) + positions[l] with
// r = ids_restore[b, l]; and the gradient of that.
#pragma once

#include <cstdint>

#include "core/dtype.h"

namespace spectral {

struct AssembleParams {
    void* output;                // (B, L, D) contiguous
    const void* visible;         // (B, K, D) contiguous
    const void* mask_token;      // (D,) float; double where output is
    const void* positions;       // (L, D) contiguous, likewise
    const int64_t* ids_restore;  // (B, L), each of 0 .. K-1 once per sample
    Dtype output_dtype;          // double with double, else any two of the others
    Dtype visible_dtype;
    int64_t batch, num_keep, num_tokens, channels;  // B, K, L, D
};

struct AssembleBackwardParams {
    void* visible_grad;          // (B, K, D) contiguous
    void* mask_grad;             // (D,) float; double where grad is
    void* positions_grad;        // (L, D) contiguous, likewise
    void* scratch;               // assemble_scratch() values of that type
    const void* grad;            // (B, L, D) contiguous
    const int64_t* ids_restore;  // (B, L)
    Dtype grad_dtype;            // double with double, else any two of the others
    Dtype visible_dtype;
    int64_t batch, num_keep, num_tokens, channels;  // B, K, L, D
};

constexpr int64_t kTokensPerChunk = 8;  // tokens whose contribution to the mask token's gradient is summed first

// Scratch of the backward: one partial sum (D,) per chunk on the CPU, per token on CUDA.
inline int64_t assemble_scratch(int64_t num_tokens, int64_t channels) { return num_tokens * channels; }

// A set of places by the sum of its members' hashes (splitmix64): equal sums of equally many members are equal sets,
// but for one chance in 2^64. Needs no memory and no order.
SPECTRAL_HOST_DEVICE uint64_t place_hash(int64_t place) {
    uint64_t hash = static_cast<uint64_t>(place) + 0x9E3779B97F4A7C15u;
    hash = (hash ^ hash >> 30) * 0xBF58476D1CE4E5B9u;
    hash = (hash ^ hash >> 27) * 0x94D049BB133111EBu;
    return hash ^ hash >> 31;
}

// Calls body(Type<first>{}, Type<second>{}) for the pairs of dtypes the kernels are built for.
template <class Body>
void dispatch_pair(const char* op, Dtype first, Dtype second, Body body) {
    check((first == Dtype::kFloat64) == (second == Dtype::kFloat64), op,
          ": expected float64 with float64 only, got codes ", static_cast<int>(first), " and ",
          static_cast<int>(second));
    dispatch_floating(op, first, [&](auto one) {
        using One = typename decltype(one)::type;
        dispatch_floating(op, second, [&](auto other) {
            using Other = typename decltype(other)::type;
            if constexpr (std::is_same_v<One, double> == std::is_same_v<Other, double>) body(one, other);
        });
    });
}

void assemble_tokens_cpu(const AssembleParams& params, int num_threads);
void assemble_tokens_backward_cpu(const AssembleBackwardParams& params, int num_threads);

void assemble_tokens_cuda(const AssembleParams& params, int device, void* stream);
void assemble_tokens_backward_cuda(const AssembleBackwardParams& params, int device, void* stream);

}  // namespace spectral
