// Records launches and copies, and submits them in few batches; everything runs in the order of recording.
//
// A barrier stands before a command only where it touches an allocation that a command since the last barrier wrote,
// or writes one that such a command read.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "memory.h"

namespace mlc_vulkan {

class Kernel;

// Bytes of a kernel's arguments, at most.
constexpr VkDeviceSize kMostArguments = VkDeviceSize{64} << 10;

struct Statistics {
  uint64_t launches = 0, barriers = 0, submissions = 0, uploaded = 0, downloaded = 0;
};

// What a launch took on the device.
struct Timing {
  std::string kernel;
  double nanoseconds;
};

// Callers hold the device's lock.
class Recorder {
 public:
  explicit Recorder(Device& device);

  // Run `kernel` on a grid of blocks. `push` are its arguments; `read` and `written` are addresses that it uses.
  void launch(const Kernel& kernel, VkPipeline pipeline, VkPipelineLayout layout, std::vector<uint8_t>& push,
              const std::vector<VkDeviceAddress>& read, const std::vector<VkDeviceAddress>& written,
              const std::array<int64_t, 3>& grid);
  void upload(VkDeviceAddress to, const void* from, VkDeviceSize size);
  // Waits until the bytes are there.
  void download(void* to, VkDeviceAddress from, VkDeviceSize size);
  void copy(VkDeviceAddress to, VkDeviceAddress from, VkDeviceSize size);
  // Submit what is recorded, and wait until all has run.
  void finish();

  // The number of the batch that is being recorded, and of the last one that has run.
  uint64_t current() const { return submitted_ + 1; }
  uint64_t completed() noexcept;
  // An allocation's bytes may belong to another one from now on.
  void forget_hazards() noexcept { barrier_due_ |= !(reads_.empty() && writes_.empty()); }
  const Statistics& statistics() const { return statistics_; }
  // Time every launch from now on, or no longer; returns the timings up to now.
  std::vector<Timing> profile(bool on);

 private:
  struct Commands {
    VkCommandBuffer buffer;
    uint64_t used_in;
  };
  struct Staging {
    Block block;
    VkDeviceSize filled;
    uint64_t used_in;
  };

  VkCommandBuffer commands();
  void submit();
  void wait(uint64_t batch);
  // Record a barrier if these accesses need one, and remember them.
  void order(const std::vector<VkDeviceAddress>& read, const std::vector<VkDeviceAddress>& written);
  void barrier(VkPipelineStageFlags to_stages, VkAccessFlags to_access);
  // Room for `size` bytes that the host sees; its last commands have run.
  Range staging(VkDeviceSize size);
  VkDeviceAddress argument_slot(VkDeviceSize size);
  void read_timings();

  Device& device_;
  VkCommandPool pool_ = VK_NULL_HANDLE;
  VkSemaphore timeline_ = VK_NULL_HANDLE;
  std::vector<Commands> ring_;
  VkCommandBuffer open_ = VK_NULL_HANDLE;
  uint64_t submitted_ = 0, completed_ = 0;
  int recorded_ = 0;  // commands in the open batch
  bool eager_ = true;  // whether the next batch is the first since the host waited
  std::vector<VkDeviceAddress> reads_, writes_;
  bool barrier_due_ = false;
  std::vector<Staging> staging_;
  size_t staging_at_ = 0;
  VkDeviceAddress arguments_ = 0;
  VkDeviceSize arguments_filled_ = 0;
  Statistics statistics_;
  bool profiling_ = false;
  VkQueryPool queries_ = VK_NULL_HANDLE;
  uint32_t queries_used_ = 0;
  std::vector<std::string> timed_;
  std::vector<Timing> timings_;
};

}  // namespace mlc_vulkan
