// SPDX-License-Identifier: Apache-2.0
// Small, random and largest divisors, each with random dividends and those on both sides of a multiple.
#include "core/divisor.h"

#include <cstdio>
#include <random>

int main() {
    constexpr int kDivisors = 200000, kDividends = 60, kLargest = 0x7FFFFFFF;
    std::mt19937_64 random(1);
    const auto draw = [&] { return static_cast<int>(random() >> (33 + random() % 31)); };  // of every magnitude
    for (int i = 0; i < kDivisors; ++i) {
        const int divisor = i < kDivisors / 2 ? i + 1 : i == kDivisors - 1 ? kLargest : draw() | 1;
        const spectral::Divisor by(divisor);
        for (int k = 0; k < kDividends; ++k) {
            const int multiple = static_cast<int>(random() % (kLargest / divisor + 1)) * divisor;
            const int dividend = k < 3 ? kLargest - k : k % 3 == 0 ? draw() : multiple - (k % 2 && multiple > 0);
            int rest = -1;
            if (by.divide(dividend, rest) == dividend / divisor && rest == dividend % divisor) continue;
            std::printf("%d by %d is wrong\n", dividend, divisor);
            return 1;
        }
    }
    std::printf("%d divisors agree\n", kDivisors);
}
