#include "api.h"

#include <dlfcn.h>

#include <cstring>
#include <mutex>
#include <vector>

namespace mlc_vulkan {
namespace {

std::mutex messages_lock;
std::string messages;

VKAPI_ATTR VkBool32 VKAPI_CALL on_message(VkDebugUtilsMessageSeverityFlagBitsEXT, VkDebugUtilsMessageTypeFlagsEXT,
                                          const VkDebugUtilsMessengerCallbackDataEXT* data, void*) {
  std::lock_guard<std::mutex> guard(messages_lock);
  messages.append(data->pMessage).append("\n");
  return VK_FALSE;
}

void* open_loader() {
  for (const char* name : {"libvulkan.so.1", "libvulkan.so", "libvulkan.1.dylib", "libMoltenVK.dylib"})
    if (void* library = dlopen(name, RTLD_NOW | RTLD_LOCAL)) return library;
  return nullptr;
}

bool has_debug_utils(PFN_vkGetInstanceProcAddr find) {
  auto enumerate = reinterpret_cast<PFN_vkEnumerateInstanceExtensionProperties>(
      find(nullptr, "vkEnumerateInstanceExtensionProperties"));
  uint32_t count = 0;
  enumerate(nullptr, &count, nullptr);
  std::vector<VkExtensionProperties> extensions(count);
  enumerate(nullptr, &count, extensions.data());
  for (const auto& extension : extensions)
    if (std::strcmp(extension.extensionName, VK_EXT_DEBUG_UTILS_EXTENSION_NAME) == 0) return true;
  return false;
}

}  // namespace

const Instance& Instance::get() {
  static const Instance* instance = new Instance();
  return *instance;
}

Instance::Instance() {
  void* library = open_loader();
  if (library == nullptr) {
    reason = "there is no Vulkan loader (Debian: apt install libvulkan1)";
    return;
  }
  auto find = reinterpret_cast<PFN_vkGetInstanceProcAddr>(dlsym(library, "vkGetInstanceProcAddr"));
  auto version = reinterpret_cast<PFN_vkEnumerateInstanceVersion>(find(nullptr, "vkEnumerateInstanceVersion"));
  uint32_t found = VK_API_VERSION_1_0;
  if (version != nullptr) version(&found);
  if (found < VK_API_VERSION_1_2) {
    reason = "the Vulkan loader is older than 1.2";
    return;
  }

  VkApplicationInfo application{};
  application.sType = VK_STRUCTURE_TYPE_APPLICATION_INFO;
  application.pApplicationName = "mlc_dsv3";
  application.apiVersion = VK_API_VERSION_1_3;

  VkDebugUtilsMessengerCreateInfoEXT messenger{};
  messenger.sType = VK_STRUCTURE_TYPE_DEBUG_UTILS_MESSENGER_CREATE_INFO_EXT;
  messenger.messageSeverity =
      VK_DEBUG_UTILS_MESSAGE_SEVERITY_WARNING_BIT_EXT | VK_DEBUG_UTILS_MESSAGE_SEVERITY_ERROR_BIT_EXT;
  messenger.messageType = VK_DEBUG_UTILS_MESSAGE_TYPE_VALIDATION_BIT_EXT;
  messenger.pfnUserCallback = on_message;

  const char* extension = VK_EXT_DEBUG_UTILS_EXTENSION_NAME;
  bool debug = has_debug_utils(find);
  VkInstanceCreateInfo info{};
  info.sType = VK_STRUCTURE_TYPE_INSTANCE_CREATE_INFO;
  info.pApplicationInfo = &application;
  info.enabledExtensionCount = debug ? 1 : 0;
  info.ppEnabledExtensionNames = &extension;
  info.pNext = debug ? &messenger : nullptr;
  auto create = reinterpret_cast<PFN_vkCreateInstance>(find(nullptr, "vkCreateInstance"));
  VkResult result = create(&info, nullptr, &handle);
  if (result != VK_SUCCESS) {
    handle = VK_NULL_HANDLE;
    reason = "the Vulkan loader makes no instance: " + result_name(result);
    return;
  }
#define MLC_VULKAN_LOAD(name) name = reinterpret_cast<PFN_##name>(find(handle, #name));
  MLC_VULKAN_INSTANCE_FUNCTIONS(MLC_VULKAN_LOAD)
#undef MLC_VULKAN_LOAD
  if (debug) {
    auto listen =
        reinterpret_cast<PFN_vkCreateDebugUtilsMessengerEXT>(find(handle, "vkCreateDebugUtilsMessengerEXT"));
    VkDebugUtilsMessengerEXT ignored;
    listen(handle, &messenger, nullptr, &ignored);
  }
}

std::string validation_messages() {
  std::lock_guard<std::mutex> guard(messages_lock);
  return messages;
}

std::string result_name(VkResult result) {
  switch (result) {
#define MLC_VULKAN_CASE(name) \
  case name:                  \
    return #name;
    MLC_VULKAN_CASE(VK_SUCCESS)
    MLC_VULKAN_CASE(VK_TIMEOUT)
    MLC_VULKAN_CASE(VK_ERROR_OUT_OF_HOST_MEMORY)
    MLC_VULKAN_CASE(VK_ERROR_OUT_OF_DEVICE_MEMORY)
    MLC_VULKAN_CASE(VK_ERROR_INITIALIZATION_FAILED)
    MLC_VULKAN_CASE(VK_ERROR_DEVICE_LOST)
    MLC_VULKAN_CASE(VK_ERROR_MEMORY_MAP_FAILED)
    MLC_VULKAN_CASE(VK_ERROR_LAYER_NOT_PRESENT)
    MLC_VULKAN_CASE(VK_ERROR_EXTENSION_NOT_PRESENT)
    MLC_VULKAN_CASE(VK_ERROR_FEATURE_NOT_PRESENT)
    MLC_VULKAN_CASE(VK_ERROR_INCOMPATIBLE_DRIVER)
    MLC_VULKAN_CASE(VK_ERROR_TOO_MANY_OBJECTS)
    MLC_VULKAN_CASE(VK_ERROR_FRAGMENTED_POOL)
    MLC_VULKAN_CASE(VK_ERROR_INVALID_SHADER_NV)
    MLC_VULKAN_CASE(VK_ERROR_UNKNOWN)
#undef MLC_VULKAN_CASE
    default:
      return "VkResult " + std::to_string(static_cast<int>(result));
  }
}

}  // namespace mlc_vulkan
