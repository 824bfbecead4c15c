// CUDA graphs of what TVM launches: recorded on a stream of our own, started on TVM's.
//
// A graph holds addresses, so what is allocated while it is recorded belongs to it: memory that is given back goes to the
// graph's own next allocation, never to anybody else, and to the device when the graph is gone and nobody holds any of
// it. TVM's runtime finds these two functions of memory before CUDA's own, as this library is in the process first.
#include <tvm/ffi/extra/c_env_api.h>
#include <tvm/ffi/function.h>
#include <tvm/ffi/reflection/registry.h>

#include <map>
#include <memory>
#include <mutex>
#include <unordered_map>

#include "runtime.h"

namespace {

using mlc_cuda::check;
using mlc_cuda::kRuntime;
using mlc_cuda::next;

constexpr int kDevice = 0;
// cudaStreamCaptureModeRelaxed: memory may be asked for.
constexpr int kRelaxed = 2;

int allocate(void** memory, size_t size) {
  static auto* function = next<int(void**, size_t)>("cudaMalloc", kRuntime);
  return function(memory, size);
}

int release(void* memory) {
  static auto* function = next<int(void*)>("cudaFree", kRuntime);
  return function(memory);
}

class Graph {
 public:
  ~Graph() {
    static auto* destroy = next<int(void*)>("cudaGraphExecDestroy", kRuntime);
    if (ready) destroy(ready);
    for (const auto& [memory, size] : sizes_) release(memory);
  }

  int take(void** memory, size_t size) {
    auto found = unused_.lower_bound(size);
    if (found != unused_.end() && found->first <= 2 * size) {
      *memory = found->second;
      unused_.erase(found);
    } else {
      if (int error = allocate(memory, size)) return error;
      sizes_[*memory] = size;
    }
    held_++;
    return 0;
  }

  void give_back(void* memory) {
    unused_.emplace(sizes_[memory], memory);
    held_--;
  }

  bool held() const { return held_ > 0; }
  const std::unordered_map<void*, size_t>& sizes() const { return sizes_; }

  void* ready = nullptr;
  bool destroyed = false;
  int64_t kernels = 0;

 private:
  std::unordered_map<void*, size_t> sizes_;
  std::multimap<size_t, void*> unused_;
  int64_t held_ = 0;
};

std::mutex mutex;
std::unordered_map<void*, Graph*> owners;  // of graphs' memory
Graph* recording = nullptr;
std::atomic<int64_t> frees{0};
void* stream = nullptr;
TVMFFIStreamHandle before = nullptr;

// With the mutex held.
void delete_unless_held(Graph* graph) {
  if (!graph->destroyed || graph->held()) return;
  for (const auto& [memory, size] : graph->sizes()) owners.erase(memory);
  delete graph;
}

void begin() {
  static auto* create = next<int(void**)>("cudaStreamCreate", kRuntime);
  static auto* capture = next<int(void*, int)>("cudaStreamBeginCapture", kRuntime);
  if (!stream) check(create(&stream), "cudaStreamCreate");
  check(capture(stream, kRelaxed), "cudaStreamBeginCapture");
  recording = new Graph;
  recording->kernels = -mlc_cuda::kernel_launches;
  TVM_FFI_CHECK_SAFE_CALL(TVMFFIEnvSetStream(kDLCUDA, kDevice, stream, &before));
}

void destroy(int64_t handle) {
  auto* graph = reinterpret_cast<Graph*>(handle);
  std::lock_guard<std::mutex> lock(mutex);
  graph->destroyed = true;
  delete_unless_held(graph);
}

// The graph of what was launched since `begin`, ready to start; 0 where it is not to be kept.
int64_t end(bool keep) {
  static auto* end_capture = next<int(void*, void**)>("cudaStreamEndCapture", kRuntime);
  static auto* instantiate = next<int(void**, void*, unsigned long long)>("cudaGraphInstantiate", kRuntime);
  static auto* destroy_recorded = next<int(void*)>("cudaGraphDestroy", kRuntime);
  TVM_FFI_CHECK_SAFE_CALL(TVMFFIEnvSetStream(kDLCUDA, kDevice, before, nullptr));
  Graph* graph = recording;
  recording = nullptr;
  graph->kernels += mlc_cuda::kernel_launches;
  mlc_cuda::kernel_launches -= graph->kernels;
  void* recorded = nullptr;
  int error = end_capture(stream, &recorded);
  if (!error && keep) error = instantiate(&graph->ready, recorded, 0);
  if (recorded) destroy_recorded(recorded);
  if (keep && !error) return reinterpret_cast<int64_t>(graph);
  destroy(reinterpret_cast<int64_t>(graph));
  if (keep) check(error, "recording a CUDA graph");
  return 0;
}

void launch(int64_t handle) {
  static auto* start = next<int(void*, void*)>("cudaGraphLaunch", kRuntime);
  mlc_cuda::graph_launches++;
  auto* graph = reinterpret_cast<Graph*>(handle);
  check(start(graph->ready, TVMFFIEnvGetStream(kDLCUDA, kDevice)), "cudaGraphLaunch");
}

TVM_FFI_STATIC_INIT_BLOCK() {
  tvm::ffi::reflection::GlobalDef()
      .def("mlc_dsv3.cuda.begin_graph", begin)
      .def("mlc_dsv3.cuda.end_graph", end)
      .def("mlc_dsv3.cuda.launch_graph", launch)
      .def("mlc_dsv3.cuda.destroy_graph", destroy)
      .def("mlc_dsv3.cuda.graph_kernels", [](int64_t graph) { return reinterpret_cast<Graph*>(graph)->kernels; })
      .def("mlc_dsv3.cuda.frees", [] { return frees.load(); });
}

}  // namespace

MLC_EXPORTED int cudaMalloc(void** memory, size_t size) {
  if (!recording) return allocate(memory, size);
  std::lock_guard<std::mutex> lock(mutex);
  int error = recording->take(memory, size);
  if (!error) owners[*memory] = recording;
  return error;
}

MLC_EXPORTED int cudaFree(void* memory) {
  {
    std::lock_guard<std::mutex> lock(mutex);
    if (auto found = owners.find(memory); found != owners.end()) {
      found->second->give_back(memory);
      delete_unless_held(found->second);
      return 0;
    }
  }
  frees++;
  return release(memory);
}
