// Counts what is started on the GPU: TVM's CUDA runtime finds this function before the driver's own, as this library is
// in the process first.
#include <tvm/ffi/function.h>
#include <tvm/ffi/reflection/registry.h>

#include "runtime.h"

namespace mlc_cuda {

std::atomic<int64_t> kernel_launches{0}, graph_launches{0};
thread_local int64_t* recorded_launches = nullptr;

TVM_FFI_STATIC_INIT_BLOCK() {
  tvm::ffi::reflection::GlobalDef()
      .def("mlc_dsv3.cuda.kernel_launches", [] { return kernel_launches.load(); })
      .def("mlc_dsv3.cuda.graph_launches", [] { return graph_launches.load(); });
}

}  // namespace mlc_cuda

MLC_EXPORTED int cuLaunchKernelEx(const void* config, void* function, void** parameters, void** extra) {
  using namespace mlc_cuda;
  static auto* launch = next<decltype(cuLaunchKernelEx)>("cuLaunchKernelEx", kDriver);
  if (recorded_launches)
    ++*recorded_launches;
  else
    kernel_launches++;
  return launch(config, function, parameters, extra);
}
