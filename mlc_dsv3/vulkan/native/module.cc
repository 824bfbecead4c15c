// A module of kernels: TVM's view of what the compiler made. Its bytes are what `mlc_dsv3/vulkan/binary.py` writes.
#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/function.h>
#include <tvm/ffi/reflection/registry.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <string>
#include <unordered_map>
#include <utility>

#include "current.h"
#include "kernel.h"
#include "recorder.h"

namespace mlc_vulkan {
namespace {

namespace ffi = tvm::ffi;

constexpr char kMagic[] = "mlc_vulkan 2";
constexpr uint32_t kSpirvMagic = 0x07230203, kSpirvHeader = 20;

// Reads what it was told is there; throws where the bytes end too early.
class Reader {
 public:
  Reader(const char* data, size_t size) : at_(data), end_(data + size) {}

  template <typename T>
  T number() {
    T value;
    std::memcpy(&value, take(sizeof value), sizeof value);
    return value;
  }
  std::string text() {
    uint32_t size = number<uint32_t>();
    return std::string(take(size), size);
  }
  bool at_end() const { return at_ == end_; }
  const char* take(size_t size) {
    if (size > static_cast<size_t>(end_ - at_)) TVM_FFI_THROW(ValueError) << "a Vulkan module's bytes end too early";
    const char* start = at_;
    at_ += size;
    return start;
  }

 private:
  const char* at_;
  const char* end_;
};

[[noreturn]] void refuse(const Kernel& kernel, const std::string& why) {
  TVM_FFI_THROW(ValueError) << "kernel " << kernel.name << " of a Vulkan module " << why;
}

// Throws unless `size` bytes from `offset` on are in the arguments' block.
void check_place(const Kernel& kernel, uint32_t offset, uint32_t size) {
  if (offset > kernel.arguments_size || size > kernel.arguments_size - offset)
    refuse(kernel, "has " + std::to_string(size) + " bytes at " + std::to_string(offset) + " of its arguments' " +
                       std::to_string(kernel.arguments_size));
}

uint32_t size_of(ArgumentKind kind) {
  return kind == ArgumentKind::kInt32 || kind == ArgumentKind::kFloat32 ? 4 : 8;
}

void read_kernel(Reader& reader, Kernel& kernel) {
  kernel.name = reader.text();
  kernel.arguments_size = reader.number<uint32_t>();
  if (kernel.arguments_size > kMostArguments)
    refuse(kernel, "has " + std::to_string(kernel.arguments_size) + " bytes of arguments, and " +
                       std::to_string(kMostArguments) + " is the most");
  kernel.block_offset = reader.number<uint32_t>();
  check_place(kernel, kernel.block_offset, sizeof(uint32_t));
  kernel.indirect = reader.number<uint8_t>() != 0;
  kernel.subgroup_size = reader.number<uint32_t>();
  uint32_t arguments = reader.number<uint32_t>();
  for (uint32_t i = 0; i < arguments; i++) {
    uint8_t kind = reader.number<uint8_t>();
    if (kind > static_cast<uint8_t>(ArgumentKind::kFloat64))
      refuse(kernel, "has an argument of kind " + std::to_string(kind));
    bool written = reader.number<uint8_t>() != 0;
    kernel.arguments.push_back({static_cast<ArgumentKind>(kind), written, reader.number<uint16_t>()});
    check_place(kernel, kernel.arguments.back().offset, size_of(kernel.arguments.back().kind));
  }
  std::string axes = reader.text();
  kernel.launch_axes.assign(axes.begin(), axes.end());
  std::string code = reader.text();
  uint32_t magic = 0;
  if (code.size() % sizeof magic == 0 && code.size() >= kSpirvHeader) std::memcpy(&magic, code.data(), sizeof magic);
  if (magic != kSpirvMagic) refuse(kernel, "has " + std::to_string(code.size()) + " bytes that are not SPIR-V");
  kernel.spirv.resize(code.size() / sizeof(uint32_t));
  std::memcpy(kernel.spirv.data(), code.data(), code.size());
}

template <typename T>
void put(std::vector<uint8_t>& block, const Argument& argument, T value) {
  std::memcpy(block.data() + argument.offset, &value, sizeof value);
}

void call(const Kernel& kernel, ffi::PackedArgs args) {
  size_t given = static_cast<size_t>(args.size());
  if (given != kernel.arguments.size() + kernel.launch_axes.size())
    TVM_FFI_THROW(TypeError) << "kernel " << kernel.name << " takes "
                             << kernel.arguments.size() + kernel.launch_axes.size() << " values, not " << given;
  std::vector<uint8_t> block(kernel.arguments_size);
  std::vector<VkDeviceAddress> read, written;
  for (size_t i = 0; i < kernel.arguments.size(); i++) {
    const Argument& argument = kernel.arguments[i];
    switch (argument.kind) {
      case ArgumentKind::kPointer: {
        auto address = reinterpret_cast<VkDeviceAddress>(args[i].cast<void*>());
        put(block, argument, address);
        if (address) (argument.written ? written : read).push_back(address);
        break;
      }
      case ArgumentKind::kInt32:
        put(block, argument, static_cast<int32_t>(args[i].cast<int64_t>()));
        break;
      case ArgumentKind::kInt64:
        put(block, argument, args[i].cast<int64_t>());
        break;
      case ArgumentKind::kFloat32:
        put(block, argument, static_cast<float>(args[i].cast<double>()));
        break;
      case ArgumentKind::kFloat64:
        put(block, argument, args[i].cast<double>());
        break;
    }
  }
  std::array<int64_t, 3> grid{1, 1, 1};
  for (size_t i = 0; i < kernel.launch_axes.size(); i++)
    if (kernel.launch_axes[i] < 3) grid[kernel.launch_axes[i]] = args[kernel.arguments.size() + i].cast<int64_t>();

  if (*std::min_element(grid.begin(), grid.end()) < 0)
    TVM_FFI_THROW(ValueError) << "kernel " << kernel.name << " wants a grid of " << grid[0] << " x " << grid[1] << " x "
                              << grid[2] << " blocks";
  Device& device = Device::at(current_device());
  std::lock_guard<std::mutex> guard(device.lock);
  device.refuse_if_lost();
  const Kernel::Pipeline& pipeline = kernel.pipeline(device);
  device.recorder().launch(kernel, pipeline.handle, pipeline.layout, block, read, written, grid);
}

class Module : public ffi::ModuleObj {
 public:
  Module(ffi::Bytes bytes, ffi::String source) : bytes_(std::move(bytes)), source_(std::move(source)) {
    Reader reader(bytes_.data(), bytes_.size());
    if (reader.text() != kMagic)
      TVM_FFI_THROW(ValueError) << "the Vulkan kernels are of another version of mlc_dsv3; compile the library again";
    uint32_t count = reader.number<uint32_t>();
    for (uint32_t i = 0; i < count; i++) {
      auto kernel = std::make_shared<Kernel>();
      read_kernel(reader, *kernel);
      kernels_.emplace(kernel->name, std::move(kernel));
    }
    if (!reader.at_end()) TVM_FFI_THROW(ValueError) << "a Vulkan module has more bytes than kernels";
  }

  const char* kind() const final { return "vulkan"; }
  int GetPropertyMask() const final { return ffi::Module::kBinarySerializable | ffi::Module::kRunnable; }
  ffi::Bytes SaveToBytes() const final { return bytes_; }
  ffi::String InspectSource(const ffi::String&) const final { return source_; }
  ffi::Optional<ffi::Function> GetFunction(const ffi::String& name) final {
    auto found = kernels_.find(std::string(name));
    if (found == kernels_.end()) return std::nullopt;
    // A function may outlive its module: pipelines that commands still use belong to the kernel.
    return ffi::Function::FromPacked(
        [kernel = found->second](ffi::PackedArgs args, ffi::Any*) { call(*kernel, args); });
  }

 private:
  ffi::Bytes bytes_;
  ffi::String source_;
  std::unordered_map<std::string, std::shared_ptr<Kernel>> kernels_;
};

ffi::Module make(ffi::Bytes bytes, ffi::String source) {
  return ffi::Module(ffi::make_object<Module>(std::move(bytes), std::move(source)));
}

}  // namespace

void register_module() {
  ffi::reflection::GlobalDef()
      .def("ffi.Module.load_from_bytes.vulkan", [](const ffi::Bytes& bytes) { return make(bytes, ""); })
      .def("mlc_dsv3.vulkan.make_module", make);
}

}  // namespace mlc_vulkan
