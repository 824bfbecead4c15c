// Vulkan's functions, found at run time: a process without a Vulkan loader can load this library and is told so.
#pragma once

#define VK_NO_PROTOTYPES
#include <vulkan/vulkan.h>

#include <string>

namespace mlc_vulkan {

#define MLC_VULKAN_INSTANCE_FUNCTIONS(X) \
  X(vkEnumeratePhysicalDevices)          \
  X(vkEnumerateDeviceExtensionProperties) \
  X(vkGetPhysicalDeviceProperties2)      \
  X(vkGetPhysicalDeviceFeatures2)        \
  X(vkGetPhysicalDeviceMemoryProperties) \
  X(vkGetPhysicalDeviceQueueFamilyProperties) \
  X(vkCreateDevice)                      \
  X(vkGetDeviceProcAddr)

#define MLC_VULKAN_DEVICE_FUNCTIONS(X) \
  X(vkGetDeviceQueue)                  \
  X(vkAllocateMemory)                  \
  X(vkFreeMemory)                      \
  X(vkMapMemory)                       \
  X(vkCreateBuffer)                    \
  X(vkDestroyBuffer)                   \
  X(vkGetBufferMemoryRequirements)     \
  X(vkBindBufferMemory)                \
  X(vkGetBufferDeviceAddress)          \
  X(vkCreateCommandPool)               \
  X(vkAllocateCommandBuffers)          \
  X(vkBeginCommandBuffer)              \
  X(vkEndCommandBuffer)                \
  X(vkCmdBindPipeline)                 \
  X(vkCmdPushConstants)                \
  X(vkCmdDispatch)                     \
  X(vkCmdPipelineBarrier)              \
  X(vkCmdCopyBuffer)                   \
  X(vkCmdUpdateBuffer)                 \
  X(vkCmdResetQueryPool)               \
  X(vkCmdWriteTimestamp)               \
  X(vkCreateQueryPool)                 \
  X(vkGetQueryPoolResults)             \
  X(vkQueueSubmit)                     \
  X(vkCreateSemaphore)                 \
  X(vkWaitSemaphores)                  \
  X(vkGetSemaphoreCounterValue)        \
  X(vkCreateShaderModule)              \
  X(vkDestroyShaderModule)             \
  X(vkCreatePipelineLayout)            \
  X(vkDestroyPipelineLayout)           \
  X(vkCreateComputePipelines)          \
  X(vkDestroyPipeline)                 \
  X(vkCreatePipelineCache)             \
  X(vkGetPipelineCacheData)

#define MLC_VULKAN_DECLARE(name) PFN_##name name = nullptr;

// The loader and one instance of it, opened once a process and never closed: what lives on the device is let go of
// at the process's end, in an order that nobody can know.
struct Instance {
  // The process's instance; `reason` says why there is none.
  static const Instance& get();

  VkInstance handle = VK_NULL_HANDLE;
  std::string reason;
  MLC_VULKAN_INSTANCE_FUNCTIONS(MLC_VULKAN_DECLARE)

 private:
  Instance();
};

struct DeviceFunctions {
  MLC_VULKAN_DEVICE_FUNCTIONS(MLC_VULKAN_DECLARE)
};

// What the validation layers have said so far, where they are switched on.
std::string validation_messages();

// A result's name: "VK_ERROR_DEVICE_LOST".
std::string result_name(VkResult result);

}  // namespace mlc_vulkan
