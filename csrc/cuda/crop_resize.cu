// SPDX-License-Identifier: Apache-2.0
// Crop and resize on CUDA: a thread makes pixels of a few bands from the source values under its kernel, which its
// neighbours read too and the cache therefore holds. Where the kernels lie and what they weigh depends on the box
// alone: a block works it out once, in shared memory, for all of its pixels and bands. Long axes and strong shrinking,
// which do not fit there, are worked out pixel by pixel.
#include "ops/crop_resize.h"

#include "core/device.cuh"
#include "core/divisor.h"

namespace spectral {
namespace {

constexpr int kThreads = 256;
constexpr int kPixels = 4;                    // of a thread
constexpr int kBands = 6;                     // of each pixel
constexpr int kUsualTaps = 4, kMostTaps = 8;  // of a kernel: when enlarging, in a table
constexpr int kMostPlaces = 256;              // of an axis in a table

// The kernels of one axis, weights by tap, so that neighbouring threads read neighbours.
template <class A>
struct Table {
    A weight[kMostTaps][kMostPlaces];
    int first[kMostPlaces], count[kMostPlaces];

    SPECTRAL_DEVICE void fill(int index, const Taps<A>& taps) {
        first[index] = taps.first;
        count[index] = taps.count;
        SPECTRAL_UNROLL
        for (int k = 0; k < kMostTaps; ++k) weight[k][index] = k < taps.count ? taps.weight(k) : A(0);
    }
};

// Whether every kernel of an axis has few enough taps.
SPECTRAL_DEVICE bool is_short(int in, int out) { return 2 * in <= 3 * out; }

// One kernel of an axis of `in` values, looked up or worked out.
template <class A>
struct Listed {
    const Table<A>& table;
    int index, in;

    SPECTRAL_DEVICE int count() const { return table.count[index]; }
    SPECTRAL_DEVICE A weight(int k) const { return table.weight[k][index]; }
    SPECTRAL_DEVICE int place(int k) const { return place_inside(table.first[index] + k, in); }
};
template <class A>
struct Computed {
    Taps<A> taps;
    int in;

    SPECTRAL_DEVICE int count() const { return taps.count; }
    SPECTRAL_DEVICE A weight(int k) const { return taps.weight(k); }
    SPECTRAL_DEVICE int place(int k) const { return taps.place(k, in); }
};

// The box of a sample in some bands.
template <class P, class A>
struct Source {
    const P* corners[kBands];  // its first pixel in each
    int width;

    // One output pixel in each band.
    template <class Rows, class Columns>
    SPECTRAL_DEVICE void sum(const Rows& rows, const Columns& columns, A* sums) const {
        const bool usual = columns.count() <= kUsualTaps;
        A weights[kUsualTaps];
        int places[kUsualTaps];
        SPECTRAL_UNROLL
        for (int c = 0; c < kUsualTaps; ++c) {  // missing ones repeat the first with weight 0
            const bool inside = c < columns.count();
            weights[c] = inside ? columns.weight(c) : A(0);
            places[c] = columns.place(inside ? c : 0);
        }
        for (int r = 0; r < rows.count(); ++r) {
            const int line = rows.place(r) * width;
            A across[kBands] = {};
            if (usual) {
                SPECTRAL_UNROLL
                for (int c = 0; c < kUsualTaps; ++c) add(line + places[c], weights[c], across);
            } else {
                for (int c = 0; c < columns.count(); ++c) add(line + columns.place(c), columns.weight(c), across);
            }
            const A weight = rows.weight(r);
            SPECTRAL_UNROLL
            for (int k = 0; k < kBands; ++k) sums[k] += weight * across[k];
        }
    }
    SPECTRAL_DEVICE void add(int offset, A weight, A* across) const {
        SPECTRAL_UNROLL
        for (int k = 0; k < kBands; ++k) across[k] += weight * A(corners[k][offset]);
    }
};

template <class P, class O, class A>
SPECTRAL_KERNEL SPECTRAL_BOUNDS(kThreads, 3) void resize_kernel(CropResizeParams params, Divisor chunks,
                                                                Divisor stretches, Divisor divisor) {
    SPECTRAL_SHARED Table<A> table[2];  // of rows, of columns
    int chunk = 0, stretch = 0;
    const int64_t sample = chunks.divide(stretches.divide(static_cast<int>(block_index()), stretch), chunk);
    const int64_t* layout = params.layout + 3 * sample;
    const int32_t* box = params.boxes + 4 * sample;
    if (thread_index() == 0) {
        device_check(box_is_inside(params, sample),
                     "crop_resize: expected images inside the buffer and boxes inside the images, in sample", sample);
        device_check(layout[1] * layout[2] < kMaxGrid, "crop_resize: expected images below 2^31 pixels, in sample",
                     sample);
    }
    block_sync();
    const int size = divisor.value(), width = static_cast<int>(layout[2]);
    const bool *flips = params.flips + 2 * sample, antialias = params.antialias;
    const bool tabled = size <= kMostPlaces && (!antialias || (is_short(box[2], size) && is_short(box[3], size)));
    const auto taps = [&](int axis, int index) {
        return Taps<A>(flips[axis] ? size - 1 - index : index, box[2 + axis], size, antialias);
    };
    for (int i = thread_index(); tabled && i < 2 * size; i += kThreads) {
        const int axis = i < size ? 0 : 1;
        table[axis].fill(i - axis * size, taps(axis, i - axis * size));
    }
    block_sync();

    const int64_t band = chunk * kBands, plane = layout[1] * width, left = params.bands - band;
    const int count = static_cast<int>(left < kBands ? left : kBands);
    Source<P, A> source;
    source.width = width;
    SPECTRAL_UNROLL
    for (int k = 0; k < kBands; ++k) {  // those that are missing repeat the last: no condition inside the sums
        source.corners[k] = static_cast<const P*>(params.pixels) + layout[0] +
                            (band + (k < count ? k : count - 1)) * plane + int64_t{box[0]} * width + box[1];
    }
    const int64_t first = sample * params.bands + band, values = int64_t{size} * size;
    for (int pixel = 0; pixel < kPixels; ++pixel) {
        int x = 0;
        const int at = (stretch * kPixels + pixel) * kThreads + thread_index(), y = divisor.divide(at, x);
        if (y >= size) break;
        A sums[kBands] = {};
        if (tabled) {
            source.sum(Listed<A>{table[0], y, box[2]}, Listed<A>{table[1], x, box[3]}, sums);
        } else {
            source.sum(Computed<A>{taps(0, y), box[2]}, Computed<A>{taps(1, x), box[3]}, sums);
        }
        SPECTRAL_UNROLL
        for (int k = 0; k < kBands; ++k) {
            if (k >= count) continue;
            const A offset = static_cast<const A*>(params.offset)[first + k],
                    scale = static_cast<const A*>(params.scale)[first + k];
            static_cast<O*>(params.output)[(first + k) * values + at] = O((sums[k] - offset) * scale);
        }
    }
}

}  // namespace

void crop_resize_cuda(const CropResizeParams& params, int device, void* stream) {
    constexpr const char* op = "crop_resize";
    const DeviceGuard guard(op, device);
    const int64_t values = params.size * params.size,
                  stretches = (values + kThreads * kPixels - 1) / (kThreads * kPixels),
                  chunks = (params.bands + kBands - 1) / kBands, blocks = params.batch * chunks * stretches;
    check(values < kMaxGrid - kThreads * kPixels, op, ": expected a size for fewer than 2^31 pixels a band, got size ",
          params.size);
    dispatch_pixels(params, [&](auto pixel) {
        using P = typename decltype(pixel)::type;
        using A = accumulator_t<P>;
        dispatch_floating(op, params.output_dtype, [&](auto output) {
            using O = typename decltype(output)::type;
            launch(op, resize_kernel<P, O, A>, blocks, kThreads, static_cast<Stream>(stream), params, Divisor(chunks),
                   Divisor(stretches), Divisor(params.size));
        });
    });
}

}  // namespace spectral
