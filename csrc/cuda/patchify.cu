// SPDX-License-Identifier: Apache-2.0
// Image cube <-> tokens on CUDA.
//
// Layout: tokens (B, L, P) contiguous; image at the cube's strides. A block moves one row of tokens (sample, group, y):
// w*P values on the token side are contiguous, the pixels are t bands of p whole image rows. Threads walk the side that
// is written, so writes coalesce and reads come in runs of q pixels, at least a 32-byte sector for 8 floats. Elements
// travel in the widest unit, up to 16 bytes, that divides every run, stride and address: the cube is rescaled to such
// units, so one kernel serves every dtype. Row indices are 64-bit; inside a row 32 bits suffice.
#include "ops/patchify.h"

#include <algorithm>

#include "core/check.h"
#include "core/device.cuh"
#include "core/divisor.h"

namespace spectral {
namespace {

constexpr int kThreads = 256;
constexpr int kGatherThreads = 192;

struct CopyArguments {
    void* tokens;
    void* image;
    Cube cube;  // in units
};

// The cube in units of `unit` bytes, or false where something is not a multiple of it.
bool rescale(const Cube& cube, int64_t element_size, int64_t unit, const void* tokens, const void* image, Cube& out) {
    const auto divides = [&](int64_t elements) { return elements * element_size % unit == 0; };
    const auto bytes = static_cast<size_t>(unit);
    const bool aligned = is_aligned(tokens, bytes) && is_aligned(image, bytes);
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

// The sizes that index arithmetic needs, patches in units.
struct Grid {
    Divisor rows, groups, columns, patch_rows, patch_columns, values, line;  // line: one image row of a row of tokens

    explicit Grid(const Cube& cube)
        : rows(cube.grid_rows()),
          groups(cube.groups()),
          columns(cube.grid_columns()),
          patch_rows(cube.patch_rows),
          patch_columns(cube.patch_columns),
          values(cube.token_values()),
          line(cube.width) {}

    // From a row of tokens, numbered over the batch, to its first pixel.
    SPECTRAL_DEVICE int64_t corner(const Cube& cube, int row) const {
        int y = 0, group = 0;
        const int sample = groups.divide(rows.divide(row, y), group);
        return cube.token_offset(sample, group, y, 0);
    }
    SPECTRAL_DEVICE int row_values() const { return columns.value() * values.value(); }
};

SPECTRAL_DEVICE int64_t pixel(const Cube& cube, int band, int row, int column) {
    return band * cube.band_stride + row * cube.row_stride + column * cube.column_stride;
}

template <class T>
SPECTRAL_KERNEL void tokens_kernel(CopyArguments args, Grid grid) {
    T* tokens = static_cast<T*>(args.tokens) + block_index() * grid.row_values();
    const T* image = static_cast<const T*>(args.image) + grid.corner(args.cube, static_cast<int>(block_index()));
    for (int i = thread_index(); i < grid.row_values(); i += block_size()) {
        int value = 0, column = 0, row = 0;
        const int x = grid.values.divide(i, value), run = grid.patch_columns.divide(value, column),
                  band = grid.patch_rows.divide(run, row);
        tokens[i] = image[pixel(args.cube, band, row, x * grid.patch_columns.value() + column)];
    }
}

template <class T>
SPECTRAL_KERNEL void image_kernel(CopyArguments args, Grid grid) {
    const T* tokens = static_cast<const T*>(args.tokens) + block_index() * grid.row_values();
    T* image = static_cast<T*>(args.image) + grid.corner(args.cube, static_cast<int>(block_index()));
    for (int i = thread_index(); i < grid.row_values(); i += block_size()) {
        int column = 0, row = 0, k = 0;
        const int run = grid.line.divide(i, column), band = grid.patch_rows.divide(run, row),
                  x = grid.patch_columns.divide(column, k);
        image[pixel(args.cube, band, row, column)] =
            tokens[x * grid.values.value() + run * grid.patch_columns.value() + k];
    }
}

// A block copies a few kept tokens, which lie one behind the other in the output, unit by unit: a pixel's address takes
// two reads, so many small blocks hide more of the wait than threads with several units each.
template <class T>
SPECTRAL_KERNEL void gather_kernel(CopyArguments args, Grid grid, Divisor keep, int slots_per_block,
                                   const int64_t* ids) {
    const Cube& cube = args.cube;
    const int64_t first = block_index() * slots_per_block;
    const int64_t left = cube.batch * keep.value() - first;
    const int count = static_cast<int>(left < slots_per_block ? left : slots_per_block) * grid.values.value();
    const int64_t tokens = int64_t{grid.rows.value()} * grid.groups.value() * grid.columns.value();
    T* out = static_cast<T*>(args.tokens) + first * grid.values.value();
    for (int i = thread_index(); i < count; i += kGatherThreads) {
        int value = 0, place = 0, x = 0, y = 0, column = 0, row = 0;
        const int slot = static_cast<int>(first) + grid.values.divide(i, value), sample = keep.divide(slot, place);
        const int64_t token = ids[slot];
        device_check(token >= 0 && token < tokens, "gather_patchify3d: expected token ids inside the grid", token);
        const int line = grid.columns.divide(static_cast<int>(token), x), group = grid.rows.divide(line, y);
        const int run = grid.patch_columns.divide(value, column), band = grid.patch_rows.divide(run, row);
        out[i] =
            static_cast<const T*>(args.image)[cube.token_offset(sample, group, y, x) + pixel(cube, band, row, column)];
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
               kThreads, static_cast<Stream>(stream), args, Grid(cube));
    });
}

void unpatchify3d_cuda(const PatchifyParams& params, int device, void* stream) {
    constexpr const char* op = "unpatchify3d";
    const DeviceGuard guard(op, device);
    with_units(op, params.cube, params.element_size, params.input, params.output, [&](auto type, const Cube& cube) {
        const CopyArguments args{const_cast<void*>(params.input), params.output, cube};
        launch(op, image_kernel<typename decltype(type)::type>, cube.batch * cube.groups() * cube.grid_rows(), kThreads,
               static_cast<Stream>(stream), args, Grid(cube));
    });
}

void gather_patchify3d_cuda(const GatherParams& params, int device, void* stream) {
    constexpr const char* op = "gather_patchify3d";
    const DeviceGuard guard(op, device);
    with_units(op, params.cube, params.element_size, params.output, params.input, [&](auto type, const Cube& cube) {
        const CopyArguments args{params.output, const_cast<void*>(params.input), cube};
        const int64_t slots = cube.batch * params.num_keep;
        check(slots < kMaxGrid && cube.tokens() < kMaxGrid, op, ": expected fewer than 2^31 tokens, got ",
              std::max(slots, cube.tokens()));
        const int64_t per_block = std::max<int64_t>(kGatherThreads / cube.token_values(), 1);
        launch(op, gather_kernel<typename decltype(type)::type>, (slots + per_block - 1) / per_block, kGatherThreads,
               static_cast<Stream>(stream), args, Grid(cube), Divisor(params.num_keep), static_cast<int>(per_block),
               params.ids_keep);
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
