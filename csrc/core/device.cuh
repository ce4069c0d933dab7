// SPDX-License-Identifier: Apache-2.0
// The device primitives that kernels may use, and how they are launched. Kernels name nothing of CUDA beyond this file,
// so the tests can compile the same kernel bodies for the host against an emulation of the execution model
// (tests/native/emulation/device_emulation.h).
#pragma once

#include <cstdint>
#include <string>

#include "core/check.h"
#include "core/cube.h"
#include "core/dtype.h"

#if defined(SPECTRAL_EMULATE)
#include "device_emulation.h"
#else
#include <cuda_runtime.h>

#include <cstdio>

#define SPECTRAL_KERNEL __global__
#define SPECTRAL_DEVICE __device__ inline
#define SPECTRAL_SHARED __shared__
#define SPECTRAL_UNROLL _Pragma("unroll")  // before a loop over an array that is to be registers
#define SPECTRAL_BOUNDS(threads, blocks) __launch_bounds__(threads, blocks)  // of a block, and of a multiprocessor

namespace spectral {

using Stream = cudaStream_t;

SPECTRAL_DEVICE int thread_index() { return static_cast<int>(threadIdx.x); }
SPECTRAL_DEVICE int block_size() { return static_cast<int>(blockDim.x); }
SPECTRAL_DEVICE int64_t block_index() { return static_cast<int64_t>(blockIdx.x); }
SPECTRAL_DEVICE int64_t grid_size() { return static_cast<int64_t>(gridDim.x); }
SPECTRAL_DEVICE void block_sync() { __syncthreads(); }
SPECTRAL_DEVICE void warp_sync() { __syncwarp(); }
template <class T>
SPECTRAL_DEVICE T shuffle_xor(T value, int lanes) {
    return __shfl_xor_sync(0xFFFFFFFFu, value, lanes);
}
template <class T>
SPECTRAL_DEVICE T shuffle_up(T value, int lanes) {
    return __shfl_up_sync(0xFFFFFFFFu, value, lanes);
}
// One bit per lane.
SPECTRAL_DEVICE uint32_t ballot(bool flag) { return __ballot_sync(0xFFFFFFFFu, flag); }
template <class T>
SPECTRAL_DEVICE void atomic_add(T* address,
                                T value) {  // only where order cannot matter: integers, or doubles that hold them
    atomicAdd(address, value);
}
// What was there before; who comes first is open.
SPECTRAL_DEVICE int fetch_add(int* address, int value) { return atomicAdd(address, value); }

// Ends the kernel with a message; the next synchronisation of the host reports it, as torch's own device asserts do.
SPECTRAL_DEVICE void device_check(bool condition, const char* message, int64_t value) {
    if (!condition) {
        printf("spectralgpt: %s, got %lld\n", message, static_cast<long long>(value));
        __trap();
    }
}

inline void check_cuda(cudaError_t status, const char* op, int64_t grid, int block) {
    if (status != cudaSuccess) {
        fail<std::runtime_error>(op, ": ", cudaGetErrorString(status), " [grid=", grid, ", block=", block, "]");
    }
}

// Makes a device current for a scope.
class DeviceGuard {
  public:
    DeviceGuard(const char* op, int device) {
        check_cuda(cudaGetDevice(&previous_), op, 0, 0);
        if (device != previous_) check_cuda(cudaSetDevice(device), op, 0, 0);
        changed_ = device != previous_;
    }
    ~DeviceGuard() {
        if (changed_) cudaSetDevice(previous_);
    }
    DeviceGuard(const DeviceGuard&) = delete;
    DeviceGuard& operator=(const DeviceGuard&) = delete;

  private:
    int previous_ = 0;
    bool changed_ = false;
};

template <class... Arguments>
void launch_kernel(const char* op, void (*kernel)(Arguments...), int64_t grid, int block, Stream stream,
                   const Arguments&... arguments) {
    // clang-format off
    kernel<<<static_cast<unsigned>(grid), static_cast<unsigned>(block), 0, stream>>>(arguments...);
    // clang-format on
    check_cuda(cudaGetLastError(), op, grid, block);
}

inline void fill_zero(const char* op, void* address, int64_t bytes, Stream stream) {
    check_cuda(cudaMemsetAsync(address, 0, static_cast<size_t>(bytes), stream), op, bytes, 0);
}

}  // namespace spectral
#endif

namespace spectral {

constexpr int kWarp = 32;
constexpr int64_t kMaxGrid = 0x7FFFFFFF;

SPECTRAL_DEVICE int lane_index() { return thread_index() % kWarp; }
SPECTRAL_DEVICE int warp_index() { return thread_index() / kWarp; }

// N neighbouring values, read or written at once where they take 16 bytes or fewer.
template <class T, int N>
struct alignas(sizeof(T) * N > 16 ? 16 : sizeof(T) * N) Pack {
    T value[N];
};
template <int N, class T>
SPECTRAL_DEVICE Pack<T, N> load_pack(const T* address) {
    return *reinterpret_cast<const Pack<T, N>*>(address);
}
template <class T, int N>
SPECTRAL_DEVICE void store_pack(T* address, const Pack<T, N>& pack) {
    *reinterpret_cast<Pack<T, N>*>(address) = pack;
}
// Whether packs of so many bytes may start at an address.
SPECTRAL_HOST_DEVICE bool is_aligned(const void* address, size_t bytes = 16) {
    return reinterpret_cast<uintptr_t>(address) % bytes == 0;
}

// Sum over a warp, on every lane, always in the same order.
template <class T>
SPECTRAL_DEVICE T warp_sum(T value) {
    for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) value += shuffle_xor(value, lanes);
    return value;
}

// Sum over the block, on every thread. `scratch` holds one value per warp, or more.
template <class T, int kMost>
SPECTRAL_DEVICE T block_sum(T value, T (&scratch)[kMost]) {
    value = warp_sum(value);
    if (lane_index() == 0) scratch[warp_index()] = value;
    block_sync();
    T total = 0;
    SPECTRAL_UNROLL
    for (int warp = 0; warp < kMost; ++warp) total += warp < block_size() / kWarp ? scratch[warp] : T(0);
    block_sync();
    return total;
}

// Sum over the lanes up to this one.
template <class T>
SPECTRAL_DEVICE T warp_inclusive_scan(T value) {
    SPECTRAL_UNROLL
    for (int lanes = 1; lanes < kWarp; lanes *= 2) {
        const T before = shuffle_up(value, lanes);
        if (lane_index() >= lanes) value += before;
    }
    return value;
}

// Sum over the threads before this one; `total` gets the block's sum. `scratch` holds one value per warp, or more, and
// must not be written again before another barrier.
template <class T, int kMost>
SPECTRAL_DEVICE T block_exclusive_scan(T value, T (&scratch)[kMost], T& total) {
    const T inclusive = warp_inclusive_scan(value);
    if (lane_index() == kWarp - 1) scratch[warp_index()] = inclusive;
    block_sync();
    T before = 0;
    total = 0;
    SPECTRAL_UNROLL
    for (int warp = 0; warp < kMost; ++warp) {
        const T sum = warp < block_size() / kWarp ? scratch[warp] : T(0);
        before += warp < warp_index() ? sum : T(0);
        total += sum;
    }
    return before + inclusive - value;
}

// Launches one block per item; refuses what a grid cannot hold. Nothing to do is no launch.
template <class... Arguments>
void launch(const char* op, void (*kernel)(Arguments...), int64_t blocks, int block, Stream stream,
            const Arguments&... arguments) {
    check(blocks <= kMaxGrid, op, ": expected at most ", kMaxGrid, " blocks of work, got ", blocks);
    if (blocks > 0) launch_kernel(op, kernel, blocks, block, stream, arguments...);
}

}  // namespace spectral
