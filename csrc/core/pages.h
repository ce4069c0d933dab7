// SPDX-License-Identifier: Apache-2.0
// Large results live in memory that the system hands out on first touch, page by page. For a result of megabytes that
// takes longer than writing it; in pages of 2 MiB it does not. numpy asks for them likewise.
#pragma once

#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace spectral {

constexpr uintptr_t kHugePage = uintptr_t{2} << 20;

// Asks for huge pages behind `bytes` that are about to be written. Only advice: nothing depends on whether it is heard.
inline void advise_huge_pages([[maybe_unused]] void* address, [[maybe_unused]] int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    const auto start = reinterpret_cast<uintptr_t>(address);
    const uintptr_t first = (start + kHugePage - 1) & -kHugePage,
                    end = (start + static_cast<uintptr_t>(bytes)) & -kHugePage;
    if (first < end) madvise(reinterpret_cast<void*>(first), end - first, MADV_HUGEPAGE);
#endif
}

}  // namespace spectral
