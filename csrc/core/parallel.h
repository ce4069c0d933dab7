// SPDX-License-Identifier: Apache-2.0
// Threads as torch says: the caller passes the count, each index is computed whole by one thread, so results do not
// depend on the count.
#pragma once

#include <algorithm>
#include <cstdint>
#include <exception>
#include <type_traits>

#include "core/stream.h"

#if defined(_OPENMP)
#include <omp.h>
#endif

namespace spectral {

// Where a thread starts to pay: bytes of work below which one thread is quicker than waking another.
constexpr int64_t kBytesPerThread = 64 * 1024;

// Calls body(i), or body(i, thread) with thread in [0, num_threads), for i in [0, count), in contiguous chunks; the
// first exception of any chunk is rethrown.
template <class Body>
void parallel_for([[maybe_unused]] int num_threads, int64_t count, [[maybe_unused]] int64_t bytes_each, Body body) {
    const auto call = [&body](int64_t i, [[maybe_unused]] int64_t thread) {
        if constexpr (std::is_invocable_v<Body, int64_t, int64_t>) {
            body(i, thread);
        } else {
            body(i);
        }
    };
#if defined(_OPENMP)
    const int64_t useful = std::min<int64_t>({num_threads, count, count * bytes_each / kBytesPerThread});
    if (useful > 1) {
        std::exception_ptr error;
#pragma omp parallel num_threads(static_cast<int>(useful))
        {
            const int64_t team = omp_get_num_threads(), me = omp_get_thread_num();
            try {
                for (int64_t i = count * me / team; i < count * (me + 1) / team; ++i) call(i, me);
                finish_streams();
            } catch (...) {
#pragma omp critical
                error = std::current_exception();
            }
        }
        if (error) std::rethrow_exception(error);
        return;
    }
#endif
    for (int64_t i = 0; i < count; ++i) call(i, 0);
    finish_streams();
}

}  // namespace spectral
