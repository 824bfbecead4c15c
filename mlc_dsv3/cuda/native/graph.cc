// CUDA graphs of what TVM launches: recorded on a stream of our own, started on TVM's.
#include <tvm/ffi/extra/c_env_api.h>
#include <tvm/ffi/function.h>
#include <tvm/ffi/reflection/registry.h>

#include <cstdint>

#include "runtime.h"

extern "C" int cudaGraphLaunch(void* graph, void* stream);

namespace {

using mlc_cuda::check;
using mlc_cuda::kRuntime;
using mlc_cuda::next;

constexpr int kDevice = 0;
constexpr int kThreadLocalCapture = 1;  // cudaStreamCaptureModeThreadLocal

void* stream = nullptr;
TVMFFIStreamHandle before = nullptr;

void begin() {
  static auto* create = next<int(void**)>("cudaStreamCreate", kRuntime);
  static auto* capture = next<int(void*, int)>("cudaStreamBeginCapture", kRuntime);
  if (!stream) check(create(&stream), "cudaStreamCreate");
  check(capture(stream, kThreadLocalCapture), "cudaStreamBeginCapture");
  TVM_FFI_CHECK_SAFE_CALL(TVMFFIEnvSetStream(kDLCUDA, kDevice, stream, &before));
}

// The graph of what was launched since `begin`, ready to start; 0 where `keep` is false or nothing was recorded.
int64_t end(bool keep) {
  static auto* end_capture = next<int(void*, void**)>("cudaStreamEndCapture", kRuntime);
  static auto* instantiate = next<int(void**, void*, unsigned long long)>("cudaGraphInstantiate", kRuntime);
  static auto* destroy = next<int(void*)>("cudaGraphDestroy", kRuntime);
  TVM_FFI_CHECK_SAFE_CALL(TVMFFIEnvSetStream(kDLCUDA, kDevice, before, nullptr));
  void *graph = nullptr, *ready = nullptr;
  int ended = end_capture(stream, &graph);
  if (keep) {
    check(ended, "cudaStreamEndCapture");
    check(instantiate(&ready, graph, 0), "cudaGraphInstantiate");
  }
  if (graph) destroy(graph);
  return reinterpret_cast<int64_t>(ready);
}

void launch(int64_t graph) {
  check(cudaGraphLaunch(reinterpret_cast<void*>(graph), TVMFFIEnvGetStream(kDLCUDA, kDevice)), "cudaGraphLaunch");
}

void destroy(int64_t graph) {
  static auto* destroy = next<int(void*)>("cudaGraphExecDestroy", kRuntime);
  destroy(reinterpret_cast<void*>(graph));
}

TVM_FFI_STATIC_INIT_BLOCK() {
  tvm::ffi::reflection::GlobalDef()
      .def("mlc_dsv3.cuda.begin_graph", begin)
      .def("mlc_dsv3.cuda.end_graph", end)
      .def("mlc_dsv3.cuda.launch_graph", launch)
      .def("mlc_dsv3.cuda.destroy_graph", destroy);
}

}  // namespace
