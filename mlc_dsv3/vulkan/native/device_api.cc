// TVM's DeviceAPI over a Vulkan device, and the functions that Python asks about devices with.
#include <tvm/ffi/container/array.h>
#include <tvm/ffi/container/map.h>
#include <tvm/ffi/function.h>
#include <tvm/ffi/reflection/registry.h>
#include <tvm/runtime/device_api.h>

#include <string>

#include "current.h"
#include "memory.h"
#include "recorder.h"

namespace mlc_vulkan {

void register_module();

int64_t& current_device() {
  thread_local int64_t index = 0;
  return index;
}

namespace {

namespace ffi = tvm::ffi;
using tvm::Device;
using VulkanDevice = mlc_vulkan::Device;

VkDeviceAddress address_of(const void* data, size_t offset) {
  return reinterpret_cast<VkDeviceAddress>(data) + offset;
}

std::string version_text(uint32_t version) {
  return std::to_string(VK_API_VERSION_MAJOR(version)) + "." + std::to_string(VK_API_VERSION_MINOR(version)) + "." +
         std::to_string(VK_API_VERSION_PATCH(version));
}

class Api final : public tvm::runtime::DeviceAPI {
 public:
  static Api* get() {
    static Api* api = new Api();
    return api;
  }

  void SetDevice(Device dev) final { current_device() = dev.device_id; }

  void GetAttr(Device dev, tvm::runtime::DeviceAttrKind kind, ffi::Any* rv) final {
    const auto& devices = VulkanDevice::all();
    bool exists = dev.device_id >= 0 && dev.device_id < static_cast<int>(devices.size()) &&
                  devices[dev.device_id]->properties.lacking.empty();
    if (kind == tvm::runtime::kExist) {
      *rv = exists;
      return;
    }
    if (!exists) return;
    const Properties& p = devices[dev.device_id]->properties;
    switch (kind) {
      case tvm::runtime::kMaxThreadsPerBlock:
        *rv = p.max_threads;
        break;
      // Subgroups differ between devices and even between kernels on one: none may be taken for granted.
      case tvm::runtime::kWarpSize:
        *rv = int64_t{1};
        break;
      case tvm::runtime::kMaxSharedMemoryPerBlock:
        *rv = p.max_shared_memory;
        break;
      case tvm::runtime::kComputeVersion:
      case tvm::runtime::kApiVersion:
        *rv = version_text(p.api_version);
        break;
      case tvm::runtime::kDeviceName:
        *rv = p.name;
        break;
      case tvm::runtime::kMaxThreadDimensions:
        *rv = "[" + std::to_string(p.max_block[0]) + ", " + std::to_string(p.max_block[1]) + ", " +
              std::to_string(p.max_block[2]) + "]";
        break;
      case tvm::runtime::kDriverVersion:
        *rv = std::to_string(p.driver_version);
        break;
      case tvm::runtime::kTotalGlobalMemory:
        *rv = p.memory;
        break;
      default:
        break;
    }
  }

  void GetTargetProperty(Device dev, const std::string& property, ffi::Any* rv) final {
    const Properties& p = VulkanDevice::at(dev.device_id).properties;
    if (property == "supports_float16") *rv = p.float16;
    if (property == "supports_float32") *rv = true;
    if (property == "supports_float64") *rv = p.float64;
    if (property == "supports_int8" || property == "supports_int16") *rv = true;
    if (property == "supports_int32" || property == "supports_int64") *rv = true;
    if (property == "supports_8bit_buffer") *rv = p.storage8;
    if (property == "supports_16bit_buffer") *rv = p.storage16;
    if (property == "supports_storage_buffer_storage_class") *rv = true;
    if (property == "max_num_threads" || property == "max_threads_per_block") *rv = p.max_threads;
    if (property == "max_shared_memory_per_block") *rv = p.max_shared_memory;
    if (property == "thread_warp_size") *rv = int64_t{1};
    if (property == "device_name") *rv = p.name;
    if (property == "device_type") *rv = p.type;
  }

  void* AllocDataSpace(Device dev, size_t nbytes, size_t, DLDataType) final {
    VulkanDevice& device = VulkanDevice::at(dev.device_id);
    std::lock_guard<std::mutex> guard(device.lock);
    device.refuse_if_lost();
    return reinterpret_cast<void*>(device.memory().allocate(nbytes));
  }

  void FreeDataSpace(Device dev, void* ptr) final {
    VulkanDevice& device = VulkanDevice::at(dev.device_id);
    std::lock_guard<std::mutex> guard(device.lock);
    device.memory().release(address_of(ptr, 0));
  }

  void StreamSync(Device dev, TVMStreamHandle) final {
    VulkanDevice& device = VulkanDevice::at(dev.device_id);
    std::lock_guard<std::mutex> guard(device.lock);
    device.refuse_if_lost();
    device.recorder().finish();
  }

  bool SupportsDevicePointerArithmeticsOnHost() final { return true; }

 protected:
  void CopyDataFromTo(const void* from, size_t from_offset, void* to, size_t to_offset, size_t size, Device dev_from,
                      Device dev_to, DLDataType, TVMStreamHandle) final {
    bool from_device = dev_from.device_type == kDLVulkan, to_device = dev_to.device_type == kDLVulkan;
    if (from_device && to_device && dev_from.device_id != dev_to.device_id)
      TVM_FFI_THROW(ValueError) << "no copy from Vulkan device " << dev_from.device_id << " to " << dev_to.device_id
                                << "; go through the host";
    VulkanDevice& device = VulkanDevice::at(from_device ? dev_from.device_id : dev_to.device_id);
    std::lock_guard<std::mutex> guard(device.lock);
    device.refuse_if_lost();
    Recorder& recorder = device.recorder();
    if (from_device && to_device) {
      recorder.copy(address_of(to, to_offset), address_of(from, from_offset), size);
    } else if (to_device) {
      recorder.upload(address_of(to, to_offset), static_cast<const uint8_t*>(from) + from_offset, size);
    } else {
      recorder.download(static_cast<uint8_t*>(to) + to_offset, address_of(from, from_offset), size);
    }
  }
};

ffi::Map<ffi::String, ffi::Any> as_map(const VulkanDevice& device) {
  const Properties& p = device.properties;
  ffi::Map<ffi::String, ffi::Any> map;
  map.Set("index", device.index);
  map.Set("name", p.name);
  map.Set("type", p.type);
  map.Set("lacking", p.lacking);
  map.Set("api_version", version_text(p.api_version));
  map.Set("cache_key", p.cache_key);
  map.Set("max_threads", p.max_threads);
  map.Set("max_shared_memory", p.max_shared_memory);
  map.Set("max_push_constants", p.max_push_constants);
  map.Set("max_allocation", p.max_allocation);
  map.Set("memory", p.memory);
  map.Set("subgroup_size", p.subgroup_size);
  map.Set("min_required_subgroup", p.min_required_subgroup);
  map.Set("max_required_subgroup", p.max_required_subgroup);
  map.Set("float16", p.float16);
  map.Set("float64", p.float64);
  map.Set("storage8", p.storage8);
  map.Set("storage16", p.storage16);
  map.Set("subgroup_arithmetic", p.subgroup_arithmetic);
  map.Set("subgroup_shuffle", p.subgroup_shuffle);
  return map;
}

ffi::Map<ffi::String, int64_t> statistics(int64_t index) {
  VulkanDevice& device = VulkanDevice::at(index);
  std::lock_guard<std::mutex> guard(device.lock);
  const Statistics& s = device.recorder().statistics();
  ffi::Map<ffi::String, int64_t> map;
  map.Set("launches", static_cast<int64_t>(s.launches));
  map.Set("barriers", static_cast<int64_t>(s.barriers));
  map.Set("submissions", static_cast<int64_t>(s.submissions));
  map.Set("uploaded", static_cast<int64_t>(s.uploaded));
  map.Set("downloaded", static_cast<int64_t>(s.downloaded));
  map.Set("reserved", static_cast<int64_t>(device.memory().reserved()));
  map.Set("used", static_cast<int64_t>(device.memory().used()));
  map.Set("pipelines", device.pipelines());
  map.Set("allocations", static_cast<int64_t>(device.memory().allocations()));
  return map;
}

// (kernel, nanoseconds) of each launch since the last call.
ffi::Array<ffi::Any> profile(int64_t index, bool on) {
  VulkanDevice& device = VulkanDevice::at(index);
  std::lock_guard<std::mutex> guard(device.lock);
  device.refuse_if_lost();
  ffi::Array<ffi::Any> found;
  for (const Timing& timing : device.recorder().profile(on)) {
    found.push_back(ffi::String(timing.kernel));
    found.push_back(timing.nanoseconds);
  }
  return found;
}

TVM_FFI_STATIC_INIT_BLOCK() {
  register_module();
  ffi::reflection::GlobalDef()
      .def_packed("device_api.vulkan",
                  [](ffi::PackedArgs, ffi::Any* rv) {
                    tvm::runtime::DeviceAPI* api = Api::get();
                    *rv = static_cast<void*>(api);
                  })
      .def("device_api.vulkan.get_target_property",
           [](Device dev, const ffi::String& property) {
             ffi::Any found;
             Api::get()->GetTargetProperty(dev, std::string(property), &found);
             return found;
           })
      .def("mlc_dsv3.vulkan.devices",
           [] {
             ffi::Array<ffi::Map<ffi::String, ffi::Any>> found;
             for (const VulkanDevice* device : VulkanDevice::all()) found.push_back(as_map(*device));
             return found;
           })
      .def("mlc_dsv3.vulkan.missing", [] { return ffi::String(Instance::get().reason); })
      .def("mlc_dsv3.vulkan.validation_messages", [] { return ffi::String(validation_messages()); })
      .def("mlc_dsv3.vulkan.statistics", statistics)
      .def("mlc_dsv3.vulkan.profile", profile)
      .def("mlc_dsv3.vulkan.keep_pipelines_in",
           [](const ffi::String& folder) { VulkanDevice::keep_pipelines_in(std::string(folder)); })
      .def("mlc_dsv3.vulkan.new_pipelines", [] {
        ffi::Map<ffi::String, ffi::Bytes> files;
        for (VulkanDevice* device : VulkanDevice::all()) {
          std::lock_guard<std::mutex> guard(device->lock);
          std::string data = device->new_pipelines();
          if (!data.empty()) files.Set(device->pipelines_file(), ffi::Bytes(data));
        }
        return files;
      });
}

}  // namespace
}  // namespace mlc_vulkan
