// A Vulkan layer that lets functions of one device fail when it is told to, so that what a driver seldom does can be seen.
#include <stdlib.h>
#include <string.h>

#include <vulkan/vk_layer.h>
#include <vulkan/vulkan.h>

#define EXPORT __attribute__((visibility("default")))

// The process has one instance and one device.
static PFN_vkGetInstanceProcAddr next_instance_function;
static PFN_vkGetDeviceProcAddr next_device_function;
static VkDevice device;

static char failing[64];
static VkResult failure;

// From now on `function` returns `result` and does nothing; an empty name ends it.
EXPORT void fail(const char* function, int result) {
  strncpy(failing, function, sizeof failing - 1);
  failure = (VkResult)result;
}

#define FORWARD_OR_FAIL(function, ...)                            \
  if (strcmp(failing, #function) == 0) return failure;            \
  return ((PFN_##function)next_device_function(device, #function))(__VA_ARGS__)

static VKAPI_ATTR VkResult VKAPI_CALL queue_submit(VkQueue queue, uint32_t count, const VkSubmitInfo* submits,
                                                   VkFence fence) {
  FORWARD_OR_FAIL(vkQueueSubmit, queue, count, submits, fence);
}

static VKAPI_ATTR VkResult VKAPI_CALL wait_semaphores(VkDevice of, const VkSemaphoreWaitInfo* info, uint64_t timeout) {
  FORWARD_OR_FAIL(vkWaitSemaphores, of, info, timeout);
}

static VKAPI_ATTR VkResult VKAPI_CALL allocate_memory(VkDevice of, const VkMemoryAllocateInfo* info,
                                                      const VkAllocationCallbacks* callbacks, VkDeviceMemory* memory) {
  FORWARD_OR_FAIL(vkAllocateMemory, of, info, callbacks, memory);
}

static VKAPI_ATTR VkResult VKAPI_CALL create_pipelines(VkDevice of, VkPipelineCache cache, uint32_t count,
                                                       const VkComputePipelineCreateInfo* infos,
                                                       const VkAllocationCallbacks* callbacks, VkPipeline* pipelines) {
  FORWARD_OR_FAIL(vkCreateComputePipelines, of, cache, count, infos, callbacks, pipelines);
}

static VKAPI_ATTR VkResult VKAPI_CALL create_instance(const VkInstanceCreateInfo* info,
                                                      const VkAllocationCallbacks* callbacks, VkInstance* instance) {
  VkLayerInstanceCreateInfo* link = (VkLayerInstanceCreateInfo*)info->pNext;
  while (link->sType != VK_STRUCTURE_TYPE_LOADER_INSTANCE_CREATE_INFO || link->function != VK_LAYER_LINK_INFO)
    link = (VkLayerInstanceCreateInfo*)link->pNext;
  next_instance_function = link->u.pLayerInfo->pfnNextGetInstanceProcAddr;
  link->u.pLayerInfo = link->u.pLayerInfo->pNext;
  return ((PFN_vkCreateInstance)next_instance_function(NULL, "vkCreateInstance"))(info, callbacks, instance);
}

static VKAPI_ATTR VkResult VKAPI_CALL create_device(VkPhysicalDevice physical, const VkDeviceCreateInfo* info,
                                                    const VkAllocationCallbacks* callbacks, VkDevice* made) {
  VkLayerDeviceCreateInfo* link = (VkLayerDeviceCreateInfo*)info->pNext;
  while (link->sType != VK_STRUCTURE_TYPE_LOADER_DEVICE_CREATE_INFO || link->function != VK_LAYER_LINK_INFO)
    link = (VkLayerDeviceCreateInfo*)link->pNext;
  PFN_vkCreateDevice create =
      (PFN_vkCreateDevice)link->u.pLayerInfo->pfnNextGetInstanceProcAddr(NULL, "vkCreateDevice");
  next_device_function = link->u.pLayerInfo->pfnNextGetDeviceProcAddr;
  link->u.pLayerInfo = link->u.pLayerInfo->pNext;
  VkResult result = create(physical, info, callbacks, made);
  device = *made;
  return result;
}

static PFN_vkVoidFunction own_device_function(const char* name) {
  if (strcmp(name, "vkQueueSubmit") == 0) return (PFN_vkVoidFunction)queue_submit;
  if (strcmp(name, "vkWaitSemaphores") == 0) return (PFN_vkVoidFunction)wait_semaphores;
  if (strcmp(name, "vkAllocateMemory") == 0) return (PFN_vkVoidFunction)allocate_memory;
  if (strcmp(name, "vkCreateComputePipelines") == 0) return (PFN_vkVoidFunction)create_pipelines;
  return NULL;
}

static VKAPI_ATTR PFN_vkVoidFunction VKAPI_CALL get_device_function(VkDevice of, const char* name) {
  PFN_vkVoidFunction own = own_device_function(name);
  return own != NULL ? own : next_device_function(of, name);
}

static VKAPI_ATTR PFN_vkVoidFunction VKAPI_CALL get_instance_function(VkInstance of, const char* name) {
  if (strcmp(name, "vkCreateInstance") == 0) return (PFN_vkVoidFunction)create_instance;
  if (strcmp(name, "vkCreateDevice") == 0) return (PFN_vkVoidFunction)create_device;
  if (strcmp(name, "vkGetDeviceProcAddr") == 0) return (PFN_vkVoidFunction)get_device_function;
  PFN_vkVoidFunction own = own_device_function(name);
  return own != NULL ? own : next_instance_function(of, name);
}

EXPORT VkResult vkNegotiateLoaderLayerInterfaceVersion(VkNegotiateLayerInterface* negotiated) {
  negotiated->loaderLayerInterfaceVersion = 2;
  negotiated->pfnGetInstanceProcAddr = get_instance_function;
  negotiated->pfnGetDeviceProcAddr = get_device_function;
  negotiated->pfnGetPhysicalDeviceProcAddr = NULL;
  return VK_SUCCESS;
}
