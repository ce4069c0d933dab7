// SPDX-License-Identifier: Apache-2.0
// Assembly on the CPU. Both directions take a few tokens of all samples at a time, so that the positions, the same for
// every sample, are read or summed once while they are in the cache; the row after the next is called for meanwhile,
// since machines see such short runs coming too late. Sums run in float over 16 samples and are then added up, in an
// order fixed by the shapes: exact enough for any batch, and the same for any thread count.
#include "ops/assemble.h"

#include <algorithm>

#include "core/check.h"
#include "core/pages.h"
#include "core/parallel.h"
#include "core/simd.h"

namespace spectral {
namespace {

constexpr int64_t kStrip = 512;  // channels summed at a time, on the stack
constexpr int64_t kSamples = 16;
constexpr int64_t kTogether = 4;   // samples whose rows of a token are summed in registers
constexpr int64_t kRowsAhead = 2;  // of the rows that are called for
template <class T>
constexpr int64_t kLine = 64 / sizeof(T);  // values that one call brings

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

// Where a chunk of neighbouring tokens lies: so many samples' rows of it are read or written in long runs.
struct Chunk {
    int64_t first, count;

    Chunk(int64_t chunk, int64_t num_tokens)
        : first(chunk * kTokensPerChunk), count(std::min(kTokensPerChunk, num_tokens - first)) {}
};

int64_t chunks(int64_t num_tokens) { return (num_tokens + kTokensPerChunk - 1) / kTokensPerChunk; }

template <class O, class V>
SPECTRAL_SIMD void assemble_chunk(const AssembleParams& params, const Chunk& chunk, int64_t sample, bool past_caches) {
    using A = accumulator_t<O>;
    const int64_t channels = params.channels;
    const auto add = [channels, past_caches](O* out, const auto* token, const A* position) {
        int64_t d = 0;
        for (; d + kLanes <= channels; d += kLanes) {
            if (!past_caches) __builtin_prefetch(out + d + kRowsAhead * channels, 1, kSecondLevel);
            store<A>(out + d, load<A>(token + d) + load<A>(position + d), past_caches);
        }
        for (; d < channels; ++d) out[d] = O(A(token[d]) + position[d]);
    };
    for (int64_t token = chunk.first; token < chunk.first + chunk.count; ++token) {
        const int64_t place = params.ids_restore[sample * params.num_tokens + token];
        O* out = static_cast<O*>(params.output) + (sample * params.num_tokens + token) * channels;
        const A* position = static_cast<const A*>(params.positions) + token * channels;
        if (place < params.num_keep) {
            add(out, static_cast<const V*>(params.visible) + (sample * params.num_keep + place) * channels, position);
        } else {
            add(out, static_cast<const A*>(params.mask_token), position);
        }
    }
}

template <class O, class V>
void assemble(const AssembleParams& params, int num_threads) {
    const int64_t bytes = kTokensPerChunk * params.channels * int64_t{sizeof(O)} * 2;
    const int64_t all_bytes = params.batch * params.num_tokens * params.channels * int64_t{sizeof(O)};
    const bool past_caches = goes_past_caches(all_bytes);
    advise_huge_pages(params.output, all_bytes);
    parallel_for(num_threads, chunks(params.num_tokens) * params.batch, bytes, [&](int64_t task) {
        assemble_chunk<O, V>(params, Chunk(task / params.batch, params.num_tokens), task % params.batch, past_caches);
    });
}

// A visible token's row: its gradient, and onto the sum of its position.
template <class G, class V, class A>
void add_visible_row(const G* row, V* gradient, A* position, int64_t channels) {
    for (int64_t d = 0; d < channels; ++d) {
        if constexpr (std::is_same_v<V, G>) {
            gradient[d] = row[d];
        } else {
            gradient[d] = V(A(row[d]));
        }
        position[d] += A(row[d]);
    }
}

// One token's rows of kCount samples, where it is hidden, onto the sums of its position and of the mask token; what
// lies `ahead` is called for.
template <int kCount, class G, class A>
void add_hidden_rows(const G* const* rows, const bool* hidden, A* position, A* mask, int64_t channels, int64_t ahead) {
    Place<A> keep[kCount];
    for (int i = 0; i < kCount; ++i) keep[i] = -Place<A>{hidden[i]};
    const auto add = [&](int64_t d, auto read, auto write) {
        Lanes<A> sum = masked<A>(read(rows[0] + d), keep[0]);
        for (int i = 1; i < kCount; ++i) sum += masked<A>(read(rows[i] + d), keep[i]);
        write(position + d, read(position + d) + sum);
        write(mask + d, read(mask + d) + sum);
    };
    int64_t d = 0;
    for (; d + kLanes <= channels; d += kLanes) {
        if (d % kLine<G> == 0) {
            for (int i = 0; i < kCount; ++i) __builtin_prefetch(rows[i] + d + ahead, 0, kSecondLevel);
        }
        add(d, [](const auto* from) { return load<A>(from); }, [](A* to, const Lanes<A>& sum) { store<A>(to, sum); });
    }
    if (const int64_t rest = channels - d) {
        add(
            d, [rest](const auto* from) { return load_some<A>(from, 1, rest); },
            [rest](A* to, const Lanes<A>& sum) { store_some<A>(to, sum, rest); });
    }
}

template <class A>
void add_to(A* total, const A* part, int64_t channels) {
    for (int64_t d = 0; d < channels; ++d) total[d] += part[d];
}

// A strip of channels of a chunk of tokens over all samples. A few samples at a time, each a run of rows: sums are
// touched once for all of them, and the machine follows so many streams.
template <class G, class V, class A>
SPECTRAL_SIMD void sum_chunk(const AssembleBackwardParams& params, const Chunk& chunk, int64_t start, int64_t strip,
                             A* mask_total) {
    const int64_t tokens = params.num_tokens, channels = params.channels;
    A position_part[kTokensPerChunk][kStrip], mask_part[kStrip];
    A* position_total = static_cast<A*>(params.positions_grad) + chunk.first * channels + start;
    for (int64_t i = 0; i < chunk.count; ++i) std::fill_n(position_total + i * channels, strip, A(0));
    std::fill_n(mask_total, strip, A(0));
    for (int64_t sample = 0; sample < params.batch; sample += kTogether) {
        const int64_t count = std::min(kTogether, params.batch - sample);
        const bool in_parts = sample >= kSamples;  // the first samples go to the totals directly
        if (in_parts && sample % kSamples == 0) {
            std::fill_n(&position_part[0][0], chunk.count * kStrip, A(0));
            std::fill_n(mask_part, strip, A(0));
        }
        A* mask_sum = in_parts ? mask_part : mask_total;
        for (int64_t i = 0; i < chunk.count; ++i) {
            A* position_sum = in_parts ? position_part[i] : position_total + i * channels;
            const G* rows[kTogether];
            bool hidden[kTogether];
            for (int64_t k = 0; k < count; ++k) {
                const int64_t row = (sample + k) * tokens + chunk.first + i, place = params.ids_restore[row];
                rows[k] = static_cast<const G*>(params.grad) + row * channels + start;
                hidden[k] = place >= params.num_keep;
                if (hidden[k]) continue;
                const int64_t to = (sample + k) * params.num_keep + place;
                add_visible_row(rows[k], static_cast<V*>(params.visible_grad) + to * channels + start, position_sum,
                                strip);
            }
            const int64_t ahead = kRowsAhead * channels;
            switch (count) {
                case 4: add_hidden_rows<4>(rows, hidden, position_sum, mask_sum, strip, ahead); break;
                case 3: add_hidden_rows<3>(rows, hidden, position_sum, mask_sum, strip, ahead); break;
                case 2: add_hidden_rows<2>(rows, hidden, position_sum, mask_sum, strip, ahead); break;
                case 1: add_hidden_rows<1>(rows, hidden, position_sum, mask_sum, strip, ahead); break;
            }
        }
        if (in_parts && ((sample + count) % kSamples == 0 || sample + count == params.batch)) {
            for (int64_t i = 0; i < chunk.count; ++i) add_to(position_total + i * channels, position_part[i], strip);
            add_to(mask_total, mask_part, strip);
        }
    }
}

// A strip of the mask token's gradient: a sum over chunks, row by row, as memory likes it.
template <class A>
SPECTRAL_SIMD void sum_partials(const A* partial, int64_t count, int64_t channels, int64_t strip, A* out) {
    double sums[kStrip] = {};
    for (int64_t chunk = 0; chunk < count; ++chunk) {
        const A* row = partial + chunk * channels;
        for (int64_t d = 0; d < strip; ++d) sums[d] += static_cast<double>(row[d]);
    }
    for (int64_t d = 0; d < strip; ++d) out[d] = static_cast<A>(sums[d]);
}

template <class G, class V>
void assemble_backward(const AssembleBackwardParams& params, int num_threads) {
    using A = accumulator_t<G>;
    const int64_t channels = params.channels, count = chunks(params.num_tokens);
    A* partial = static_cast<A*>(params.scratch);
    const int64_t bytes = kTokensPerChunk * params.batch * channels * int64_t{sizeof(G)};
    advise_huge_pages(params.visible_grad, params.batch * params.num_keep * channels * int64_t{sizeof(V)});
    parallel_for(num_threads, count, bytes, [&](int64_t chunk) {
        for (int64_t start = 0; start < channels; start += kStrip) {
            sum_chunk<G, V, A>(params, Chunk(chunk, params.num_tokens), start, std::min(kStrip, channels - start),
                               partial + chunk * channels + start);
        }
    });
    for (int64_t start = 0; start < channels; start += kStrip) {
        sum_partials(partial + start, count, channels, std::min(kStrip, channels - start),
                     static_cast<A*>(params.mask_grad) + start);
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
