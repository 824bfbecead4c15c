// A physical device: what it can do, and, once it is used, its logical device with one compute queue.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "api.h"

namespace mlc_vulkan {

class Memory;
class Recorder;

// What kernels are compiled by, and people are told.
struct Properties {
  std::string name;
  std::string type;     // "discrete", "integrated", "virtual", "cpu" or "other"
  std::string lacking;  // features without which the device cannot be used; empty where it can
  uint32_t api_version = 0;
  uint32_t driver_version = 0;
  std::string cache_key;  // identifies the driver for the pipeline cache
  int64_t max_threads = 0;
  int64_t max_block[3] = {0, 0, 0};
  int64_t max_grid[3] = {0, 0, 0};
  int64_t max_shared_memory = 0;
  int64_t max_push_constants = 0;
  int64_t max_allocation = 0;
  int64_t memory = 0;
  int64_t subgroup_size = 0;
  // The widths of subgroups that a kernel may require, with shuffles between their threads; 0 where it may not.
  int64_t min_required_subgroup = 0, max_required_subgroup = 0;
  double timestamp_period = 0;  // nanoseconds a tick; 0 where the queue has no timestamps
  bool float16 = false, float64 = false;
  bool storage8 = false, storage16 = false;
  bool subgroup_arithmetic = false, subgroup_shuffle = false;
};

class Device {
 public:
  // All devices of this machine, the usable ones first, discrete before integrated before the CPU's.
  static const std::vector<Device*>& all();
  // Device number `index`, opened for use; throws where there is none, or none that can be used.
  static Device& at(int64_t index);

  ~Device();
  const Properties properties;
  const int64_t index;
  VkPhysicalDevice physical() const { return physical_; }
  VkDevice handle() const { return handle_; }
  VkQueue queue() const { return queue_; }
  uint32_t queue_family() const { return queue_family_; }
  const DeviceFunctions& vk() const { return functions_; }
  VkPipelineCache pipeline_cache() const { return pipeline_cache_; }
  Memory& memory() { return *memory_; }
  Recorder& recorder() { return *recorder_; }
  // Held by whoever records, allocates or submits.
  std::mutex lock;

  // Throws MemoryError or DeviceError, with `doing` and the device's name, unless `result` is a success.
  void check(VkResult result, const std::string& doing);
  // The same where a failure leaves commands that never ran: what memory holds cannot be told, so that the device is lost
  // whatever the driver calls it.
  void check_commands(VkResult result, const std::string& doing);
  // Throws DeviceError, with what was said when it happened, if the device was lost.
  void refuse_if_lost() const;
  // Pipelines are kept between processes in this folder; set before a device is opened.
  static void keep_pipelines_in(const std::string& folder);
  // The name of this driver's file there, and what belongs into it; empty where there is nothing new.
  std::string pipelines_file() const { return properties.cache_key + ".bin"; }
  std::string new_pipelines();
  // The caller holds the lock. Pipelines that nobody holds are destroyed when the commands that use them have run.
  void pipeline_was_made();
  void retire_pipeline(VkPipeline pipeline, VkPipelineLayout layout);
  int64_t pipelines() const { return pipelines_; }

 private:
  Device(VkPhysicalDevice physical, uint32_t queue_family, Properties properties, int64_t index);
  void open();
  void open_pipeline_cache();
  std::string where() const;
  void destroy_retired_pipelines();
  [[noreturn]] void lose(VkResult result, const std::string& doing);

  VkPhysicalDevice physical_;
  uint32_t queue_family_;
  VkDevice handle_ = VK_NULL_HANDLE;
  VkQueue queue_ = VK_NULL_HANDLE;
  VkPipelineCache pipeline_cache_ = VK_NULL_HANDLE;
  DeviceFunctions functions_;
  std::unique_ptr<Memory> memory_;
  std::unique_ptr<Recorder> recorder_;
  std::once_flag opened_;
  struct RetiredPipeline {
    uint64_t after;  // the batch
    VkPipeline handle;
    VkPipelineLayout layout;
  };
  std::vector<RetiredPipeline> retired_pipelines_;
  int64_t pipelines_ = 0;  // that are there
  bool pipelines_made_ = false;
  std::string lost_;  // how the device was lost; empty while it is there
};

}  // namespace mlc_vulkan
