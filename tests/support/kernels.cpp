// SPDX-License-Identifier: MIT
// The one translation unit of a test program that holds the kernels.
#define MOE_EXTERN_KERNELS
#define MOE_IMPLEMENT_KERNELS
#include <moe/kernels/dispatch.hpp>
#include <moe/kernels/storage_dispatch.hpp>
