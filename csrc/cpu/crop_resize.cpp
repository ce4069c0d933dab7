// SPDX-License-Identifier: Apache-2.0
// Crop and resize on the CPU, one task per image. The two axes are resized in turn, band by band: along rows, then
// along columns with 8 neighbouring pixels in a vector. Along rows steps are uneven. Where the box does not shrink, 8
// neighbouring results come from within 8 values for each tap, and one permutation puts them in order; else 8 rows go
// side by side in a vector. Flips are a matter of the tap tables; offset and scale come with the last store.
#include "ops/crop_resize.h"

#include <algorithm>

#include "core/check.h"
#include "core/pages.h"
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

constexpr int64_t kTaps = 4;  // of nearly every output value

// The table of the columns for eight of them at once, where each has a window of four values and the eight windows
// begin within eight values.
template <class A>
struct Groups {
    struct Group {
        int64_t start;           // of the first window: before the row by up to `kTaps`, or reaching beyond it
        Place<A> place[kLanes];  // of the windows behind `start`
        A weights[kTaps][kLanes];
    };
    Group* groups;

    Groups(Scratch& scratch, int64_t size) : groups(scratch.take<Group>((size + kLanes - 1) / kLanes)) {}

    // Whether the table is such a one.
    bool fill(const Table<A>& table, int64_t size) {
        for (int64_t x = 0; x < size; x += kLanes) {
            Group& group = groups[x / kLanes];
            int64_t starts[kLanes];
            for (int64_t i = 0; i < kLanes; ++i) {
                const int64_t at = std::min(x + i, size - 1), first = table.first[at], count = table.count[at];
                if (count > kTaps) return false;
                starts[i] = first == 0 ? count - kTaps : first;  // what lies beside the box has weight 0
                for (int64_t k = 0; k < kTaps; ++k) {
                    const int64_t tap = starts[i] + k - first;
                    group.weights[k][i] = tap >= 0 && tap < count ? table.weights[at * table.stride + tap] : A(0);
                }
            }
            group.start = *std::min_element(starts, starts + kLanes);
            if (*std::max_element(starts, starts + kLanes) - group.start >= kLanes) return false;
            for (int64_t i = 0; i < kLanes; ++i) {
                group.place[i] = static_cast<Place<A>>(starts[i] - group.start);
            }
        }
        return true;
    }
};

// Sum of the weighted vectors that lie `step` apart; kCount of them, or 0 for `count`.
template <int64_t kCount, class A>
inline Lanes<A> weighted(const A* from, int64_t step, const A* weight, int64_t count) {
    Lanes<A> sum = load<A>(from) * weight[0];
    for (int64_t k = 1; k < (kCount ? kCount : count); ++k) sum += load<A>(from + k * step) * weight[k];
    return sum;
}

// Of a source row with zeros on both sides, for the windows that reach there.
inline int64_t source_stride(int64_t columns) { return (columns + kLanes - 1) / kLanes * kLanes + 2 * kLanes; }

template <class P, class A>
struct Resize {
    const CropResizeParams& params;
    const Box& box;
    const Table<A>&columns, &rows;
    const Groups<A>& groups;     // of the columns
    A *source, *block, *middle;  // 8 source rows; the same resized; the whole box resized along its rows
    int64_t stride;              // of a row of `middle`
    bool past_caches;            // where the output goes

    // Eight rows of the box, from `top` on, resized along the row into `middle`; with `groups` filled.
    void along_rows_in_groups(const P* pixels, int64_t top) const {
        const int64_t count = std::min<int64_t>(kLanes, box.rows - top), step = source_stride(box.columns);
        for (int64_t i = 0; i < count; ++i) {
            const P* row = pixels + (top + i) * box.width;
            A* to = source + i * step + kTaps;
            int64_t x = 0;
            for (; x + kLanes <= box.columns; x += kLanes) store<A>(to + x, load<A>(row + x));
            store<A>(to + x, load_some<A>(row + x, 1, box.columns - x));
        }
        for (int64_t x = 0; x < params.size; x += kLanes) {
            const typename Groups<A>::Group& group = groups.groups[x / kLanes];
            const auto places = load<Place<A>>(group.place);
            Lanes<A> weights[kTaps];
            for (int64_t k = 0; k < kTaps; ++k) weights[k] = load<A>(group.weights[k]);
            const A* from = source + kTaps + group.start;
            for (int64_t i = 0; i < count; ++i, from += step) {
                Lanes<A> sum = permuted<A>(load<A>(from), places) * weights[0];
                for (int64_t k = 1; k < kTaps; ++k) sum += permuted<A>(load<A>(from + k), places) * weights[k];
                store<A>(middle + (top + i) * stride + x, sum);
            }
        }
    }

    // Likewise, for every table.
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
            const A *weight = columns.weights + x * columns.stride, *from = source + columns.first[x] * kLanes;
            store<A>(block + x * kLanes, weighted<0>(from, kLanes, weight, columns.count[x]));
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
        for (int64_t y = 0; y < params.size; ++y, out += params.size) {
            rows.count[y] == kTaps ? output_row<kTaps>(out, y, offset, scale) : output_row<0>(out, y, offset, scale);
        }
    }

    template <int64_t kCount, class O>
    void output_row(O* out, int64_t y, A offset, A scale) const {
        const int64_t size = params.size, count = rows.count[y];
        const A *weight = rows.weights + y * rows.stride, *from = middle + rows.first[y] * stride;
        for (int64_t x = 0; x < size; x += kLanes) {
            const Lanes<A> value = (weighted<kCount>(from + x, stride, weight, count) - offset) * scale;
            x + kLanes <= size ? store<A>(out + x, value, past_caches) : store_some<A>(out + x, value, size - x);
        }
    }
};

template <class P, class O, class A>
SPECTRAL_SIMD void resize_image(const CropResizeParams& params, const Box& box, int64_t sample, char* memory,
                                bool past_caches) {
    const int64_t size = params.size, stride = (size + kLanes - 1) / kLanes * kLanes;
    Scratch scratch{memory};
    Table<A> columns(scratch, size, most_taps(box.columns, size)), rows(scratch, size, most_taps(box.rows, size));
    columns.fill(box.columns, size, params.antialias, params.flips[2 * sample + 1]);
    rows.fill(box.rows, size, params.antialias, params.flips[2 * sample]);
    Groups<A> groups(scratch, size);
    const bool in_groups = kPermutes && groups.fill(columns, size);
    const int64_t source_size = kLanes * source_stride(box.columns);
    A* source = scratch.take<A>(source_size);
    std::fill_n(source, source_size, A(0));  // what lies beside the rows stays so
    A* block = scratch.take<A>(stride * kLanes);
    const Resize<P, A> resize{params, box,        columns, rows, groups, source, block, scratch.take<A>(0),
                              stride, past_caches};
    const P* corner = static_cast<const P*>(params.pixels) + box.start + box.y * box.width + box.x;
    for (int64_t band = 0; band < params.bands; ++band, corner += box.height * box.width) {
        const int64_t plane = sample * params.bands + band;
        for (int64_t top = 0; top < box.rows; top += kLanes) {
            in_groups ? resize.along_rows_in_groups(corner, top) : resize.along_rows(corner, top);
        }
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
            const int64_t bytes = params.bands * params.size * params.size * int64_t{sizeof(O)};
            const bool past_caches = goes_past_caches(params.batch * bytes);
            advise_huge_pages(params.output, params.batch * bytes);
            parallel_for(num_threads, params.batch, 4 * bytes, [&](int64_t sample, int64_t thread) {
                char* memory = static_cast<char*>(params.scratch) + thread * params.scratch_size;
                resize_image<P, O, A>(params, checked_box(params, sample), sample, memory, past_caches);
            });
        });
    });
}

}  // namespace spectral
