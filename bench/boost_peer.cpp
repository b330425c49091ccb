// The Boost.Interprocess peer of the benchmarks.  Built and run by bench/make_bench.py; asked through bench/boost.py.
//
// One measurement per line of input; the answer is one line, of one number where nothing else is said: seconds per operation.
//
//     churn N_LIVE N_FIRST N_STEPS   free a random block, allocate one of 16 to 1024 bytes, in managed_shared_memory;
//                                    the first steps are not timed
//     exclusive N_STEPS              lock + unlock of an interprocess_upgradable_mutex in shared memory
//     shared N_STEPS                 lock_sharable + unlock_sharable of the same
//     death LIMIT_SECONDS            how long the next holder waits after a process was killed holding it; -1: longer than that
//     sharing N_PROCESSES SECONDS    lock_sharable + unlock_sharable of one interprocess_sharable_mutex by so many processes at once;
//                                    seconds per pair of all together, -1 when one of them lacked a core meanwhile
//     turns N_WRITERS N_READERS SECONDS      an interprocess_upgradable_mutex, so many processes in tight loops: the writers' longest
//                                    wait, their number of turns, the readers' longest wait, their number of turns
//
// Shared-memory objects are unlinked as soon as they are mapped, so that nothing stays behind.

#include <boost/interprocess/anonymous_shared_memory.hpp>
#include <boost/interprocess/managed_shared_memory.hpp>
#include <boost/interprocess/mapped_region.hpp>
#include <boost/interprocess/shared_memory_object.hpp>
#include <boost/interprocess/sync/interprocess_sharable_mutex.hpp>
#include <boost/interprocess/sync/interprocess_upgradable_mutex.hpp>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <fstream>
#include <iostream>
#include <memory>
#include <new>
#include <sched.h>
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

// A lock and what some processes, begun together, find out about it.
template <typename Mutex> class Crowd {
    static constexpr size_t most_processes = 32;
    struct alignas(64) Finding {
        double rate;
        double longest_seconds;
        long n_turns;
        double delay_seconds;
    };
    struct Shared {
        alignas(64) Mutex mutex;
        Finding findings[most_processes];
    };
    ip::mapped_region region{ip::anonymous_shared_memory(sizeof(Shared))};

    // For how long this process has wanted a core and had none.
    static double delay_seconds() {
        uint64_t had = 0, lacked = 0;
        std::ifstream("/proc/self/schedstat") >> had >> lacked;
        return lacked * 1e-9;
    }

    // Each of the first processes on a core of its own.
    static void keep_to_core(size_t i) {
        cpu_set_t ours, own;
        sched_getaffinity(0, sizeof ours, &ours);
        i %= CPU_COUNT(&ours);
        for (int core = 0; core < CPU_SETSIZE; core++) {
            if (!CPU_ISSET(core, &ours) || i-- != 0) continue;
            CPU_ZERO(&own);
            CPU_SET(core, &own);
            sched_setaffinity(0, sizeof own, &own);
            return;
        }
    }

public:
    Shared *shared = new (region.get_address()) Shared{};

    // Have so many processes run `work(i, start, finding)`, from `start` on.
    template <typename Work> void run(size_t n_processes, bool own_cores, Work work) {
        const auto start = clock_type::now() + std::chrono::milliseconds(own_cores ? 2 : 20);
        for (size_t i = 0; i < std::min(n_processes, most_processes); i++) {
            if (fork() != 0) continue;
            if (own_cores) keep_to_core(i);
            std::this_thread::sleep_until(start - std::chrono::microseconds(500));
            const double before = delay_seconds();
            while (clock_type::now() < start) {}
            const double late_seconds = seconds_since(start);
            work(i, start, shared->findings[i]);
            shared->findings[i].delay_seconds = late_seconds + delay_seconds() - before;
            _exit(0);
        }
        while (wait(nullptr) > 0) {}
    }
};

static constexpr double most_delay = 0.02;      // of a round, as in crew.py

static double sharing(size_t n_processes, double seconds) {
    Crowd<ip::interprocess_sharable_mutex> crowd;
    auto &mutex = crowd.shared->mutex;
    crowd.run(n_processes, true, [&](size_t, clock_type::time_point start, auto &finding) {
        long n_pairs = 0;
        while (seconds_since(start) < seconds) {
            for (int i = 0; i < 1000; i++) {
                mutex.lock_sharable();
                mutex.unlock_sharable();
            }
            n_pairs += 1000;
        }
        finding.rate = n_pairs / seconds_since(start);
    });
    double rate = 0;
    for (size_t i = 0; i < n_processes; i++) {
        rate += crowd.shared->findings[i].rate;
        if (crowd.shared->findings[i].delay_seconds > most_delay * seconds) return -1;
    }
    return 1 / rate;
}

static std::string turns(size_t n_writers, size_t n_readers, double seconds) {
    Crowd<ip::interprocess_upgradable_mutex> crowd;
    auto &mutex = crowd.shared->mutex;
    crowd.run(n_writers + n_readers, false, [&](size_t i, clock_type::time_point start, auto &finding) {
        while (seconds_since(start) < seconds) {
            const auto asked = clock_type::now();
            i < n_writers ? mutex.lock() : mutex.lock_sharable();
            finding.longest_seconds = std::max(finding.longest_seconds, seconds_since(asked));
            i < n_writers ? mutex.unlock() : mutex.unlock_sharable();
            finding.n_turns++;
        }
    });
    std::ostringstream answer;
    for (const auto &[first, last] : {std::pair(size_t(0), n_writers), std::pair(n_writers, n_writers + n_readers)}) {
        double longest_seconds = 0;
        long n_turns = 0;
        for (size_t i = first; i < last; i++) {
            longest_seconds = std::max(longest_seconds, crowd.shared->findings[i].longest_seconds);
            n_turns += crowd.shared->findings[i].n_turns;
        }
        answer << longest_seconds << ' ' << n_turns << ' ';
    }
    return answer.str();
}

int main() {
    std::unique_ptr<Churn> churn;
    Lock lock;
    std::string line, what;
    while (std::getline(std::cin, line)) {
        std::istringstream words(line);
        size_t n_live = 0, n_first = 0, n_steps = 0, n_writers = 0, n_readers = 0;
        double answer = -1, seconds = 0;
        words >> what;
        if (what == "churn" && words >> n_live >> n_first >> n_steps) {
            if (!churn) churn = std::make_unique<Churn>(n_live);
            answer = churn->run(n_first, n_steps);
        } else if (what == "exclusive" && words >> n_steps) {
            answer = lock.exclusive(n_steps);
        } else if (what == "shared" && words >> n_steps) {
            answer = lock.shared(n_steps);
        } else if (what == "death" && words >> seconds) {
            answer = Lock().after_death(seconds);
        } else if (what == "sharing" && words >> n_readers >> seconds) {
            answer = sharing(n_readers, seconds);
        } else if (what == "turns" && words >> n_writers >> n_readers >> seconds) {
            std::cout << turns(n_writers, n_readers, seconds) << std::endl;
            continue;
        }
        std::cout.precision(12);
        std::cout << answer << std::endl;
    }
}
