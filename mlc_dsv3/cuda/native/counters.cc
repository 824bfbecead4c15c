// Counts what reaches the GPU: TVM's CUDA runtime finds this function before the driver's own, as this library is in the
// process first.
#include <dlfcn.h>
#include <tvm/ffi/error.h>
#include <tvm/ffi/function.h>
#include <tvm/ffi/reflection/registry.h>

#include <atomic>
#include <cstdint>

namespace {

std::atomic<int64_t> kernels{0};

TVM_FFI_STATIC_INIT_BLOCK() {
  tvm::ffi::reflection::GlobalDef().def("mlc_dsv3.cuda.kernel_launches", [] { return kernels.load(); });
}

}  // namespace

// The types are opaque here.
extern "C" __attribute__((visibility("default"))) int cuLaunchKernelEx(const void* config, void* function,
                                                                       void** parameters, void** extra) {
  static auto* launch = reinterpret_cast<decltype(&cuLaunchKernelEx)>(dlsym(RTLD_NEXT, "cuLaunchKernelEx"));
  if (!launch) {
    // The driver is not among the libraries that came with the process, but was opened by it.
    void* driver = dlopen("libcuda.so.1", RTLD_LAZY);
    if (driver) launch = reinterpret_cast<decltype(&cuLaunchKernelEx)>(dlsym(driver, "cuLaunchKernelEx"));
    if (!launch) TVM_FFI_THROW(RuntimeError) << "libcuda.so.1 has no cuLaunchKernelEx";
  }
  kernels++;
  return launch(config, function, parameters, extra);
}
