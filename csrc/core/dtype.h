// SPDX-License-Identifier: Apache-2.0
// Element types: the codes that cross the binding, 16-bit floats with exact conversions on host and device, and
// dispatch to templates.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "core/check.h"
#include "core/cube.h"  // SPECTRAL_HOST_DEVICE

namespace spectral {

enum class Dtype : int {
    kFloat32 = 0,
    kFloat64 = 1,
    kFloat16 = 2,
    kBFloat16 = 3
};  // order of _DTYPE_CODES in ops/_native.py

SPECTRAL_HOST_DEVICE uint32_t float_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

SPECTRAL_HOST_DEVICE float bits_float(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

struct BFloat16 {
    uint16_t bits;

    BFloat16() = default;
    SPECTRAL_HOST_DEVICE explicit BFloat16(float value) {
        const uint32_t word = float_bits(value);
        const uint32_t rounded = (word + 0x7FFFu + (word >> 16 & 1u)) >> 16;                   // nearest, ties to even
        bits = (word & 0x7FFFFFFFu) > 0x7F800000u ? 0x7FC0u : static_cast<uint16_t>(rounded);  // NaN stays NaN
    }
    SPECTRAL_HOST_DEVICE explicit operator float() const { return bits_float(static_cast<uint32_t>(bits) << 16); }
};

struct Half {
    uint16_t bits;

    Half() = default;
    // Nearest, ties to even: float arithmetic rounds for us, once the value is scaled to where a float's last bit is a
    // half's last bit.
    SPECTRAL_HOST_DEVICE explicit Half(float value) {
        const uint32_t word = float_bits(value), sign = word >> 16 & 0x8000u, magnitude = word & 0x7FFFFFFFu;
        if (magnitude > 0x7F800000u) {
            bits = static_cast<uint16_t>(sign | 0x7E00u);
        } else if (magnitude >= 0x477FF000u) {  // 65520 and above round to infinity
            bits = static_cast<uint16_t>(sign | 0x7C00u);
        } else if (magnitude < 0x38800000u) {  // below 2^-14: subnormal halves, steps of 2^-24
            bits = static_cast<uint16_t>(sign | (float_bits(bits_float(magnitude) + 0.5f) - 0x3F000000u));
        } else {
            const uint32_t rounded = magnitude + 0xFFFu + (magnitude >> 13 & 1u);
            bits = static_cast<uint16_t>(sign | (rounded - 0x38000000u) >> 13);
        }
    }
    SPECTRAL_HOST_DEVICE explicit operator float() const {
        const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16, magnitude = bits & 0x7FFFu;
        if (magnitude >= 0x7C00u) return bits_float(sign | 0x7F800000u | (magnitude & 0x3FFu) << 13);
        if (magnitude < 0x400u) {  // subnormal: magnitude * 2^-24, exact
            const float value = static_cast<float>(magnitude) * 5.9604644775390625e-8f;
            return bits_float(float_bits(value) | sign);
        }
        return bits_float(sign | ((magnitude << 13) + 0x38000000u));
    }
};

// The type sums are taken in.
template <class T>
struct Accumulator {
    using type = float;
};
template <>
struct Accumulator<double> {
    using type = double;
};
template <class T>
using accumulator_t = typename Accumulator<T>::type;

// Whether errors averaged over millions of values fall below the smallest number of T.
template <class T>
constexpr bool kUnderflows = std::is_same_v<T, Half>;

template <class T>
struct Type {
    using type = T;
};

struct alignas(16) Bytes16 {
    uint64_t word[2];
};

// Calls body(Type<T>{}) with an unsigned T of the given size: permutations care for the size of an element only.
template <class Body>
void dispatch_element_size(const char* op, int64_t size, Body body) {
    switch (size) {
        case 1: return body(Type<uint8_t>{});
        case 2: return body(Type<uint16_t>{});
        case 4: return body(Type<uint32_t>{});
        case 8: return body(Type<uint64_t>{});
        case 16: return body(Type<Bytes16>{});
        default: check(false, op, ": expected elements of 1, 2, 4, 8 or 16 bytes, got ", size);
    }
}

template <class Body>
void dispatch_floating(const char* op, Dtype dtype, Body body) {
    switch (dtype) {
        case Dtype::kFloat32: return body(Type<float>{});
        case Dtype::kFloat64: return body(Type<double>{});
        case Dtype::kFloat16: return body(Type<Half>{});
        case Dtype::kBFloat16: return body(Type<BFloat16>{});
    }
    check(false, op, ": expected a floating dtype code in [0, 4), got ", static_cast<int>(dtype));
}

}  // namespace spectral
