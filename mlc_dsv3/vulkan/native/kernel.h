// A compiled kernel: its SPIR-V, how its arguments lie, and its pipeline on each device that has run it.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "device.h"

namespace mlc_vulkan {

enum class ArgumentKind : uint8_t { kPointer = 0, kInt32 = 1, kInt64 = 2, kFloat32 = 3, kFloat64 = 4 };

struct Argument {
  ArgumentKind kind;
  bool written;     // of a pointer: whether the kernel writes there
  uint16_t offset;  // in the arguments' block
};

class Kernel {
 public:
  Kernel() = default;
  Kernel(const Kernel&) = delete;
  ~Kernel();

  std::string name;
  std::vector<Argument> arguments;
  // What the launch parameters behind the arguments say: axis of the grid (0 to 2), or of the block (3 to 5), or
  // bytes of shared memory (6), which a shader has in itself.
  std::vector<uint8_t> launch_axes;
  uint32_t arguments_size = 0;
  uint32_t block_offset = 0;  // where the first block of a split grid is told, in the arguments' block
  bool indirect = false;      // the arguments are in memory, and their address is pushed
  uint32_t subgroup_size = 0;  // what the kernel requires; 0 for any
  std::vector<uint32_t> spirv;

  struct Pipeline {
    VkPipeline handle = VK_NULL_HANDLE;
    VkPipelineLayout layout = VK_NULL_HANDLE;
  };
  // Made on the first call for each device; the caller holds its lock. Throws, by the kernel's name, where the driver does
  // not take the shader.
  const Pipeline& pipeline(Device& device) const;

 private:
  mutable std::mutex lock_;  // two devices may make theirs at once
  mutable std::map<int64_t, Pipeline> pipelines_;
};

}  // namespace mlc_vulkan
