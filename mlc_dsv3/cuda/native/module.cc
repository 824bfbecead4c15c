// A module of CUDA kernels in machine code, as TVM's CUDA runtime loads it: its format's name, what it knows of the
// functions, and the code. TVM's code generator leaves CUDA C++ in the code's place.
#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/function.h>
#include <tvm/ffi/reflection/registry.h>

#include <cstdint>
#include <cstring>
#include <string>
#include <utility>

namespace {

namespace ffi = tvm::ffi;

constexpr char kSourceFormat[] = "cuda";
constexpr char kCodeFormat[] = "fatbin";

void append(std::string& bytes, const char* data, size_t size) {
  uint64_t count = size;
  bytes.append(reinterpret_cast<const char*>(&count), sizeof count);
  bytes.append(data, size);
}

// Takes a length and so many bytes off the front of `rest`.
std::string take(std::string& rest) {
  uint64_t count = 0;
  if (rest.size() < sizeof count) TVM_FFI_THROW(ValueError) << "a CUDA module's bytes end too early";
  std::memcpy(&count, rest.data(), sizeof count);
  if (rest.size() - sizeof count < count) TVM_FFI_THROW(ValueError) << "a CUDA module's bytes end too early";
  std::string taken = rest.substr(sizeof count, count);
  rest.erase(0, sizeof count + count);
  return taken;
}

// The bytes of a module of source, with machine code in the source's place.
ffi::Bytes with_machine_code(const ffi::Module& module, const ffi::Bytes& code) {
  std::string functions(module->SaveToBytes());
  if (std::string format = take(functions); format != kSourceFormat)
    TVM_FFI_THROW(ValueError) << "a CUDA module's code is of format " << format << ", not " << kSourceFormat;
  size_t source = std::string(module->InspectSource(kSourceFormat)).size() + sizeof(uint64_t);
  if (functions.size() < source) TVM_FFI_THROW(ValueError) << "a CUDA module's bytes end too early";
  functions.resize(functions.size() - source);
  std::string bytes;
  append(bytes, kCodeFormat, std::strlen(kCodeFormat));
  bytes += functions;
  append(bytes, code.data(), code.size());
  return ffi::Bytes(std::move(bytes));
}

// On a machine without a CUDA driver: kept, saved and looked at, but not run.
class MachineCode : public ffi::ModuleObj {
 public:
  MachineCode(ffi::Bytes bytes, ffi::String source) : bytes_(std::move(bytes)), source_(std::move(source)) {}

  const char* kind() const final { return "cuda"; }
  int GetPropertyMask() const final { return ffi::Module::kBinarySerializable; }
  ffi::Bytes SaveToBytes() const final { return bytes_; }
  ffi::String InspectSource(const ffi::String&) const final { return source_; }
  ffi::Optional<ffi::Function> GetFunction(const ffi::String&) final { return std::nullopt; }

 private:
  ffi::Bytes bytes_;
  ffi::String source_;
};

TVM_FFI_STATIC_INIT_BLOCK() {
  ffi::reflection::GlobalDef()
      .def("mlc_dsv3.cuda.with_machine_code", with_machine_code)
      .def("mlc_dsv3.cuda.make_module", [](ffi::Bytes bytes, ffi::String source) {
        return ffi::Module(ffi::make_object<MachineCode>(std::move(bytes), std::move(source)));
      });
}

}  // namespace
