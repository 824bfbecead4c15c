// Counts what reaches the GPU: TVM's CUDA runtime finds these functions before the driver's and the CUDA runtime's own,
// as this library is in the process first.
#include <tvm/ffi/function.h>
#include <tvm/ffi/reflection/registry.h>

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "runtime.h"

namespace {

std::atomic<int64_t> kernels{0}, graphs{0}, allocations{0}, frees{0};

TVM_FFI_STATIC_INIT_BLOCK() {
  tvm::ffi::reflection::GlobalDef()
      .def("mlc_dsv3.cuda.kernel_launches", [] { return kernels.load(); })
      .def("mlc_dsv3.cuda.graph_launches", [] { return graphs.load(); })
      .def("mlc_dsv3.cuda.allocations", [] { return allocations.load(); })
      .def("mlc_dsv3.cuda.frees", [] { return frees.load(); });
}

}  // namespace

#define EXPORTED extern "C" __attribute__((visibility("default")))

// The types are opaque here.
EXPORTED int cuLaunchKernelEx(const void* config, void* function, void** parameters, void** extra) {
  static auto* launch = mlc_cuda::next<decltype(cuLaunchKernelEx)>("cuLaunchKernelEx", "libcuda.so.1");
  kernels++;
  return launch(config, function, parameters, extra);
}

EXPORTED int cudaGraphLaunch(void* graph, void* stream) {
  static auto* launch = mlc_cuda::next<decltype(cudaGraphLaunch)>("cudaGraphLaunch", mlc_cuda::kRuntime);
  graphs++;
  return launch(graph, stream);
}

EXPORTED int cudaMalloc(void** memory, size_t size) {
  static auto* allocate = mlc_cuda::next<decltype(cudaMalloc)>("cudaMalloc", mlc_cuda::kRuntime);
  allocations++;
  return allocate(memory, size);
}

EXPORTED int cudaFree(void* memory) {
  static auto* free = mlc_cuda::next<decltype(cudaFree)>("cudaFree", mlc_cuda::kRuntime);
  frees++;
  return free(memory);
}
