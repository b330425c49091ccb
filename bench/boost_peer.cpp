// The Boost.Interprocess peer of the benchmarks.  Built and run by bench/make_bench.py; asked through bench/boost.py.
//
// One measurement per line of input; the answer is seconds per operation, one number a line:
//
//     churn N_LIVE N_FIRST N_STEPS   free a random block, allocate one of 16 to 1024 bytes, in managed_shared_memory;
//                                    the first steps are not timed
//     exclusive N_STEPS              lock + unlock of an interprocess_upgradable_mutex in shared memory
//     shared N_STEPS                 lock_sharable + unlock_sharable of the same
//     death LIMIT_SECONDS            how long the next holder waits after a process was killed holding it; -1: longer than that
//
// Shared-memory objects are unlinked as soon as they are mapped, so that nothing stays behind.

#include <boost/interprocess/managed_shared_memory.hpp>
#include <boost/interprocess/mapped_region.hpp>
#include <boost/interprocess/shared_memory_object.hpp>
#include <boost/interprocess/sync/interprocess_upgradable_mutex.hpp>

#include <chrono>
#include <csignal>
#include <cstdint>
#include <iostream>
#include <memory>
#include <new>
#include <sstream>
#include <string>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>
#include <vector>

namespace ip = boost::interprocess;
using clock_type = std::chrono::steady_clock;

static double seconds_since(clock_type::time_point start) {
    return std::chrono::duration<double>(clock_type::now() - start).count();
}

static std::string private_name(const char *what) {
    return "shmem-bench-" + std::string(what) + "-" + std::to_string(getpid());
}

// The same sequence as in clients/churn_client.pyx.
struct Sequence {
    uint64_t state = 0x9e3779b97f4a7c15ull;

    uint64_t below(uint64_t bound) {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        return ((state * 0x2545f4914f6cdd1dull >> 32) * bound) >> 32;
    }
    uint64_t size() { return 16 + below(1009); }
};

class Churn {
    ip::managed_shared_memory segment;
    Sequence sequence;
    std::vector<void *> live;

    void *allocate() {
        void *block = segment.allocate(sequence.size());
        *static_cast<uint64_t *>(block) = 1;
        return block;
    }

public:
    explicit Churn(size_t n_live) : segment(ip::create_only, private_name("heap").c_str(), 64 << 20), live(n_live) {
        ip::shared_memory_object::remove(private_name("heap").c_str());
        for (void *&block : live) block = allocate();
    }

    double run(size_t n_first, size_t n_steps) {
        auto start = clock_type::now();
        for (size_t i = 0; i < n_first + n_steps; i++) {
            if (i == n_first) start = clock_type::now();
            void *&block = live[sequence.below(live.size())];
            segment.deallocate(block);
            block = allocate();
        }
        return seconds_since(start) / n_steps;
    }
};

class Lock {
    ip::mapped_region region;
    ip::interprocess_upgradable_mutex *mutex;

public:
    Lock() {
        ip::shared_memory_object memory(ip::create_only, private_name("lock").c_str(), ip::read_write);
        ip::shared_memory_object::remove(private_name("lock").c_str());
        memory.truncate(4096);
        region = ip::mapped_region(memory, ip::read_write);
        mutex = new (region.get_address()) ip::interprocess_upgradable_mutex;
    }

    double exclusive(size_t n_steps) {
        const auto start = clock_type::now();
        for (size_t i = 0; i < n_steps; i++) {
            mutex->lock();
            mutex->unlock();
        }
        return seconds_since(start) / n_steps;
    }

    double shared(size_t n_steps) {
        const auto start = clock_type::now();
        for (size_t i = 0; i < n_steps; i++) {
            mutex->lock_sharable();
            mutex->unlock_sharable();
        }
        return seconds_since(start) / n_steps;
    }

    double after_death(double limit_seconds) {
        const pid_t child = fork();
        if (child == 0) {
            mutex->lock();
            kill(getpid(), SIGKILL);
        }
        waitpid(child, nullptr, 0);
        const auto start = clock_type::now();
        while (!mutex->try_lock()) {
            if (seconds_since(start) > limit_seconds) return -1;
            std::this_thread::sleep_for(std::chrono::milliseconds(1));
        }
        mutex->unlock();
        return seconds_since(start);
    }
};

int main() {
    std::unique_ptr<Churn> churn;
    Lock lock;
    std::string line, what;
    while (std::getline(std::cin, line)) {
        std::istringstream words(line);
        size_t n_live = 0, n_first = 0, n_steps = 0;
        double answer = -1, limit_seconds = 0;
        words >> what;
        if (what == "churn" && words >> n_live >> n_first >> n_steps) {
            if (!churn) churn = std::make_unique<Churn>(n_live);
            answer = churn->run(n_first, n_steps);
        } else if (what == "exclusive" && words >> n_steps) {
            answer = lock.exclusive(n_steps);
        } else if (what == "shared" && words >> n_steps) {
            answer = lock.shared(n_steps);
        } else if (what == "death" && words >> limit_seconds) {
            answer = Lock().after_death(limit_seconds);
        }
        std::cout.precision(12);
        std::cout << answer << std::endl;
    }
}
