// SPDX-License-Identifier: Apache-2.0
// The execution model of a CUDA kernel on one CPU thread: every device thread is a fiber, barriers and shuffles switch
// between them, blocks run one after another. Included by core/device.cuh in place of the CUDA runtime, so a shipped
// kernel body runs unchanged.
//
// A fiber runs until it waits, so between two barriers the order of the threads is ours: ascending, descending or
// shuffled (set_schedule). Code that misses a barrier gives different results under different orders. A barrier that
// some live threads never reach is reported.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "core/check.h"

#define SPECTRAL_KERNEL inline
#define SPECTRAL_DEVICE inline
#define SPECTRAL_SHARED static
#define SPECTRAL_UNROLL
#define SPECTRAL_BOUNDS(threads, blocks)

namespace spectral {

using Stream = void*;

namespace emulation {

enum class Schedule { kAscending, kDescending, kShuffled };
enum class State { kReady, kAtBlockBarrier, kAtWarpBarrier, kDone };

constexpr int kWarpSize = 32;
constexpr size_t kStackBytes = 128 * 1024;

struct Fiber {
    ucontext_t context{};
    std::unique_ptr<char[]> stack{new char[kStackBytes]};
    State state = State::kReady;
    uint64_t exchange = 0;  // what the thread offers in a shuffle
};

struct Machine {
    std::vector<Fiber> fibers;
    std::function<void()> body;
    ucontext_t scheduler{};
    int thread = 0, block_size = 0;
    int64_t block = 0, grid = 0;
    Schedule schedule = Schedule::kAscending;
    std::string error;

    static Machine& get() {
        static Machine machine;
        return machine;
    }

    static void enter() {
        Machine& machine = get();
        try {
            machine.body();
        } catch (const std::exception& e) {
            if (machine.error.empty()) machine.error = e.what();
        }
        machine.fibers[machine.thread].state = State::kDone;
        swapcontext(&machine.fibers[machine.thread].context, &machine.scheduler);
    }

    void wait(State state) {
        Fiber& fiber = fibers[thread];
        fiber.state = state;
        swapcontext(&fiber.context, &scheduler);
    }

    // Releases a group of threads if every live one of them waits in `state`.
    bool release(int first, int count, State state) {
        int waiting = 0, live = 0;
        for (int i = first; i < first + count; ++i) {
            live += fibers[i].state != State::kDone;
            waiting += fibers[i].state == state;
        }
        if (waiting == 0 || waiting < live) return false;
        for (int i = first; i < first + count; ++i) {
            if (fibers[i].state == state) fibers[i].state = State::kReady;
        }
        return true;
    }

    static void prepare(Fiber& fiber) {
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.get();
        fiber.context.uc_stack.ss_size = kStackBytes;
        fiber.context.uc_link = nullptr;
        fiber.state = State::kReady;
        makecontext(&fiber.context, enter, 0);
    }

    void run_block() {
        std::vector<int> order(block_size);
        for (int i = 0; i < block_size; ++i) order[i] = schedule == Schedule::kDescending ? block_size - 1 - i : i;
        if (schedule == Schedule::kShuffled)
            std::shuffle(order.begin(), order.end(), std::mt19937(static_cast<unsigned>(block) + 1));
        for (Fiber& fiber : fibers) prepare(fiber);
        for (;;) {
            for (const int i : order) {
                while (fibers[i].state == State::kReady) {
                    thread = i;
                    swapcontext(&scheduler, &fibers[i].context);
                }
            }
            if (!error.empty()) return;  // a trap ends the kernel
            bool progress = false, alive = false;
            for (int first = 0; first < block_size; first += kWarpSize) {
                progress |= release(first, std::min(kWarpSize, block_size - first), State::kAtWarpBarrier);
            }
            for (const Fiber& fiber : fibers) alive |= fiber.state != State::kDone;
            if (!alive) return;
            if (!progress && !release(0, block_size, State::kAtBlockBarrier)) {
                error = "a barrier or shuffle is not reached by all live threads of its block or warp";
                return;
            }
        }
    }

    void run(const char* op, int64_t blocks, int threads) {
        grid = blocks;
        block_size = threads;
        error.clear();
        fibers.resize(threads);
        for (block = 0; block < blocks && error.empty(); ++block) run_block();
        if (!error.empty()) fail<std::runtime_error>(op, ": ", error, " [block ", block - 1, "]");
    }
};

inline void set_schedule(int schedule) { Machine::get().schedule = static_cast<Schedule>(schedule); }

template <class T, class Choose>
T exchange(T value, Choose source) {
    static_assert(sizeof(T) <= sizeof(uint64_t));
    Machine& machine = Machine::get();
    std::memcpy(&machine.fibers[machine.thread].exchange, &value, sizeof(T));
    machine.wait(State::kAtWarpBarrier);
    const int lane = machine.thread % kWarpSize, other = source(lane);
    T result = value;
    if (other >= 0 && other < kWarpSize)
        std::memcpy(&result, &machine.fibers[machine.thread - lane + other].exchange, sizeof(T));
    machine.wait(State::kAtWarpBarrier);
    return result;
}

}  // namespace emulation

SPECTRAL_DEVICE int thread_index() { return emulation::Machine::get().thread; }
SPECTRAL_DEVICE int block_size() { return emulation::Machine::get().block_size; }
SPECTRAL_DEVICE int64_t block_index() { return emulation::Machine::get().block; }
SPECTRAL_DEVICE int64_t grid_size() { return emulation::Machine::get().grid; }
SPECTRAL_DEVICE void block_sync() { emulation::Machine::get().wait(emulation::State::kAtBlockBarrier); }
SPECTRAL_DEVICE void warp_sync() { emulation::Machine::get().wait(emulation::State::kAtWarpBarrier); }
template <class T>
SPECTRAL_DEVICE T shuffle_xor(T value, int lanes) {
    return emulation::exchange(value, [lanes](int lane) { return lane ^ lanes; });
}
template <class T>
SPECTRAL_DEVICE T shuffle_up(T value, int lanes) {
    return emulation::exchange(value, [lanes](int lane) { return lane - lanes; });
}
SPECTRAL_DEVICE uint32_t ballot(bool flag) {
    uint32_t bits = flag ? 1u << (emulation::Machine::get().thread % emulation::kWarpSize) : 0u;
    for (int lanes = 1; lanes < emulation::kWarpSize; lanes *= 2) bits |= shuffle_xor(bits, lanes);
    return bits;
}
template <class T>
SPECTRAL_DEVICE void atomic_add(T* address, T value) {
    *address += value;  // fibers never run at once
}
SPECTRAL_DEVICE int fetch_add(int* address, int value) {
    const int before = *address;
    *address += value;
    return before;
}
SPECTRAL_DEVICE void device_check(bool condition, const char* message, int64_t value) {
    if (!condition) fail<std::runtime_error>(message, ", got ", value);
}

struct DeviceGuard {
    DeviceGuard(const char*, int) {}
};

template <class... Arguments>
void launch_kernel(const char* op, void (*kernel)(Arguments...), int64_t grid, int block, Stream,
                   const Arguments&... arguments) {
    emulation::Machine& machine = emulation::Machine::get();
    machine.body = [&] { kernel(arguments...); };
    machine.run(op, grid, block);
}

inline void fill_zero(const char*, void* address, int64_t bytes, Stream) {
    std::memset(address, 0, static_cast<size_t>(bytes));
}

}  // namespace spectral
