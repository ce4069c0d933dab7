// SPDX-License-Identifier: Apache-2.0
// Errors of the native layer: exceptions with the op's name and the values; nothing prints, nothing exits.
#pragma once

#include <sstream>
#include <stdexcept>

namespace spectral {

// An id outside its range; becomes Python's IndexError.
struct IndexError : std::out_of_range {
    using std::out_of_range::out_of_range;
};

template <class Error, class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
    std::ostringstream message;
    (message << ... << parts);
    throw Error(message.str());
}

template <class... Parts>
void check(bool condition, const Parts&... parts) {
    if (!condition) fail<std::invalid_argument>(parts...);
}

}  // namespace spectral
