// SPDX-License-Identifier: MIT
#ifndef MOE_BENCH_MACHINE_MEMORY_HPP
#define MOE_BENCH_MACHINE_MEMORY_HPP

#include <fstream>
#include <string>

#if defined(__GLIBC__)
#include <malloc.h>
#endif

namespace machine {

/// Bytes of a line of /proc/self/status, which are there in kB; 0 where there is no such file.
inline double memory_of_status(const char* key) {
    std::ifstream status("/proc/self/status");
    std::string word;
    double kilobytes = 0;
    while (status >> word)
        if (word == key && status >> kilobytes) return kilobytes * 1024;
    return 0;
}

/// Bytes of this process in memory, now and at most since forget_peak_memory().
inline double memory() { return memory_of_status("VmRSS:"); }
inline double peak_memory() { return memory_of_status("VmHWM:"); }
/// Gives back what is free, so that the peak is what is in use now. Linux only; elsewhere the peak
/// stays that of the whole run.
inline void forget_peak_memory() {
#if defined(__GLIBC__)
    malloc_trim(0);
#endif
    std::ofstream("/proc/self/clear_refs") << '5';
}

}  // namespace machine

#endif  // MOE_BENCH_MACHINE_MEMORY_HPP
