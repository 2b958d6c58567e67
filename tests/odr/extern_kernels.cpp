// SPDX-License-Identifier: MIT
#define MOE_EXTERN_KERNELS
#define MOE_IMPLEMENT_KERNELS
#include <moe/kernels/dispatch.hpp>
#include <moe/kernels/storage_dispatch.hpp>
