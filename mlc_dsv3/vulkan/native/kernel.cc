#include "kernel.h"

#include <tvm/ffi/error.h>

namespace mlc_vulkan {

Kernel::~Kernel() {
  for (const auto& [index, made] : pipelines_) {
    if (made.handle == VK_NULL_HANDLE) continue;
    Device& device = *Device::all()[index];
    std::lock_guard<std::mutex> guard(device.lock);
    device.retire_pipeline(made.handle, made.layout);
  }
}

const Kernel::Pipeline& Kernel::pipeline(Device& device) const {
  std::lock_guard<std::mutex> guard(lock_);
  Pipeline& made = pipelines_[device.index];
  if (made.handle != VK_NULL_HANDLE) return made;
  const auto& vk = device.vk();
  std::string doing = "compiling kernel " + name;
  uint32_t pushed = indirect ? sizeof(VkDeviceAddress) : arguments_size;
  if (pushed > device.properties.max_push_constants)
    TVM_FFI_THROW(ValueError) << "kernel " << name << " pushes " << pushed << " bytes of arguments, and "
                              << device.properties.name << " takes " << device.properties.max_push_constants;
  int64_t least = device.properties.min_required_subgroup, most = device.properties.max_required_subgroup;
  if (subgroup_size && (subgroup_size < least || subgroup_size > most))
    TVM_FFI_THROW(ValueError) << "kernel " << name << " needs subgroups of " << subgroup_size << " threads, and "
                              << device.properties.name << " has "
                              << (most ? std::to_string(least) + " to " + std::to_string(most) : "none of a known width");

  VkShaderModuleCreateInfo shader{};
  shader.sType = VK_STRUCTURE_TYPE_SHADER_MODULE_CREATE_INFO;
  shader.codeSize = spirv.size() * sizeof(uint32_t);
  shader.pCode = spirv.data();
  VkShaderModule module = VK_NULL_HANDLE;
  device.check(vk.vkCreateShaderModule(device.handle(), &shader, nullptr, &module), doing);

  VkPushConstantRange range{VK_SHADER_STAGE_COMPUTE_BIT, 0, pushed};
  VkPipelineLayoutCreateInfo layout{};
  layout.sType = VK_STRUCTURE_TYPE_PIPELINE_LAYOUT_CREATE_INFO;
  layout.pushConstantRangeCount = 1;
  layout.pPushConstantRanges = &range;
  VkResult result = vk.vkCreatePipelineLayout(device.handle(), &layout, nullptr, &made.layout);
  if (result == VK_SUCCESS) {
    VkComputePipelineCreateInfo info{};
    info.sType = VK_STRUCTURE_TYPE_COMPUTE_PIPELINE_CREATE_INFO;
    info.stage.sType = VK_STRUCTURE_TYPE_PIPELINE_SHADER_STAGE_CREATE_INFO;
    info.stage.stage = VK_SHADER_STAGE_COMPUTE_BIT;
    info.stage.module = module;
    info.stage.pName = "main";
    VkPipelineShaderStageRequiredSubgroupSizeCreateInfoEXT subgroup{};
    if (subgroup_size) {
      subgroup.sType = VK_STRUCTURE_TYPE_PIPELINE_SHADER_STAGE_REQUIRED_SUBGROUP_SIZE_CREATE_INFO_EXT;
      subgroup.requiredSubgroupSize = subgroup_size;
      info.stage.pNext = &subgroup;
      info.stage.flags = VK_PIPELINE_SHADER_STAGE_CREATE_REQUIRE_FULL_SUBGROUPS_BIT_EXT;
    }
    info.layout = made.layout;
    result = vk.vkCreateComputePipelines(device.handle(), device.pipeline_cache(), 1, &info, nullptr, &made.handle);
    if (result != VK_SUCCESS) {
      made.handle = VK_NULL_HANDLE;
      vk.vkDestroyPipelineLayout(device.handle(), made.layout, nullptr);
    }
  }
  vk.vkDestroyShaderModule(device.handle(), module, nullptr);
  device.check(result, doing);
  device.pipeline_was_made();
  return made;
}

}  // namespace mlc_vulkan
