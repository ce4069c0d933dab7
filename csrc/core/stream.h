// SPDX-License-Identifier: Apache-2.0
// Stores past the caches. What is written has to be read first, line by line, unless whole lines go straight to
// memory; a result too large to be found in the caches by whoever reads it next loses nothing by that.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/simd.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace spectral {

// Bytes that an op reads and writes above which its result goes past the caches: half of what the cores of one die
// share on most machines of these years.
constexpr int64_t kCacheBytes = int64_t{16} << 20;

inline bool goes_past_caches(int64_t bytes_moved) { return bytes_moved >= kCacheBytes; }

// Some adjacent bytes; callers write runs of 64 and more, one after another, or lines would go out in pieces.
template <class Run>
inline void stream(void* address, const Run& run) {
#if defined(__SSE2__)
    if (sizeof run % sizeof(__m128i) == 0 && reinterpret_cast<uintptr_t>(address) % sizeof(__m128i) == 0) {
        for (size_t at = 0; at < sizeof run; at += sizeof(__m128i)) {
            __m128i part;
            memcpy(&part, reinterpret_cast<const char*>(&run) + at, sizeof part);
            _mm_stream_si128(reinterpret_cast<__m128i*>(static_cast<char*>(address) + at), part);
        }
        return;
    }
#endif
    memcpy(address, &run, sizeof run);
}

// `store`, past the caches where that is `past`.
template <class A, class T>
inline void store(T* address, const Lanes<A>& lanes, bool past) {
    if (!past) return store<A>(address, lanes);
    if constexpr (std::is_same_v<A, T>) {
        stream(address, lanes);
    } else {
        T values[kLanes];
        store<A>(values, lanes);
        stream(address, values);
    }
}

// Such stores overtake others: before a thread tells another that it is done, all have to be on their way.
inline void finish_streams() {
#if defined(__SSE2__)
    _mm_sfence();
#endif
}

}  // namespace spectral
