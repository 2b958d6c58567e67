// expect: deleted
// SPDX-License-Identifier: MIT
// A view of a file that is gone at the end of the line.
#include <vector>

#include <moe/io/safetensors.hpp>

std::vector<std::byte> read_file() { return {}; }

int main() {
#ifdef MUST_COMPILE
    const std::vector<std::byte> file = read_file();
    const moe::SafetensorsView view{file};
#else
    const moe::SafetensorsView view{read_file()};
#endif
    return view.size() == 0 ? 0 : 1;
}
