// The device's memory: few large blocks, and ranges in them that are handed out by their device address.
//
// A range that was let go of may be handed out again at once, although commands that use it are still to run: all
// commands run in the order in which they were recorded. A block is given back to the driver only after they have run.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "device.h"

namespace mlc_vulkan {

// A buffer that fills an allocation of its own.
struct Block {
  VkBuffer buffer = VK_NULL_HANDLE;
  VkDeviceMemory memory = VK_NULL_HANDLE;
  VkDeviceAddress address = 0;
  VkDeviceSize size = 0;
  uint8_t* mapped = nullptr;  // where the host sees it; null where it does not
  std::map<VkDeviceSize, VkDeviceSize> free;  // offset → size
};

// Bytes of a block.
struct Range {
  VkBuffer buffer;
  VkDeviceSize offset;
  uint8_t* mapped;
};

// Callers hold the device's lock.
class Memory {
 public:
  explicit Memory(Device& device);

  // The address of `size` bytes, aligned to 256; throws MemoryError with the numbers where there are none left.
  VkDeviceAddress allocate(VkDeviceSize size);
  // Let go of what `allocate` returned. Never throws.
  void release(VkDeviceAddress address) noexcept;
  // The start of the allocation that `address` lies in, or 0.
  VkDeviceAddress owner(VkDeviceAddress address) const;
  // Where the bytes from `address` on lie; throws unless they lie in one allocation.
  Range find(VkDeviceAddress address, VkDeviceSize size) const;
  // A block that the host sees, for transfers.
  Block make_staging(VkDeviceSize size);

  VkDeviceSize reserved() const { return reserved_; }
  VkDeviceSize used() const { return used_; }
  size_t allocations() const { return allocations_.size(); }

 private:
  struct Retired {
    uint64_t after;
    Block block;
  };

  Block make_block(VkDeviceSize size, VkMemoryPropertyFlags required, VkMemoryPropertyFlags preferred);
  Block* grow(VkDeviceSize size);
  void destroy(const Block& block) noexcept;
  void collect() noexcept;
  void retire_empty_blocks(bool all) noexcept;
  VkDeviceAddress take(Block& block, VkDeviceSize offset, VkDeviceSize size);
  bool find_free(VkDeviceSize size, Block** block, VkDeviceSize* offset);

  Device& device_;
  VkPhysicalDeviceMemoryProperties types_;
  VkMemoryPropertyFlags preferred_;
  std::map<VkDeviceAddress, std::unique_ptr<Block>> blocks_;
  std::map<VkDeviceAddress, VkDeviceSize> allocations_;
  std::vector<Retired> retired_;
  VkDeviceSize reserved_ = 0, used_ = 0;
};

}  // namespace mlc_vulkan
