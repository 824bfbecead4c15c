// Counts what reaches the GPU: TVM's CUDA runtime finds these two functions before the driver's and the CUDA runtime's
// own, as this library is in the process first.
#include <dlfcn.h>
#include <tvm/ffi/function.h>
#include <tvm/ffi/reflection/registry.h>

#include <atomic>
#include <cstdint>

namespace {

std::atomic<int64_t> kernels{0}, graphs{0};

template <typename Function>
Function* next(const char* name, const char* library) {
  void* found = dlsym(RTLD_NEXT, name);
  if (!found) found = dlsym(dlopen(library, RTLD_LAZY), name);
  return reinterpret_cast<Function*>(found);
}

TVM_FFI_STATIC_INIT_BLOCK() {
  tvm::ffi::reflection::GlobalDef()
      .def("mlc_dsv3.cuda.kernel_launches", [] { return kernels.load(); })
      .def("mlc_dsv3.cuda.graph_launches", [] { return graphs.load(); });
}

}  // namespace

// The types are opaque here: CUDA's headers are not needed to build.
extern "C" __attribute__((visibility("default"))) int cuLaunchKernelEx(const void* config, void* function,
                                                                       void** parameters, void** extra) {
  static auto* launch = next<int(const void*, void*, void**, void**)>("cuLaunchKernelEx", "libcuda.so.1");
  kernels++;
  return launch(config, function, parameters, extra);
}

extern "C" __attribute__((visibility("default"))) int cudaGraphLaunch(void* graph, void* stream) {
  static auto* launch = next<int(void*, void*)>("cudaGraphLaunch", "libcudart.so.13");
  graphs++;
  return launch(graph, stream);
}
