// An Apple GPU on the CPU: TVM's device API and kernels' loader for Metal, in place of TVM's own, which is for macOS. A
// kernel's source is compiled as C++, over `../include/metal_stdlib`, when it is first asked for.
//
// As on a Mac what stands for memory is no address: nobody can compute with it. Memory ends at a page that nobody may
// touch and starts as NaNs.
#include <dlfcn.h>
#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/function.h>
#include <tvm/ffi/reflection/registry.h>
#include <tvm/runtime/device_api.h>

#include <fstream>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "../../emulation/fibres.h"

namespace {

namespace ffi = tvm::ffi;
using Metal = Fibres<BlockThread>;
// What `build.py` makes of a kernel.
using Code = void (*)(void* const* buffers, const void* values, const uint32_t* block, const uint32_t* thread);

constexpr size_t kMemory = size_t(8) << 30, kAligned = 16;
int64_t launches = 0;

struct Buffer {
  GuardedMemory memory;
  size_t size;
};

std::map<const void*, Buffer*>& buffers() {
  static std::map<const void*, Buffer*> all;
  return all;
}

Buffer& buffer_of(const void* handle) {
  auto found = buffers().find(handle);
  if (found == buffers().end()) fail("what is given for a buffer is none", handle);
  return *found->second;
}

uint8_t* place(const void* handle, size_t offset, size_t size) {
  Buffer& buffer = buffer_of(handle);
  if (offset > buffer.size || size > buffer.size - offset) fail("a copy goes past a buffer's end", handle);
  return buffer.memory.bytes + offset;
}

class Api final : public tvm::runtime::DeviceAPI {
 public:
  void SetDevice(tvm::Device) final {}
  void GetAttr(tvm::Device device, tvm::runtime::DeviceAttrKind kind, ffi::Any* value) final {
    if (kind == tvm::runtime::kExist) *value = device.device_id == 0;
    if (kind == tvm::runtime::kTotalGlobalMemory) *value = int64_t(kMemory);
  }
  void* AllocDataSpace(tvm::Device, size_t size, size_t, DLDataType) final {
    auto* buffer = new Buffer{GuardedMemory(size, kAligned), size};
    if (!buffer->memory.bytes) TVM_FFI_THROW(MemoryError) << "no " << size << " bytes are left";
    buffers()[buffer] = buffer;
    return buffer;
  }
  void FreeDataSpace(tvm::Device, void* handle) final {
    Buffer& buffer = buffer_of(handle);
    buffer.memory.release();
    buffers().erase(handle);
    delete &buffer;
  }
  void StreamSync(tvm::Device, TVMStreamHandle) final {}

 protected:
  void CopyDataFromTo(const void* from, size_t from_offset, void* to, size_t to_offset, size_t size,
                      tvm::Device from_device, tvm::Device to_device, DLDataType, TVMStreamHandle) final {
    auto* source = from_device.device_type == kDLMetal ? place(from, from_offset, size)
                                                       : static_cast<const uint8_t*>(from) + from_offset;
    auto* target = to_device.device_type == kDLMetal ? place(to, to_offset, size)
                                                     : static_cast<uint8_t*>(to) + to_offset;
    std::memcpy(target, source, size);
  }
};

// Reads a saved module: numbers of 64 bits, and texts with their lengths before them.
class Reader {
 public:
  explicit Reader(const ffi::Bytes& bytes) : at_(bytes.data()), end_(at_ + bytes.size()) {}

  uint64_t number() {
    uint64_t value;
    std::memcpy(&value, take(sizeof value), sizeof value);
    return value;
  }
  std::string text() {
    const uint64_t size = number();
    return std::string(take(size), size);
  }
  const char* take(size_t size) {
    if (size > size_t(end_ - at_)) fail("a module's bytes end too early");
    return std::exchange(at_, at_ + size);
  }

 private:
  const char* at_;
  const char* end_;
};

struct Kernel {
  std::string name, source;
  std::vector<DLDataType> arguments;
  std::vector<std::string> tags;  // of what comes behind the arguments: extents of the launch
  Code code = nullptr;
  std::vector<GuardedMemory> shared;

  void compile() {
    if (code) return;
    const char* command = std::getenv("EMULATED_METAL_COMPILER");
    if (!command) fail("EMULATED_METAL_COMPILER is not set");
    const std::string folder = std::string(std::getenv("EMULATED_METAL_FOLDER")) + "/kernel-XXXXXX";
    std::vector<char> path(folder.c_str(), folder.c_str() + folder.size() + 1);
    if (!mkdtemp(path.data())) fail("no folder for a kernel");
    const std::string file = path.data() + std::string("/kernel.metal");
    std::ofstream(file) << source;
    if (std::system((command + (" " + file) + " " + name).c_str()))
      TVM_FFI_THROW(RuntimeError) << "kernel " << name << " does not compile: " << file;
    void* library = dlopen((path.data() + std::string("/kernel.so")).c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!library) fail(dlerror());
    const auto* sizes = static_cast<const uint32_t*>(dlsym(library, "shared_sizes"));
    for (; *sizes; sizes++) shared.emplace_back(*sizes, kAligned);
    code = reinterpret_cast<Code>(dlsym(library, "run"));
    if (std::system(("rm -r " + std::string(path.data())).c_str())) fail("a folder does not go");
  }

  void launch(ffi::PackedArgs given) {
    compile();
    std::vector<void*> pointers;
    std::vector<uint64_t> values;
    for (size_t i = 0; i < arguments.size(); i++) {
      const auto [kind, bits, lanes] = arguments[i];
      uint64_t word = 0;
      if (kind == kDLOpaqueHandle) {
        void* handle = given[i].cast<void*>();
        pointers.push_back(handle ? buffer_of(handle).memory.bytes : nullptr);
        continue;
      } else if (kind == kDLFloat && bits == 32) {
        const auto value = static_cast<float>(given[i].cast<double>());
        std::memcpy(&word, &value, sizeof value);
      } else {
        word = static_cast<uint64_t>(given[i].cast<int64_t>());
      }
      values.push_back(word);
    }
    uint32_t grid[3] = {1, 1, 1}, size[3] = {1, 1, 1};
    for (size_t i = 0; i < tags.size(); i++) {
      const bool of_block = tags[i].starts_with("threadIdx.");
      if (!of_block && !tags[i].starts_with("blockIdx.")) fail(("a launch has " + tags[i]).c_str());
      (of_block ? size : grid)[tags[i].back() - 'x'] = given[arguments.size() + i].cast<int64_t>();
    }
    launches++;
    current = this;
    Metal::run(
        name, {grid[0], grid[1], grid[2]}, {size[0], size[1], size[2]},
        [&](BlockThread& thread) { code(pointers.data(), values.data(), thread.ctaid, thread.tid); },
        [&] {
          for (const auto& memory : shared) memory.fill();
        });
  }

  static inline Kernel* current = nullptr;
};

class Module : public ffi::ModuleObj {
 public:
  explicit Module(ffi::Bytes bytes) : bytes_(std::move(bytes)) {
    Reader reader(bytes_);
    if (reader.text() != "metal") fail("a module's code is not Metal's source");
    for (uint64_t left = reader.number(); left > 0; left--) {
      auto kernel = std::make_shared<Kernel>();
      reader.text();
      kernel->name = reader.text();
      for (uint64_t i = reader.number(); i > 0; i--) {
        DLDataType type;
        std::memcpy(&type, reader.take(sizeof type), sizeof type);
        kernel->arguments.push_back(type);
      }
      for (uint64_t i = reader.number(); i > 0; i--) kernel->tags.push_back(reader.text());
      for (uint64_t i = reader.number(); i > 0; i--) reader.take(sizeof(int32_t));
      kernels_[kernel->name] = kernel;
    }
    for (uint64_t left = reader.number(); left > 0; left--) {
      const std::string name = reader.text();
      kernels_.at(name)->source = reader.text();
    }
  }

  const char* kind() const final { return "metal"; }
  int GetPropertyMask() const final { return ffi::Module::kBinarySerializable | ffi::Module::kRunnable; }
  ffi::Bytes SaveToBytes() const final { return bytes_; }
  ffi::Optional<ffi::Function> GetFunction(const ffi::String& name) final {
    auto found = kernels_.find(std::string(name));
    if (found == kernels_.end()) return std::nullopt;
    return ffi::Function::FromPacked(
        [kernel = found->second](ffi::PackedArgs given, ffi::Any*) { kernel->launch(given); });
  }

 private:
  ffi::Bytes bytes_;
  std::unordered_map<std::string, std::shared_ptr<Kernel>> kernels_;
};

ffi::Module load(const ffi::Bytes& bytes) { return ffi::Module(ffi::make_object<Module>(bytes)); }

TVM_FFI_STATIC_INIT_BLOCK() {
  ffi::reflection::GlobalDef()
      .def_packed("device_api.metal",
                  [](ffi::PackedArgs, ffi::Any* value) {
                    static auto* api = new Api();
                    *value = static_cast<void*>(static_cast<tvm::runtime::DeviceAPI*>(api));
                  })
      .def("ffi.Module.load_from_bytes.metal", load)
      .def("emulated_metal.make", [](const ffi::Module& source) { return load(source->SaveToBytes()); })
      .def("emulated_metal.launches", [] { return launches; });
}

}  // namespace

// What kernels call.
#define EXPORTED extern "C" __attribute__((visibility("default")))

EXPORTED void emulated_meet_block() { Metal::current().meet_block(); }
EXPORTED void emulated_meet_warp() { Metal::current().meet_warp(); }
EXPORTED uint32_t emulated_lane() { return Metal::current().laneid(); }
EXPORTED const uint64_t* emulated_show(uint64_t a, uint64_t b) { return *Metal::current().show(a, b); }
EXPORTED void* emulated_shared(uint32_t number) { return Kernel::current->shared[number].bytes; }
