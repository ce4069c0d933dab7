// SPDX-License-Identifier: Apache-2.0
// Crop and resize on the CPU, one task per image. The two axes are resized in turn, band by band: along rows with 8
// rows side by side in a vector (so that the uneven steps along the row cost nothing), then along columns with 8
// neighbouring pixels in one. Flips are a matter of the tap tables; offset and scale come with the last store.
#include "ops/crop_resize.h"

#include <algorithm>

#include "core/check.h"
#include "core/parallel.h"
#include "core/simd.h"

namespace spectral {
namespace {

struct Box {
    int64_t start, height, width, y, x, rows, columns;
};

Box checked_box(const CropResizeParams& params, int64_t sample) {
    const int64_t* layout = params.layout + 3 * sample;
    const int32_t* box = params.boxes + 4 * sample;
    if (!box_is_inside(params, sample)) {
        fail<IndexError>("crop_resize: expected images inside the buffer of ", params.num_pixels,
                         " values and boxes inside the images, got sample ", sample, " with start, height, width [",
                         layout[0], ", ", layout[1], ", ", layout[2], "] and box [", box[0], ", ", box[1], ", ", box[2],
                         ", ", box[3], "]");
    }
    return {layout[0], layout[1], layout[2], box[0], box[1], box[2], box[3]};
}

// Hands out the parts of a thread's scratch.
struct Scratch {
    char* next;

    template <class T>
    T* take(int64_t count) {
        next += -reinterpret_cast<uintptr_t>(next) % alignof(T);
        T* part = reinterpret_cast<T*>(next);
        next += count * static_cast<int64_t>(sizeof(T));
        return part;
    }
};

// For each output value of an axis: its first source value, how many, and their weights.
template <class A>
struct Table {
    int64_t *first, *count;
    A* weights;
    int64_t stride;

    Table(Scratch& scratch, int64_t size, int64_t taps)
        : first(scratch.take<int64_t>(size)),
          count(scratch.take<int64_t>(size)),
          weights(scratch.take<A>(size * taps)),
          stride(taps) {}

    void fill(int64_t in, int64_t size, bool antialias, bool flip) {
        for (int64_t index = 0; index < size; ++index) {
            const Taps<A> taps(flip ? size - 1 - index : index, in, size, antialias);
            A* weight = weights + index * stride;
            first[index] = taps.place(0, in);
            count[index] = taps.place(taps.count - 1, in) + 1 - first[index];
            std::fill_n(weight, count[index], A(0));
            for (int64_t k = 0; k < taps.count; ++k) weight[taps.place(k, in) - first[index]] += taps.weight(k);
        }
    }
};

// Sum of the weighted vectors that lie `step` apart; nearly always there are four.
template <class A>
inline Lanes<A> weighted(const A* from, int64_t step, const A* weight, int64_t count) {
    if (count == 4) {
        return load<A>(from) * weight[0] + load<A>(from + step) * weight[1] + load<A>(from + 2 * step) * weight[2] +
               load<A>(from + 3 * step) * weight[3];
    }
    Lanes<A> sum = {};
    for (int64_t k = 0; k < count; ++k) sum += load<A>(from + k * step) * weight[k];
    return sum;
}

template <class P, class A>
struct Resize {
    const CropResizeParams& params;
    const Box& box;
    const Table<A>&columns, &rows;
    A *source, *block, *middle;  // 8 source rows as columns; the same resized; the whole box resized along its rows
    int64_t stride;              // of a row of `middle`

    // Eight rows of the box, from `top` on, resized along the row into `middle`.
    void along_rows(const P* pixels, int64_t top) const {
        const int64_t count = std::min<int64_t>(kLanes, box.rows - top), size = params.size;
        for (int64_t x = 0; x < box.columns; x += kLanes) {
            Lanes<A> lanes[kLanes];
            for (int64_t i = 0; i < kLanes; ++i) {
                const P* row = pixels + (top + std::min(i, count - 1)) * box.width + x;
                lanes[i] = x + kLanes <= box.columns ? load<A>(row) : load_some<A>(row, 1, box.columns - x);
            }
            transpose<A>(lanes);
            for (int64_t i = 0; i < kLanes; ++i) store<A>(source + (x + i) * kLanes, lanes[i]);
        }
        for (int64_t x = 0; x < size; ++x) {
            const A* weight = columns.weights + x * columns.stride;
            store<A>(block + x * kLanes,
                     weighted(source + columns.first[x] * kLanes, kLanes, weight, columns.count[x]));
        }
        for (int64_t x = 0; x < size; x += kLanes) {
            Lanes<A> lanes[kLanes];
            for (int64_t i = 0; i < kLanes; ++i) lanes[i] = load<A>(block + (x + i) * kLanes);
            transpose<A>(lanes);
            for (int64_t i = 0; i < kLanes; ++i) store<A>(middle + (top + i) * stride + x, lanes[i]);
        }
    }

    template <class O>
    void along_columns(O* out, A offset, A scale) const {
        const int64_t size = params.size;
        for (int64_t y = 0; y < size; ++y, out += size) {
            const A *weight = rows.weights + y * rows.stride, *from = middle + rows.first[y] * stride;
            for (int64_t x = 0; x < size; x += kLanes) {
                const Lanes<A> value = (weighted(from + x, stride, weight, rows.count[y]) - offset) * scale;
                x + kLanes <= size ? store<A>(out + x, value) : store_some<A>(out + x, value, size - x);
            }
        }
    }
};

template <class P, class O, class A>
SPECTRAL_SIMD void resize_image(const CropResizeParams& params, const Box& box, int64_t sample, char* memory) {
    const int64_t size = params.size, stride = (size + kLanes - 1) / kLanes * kLanes;
    Scratch scratch{memory};
    Table<A> columns(scratch, size, most_taps(box.columns, size)), rows(scratch, size, most_taps(box.rows, size));
    columns.fill(box.columns, size, params.antialias, params.flips[2 * sample + 1]);
    rows.fill(box.rows, size, params.antialias, params.flips[2 * sample]);
    A* source = scratch.take<A>((box.columns + kLanes - 1) / kLanes * kLanes * kLanes);
    A* block = scratch.take<A>(stride * kLanes);
    const Resize<P, A> resize{params, box, columns, rows, source, block, scratch.take<A>(0), stride};
    const P* corner = static_cast<const P*>(params.pixels) + box.start + box.y * box.width + box.x;
    for (int64_t band = 0; band < params.bands; ++band, corner += box.height * box.width) {
        const int64_t plane = sample * params.bands + band;
        for (int64_t top = 0; top < box.rows; top += kLanes) resize.along_rows(corner, top);
        resize.along_columns(static_cast<O*>(params.output) + plane * size * size,
                             static_cast<const A*>(params.offset)[plane], static_cast<const A*>(params.scale)[plane]);
    }
}

}  // namespace

void crop_resize_cpu(const CropResizeParams& params, int num_threads) {
    for (int64_t sample = 0; sample < params.batch; ++sample) checked_box(params, sample);
    dispatch_pixels(params, [&](auto pixel) {
        using P = typename decltype(pixel)::type;
        using A = accumulator_t<P>;
        dispatch_floating("crop_resize", params.output_dtype, [&](auto output) {
            using O = typename decltype(output)::type;
            const int64_t bytes = params.bands * params.size * params.size * int64_t{sizeof(O)} * 4;
            parallel_for(num_threads, params.batch, bytes, [&](int64_t sample, int64_t thread) {
                char* memory = static_cast<char*>(params.scratch) + thread * params.scratch_size;
                resize_image<P, O, A>(params, checked_box(params, sample), sample, memory);
            });
        });
    });
}

}  // namespace spectral
