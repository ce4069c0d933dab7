// SPDX-License-Identifier: Apache-2.0
// Philox4x32-10 (Salmon et al. 2011): 128 random bits as a pure function of key and counter. Shared by host and device,
// so a mask has the same bits on both; `spectralgpt/ops/random.py` is the same function in PyTorch.
#pragma once

#include <cstdint>

#include "core/cube.h"  // SPECTRAL_HOST_DEVICE

namespace spectral {

// What a draw decides; see spectralgpt.ops.Purpose. Never renumber: the values are part of every mask.
constexpr uint32_t kPurposeMask = 1;

constexpr uint32_t kPhiloxMultiplier0 = 0xD2511F53u, kPhiloxMultiplier1 = 0xCD9E8D57u;
constexpr uint32_t kPhiloxWeyl0 = 0x9E3779B9u, kPhiloxWeyl1 = 0xBB67AE85u;

struct PhiloxWords {
    uint32_t word[4];
};

SPECTRAL_HOST_DEVICE PhiloxWords philox4x32(uint64_t key, uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3) {
    uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
    for (int round = 0; round < 10; ++round) {
        const uint64_t product0 = uint64_t{kPhiloxMultiplier0} * c0, product1 = uint64_t{kPhiloxMultiplier1} * c2;
        c0 = static_cast<uint32_t>(product1 >> 32) ^ c1 ^ k0;
        c1 = static_cast<uint32_t>(product1);
        c2 = static_cast<uint32_t>(product0 >> 32) ^ c3 ^ k1;
        c3 = static_cast<uint32_t>(product0);
        k0 += kPhiloxWeyl0;
        k1 += kPhiloxWeyl1;
    }
    return {{c0, c1, c2, c3}};
}

// Words 4*draw .. 4*draw + 3 of a sample's stream for one purpose.
SPECTRAL_HOST_DEVICE PhiloxWords sample_words(uint64_t seed, uint64_t sample_id, uint32_t step, uint32_t purpose,
                                              uint32_t draw) {
    return philox4x32(seed, static_cast<uint32_t>(sample_id), static_cast<uint32_t>(sample_id >> 32), step,
                      purpose << 24 | draw);
}

}  // namespace spectral
