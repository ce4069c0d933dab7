// SPDX-License-Identifier: Apache-2.0
// Image cube <-> tokens on CUDA.
//
// Layout: tokens (B, L, P) contiguous; image at the cube's strides. A block moves one row of tokens (sample, group, y):
// w*P values on the token side are contiguous, the pixels are t bands of p whole image rows. Threads walk the side that
// is written, so writes coalesce and reads come in runs of q pixels, at least a 32-byte sector for 8 floats. Elements
// travel in the widest unit, up to 16 bytes, that divides every run, stride and address: the cube is rescaled to such
// units, so one kernel serves every dtype. Row indices are 64-bit; inside a row 32 bits suffice.
#include "ops/patchify.h"

#include "core/check.h"
#include "core/device.cuh"

namespace spectral {
namespace {

constexpr int kThreads = 256;

struct CopyArguments {
    void* tokens;
    void* image;
    Cube cube;  // in units
};

// The cube in units of `unit` bytes, or false where something is not a multiple of it.
bool rescale(const Cube& cube, int64_t element_size, int64_t unit, const void* tokens, const void* image, Cube& out) {
    const auto divides = [&](int64_t elements) { return elements * element_size % unit == 0; };
    const bool aligned =
        reinterpret_cast<uintptr_t>(tokens) % unit == 0 && reinterpret_cast<uintptr_t>(image) % unit == 0;
    const bool fits = cube.column_stride == 1 && divides(cube.patch_columns) && divides(cube.row_stride) &&
                      divides(cube.band_stride) && divides(cube.batch_stride);
    if (unit != element_size && !(aligned && fits)) return false;
    out = cube;
    out.width = cube.width * element_size / unit;
    out.patch_columns = cube.patch_columns * element_size / unit;
    out.row_stride = cube.row_stride * element_size / unit;
    out.band_stride = cube.band_stride * element_size / unit;
    out.batch_stride = cube.batch_stride * element_size / unit;
    return true;
}

// Calls body(Type<unit>{}, cube in units) with the widest unit that fits.
template <class Body>
void with_units(const char* op, const Cube& cube, int64_t element_size, const void* tokens, const void* image,
                Body body) {
    Cube units{};
    int64_t unit = 16;
    while (unit > element_size && !rescale(cube, element_size, unit, tokens, image, units)) unit /= 2;
    if (unit == element_size) rescale(cube, element_size, element_size, tokens, image, units);
    check(units.grid_columns() * units.token_values() < kMaxGrid, op,
          ": expected a row of tokens below 2^31 values, got ", units.grid_columns() * units.token_values());
    dispatch_element_size(op, unit, [&](auto type) { body(type, units); });
}

// Where in a row of tokens: value index on the token side <-> pixel offset from the row's first pixel.
struct RowIndex {
    int q, p, t, columns;

    SPECTRAL_DEVICE explicit RowIndex(const Cube& cube)
        : q(static_cast<int>(cube.patch_columns)),
          p(static_cast<int>(cube.patch_rows)),
          t(static_cast<int>(cube.patch_bands)),
          columns(static_cast<int>(cube.grid_columns())) {}

    SPECTRAL_DEVICE int64_t pixel(const Cube& cube, int x, int c, int r, int k) const {
        return c * cube.band_stride + r * cube.row_stride + (static_cast<int64_t>(x) * q + k) * cube.column_stride;
    }
};

template <class T>
SPECTRAL_KERNEL void tokens_kernel(CopyArguments args) {
    const Cube& cube = args.cube;
    const RowIndex index(cube);
    const int64_t row = block_index(), rows = cube.groups() * cube.grid_rows();
    const int values = index.t * index.p * index.q;
    T* tokens = static_cast<T*>(args.tokens) + row * index.columns * values;
    const T* image = static_cast<const T*>(args.image) +
                     cube.token_offset(row / rows, row % rows / cube.grid_rows(), row % cube.grid_rows(), 0);
    for (int i = thread_index(); i < index.columns * values; i += block_size()) {
        const int value = i % values, run = value / index.q;
        tokens[i] = image[index.pixel(cube, i / values, run / index.p, run % index.p, value % index.q)];
    }
}

template <class T>
SPECTRAL_KERNEL void image_kernel(CopyArguments args) {
    const Cube& cube = args.cube;
    const RowIndex index(cube);
    const int64_t row = block_index(), rows = cube.groups() * cube.grid_rows();
    const int values = index.t * index.p * index.q, line = index.columns * index.q;
    const T* tokens = static_cast<const T*>(args.tokens) + row * index.columns * values;
    T* image = static_cast<T*>(args.image) +
               cube.token_offset(row / rows, row % rows / cube.grid_rows(), row % cube.grid_rows(), 0);
    for (int i = thread_index(); i < index.columns * values; i += block_size()) {
        const int column = i % line, c = i / line / index.p, r = i / line % index.p, x = column / index.q,
                  k = column % index.q;
        image[index.pixel(cube, x, c, r, k)] = tokens[x * values + (c * index.p + r) * index.q + k];
    }
}

template <class T>
SPECTRAL_KERNEL void gather_kernel(CopyArguments args, const int64_t* ids_keep, int64_t num_keep) {
    const Cube& cube = args.cube;
    const RowIndex index(cube);
    const int values = index.t * index.p * index.q;
    const int64_t slot = block_index() * (block_size() / kWarp) + warp_index();  // one warp per kept token
    if (slot >= cube.batch * num_keep) return;
    const int64_t token = ids_keep[slot];
    device_check(token >= 0 && token < cube.tokens(), "gather_patchify3d: expected token ids inside the grid", token);
    T* out = static_cast<T*>(args.tokens) + slot * values;
    const T* image = static_cast<const T*>(args.image) + cube.token_offset(slot / num_keep, token);
    for (int value = lane_index(); value < values; value += kWarp) {
        const int run = value / index.q;
        out[value] = image[index.pixel(cube, 0, run / index.p, run % index.p, value % index.q)];
    }
}

// One block per kept token. The first of several equal ids sums for all of them, in order: deterministic without
// atomics.
template <class T>
SPECTRAL_KERNEL void scatter_kernel(CopyArguments args, const int64_t* ids_keep, int64_t num_keep) {
    using A = accumulator_t<T>;
    SPECTRAL_SHARED int duplicates[2];  // how many before this one, how many after
    const Cube& cube = args.cube;
    const int64_t slot = block_index(), sample = slot / num_keep, place = slot % num_keep, values = cube.token_values();
    const int64_t* ids = ids_keep + sample * num_keep;
    const int64_t token = ids[place];
    device_check(token >= 0 && token < cube.tokens(), "gather_patchify3d_backward: expected token ids inside the grid",
                 token);
    if (thread_index() < 2) duplicates[thread_index()] = 0;
    block_sync();
    for (int64_t other = thread_index(); other < num_keep; other += block_size()) {
        if (other != place && ids[other] == token) atomic_add(&duplicates[other > place], 1);
    }
    block_sync();
    if (duplicates[0] > 0) return;
    const T* grad = static_cast<const T*>(args.tokens) + sample * num_keep * values;
    T* image = static_cast<T*>(args.image) + cube.token_offset(sample, token);
    for (int64_t value = thread_index(); value < values; value += block_size()) {
        A sum = A(grad[place * values + value]);
        for (int64_t other = place + 1; duplicates[1] > 0 && other < num_keep; ++other) {
            if (ids[other] == token)
                sum = A(T(sum + A(grad[other * values + value])));  // rounded as the CPU's running sum is
        }
        image[cube.value_offset(value)] = T(sum);
    }
}

}  // namespace

void patchify3d_cuda(const PatchifyParams& params, int device, void* stream) {
    constexpr const char* op = "patchify3d";
    const DeviceGuard guard(op, device);
    with_units(op, params.cube, params.element_size, params.output, params.input, [&](auto type, const Cube& cube) {
        const CopyArguments args{params.output, const_cast<void*>(params.input), cube};
        launch(op, tokens_kernel<typename decltype(type)::type>, cube.batch * cube.groups() * cube.grid_rows(),
               kThreads, static_cast<Stream>(stream), args);
    });
}

void unpatchify3d_cuda(const PatchifyParams& params, int device, void* stream) {
    constexpr const char* op = "unpatchify3d";
    const DeviceGuard guard(op, device);
    with_units(op, params.cube, params.element_size, params.input, params.output, [&](auto type, const Cube& cube) {
        const CopyArguments args{const_cast<void*>(params.input), params.output, cube};
        launch(op, image_kernel<typename decltype(type)::type>, cube.batch * cube.groups() * cube.grid_rows(), kThreads,
               static_cast<Stream>(stream), args);
    });
}

void gather_patchify3d_cuda(const GatherParams& params, int device, void* stream) {
    constexpr const char* op = "gather_patchify3d";
    const DeviceGuard guard(op, device);
    with_units(op, params.cube, params.element_size, params.output, params.input, [&](auto type, const Cube& cube) {
        const CopyArguments args{params.output, const_cast<void*>(params.input), cube};
        const int64_t warps = kThreads / kWarp, slots = cube.batch * params.num_keep;
        launch(op, gather_kernel<typename decltype(type)::type>, (slots + warps - 1) / warps, kThreads,
               static_cast<Stream>(stream), args, params.ids_keep, params.num_keep);
    });
}

void gather_patchify3d_backward_cuda(const GatherParams& params, int device, void* stream) {
    constexpr const char* op = "gather_patchify3d_backward";
    const DeviceGuard guard(op, device);
    const Cube& cube = params.cube;
    fill_zero(op, params.output, cube.batch * cube.bands * cube.height * cube.width * params.element_size,
              static_cast<Stream>(stream));
    dispatch_floating(op, params.dtype, [&](auto type) {
        const CopyArguments args{const_cast<void*>(params.input), params.output, cube};
        launch(op, scatter_kernel<typename decltype(type)::type>, cube.batch * params.num_keep, 128,
               static_cast<Stream>(stream), args, params.ids_keep, params.num_keep);
    });
}

}  // namespace spectral
