// SPDX-License-Identifier: Apache-2.0
// Division by a number that a whole launch shares: a multiplication and a shift where the machine would take some 20
// instructions (64 bits: 70). Kernels that move bytes have time for no more.
#pragma once

#include <cstdint>

#include "core/cube.h"  // SPECTRAL_HOST_DEVICE

namespace spectral {

// Exact for dividends and divisors below 2^31; other divisors, which a launch without work or one too large to be done
// can have, count as 1. With p = 31 + ceil(log2 d) and m = ceil(2^p / d), the excess of m over 2^p / d is below 1,
// which lifts no dividend below 2^31 over a whole (Granlund and Montgomery 1994).
class Divisor {
  public:
    Divisor() = default;
    explicit Divisor(int64_t divisor)
        : divisor_(divisor > 0 && divisor >> 31 == 0 ? static_cast<uint32_t>(divisor) : 1) {
        while (uint64_t{1} << log_ < divisor_) ++log_;
        const uint64_t power = uint64_t{1} << (31 + log_);
        multiplier_ = static_cast<uint32_t>((power + divisor_ - 1) / divisor_);
    }

    // a / d; the remainder goes to `rest`.
    SPECTRAL_HOST_DEVICE int divide(int dividend, int& rest) const {
        const int quotient = static_cast<int>(uint64_t{static_cast<uint32_t>(dividend)} * multiplier_ >> (31 + log_));
        rest = dividend - quotient * static_cast<int>(divisor_);
        return quotient;
    }
    SPECTRAL_HOST_DEVICE int value() const { return static_cast<int>(divisor_); }

  private:
    uint32_t divisor_ = 1, multiplier_ = 0, log_ = 0;
};

}  // namespace spectral
