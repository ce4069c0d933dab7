// SPDX-License-Identifier: Apache-2.0
// The CUDA kernels alone, without Python: each at batch 1024 of 12 x 96 x 96 beside a plain copy, in the time between
// two events. `make gpu PART=kernels` builds and runs it; by hand, with a part of a name to run some of them:
//
//     nvcc -O3 -std=c++17 --expt-relaxed-constexpr -arch=native -Icsrc csrc/cuda/*.cu benchmarks/kernels.cu -o kernels
//     ./kernels loss
//
// Bytes are those that must move: each input read once, each output written once. For the gather they are those that
// the memory moves: it comes by 64 bytes, which hold two rows of 8 values, one of them hidden.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

#include "ops/assemble.h"
#include "ops/crop_resize.h"
#include "ops/loss.h"
#include "ops/masking.h"
#include "ops/patchify.h"

using namespace spectral;

namespace {

constexpr int64_t kBatch = 1024, kBands = 12, kSize = 96, kTokens = 576, kKept = 57, kValues = 192, kChannels = 512;
constexpr int64_t kPixels = kBatch * kBands * kSize * kSize, kSide = 64;
constexpr int kRounds = 7, kCalls = 8;

void check(cudaError_t status, const char* what) {
    if (status == cudaSuccess) return;
    std::fprintf(stderr, "kernels: %s: %s\n", what, cudaGetErrorString(status));
    std::exit(1);
}

__device__ unsigned mixed(size_t i) {
    unsigned hash = static_cast<unsigned>(i) * 2654435761u;
    hash = (hash ^ hash >> 15) * 2246822519u;
    return hash ^ hash >> 13;
}
__global__ void fill(float* values, size_t count) {  // 0 .. 1
    const size_t step = size_t{gridDim.x} * blockDim.x;
    for (size_t i = blockIdx.x * size_t{blockDim.x} + threadIdx.x; i < count; i += step) {
        values[i] = static_cast<float>(mixed(i)) * 0x1p-32f;
    }
}
__global__ void fill(uint16_t* values, size_t count) {  // as bfloat16 0.5 .. 1, as integers 16128 .. 16255
    const size_t step = size_t{gridDim.x} * blockDim.x;
    for (size_t i = blockIdx.x * size_t{blockDim.x} + threadIdx.x; i < count; i += step) {
        values[i] = static_cast<uint16_t>(0x3F00u | (mixed(i) & 0x7Fu));
    }
}
__global__ void pause(long long cycles) {  // while the host queues what is timed
    const long long start = clock64();
    while (clock64() - start < cycles) {
    }
}

template <class T>
T* room(int64_t count) {
    void* address = nullptr;
    check(cudaMalloc(&address, static_cast<size_t>(count) * sizeof(T)), "memory");
    return static_cast<T*>(address);
}
template <class T>
T* random_values(int64_t count) {
    T* values = room<T>(count);
    fill<<<1024, 256>>>(values, static_cast<size_t>(count));
    return values;
}
template <class T>
T* uploaded(const std::vector<T>& values) {
    T* there = room<T>(static_cast<int64_t>(values.size()));
    check(cudaMemcpy(there, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice), "upload");
    return there;
}

std::string wanted;
double copy_rate = 0;  // bytes per second

void time(const char* name, double bytes, const std::function<void(cudaStream_t)>& call) {
    if (copy_rate > 0 && std::string(name).find(wanted) == std::string::npos) return;
    cudaStream_t stream;
    cudaEvent_t start, end;
    check(cudaStreamCreate(&stream), "stream");
    check(cudaEventCreate(&start), "event");
    check(cudaEventCreate(&end), "event");
    call(stream);
    float best = 1e9f;
    for (int round = 0; round < kRounds; ++round) {
        pause<<<1, 1, 0, stream>>>(2'000'000);
        check(cudaEventRecord(start, stream), "event");
        for (int i = 0; i < kCalls; ++i) call(stream);
        check(cudaEventRecord(end, stream), "event");
        check(cudaEventSynchronize(end), name);
        float milliseconds = 0;
        check(cudaEventElapsedTime(&milliseconds, start, end), "event");
        best = std::min(best, milliseconds / kCalls);
    }
    const double rate = bytes / best * 1e3;
    if (copy_rate == 0) copy_rate = rate;
    std::printf("%-30s %9.2f us %7.0f GB/s %6.3f of copy\n", name, best * 1e3, rate / 1e9, rate / copy_rate);
}

}  // namespace

int main(int count, char** arguments) {
    wanted = count > 1 ? arguments[1] : "";
    const Cube cube{kBatch, kBands, kSize, kSize, kBands * kSize * kSize, kSize * kSize, kSize, 1, 3, 8, 8};
    auto* image = random_values<float>(kPixels);
    auto* prediction = random_values<float>(kPixels);
    auto* narrow = random_values<uint16_t>(kPixels);
    auto* gradient = room<float>(kPixels);
    time("copy", kPixels * 8.0, [&](cudaStream_t stream) {
        check(cudaMemcpyAsync(gradient, prediction, kPixels * 4, cudaMemcpyDeviceToDevice, stream), "copy");
    });

    std::vector<int64_t> numbers(kBatch);
    for (int64_t i = 0; i < kBatch; ++i) numbers[i] = i;
    auto *ids = uploaded(numbers), *seed = uploaded(std::vector<int64_t>{0, 0});
    auto *ids_keep = room<int64_t>(kBatch * kKept), *ids_restore = room<int64_t>(kBatch * kTokens);
    auto* mask = room<bool>(kBatch * kTokens);
    for (const int64_t batch : {kBatch / 2, kBatch}) {  // the larger one last: it makes the mask of all that follows
        const RandomMaskParams params{ids_keep, ids_restore, mask, ids, seed, seed + 1, batch, kTokens, kKept};
        time(batch == kBatch ? "mask, batch 1024" : "mask, batch 512", batch * (kKept * 8.0 + kTokens * 9),
             [&](cudaStream_t stream) { random_cube_mask_cuda(params, 0, stream); });
        random_cube_mask_cuda(params, 0, nullptr);
    }

    auto* weight = uploaded(std::vector<float>{1, 0, 0, 0, 0});
    auto* scratch = room<double>(reconstruction_loss_scratch(cube, true));
    for (const bool normalized : {false, true}) {
        LossParams params{weight + 1,      weight + 2,      weight + 3, weight + 4, gradient, scratch,
                          prediction,      image,           mask,       nullptr,    weight,   weight,
                          Dtype::kFloat32, Dtype::kFloat32, normalized, false,      cube};
        time(normalized ? "loss float32 normalised" : "loss float32 raw", kPixels * 12.0,
             [&](cudaStream_t stream) { reconstruction_loss_cuda(params, 0, stream); });
        params.prediction = narrow;
        params.prediction_dtype = Dtype::kBFloat16;
        time(normalized ? "loss bfloat16 normalised" : "loss bfloat16 raw", kPixels * 8.0,
             [&](cudaStream_t stream) { reconstruction_loss_cuda(params, 0, stream); });
    }

    const GatherParams gather{gradient, image, ids_keep, kKept, 4, Dtype::kFloat32, cube};
    time("gather", kBatch * kKept * kValues * 12.0,
         [&](cudaStream_t stream) { gather_patchify3d_cuda(gather, 0, stream); });
    time("patchify", kPixels * 8.0,
         [&](cudaStream_t stream) { patchify3d_cuda(PatchifyParams{gradient, image, 4, cube}, 0, stream); });
    time("unpatchify", kPixels * 8.0,
         [&](cudaStream_t stream) { unpatchify3d_cuda(PatchifyParams{gradient, prediction, 4, cube}, 0, stream); });
    for (void* used : {static_cast<void*>(narrow), static_cast<void*>(prediction), static_cast<void*>(gradient)}) {
        check(cudaFree(used), "memory");
    }

    const int64_t whole = kBatch * kTokens * kChannels, visible = kBatch * kKept * kChannels;
    auto *own = random_values<float>(visible), *own_grad = room<float>(visible);
    auto *positions = random_values<float>(kTokens * kChannels), *positions_grad = room<float>(kTokens * kChannels);
    auto *token = random_values<float>(kChannels), *token_grad = room<float>(kChannels);
    auto *sums = room<float>(kTokens * kChannels), *tokens = random_values<float>(whole);
    for (const Dtype dtype : {Dtype::kFloat32, Dtype::kBFloat16}) {
        const bool wide = dtype == Dtype::kFloat32;
        const double bytes = whole * (wide ? 4.0 : 2.0) + visible * 4.0;
        if (!wide) fill<<<1024, 256>>>(reinterpret_cast<uint16_t*>(tokens), static_cast<size_t>(whole));
        const AssembleParams forward{tokens,          own,    token, positions, ids_restore, dtype,
                                     Dtype::kFloat32, kBatch, kKept, kTokens,   kChannels};
        const AssembleBackwardParams backward{own_grad, token_grad,      positions_grad, sums,  tokens,  ids_restore,
                                              dtype,    Dtype::kFloat32, kBatch,         kKept, kTokens, kChannels};
        time(wide ? "assembly float32 backward" : "assembly bfloat16 backward", bytes,
             [&](cudaStream_t stream) { assemble_tokens_backward_cuda(backward, 0, stream); });
        time(wide ? "assembly float32" : "assembly bfloat16", bytes,
             [&](cudaStream_t stream) { assemble_tokens_cuda(forward, 0, stream); });
    }

    auto* pixels = random_values<uint16_t>(kBatch * kBands * kSide * kSide);
    std::vector<int64_t> layout;
    std::vector<int32_t> boxes;
    for (int i = 0; i < kBatch; ++i) {
        const int side = 30 + i % 34;
        layout.insert(layout.end(), {i * kBands * kSide * kSide, kSide, kSide});
        boxes.insert(boxes.end(), {(64 - side) / 2, (64 - side) / 3, side, side});
    }
    auto* flips = room<bool>(kBatch * 2);
    check(cudaMemset(flips, 0, kBatch * 2), "memory");
    auto* affine = random_values<float>(kBatch * kBands);
    for (const bool antialias : {false, true}) {
        const CropResizeParams params{tokens,
                                      pixels,
                                      uploaded(layout),
                                      uploaded(boxes),
                                      flips,
                                      affine,
                                      affine,
                                      nullptr,
                                      PixelType::kUint16,
                                      Dtype::kFloat32,
                                      Dtype::kFloat32,
                                      antialias,
                                      kBatch,
                                      kBands,
                                      kSize,
                                      kBatch * kBands * kSide * kSide,
                                      0};
        time(antialias ? "crop 64 -> 96 antialiased" : "crop 64 -> 96",
             kBatch * kBands * (kSize * kSize * 4.0 + kSide * kSide * 2),
             [&](cudaStream_t stream) { crop_resize_cuda(params, 0, stream); });
    }
    return 0;
}
