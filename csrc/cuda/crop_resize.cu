// SPDX-License-Identifier: Apache-2.0
// Crop and resize on CUDA: a thread makes one output value from the few source values under its kernel, which its
// neighbours read too and the cache therefore holds; nothing is stored in between. A block makes one plane's stretch of
// rows, so its box is checked and its sizes are read once.
#include "ops/crop_resize.h"

#include "core/device.cuh"

namespace spectral {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kValues = 4;  // output values of a thread

template <class P, class O, class A>
SPECTRAL_KERNEL void resize_kernel(CropResizeParams params, int64_t blocks_per_plane) {
    const int64_t plane = block_index() / blocks_per_plane, sample = plane / params.bands;
    const int64_t* layout = params.layout + 3 * sample;
    const int32_t* box = params.boxes + 4 * sample;
    device_check(box_is_inside(params, sample),
                 "crop_resize: expected images inside the buffer and boxes inside the images, in sample", sample);
    const int64_t size = params.size, width = layout[2];
    const bool flip_rows = params.flips[2 * sample], flip_columns = params.flips[2 * sample + 1];
    const P* corner = static_cast<const P*>(params.pixels) + layout[0] + plane % params.bands * layout[1] * width +
                      box[0] * width + box[1];
    const A offset = static_cast<const A*>(params.offset)[plane], scale = static_cast<const A*>(params.scale)[plane];
    O* out = static_cast<O*>(params.output) + plane * size * size;
    const int64_t first = block_index() % blocks_per_plane * kThreads * kValues + thread_index();
    for (int64_t i = 0; i < kValues; ++i) {
        const int64_t at = first + i * kThreads, y = at / size, x = at % size;
        if (at >= size * size) break;
        const Taps<A> rows(flip_rows ? size - 1 - y : y, box[2], size, params.antialias);
        const Taps<A> columns(flip_columns ? size - 1 - x : x, box[3], size, params.antialias);
        A sum = 0;
        for (int64_t r = 0; r < rows.count; ++r) {
            const P* row = corner + rows.place(r, box[2]) * width;
            A line = 0;
            for (int64_t c = 0; c < columns.count; ++c) line += columns.raw(c) * A(row[columns.place(c, box[3])]);
            sum += rows.raw(r) * line;
        }
        out[at] = O((sum / (rows.total * columns.total) - offset) * scale);
    }
}

}  // namespace

void crop_resize_cuda(const CropResizeParams& params, int device, void* stream) {
    constexpr const char* op = "crop_resize";
    const DeviceGuard guard(op, device);
    const int64_t blocks = (params.size * params.size + kThreads * kValues - 1) / (kThreads * kValues);
    dispatch_pixels(params, [&](auto pixel) {
        using P = typename decltype(pixel)::type;
        using A = accumulator_t<P>;
        dispatch_floating(op, params.output_dtype, [&](auto output) {
            using O = typename decltype(output)::type;
            launch(op, resize_kernel<P, O, A>, params.batch * params.bands * blocks, kThreads,
                   static_cast<Stream>(stream), params, blocks);
        });
    });
}

}  // namespace spectral
