#include "memory.h"

#include <tvm/ffi/error.h>

#include <algorithm>

#include "recorder.h"

namespace mlc_vulkan {
namespace {

constexpr VkDeviceSize kAlignment = 256;
// Requests up to half of this share blocks of this size.
constexpr VkDeviceSize kSharedBlock = VkDeviceSize{64} << 20;
constexpr VkBufferUsageFlags kUsage = VK_BUFFER_USAGE_STORAGE_BUFFER_BIT | VK_BUFFER_USAGE_TRANSFER_SRC_BIT |
                                      VK_BUFFER_USAGE_TRANSFER_DST_BIT | VK_BUFFER_USAGE_SHADER_DEVICE_ADDRESS_BIT;
constexpr VkMemoryPropertyFlags kHostVisible =
    VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT | VK_MEMORY_PROPERTY_HOST_COHERENT_BIT;

VkDeviceSize rounded(VkDeviceSize size) {
  return (std::max<VkDeviceSize>(size, 1) + kAlignment - 1) / kAlignment * kAlignment;
}

}  // namespace

Memory::Memory(Device& device) : device_(device) {
  Instance::get().vkGetPhysicalDeviceMemoryProperties(device.physical(), &types_);
  // Where device and host share one memory, the host may as well see all of it.
  bool shared = device.properties.type == "cpu" || device.properties.type == "integrated";
  preferred_ = shared ? kHostVisible : 0;
}

VkDeviceAddress Memory::allocate(VkDeviceSize size) {
  collect();
  size = rounded(size);
  Block* block;
  VkDeviceSize offset;
  if (find_free(size, &block, &offset)) return take(*block, offset, size);
  return take(*grow(size), 0, size);
}

bool Memory::find_free(VkDeviceSize size, Block** found, VkDeviceSize* offset) {
  VkDeviceSize smallest = UINT64_MAX;
  for (auto& [address, block] : blocks_)
    for (auto& [start, length] : block->free)
      if (length >= size && length < smallest) {
        smallest = length;
        *found = block.get();
        *offset = start;
      }
  return smallest != UINT64_MAX;
}

VkDeviceAddress Memory::take(Block& block, VkDeviceSize offset, VkDeviceSize size) {
  auto range = block.free.find(offset);
  VkDeviceSize length = range->second;
  block.free.erase(range);
  if (length > size) block.free.emplace(offset + size, length - size);
  used_ += size;
  allocations_.emplace(block.address + offset, size);
  return block.address + offset;
}

Block* Memory::grow(VkDeviceSize size) {
  VkDeviceSize wanted = size <= kSharedBlock / 2 ? kSharedBlock : size;
  Block made;
  try {
    made = make_block(wanted, VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT, preferred_);
  } catch (const tvm::ffi::Error&) {
    // What waits for commands that still run may be enough.
    device_.recorder().finish();
    retire_empty_blocks(true);
    collect();
    made = make_block(size, VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT, preferred_);
  }
  auto block = std::make_unique<Block>(std::move(made));
  block->free.emplace(0, block->size);
  reserved_ += block->size;
  return blocks_.emplace(block->address, std::move(block)).first->second.get();
}

Block Memory::make_block(VkDeviceSize size, VkMemoryPropertyFlags required, VkMemoryPropertyFlags preferred) {
  const auto& vk = device_.vk();
  std::string doing = "allocating " + std::to_string(size) + " bytes, with " + std::to_string(reserved_) +
                      " reserved of " + std::to_string(device_.properties.memory);
  Block block;
  block.size = size;
  VkBufferCreateInfo buffer{};
  buffer.sType = VK_STRUCTURE_TYPE_BUFFER_CREATE_INFO;
  buffer.size = size;
  buffer.usage = kUsage;
  device_.check(vk.vkCreateBuffer(device_.handle(), &buffer, nullptr, &block.buffer), doing);
  VkMemoryRequirements needs;
  vk.vkGetBufferMemoryRequirements(device_.handle(), block.buffer, &needs);

  VkMemoryAllocateFlagsInfo flags{};
  flags.sType = VK_STRUCTURE_TYPE_MEMORY_ALLOCATE_FLAGS_INFO;
  flags.flags = VK_MEMORY_ALLOCATE_DEVICE_ADDRESS_BIT;
  VkMemoryAllocateInfo info{};
  info.sType = VK_STRUCTURE_TYPE_MEMORY_ALLOCATE_INFO;
  info.pNext = &flags;
  info.allocationSize = needs.size;
  VkResult result = VK_ERROR_OUT_OF_DEVICE_MEMORY;
  VkMemoryPropertyFlags has = 0;
  for (VkMemoryPropertyFlags asked : {required | preferred, required}) {
    for (uint32_t type = 0; type < types_.memoryTypeCount && result != VK_SUCCESS; type++) {
      has = types_.memoryTypes[type].propertyFlags;
      if (!(needs.memoryTypeBits >> type & 1) || (has & asked) != asked) continue;
      // More than a heap holds may not even be asked for.
      if (needs.size > types_.memoryHeaps[types_.memoryTypes[type].heapIndex].size) continue;
      info.memoryTypeIndex = type;
      result = vk.vkAllocateMemory(device_.handle(), &info, nullptr, &block.memory);
      if (result == VK_SUCCESS) break;
    }
    if (result == VK_SUCCESS) break;
  }
  if (result == VK_SUCCESS) {
    result = vk.vkBindBufferMemory(device_.handle(), block.buffer, block.memory, 0);
    if (result == VK_SUCCESS && (has & kHostVisible) == kHostVisible)
      result = vk.vkMapMemory(device_.handle(), block.memory, 0, VK_WHOLE_SIZE, 0,
                              reinterpret_cast<void**>(&block.mapped));
  }
  if (result != VK_SUCCESS) {
    destroy(block);
    device_.check(result, doing);
  }
  VkBufferDeviceAddressInfo address{};
  address.sType = VK_STRUCTURE_TYPE_BUFFER_DEVICE_ADDRESS_INFO;
  address.buffer = block.buffer;
  block.address = vk.vkGetBufferDeviceAddress(device_.handle(), &address);
  return block;
}

Block Memory::make_staging(VkDeviceSize size) {
  return make_block(size, kHostVisible, VK_MEMORY_PROPERTY_HOST_CACHED_BIT);
}

void Memory::release(VkDeviceAddress address) noexcept {
  auto allocation = allocations_.find(address);
  if (allocation == allocations_.end()) return;
  VkDeviceSize size = allocation->second;
  allocations_.erase(allocation);
  used_ -= size;
  device_.recorder().forget_hazards();
  Block& block = *std::prev(blocks_.upper_bound(address))->second;
  VkDeviceSize start = address - block.address;
  auto next = block.free.lower_bound(start);
  if (next != block.free.end() && next->first == start + size) {
    size += next->second;
    next = block.free.erase(next);
  }
  if (next != block.free.begin() && std::prev(next)->first + std::prev(next)->second == start) {
    std::prev(next)->second += size;
  } else {
    block.free.emplace(start, size);
  }
  retire_empty_blocks(false);
}

// One empty block of the shared size stays: the next small request would make it again.
void Memory::retire_empty_blocks(bool all) noexcept {
  bool kept = all;
  for (auto each = blocks_.begin(); each != blocks_.end();) {
    Block& block = *each->second;
    bool empty = block.free.size() == 1 && block.free.begin()->second == block.size;
    if (empty && !kept && block.size == kSharedBlock) {
      kept = true;
    } else if (empty) {
      reserved_ -= block.size;
      retired_.push_back({device_.recorder().current(), std::move(block)});
      each = blocks_.erase(each);
      continue;
    }
    ++each;
  }
}

void Memory::collect() noexcept {
  if (retired_.empty()) return;
  uint64_t done = device_.recorder().completed();
  auto rest = std::partition(retired_.begin(), retired_.end(), [&](const Retired& r) { return r.after > done; });
  for (auto each = rest; each != retired_.end(); ++each) destroy(each->block);
  retired_.erase(rest, retired_.end());
}

void Memory::destroy(const Block& block) noexcept {
  const auto& vk = device_.vk();
  vk.vkDestroyBuffer(device_.handle(), block.buffer, nullptr);
  vk.vkFreeMemory(device_.handle(), block.memory, nullptr);
}

VkDeviceAddress Memory::owner(VkDeviceAddress address) const {
  auto next = allocations_.upper_bound(address);
  if (next == allocations_.begin()) return 0;
  auto found = std::prev(next);
  return address < found->first + found->second ? found->first : 0;
}

Range Memory::find(VkDeviceAddress address, VkDeviceSize size) const {
  VkDeviceAddress start = owner(address);
  if (start == 0 || address + size > start + allocations_.at(start))
    TVM_FFI_THROW(ValueError) << size << " bytes at device address " << address << " are not in one allocation";
  const Block& block = *std::prev(blocks_.upper_bound(address))->second;
  VkDeviceSize offset = address - block.address;
  return {block.buffer, offset, block.mapped ? block.mapped + offset : nullptr};
}

}  // namespace mlc_vulkan
