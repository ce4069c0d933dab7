// SPDX-License-Identifier: Apache-2.0
// Assembly on the CPU. Both directions take a few tokens of all samples at a time, so that the positions, the same for
// every sample, are read or summed once while they are in the cache. Sums run in float over 16 samples and are then
// added up, in an order fixed by the shapes: exact enough for any batch, and the same for any thread count.
#include "ops/assemble.h"

#include <algorithm>

#include "core/check.h"
#include "core/parallel.h"
#include "core/simd.h"

namespace spectral {
namespace {

constexpr int64_t kStrip = 512;  // channels summed at a time, on the stack
constexpr int64_t kSamples = 16;

void check_places(const char* op, const int64_t* ids_restore, int64_t batch, int64_t num_tokens, int64_t num_keep) {
    uint64_t expected = 0;
    for (int64_t place = 0; place < num_keep; ++place) expected += place_hash(place);
    for (int64_t sample = 0; sample < batch; ++sample) {
        const int64_t* ids = ids_restore + sample * num_tokens;
        uint64_t found = 0;
        int64_t count = 0, lowest = 0;
        for (int64_t token = 0; token < num_tokens; ++token) {
            lowest = std::min(lowest, ids[token]);
            if (ids[token] >= num_keep) continue;
            found += place_hash(ids[token]);
            ++count;
        }
        if (lowest < 0 || count != num_keep || found != expected) {
            fail<IndexError>(op, ": expected ids_restore to hold each of 0 .. ", num_keep - 1,
                             " once per sample and nothing below 0, got another set of places in sample ", sample);
        }
    }
}

template <class O, class V, class A>
SPECTRAL_SIMD void add_rows(O* out, const V* token, const A* position, int64_t channels) {
    int64_t d = 0;
    for (; d + kLanes <= channels; d += kLanes) store<A>(out + d, load<A>(token + d) + load<A>(position + d));
    for (; d < channels; ++d) out[d] = O(A(token[d]) + position[d]);
}

template <class O, class V>
void assemble(const AssembleParams& params, int num_threads) {
    using A = accumulator_t<O>;
    const int64_t tokens = params.num_tokens, channels = params.channels, batch = params.batch;
    const int64_t chunks = (tokens + kTokensPerChunk - 1) / kTokensPerChunk;
    const int64_t bytes = kTokensPerChunk * channels * int64_t{sizeof(O)} * 2;
    parallel_for(num_threads, chunks * batch, bytes, [&](int64_t task) {
        const int64_t sample = task % batch, first = task / batch * kTokensPerChunk;
        for (int64_t token = first; token < std::min(first + kTokensPerChunk, tokens); ++token) {
            const int64_t place = params.ids_restore[sample * tokens + token];
            O* out = static_cast<O*>(params.output) + (sample * tokens + token) * channels;
            const A* position = static_cast<const A*>(params.positions) + token * channels;
            if (place < params.num_keep) {
                const V* visible = static_cast<const V*>(params.visible);
                add_rows(out, visible + (sample * params.num_keep + place) * channels, position, channels);
            } else {
                add_rows(out, static_cast<const A*>(params.mask_token), position, channels);
            }
        }
    });
}

// One row of gradient: onto the sums of its position, and onto those of the mask token or out to the visible token.
template <class G, class V, class A>
SPECTRAL_SIMD void sum_row(const G* grad, A* position, A* mask, V* visible, int64_t channels) {
    int64_t d = 0;
    for (; d + kLanes <= channels; d += kLanes) {
        const Lanes<A> lanes = load<A>(grad + d);
        store<A>(position + d, load<A>(position + d) + lanes);
        visible == nullptr ? store<A>(mask + d, load<A>(mask + d) + lanes) : store<A>(visible + d, lanes);
    }
    for (; d < channels; ++d) {
        position[d] += A(grad[d]);
        visible == nullptr ? void(mask[d] += A(grad[d])) : void(visible[d] = V(A(grad[d])));
    }
}

template <class A>
SPECTRAL_SIMD void add_to(A* total, A* part, int64_t channels) {
    for (int64_t d = 0; d < channels; ++d) {
        total[d] += part[d];
        part[d] = 0;
    }
}

// A strip of channels of one token over all samples.
template <class G, class V, class A>
void sum_token(const AssembleBackwardParams& params, int64_t token, int64_t start, int64_t count, A* mask_total) {
    const int64_t tokens = params.num_tokens, channels = params.channels;
    A position_part[kStrip] = {}, mask_part[kStrip] = {};
    A* position_total = static_cast<A*>(params.positions_grad) + token * channels + start;
    std::fill_n(position_total, count, A(0));
    for (int64_t sample = 0; sample < params.batch; ++sample) {
        const int64_t place = params.ids_restore[sample * tokens + token];
        const G* grad = static_cast<const G*>(params.grad) + (sample * tokens + token) * channels + start;
        V* visible = static_cast<V*>(params.visible_grad) + (sample * params.num_keep + place) * channels + start;
        sum_row(grad, position_part, mask_part, place < params.num_keep ? visible : nullptr, count);
        if (sample % kSamples == kSamples - 1 || sample == params.batch - 1) {
            add_to(position_total, position_part, count);
            add_to(mask_total, mask_part, count);
        }
    }
}

template <class G, class V>
void assemble_backward(const AssembleBackwardParams& params, int num_threads) {
    using A = accumulator_t<G>;
    const int64_t tokens = params.num_tokens, channels = params.channels;
    const int64_t chunks = (tokens + kTokensPerChunk - 1) / kTokensPerChunk;
    A* partial = static_cast<A*>(params.scratch);
    const int64_t bytes = kTokensPerChunk * params.batch * channels * int64_t{sizeof(G)};
    parallel_for(num_threads, chunks, bytes, [&](int64_t chunk) {
        const int64_t first = chunk * kTokensPerChunk;
        std::fill_n(partial + chunk * channels, channels, A(0));
        for (int64_t token = first; token < std::min(first + kTokensPerChunk, tokens); ++token) {
            for (int64_t start = 0; start < channels; start += kStrip) {
                sum_token<G, V, A>(params, token, start, std::min(kStrip, channels - start),
                                   partial + chunk * channels + start);
            }
        }
    });
    A* mask_grad = static_cast<A*>(params.mask_grad);
    for (int64_t d = 0; d < channels; ++d) {
        double sum = 0;
        for (int64_t chunk = 0; chunk < chunks; ++chunk) sum += static_cast<double>(partial[chunk * channels + d]);
        mask_grad[d] = static_cast<A>(sum);
    }
}

}  // namespace

void assemble_tokens_cpu(const AssembleParams& params, int num_threads) {
    constexpr const char* op = "assemble_tokens";
    check_places(op, params.ids_restore, params.batch, params.num_tokens, params.num_keep);
    dispatch_pair(op, params.output_dtype, params.visible_dtype, [&](auto output, auto visible) {
        assemble<typename decltype(output)::type, typename decltype(visible)::type>(params, num_threads);
    });
}

void assemble_tokens_backward_cpu(const AssembleBackwardParams& params, int num_threads) {
    constexpr const char* op = "assemble_tokens_backward";
    check_places(op, params.ids_restore, params.batch, params.num_tokens, params.num_keep);
    dispatch_pair(op, params.grad_dtype, params.visible_dtype, [&](auto grad, auto visible) {
        assemble_backward<typename decltype(grad)::type, typename decltype(visible)::type>(params, num_threads);
    });
}

}  // namespace spectral
