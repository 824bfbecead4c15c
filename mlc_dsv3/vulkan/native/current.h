// The device that a thread's launches go to.
#pragma once

#include <cstdint>

namespace mlc_vulkan {

// Set by TVM before it launches.
int64_t& current_device();

}  // namespace mlc_vulkan
