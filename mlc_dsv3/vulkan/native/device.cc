#include "device.h"

#include <tvm/ffi/error.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <iterator>

#include "memory.h"
#include "recorder.h"

namespace mlc_vulkan {
namespace {

// The features that this backend asks about, chained together.
struct Features {
  VkPhysicalDeviceFeatures2 core{};
  VkPhysicalDeviceVulkan11Features v11{};
  VkPhysicalDeviceVulkan12Features v12{};

  Features() {
    core.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FEATURES_2;
    v11.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_1_FEATURES;
    v12.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_2_FEATURES;
    core.pNext = &v11;
    v11.pNext = &v12;
  }
  Features(const Features&) = delete;
};

// Kernels that require a width of subgroups need it; part of Vulkan 1.3, and an extension of 1.2.
constexpr char kSubgroupSizeControl[] = VK_EXT_SUBGROUP_SIZE_CONTROL_EXTENSION_NAME;

bool has_extension(const Instance& vk, VkPhysicalDevice physical, const char* name) {
  uint32_t count = 0;
  vk.vkEnumerateDeviceExtensionProperties(physical, nullptr, &count, nullptr);
  std::vector<VkExtensionProperties> found(count);
  vk.vkEnumerateDeviceExtensionProperties(physical, nullptr, &count, found.data());
  return std::any_of(found.begin(), found.end(),
                     [&](const VkExtensionProperties& each) { return !std::strcmp(each.extensionName, name); });
}

VkPhysicalDeviceSubgroupSizeControlFeaturesEXT subgroup_size_features() {
  VkPhysicalDeviceSubgroupSizeControlFeaturesEXT features{};
  features.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SUBGROUP_SIZE_CONTROL_FEATURES_EXT;
  return features;
}

const char* type_name(VkPhysicalDeviceType type) {
  switch (type) {
    case VK_PHYSICAL_DEVICE_TYPE_DISCRETE_GPU:
      return "discrete";
    case VK_PHYSICAL_DEVICE_TYPE_INTEGRATED_GPU:
      return "integrated";
    case VK_PHYSICAL_DEVICE_TYPE_VIRTUAL_GPU:
      return "virtual";
    case VK_PHYSICAL_DEVICE_TYPE_CPU:
      return "cpu";
    default:
      return "other";
  }
}

std::string hex(const uint8_t* bytes, size_t count) {
  static const char digits[] = "0123456789abcdef";
  std::string text;
  for (size_t i = 0; i < count; i++) {
    text.push_back(digits[bytes[i] >> 4]);
    text.push_back(digits[bytes[i] & 15]);
  }
  return text;
}

int64_t largest_device_heap(const VkPhysicalDeviceMemoryProperties& memory) {
  VkDeviceSize largest = 0;
  for (uint32_t heap = 0; heap < memory.memoryHeapCount; heap++)
    if (memory.memoryHeaps[heap].flags & VK_MEMORY_HEAP_DEVICE_LOCAL_BIT)
      largest = std::max(largest, memory.memoryHeaps[heap].size);
  return static_cast<int64_t>(largest);
}

std::string join(const std::vector<std::string>& words) {
  std::string text;
  for (const auto& word : words) text += (text.empty() ? "" : ", ") + word;
  return text;
}

// A queue family that computes; its timestamps are counted in `timestamp_bits`.
bool find_queue(const Instance& vk, VkPhysicalDevice physical, uint32_t* family, uint32_t* timestamp_bits) {
  uint32_t count = 0;
  vk.vkGetPhysicalDeviceQueueFamilyProperties(physical, &count, nullptr);
  std::vector<VkQueueFamilyProperties> families(count);
  vk.vkGetPhysicalDeviceQueueFamilyProperties(physical, &count, families.data());
  for (uint32_t i = 0; i < count; i++)
    if (families[i].queueFlags & VK_QUEUE_COMPUTE_BIT) {
      *family = i;
      *timestamp_bits = families[i].timestampValidBits;
      return true;
    }
  return false;
}

Properties describe(const Instance& vk, VkPhysicalDevice physical, uint32_t timestamp_bits) {
  VkPhysicalDeviceProperties2 core{};
  VkPhysicalDeviceVulkan11Properties v11{};
  VkPhysicalDeviceMaintenance3Properties allocation{};
  core.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PROPERTIES_2;
  v11.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_1_PROPERTIES;
  allocation.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MAINTENANCE_3_PROPERTIES;
  core.pNext = &allocation;
  vk.vkGetPhysicalDeviceProperties2(physical, &core);

  Properties p;
  p.name = core.properties.deviceName;
  p.type = type_name(core.properties.deviceType);
  p.api_version = core.properties.apiVersion;
  p.driver_version = core.properties.driverVersion;
  p.cache_key = hex(core.properties.pipelineCacheUUID, VK_UUID_SIZE);
  if (p.api_version < VK_API_VERSION_1_2) {
    p.lacking = "Vulkan 1.2";
    return p;
  }
  core.pNext = &v11;
  vk.vkGetPhysicalDeviceProperties2(physical, &core);
  Features features;
  vk.vkGetPhysicalDeviceFeatures2(physical, &features.core);
  VkPhysicalDeviceMemoryProperties memory;
  vk.vkGetPhysicalDeviceMemoryProperties(physical, &memory);

  const VkPhysicalDeviceLimits& limits = core.properties.limits;
  p.max_threads = limits.maxComputeWorkGroupInvocations;
  for (int axis = 0; axis < 3; axis++) {
    p.max_block[axis] = limits.maxComputeWorkGroupSize[axis];
    p.max_grid[axis] = limits.maxComputeWorkGroupCount[axis];
  }
  p.max_shared_memory = limits.maxComputeSharedMemorySize;
  p.max_push_constants = limits.maxPushConstantsSize;
  p.max_allocation = static_cast<int64_t>(allocation.maxMemoryAllocationSize);
  p.memory = largest_device_heap(memory);
  p.subgroup_size = v11.subgroupSize;
  p.timestamp_period = timestamp_bits ? limits.timestampPeriod : 0;
  p.float16 = features.v12.shaderFloat16;
  p.float64 = features.core.features.shaderFloat64;
  p.storage8 = features.v12.storageBuffer8BitAccess;
  p.storage16 = features.v11.storageBuffer16BitAccess;
  bool in_compute = v11.subgroupSupportedStages & VK_SHADER_STAGE_COMPUTE_BIT;
  p.subgroup_arithmetic = in_compute && (v11.subgroupSupportedOperations & VK_SUBGROUP_FEATURE_ARITHMETIC_BIT);
  p.subgroup_shuffle = in_compute && (v11.subgroupSupportedOperations & VK_SUBGROUP_FEATURE_SHUFFLE_BIT);
  if (p.subgroup_shuffle && has_extension(vk, physical, kSubgroupSizeControl)) {
    auto control = subgroup_size_features();
    VkPhysicalDeviceFeatures2 asked{};
    asked.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FEATURES_2;
    asked.pNext = &control;
    vk.vkGetPhysicalDeviceFeatures2(physical, &asked);
    VkPhysicalDeviceSubgroupSizeControlPropertiesEXT sizes{};
    sizes.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SUBGROUP_SIZE_CONTROL_PROPERTIES_EXT;
    core.pNext = &sizes;
    vk.vkGetPhysicalDeviceProperties2(physical, &core);
    if (control.subgroupSizeControl && control.computeFullSubgroups &&
        (sizes.requiredSubgroupSizeStages & VK_SHADER_STAGE_COMPUTE_BIT)) {
      p.min_required_subgroup = sizes.minSubgroupSize;
      p.max_required_subgroup = sizes.maxSubgroupSize;
    }
  }

  std::vector<std::string> lacking;
  if (!features.v12.bufferDeviceAddress) lacking.push_back("bufferDeviceAddress");
  if (!features.v12.scalarBlockLayout) lacking.push_back("scalarBlockLayout");
  if (!features.v12.timelineSemaphore) lacking.push_back("timelineSemaphore");
  if (!features.core.features.shaderInt64) lacking.push_back("shaderInt64");
  p.lacking = join(lacking);
  return p;
}

std::string& pipelines_folder() {
  static std::string* folder = new std::string();
  return *folder;
}

int rank(const Properties& p) {
  static const char* const order[] = {"discrete", "integrated", "virtual", "other", "cpu"};
  int place = 0;
  while (place < 5 && p.type != order[place]) place++;
  return place + (p.lacking.empty() ? 0 : 10);
}

}  // namespace

const std::vector<Device*>& Device::all() {
  static const std::vector<Device*>* devices = [] {
    auto* found = new std::vector<Device*>();
    const Instance& vk = Instance::get();
    if (vk.handle == VK_NULL_HANDLE) return found;
    uint32_t count = 0;
    vk.vkEnumeratePhysicalDevices(vk.handle, &count, nullptr);
    std::vector<VkPhysicalDevice> physical(count);
    vk.vkEnumeratePhysicalDevices(vk.handle, &count, physical.data());
    struct Candidate {
      VkPhysicalDevice physical;
      uint32_t family;
      Properties properties;
    };
    std::vector<Candidate> candidates;
    for (VkPhysicalDevice each : physical) {
      uint32_t family = 0, timestamp_bits = 0;
      if (find_queue(vk, each, &family, &timestamp_bits))
        candidates.push_back({each, family, describe(vk, each, timestamp_bits)});
    }
    std::stable_sort(candidates.begin(), candidates.end(),
                     [](const Candidate& a, const Candidate& b) { return rank(a.properties) < rank(b.properties); });
    for (auto& each : candidates)
      found->push_back(new Device(each.physical, each.family, each.properties, static_cast<int64_t>(found->size())));
    return found;
  }();
  return *devices;
}

Device& Device::at(int64_t index) {
  const auto& devices = all();
  if (index < 0 || index >= static_cast<int64_t>(devices.size())) {
    const std::string& reason = Instance::get().reason;
    TVM_FFI_THROW(ValueError) << "there is no Vulkan device " << index << "; "
                              << (reason.empty() ? "this machine has " + std::to_string(devices.size()) : reason);
  }
  Device& device = *devices[index];
  if (!device.properties.lacking.empty())
    TVM_FFI_THROW(ValueError) << "Vulkan device " << index << " (" << device.properties.name << ") lacks "
                              << device.properties.lacking;
  std::call_once(device.opened_, [&] { device.open(); });
  return device;
}

Device::Device(VkPhysicalDevice physical, uint32_t queue_family, Properties described, int64_t number)
    : properties(std::move(described)), index(number), physical_(physical), queue_family_(queue_family) {}

Device::~Device() = default;

void Device::open() {
  const Instance& instance = Instance::get();
  Features available, wanted;
  instance.vkGetPhysicalDeviceFeatures2(physical_, &available.core);
  wanted.core.features.shaderInt64 = VK_TRUE;
  wanted.core.features.shaderFloat64 = available.core.features.shaderFloat64;
  wanted.core.features.shaderInt16 = available.core.features.shaderInt16;
  wanted.v11.storageBuffer16BitAccess = available.v11.storageBuffer16BitAccess;
  wanted.v12.storageBuffer8BitAccess = available.v12.storageBuffer8BitAccess;
  wanted.v12.shaderFloat16 = available.v12.shaderFloat16;
  wanted.v12.shaderInt8 = available.v12.shaderInt8;
  wanted.v12.bufferDeviceAddress = VK_TRUE;
  wanted.v12.scalarBlockLayout = VK_TRUE;
  wanted.v12.timelineSemaphore = VK_TRUE;
  wanted.v12.vulkanMemoryModel = available.v12.vulkanMemoryModel;
  wanted.v12.vulkanMemoryModelDeviceScope = available.v12.vulkanMemoryModelDeviceScope;
  auto control = subgroup_size_features();
  control.subgroupSizeControl = control.computeFullSubgroups = VK_TRUE;
  const char* const extensions[] = {kSubgroupSizeControl};
  bool controls = properties.max_required_subgroup > 0;
  if (controls) wanted.v12.pNext = &control;

  float priority = 1;
  VkDeviceQueueCreateInfo queue{};
  queue.sType = VK_STRUCTURE_TYPE_DEVICE_QUEUE_CREATE_INFO;
  queue.queueFamilyIndex = queue_family_;
  queue.queueCount = 1;
  queue.pQueuePriorities = &priority;
  VkDeviceCreateInfo info{};
  info.sType = VK_STRUCTURE_TYPE_DEVICE_CREATE_INFO;
  info.pNext = &wanted.core;
  info.enabledExtensionCount = controls ? 1 : 0;
  info.ppEnabledExtensionNames = extensions;
  info.queueCreateInfoCount = 1;
  info.pQueueCreateInfos = &queue;
  check(instance.vkCreateDevice(physical_, &info, nullptr, &handle_), "opening it");
#define MLC_VULKAN_LOAD(name) \
  functions_.name = reinterpret_cast<PFN_##name>(instance.vkGetDeviceProcAddr(handle_, #name));
  MLC_VULKAN_DEVICE_FUNCTIONS(MLC_VULKAN_LOAD)
#undef MLC_VULKAN_LOAD
  functions_.vkGetDeviceQueue(handle_, queue_family_, 0, &queue_);
  open_pipeline_cache();
  memory_ = std::make_unique<Memory>(*this);
  recorder_ = std::make_unique<Recorder>(*this);
}

std::string Device::where() const { return "Vulkan device " + std::to_string(index) + " (" + properties.name + ")"; }

void Device::check(VkResult result, const std::string& doing) {
  if (result >= VK_SUCCESS) return;
  if (result == VK_ERROR_DEVICE_LOST) lose(result, doing);
  if (result == VK_ERROR_OUT_OF_DEVICE_MEMORY || result == VK_ERROR_OUT_OF_HOST_MEMORY)
    TVM_FFI_THROW(MemoryError) << where() << " has no memory left: " << doing
                               << "; ask for less, or close what else uses it";
  TVM_FFI_THROW(DeviceError) << where() << ": " << doing << " failed with " << result_name(result)
                             << "; another version of its driver may do it";
}

void Device::check_commands(VkResult result, const std::string& doing) {
  if (result < VK_SUCCESS) lose(result, doing);
}

void Device::lose(VkResult result, const std::string& doing) {
  lost_ = where() + " was lost while " + doing + " (" + result_name(result) +
          "); what it held is gone, and a new process is needed to use it again";
  refuse_if_lost();
  __builtin_unreachable();
}

void Device::refuse_if_lost() const {
  if (!lost_.empty()) TVM_FFI_THROW(DeviceError) << lost_;
}

void Device::keep_pipelines_in(const std::string& folder) { pipelines_folder() = folder; }

// A driver ignores what is not its own.
void Device::open_pipeline_cache() {
  std::ifstream file(pipelines_folder() + "/" + pipelines_file(), std::ios::binary);
  std::string kept((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  VkPipelineCacheCreateInfo info{};
  info.sType = VK_STRUCTURE_TYPE_PIPELINE_CACHE_CREATE_INFO;
  info.initialDataSize = kept.size();
  info.pInitialData = kept.data();
  check(functions_.vkCreatePipelineCache(handle_, &info, nullptr, &pipeline_cache_), "making a pipeline cache");
}

void Device::pipeline_was_made() {
  pipelines_made_ = true;
  pipelines_++;
  destroy_retired_pipelines();
}

void Device::retire_pipeline(VkPipeline pipeline, VkPipelineLayout layout) {
  // Nothing is destroyed here: kernels are let go of at the process's end too, when the driver may be gone.
  retired_pipelines_.push_back({recorder_->current(), pipeline, layout});
}

void Device::destroy_retired_pipelines() {
  uint64_t done = recorder_->completed();
  auto runs = [&](const RetiredPipeline& each) { return each.after > done; };
  auto rest = std::partition(retired_pipelines_.begin(), retired_pipelines_.end(), runs);
  for (auto each = rest; each != retired_pipelines_.end(); ++each) {
    functions_.vkDestroyPipeline(handle_, each->handle, nullptr);
    functions_.vkDestroyPipelineLayout(handle_, each->layout, nullptr);
    pipelines_--;
  }
  retired_pipelines_.erase(rest, retired_pipelines_.end());
}

std::string Device::new_pipelines() {
  if (!pipelines_made_) return "";
  size_t size = 0;
  check(functions_.vkGetPipelineCacheData(handle_, pipeline_cache_, &size, nullptr), "reading the pipeline cache");
  std::string data(size, '\0');
  check(functions_.vkGetPipelineCacheData(handle_, pipeline_cache_, &size, data.data()), "reading the pipeline cache");
  data.resize(size);
  pipelines_made_ = false;
  return data;
}

}  // namespace mlc_vulkan
