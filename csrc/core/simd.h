// SPDX-License-Identifier: Apache-2.0
// Eight values at once, on any CPU: vectors of the compiler's own kind, which it maps to what the machine has.
//
// SPECTRAL_SIMD before a function compiles it twice on x86-64, for every machine and for those with AVX2 and FMA (2013
// and later); the loader picks. Other architectures, whose baseline has vectors, need no second version. Everything a
// marked function calls is inlined into both.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

// Sanitizers cannot start before the loader has picked.
#if defined(__x86_64__) && defined(__GLIBC__) && !defined(__SANITIZE_ADDRESS__)
#if (defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12) || (defined(__clang__) && __clang_major__ >= 17)
#define SPECTRAL_SIMD __attribute__((target_clones("arch=x86-64-v3", "default"), flatten))
#define SPECTRAL_PICKS_AVX2  // a function may have a second definition, marked target("avx2")
#endif
#endif
#if !defined(SPECTRAL_SIMD)
#define SPECTRAL_SIMD __attribute__((flatten))
#endif

namespace spectral {

constexpr int kLanes = 8;

template <class T>
using Lanes __attribute__((vector_size(kLanes * sizeof(T)))) = T;

// Eight adjacent values, converted to A.
template <class A, class T>
inline Lanes<A> load(const T* address) {
    Lanes<A> lanes;
    if constexpr (std::is_same_v<A, T>) {
        memcpy(&lanes, address, sizeof lanes);
    } else if constexpr (std::is_arithmetic_v<T>) {
        Lanes<T> values;
        memcpy(&values, address, sizeof values);
        lanes = __builtin_convertvector(values, Lanes<A>);
    } else {
        for (int k = 0; k < kLanes; ++k) lanes[k] = A(address[k]);
    }
    return lanes;
}

template <class A, class T>
inline void store(T* address, const Lanes<A>& lanes) {
    if constexpr (std::is_same_v<A, T>) {
        memcpy(address, &lanes, sizeof lanes);
    } else {
        for (int k = 0; k < kLanes; ++k) address[k] = T(lanes[k]);
    }
}

// The first `count` of eight values that lie `stride` apart; the others 0.
template <class A, class T>
inline Lanes<A> load_some(const T* address, int64_t stride, int64_t count) {
    Lanes<A> lanes = {};
    for (int64_t k = 0; k < count; ++k) lanes[k] = A(address[k * stride]);
    return lanes;
}

template <class A, class T>
inline void store_some(T* address, const Lanes<A>& lanes, int64_t count) {
    for (int64_t k = 0; k < count; ++k) address[k] = T(lanes[k]);
}

// In a fixed order, so that a sum has the same bits everywhere.
template <class A>
inline A sum(const Lanes<A>& lanes) {
    return ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
}

// The number of a lane; as wide as the values, as the machine wants it.
template <class A>
using Place = std::conditional_t<sizeof(A) == 4, int32_t, int64_t>;

// The lanes, or zeros: `keep` is all ones or none. A product with 0 would keep a NaN.
template <class A>
inline Lanes<A> masked(const Lanes<A>& lanes, Place<A> keep) {
    return (Lanes<A>)((Lanes<Place<A>>)lanes & keep);
}

// Whether any order of the lanes is a single instruction or two.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
constexpr bool kPermutes = true;
#else
constexpr bool kPermutes = false;
#endif

// Lane k of the result is lane places[k].
template <class A>
inline Lanes<A> permuted(const Lanes<A>& lanes, const Lanes<Place<A>>& places) {
#if defined(__GNUC__) && !defined(__clang__)
    return __builtin_shuffle(lanes, places);
#else
    Lanes<A> result;
    for (int k = 0; k < kLanes; ++k) result[k] = lanes[places[k]];
    return result;
#endif
}

// Where __builtin_prefetch puts a line: the second-level cache has more of them on their way at a time than the first,
// and more room.
constexpr int kSecondLevel = 2;

// Rows to columns, an 8 x 8 block.
template <class A>
inline void transpose(Lanes<A>* rows) {
#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define SPECTRAL_SHUFFLE __builtin_shufflevector
#endif
#endif
#if defined(SPECTRAL_SHUFFLE)
    Lanes<A> pairs[kLanes], quads[kLanes];
    for (int i = 0; i < kLanes; i += 2) {
        pairs[i] = SPECTRAL_SHUFFLE(rows[i], rows[i + 1], 0, 8, 1, 9, 4, 12, 5, 13);
        pairs[i + 1] = SPECTRAL_SHUFFLE(rows[i], rows[i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
    }
    for (int i = 0; i < kLanes; i += 4) {
        for (int k = 0; k < 2; ++k) {
            quads[i + 2 * k] = SPECTRAL_SHUFFLE(pairs[i + k], pairs[i + k + 2], 0, 1, 8, 9, 4, 5, 12, 13);
            quads[i + 2 * k + 1] = SPECTRAL_SHUFFLE(pairs[i + k], pairs[i + k + 2], 2, 3, 10, 11, 6, 7, 14, 15);
        }
    }
    for (int i = 0; i < kLanes / 2; ++i) {
        rows[i] = SPECTRAL_SHUFFLE(quads[i], quads[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
        rows[i + 4] = SPECTRAL_SHUFFLE(quads[i], quads[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
    }
#else
    Lanes<A> columns[kLanes];
    for (int i = 0; i < kLanes; ++i) {
        for (int k = 0; k < kLanes; ++k) columns[k][i] = rows[i][k];
    }
    memcpy(rows, columns, sizeof columns);
#endif
}

}  // namespace spectral
