// SPDX-License-Identifier: Apache-2.0
// Boxes of packed images, resized to squares by torch's bicubic, flipped, offset and scaled. The sampling rule is
// shared by host and device.
#pragma once

#include <cstdint>

#include "core/dtype.h"

namespace spectral {

enum class PixelType : int { kUint8 = 0, kUint16 = 1, kInt16 = 2, kFloat = 3 };  // order of _PIXEL_CODES in _native.py

struct CropResizeParams {
    void* output;           // (B, bands, size, size) contiguous
    const void* pixels;     // images (bands, H, W), each contiguous
    const int64_t* layout;  // (B, 3) first value in pixels, H, W
    const int32_t* boxes;   // (B, 4) first row, first column, rows, columns
    const bool* flips;      // (B, 2) vertical, horizontal
    const void* offset;     // (B, bands) float; double for double pixels
    const void* scale;      // (B, bands), likewise
    void* scratch;          // CPU: scratch_size bytes for each thread
    PixelType pixel_type;
    Dtype pixel_dtype;  // of floating pixels
    Dtype output_dtype;
    bool antialias;
    int64_t batch, bands, size, num_pixels, scratch_size;
};

// Whether a sample's image lies inside the buffer and its box, not empty, inside the image. Products of untrusted sizes
// may overflow, so the buffer is divided by them instead.
SPECTRAL_HOST_DEVICE bool box_is_inside(const CropResizeParams& params, int64_t sample) {
    const int64_t *layout = params.layout + 3 * sample, start = layout[0], height = layout[1], width = layout[2];
    const int32_t* box = params.boxes + 4 * sample;
    const bool sized = start >= 0 && height > 0 && width > 0 && width <= params.num_pixels / params.bands / height &&
                       start <= params.num_pixels - params.bands * height * width;
    return sized && box[0] >= 0 && box[1] >= 0 && box[2] > 0 && box[3] > 0 && int64_t{box[0]} + box[2] <= height &&
           int64_t{box[1]} + box[3] <= width;
}

// A place on an axis of `in` values, or the border's that is nearest.
SPECTRAL_HOST_DEVICE int place_inside(int at, int in) { return at < 0 ? 0 : at < in ? at : in - 1; }

// Which values of an axis an output value is made of, and how much of each (align_corners=False).
template <class A>
struct Taps {
    A centre, step, coefficient;
    int first, count;  // of the values inside the box
    A total;           // what the weights add up to, before they are normalised

    // Plain: 4 values around the centre, those beyond the border taken from it, cubic coefficient -0.75. Antialiased:
    // coefficient -0.5, and when shrinking as many values as the kernel, widened by the scale, covers; those beyond the
    // border left out.
    SPECTRAL_HOST_DEVICE Taps(int index, int in, int out, bool antialias) {
        const A scale = static_cast<A>(in) / static_cast<A>(out);
        coefficient = antialias ? A(-0.5) : A(-0.75);
        total = 1;
        if (!antialias) {
            centre = scale * (static_cast<A>(index) + A(0.5)) - A(0.5);
            step = 1;
            first = static_cast<int>(centre < 0 ? centre - 1 : centre) - 1;  // floor, but for negative integers
            if (static_cast<A>(first + 2) <= centre) ++first;
            count = 4;
            return;
        }
        centre = scale * (static_cast<A>(index) + A(0.5)) - A(0.5);
        step = scale > 1 ? 1 / scale : A(1);
        const A reach = scale > 1 ? 2 * scale : A(2), middle = centre + A(0.5);
        const auto low = static_cast<int>(middle - reach + A(0.5)), high = static_cast<int>(middle + reach + A(0.5));
        first = middle - reach + A(0.5) < 0 ? 0 : low;
        count = (high < in ? high : in) - first;
        total = 0;
        for (int k = 0; k < count; ++k) total += raw(k);
    }

    // The cubic kernel at tap k.
    SPECTRAL_HOST_DEVICE A raw(int k) const {
        A x = (static_cast<A>(first + k) - centre) * step;
        x = x < 0 ? -x : x;
        if (x < 1) return ((coefficient + 2) * x - (coefficient + 3)) * x * x + 1;
        if (x < 2) return (((x - 5) * x + 8) * x - 4) * coefficient;
        return 0;
    }
    SPECTRAL_HOST_DEVICE A weight(int k) const { return raw(k) / total; }

    // Tap k's value on an axis of `in`.
    SPECTRAL_HOST_DEVICE int place(int k, int in) const { return place_inside(first + k, in); }
};

// The most taps an output value can have.
inline int64_t most_taps(int64_t in, int64_t out) { return in > out ? 4 * in / out + 6 : 4; }

// Bytes of scratch of one thread for boxes of up to `side` rows and columns: tap tables of both axes, those of the
// columns for eight at a time, a block of 8 source rows with room beside them, that block resized, and the box resized
// along its rows.
inline int64_t crop_resize_scratch(int64_t size, int64_t side, int64_t value_bytes) {
    const int64_t row = (size + 7) / 8 * 8, rows = (side + 7) / 8 * 8;
    const int64_t bytes = 2 * size * (16 + most_taps(side, size) * value_bytes) +
                          (6 * row + 8 * (rows + 16) + 8 * row + rows * row) * value_bytes;
    return (bytes + 255) / 64 * 64;  // with room for aligning each part
}

// Calls body(Type<pixel>{}) for the element type of the pixels.
template <class Body>
void dispatch_pixels(const CropResizeParams& params, Body body) {
    switch (params.pixel_type) {
        case PixelType::kUint8: return body(Type<uint8_t>{});
        case PixelType::kUint16: return body(Type<uint16_t>{});
        case PixelType::kInt16: return body(Type<int16_t>{});
        case PixelType::kFloat: return dispatch_floating("crop_resize", params.pixel_dtype, body);
    }
    check(false, "crop_resize: expected a pixel type code in [0, 4), got ", static_cast<int>(params.pixel_type));
}

void crop_resize_cpu(const CropResizeParams& params, int num_threads);
void crop_resize_cuda(const CropResizeParams& params, int device, void* stream);

}  // namespace spectral
