// CUDA graphs of what a thread launches: recorded on a stream of the recording's own, started on TVM's.
//
// A graph holds addresses, so what its thread allocates while it is recorded belongs to it: memory that is given back goes
// to the graph's own next allocation, never to anybody else, and to the device when the graph is gone and nobody holds any
// of it. TVM's runtime finds these two functions of memory before CUDA's own, as this library is in the process first.
#include <tvm/ffi/extra/c_env_api.h>
#include <tvm/ffi/function.h>
#include <tvm/ffi/reflection/registry.h>

#include <map>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <utility>

#include "runtime.h"

namespace {

using mlc_cuda::check;
using mlc_cuda::kRuntime;
using mlc_cuda::next;

constexpr int kDevice = 0;
// cudaStreamCaptureModeRelaxed: memory may be asked for. cudaStreamNonBlocking: other threads may use the default stream.
constexpr int kRelaxed = 2;
constexpr unsigned kNonBlocking = 1;

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
thread_local int64_t frees = 0;            // of this thread, to the device

// With the mutex held.
void delete_unless_held(Graph* graph) {
  if (!graph->destroyed || graph->held()) return;
  for (const auto& [memory, size] : graph->sizes()) owners.erase(memory);
  delete graph;
}

void destroy(int64_t handle) {
  auto* graph = reinterpret_cast<Graph*>(handle);
  std::lock_guard<std::mutex> lock(mutex);
  graph->destroyed = true;
  delete_unless_held(graph);
}

// What a thread launches from `start` to `finish`. Wherever it ends, the thread is as it was before.
class Recording {
 public:
  ~Recording() {
    static auto* destroy_stream = next<int(void*)>("cudaStreamDestroy", kRuntime);
    if (captures_) end_capture();
    if (entered_) TVMFFIEnvSetStream(kDLCUDA, kDevice, before_, nullptr);
    if (stream_) destroy_stream(stream_);
    if (graph_) destroy(reinterpret_cast<int64_t>(graph_));
  }

  void start() {
    static auto* create = next<int(void**, unsigned)>("cudaStreamCreateWithFlags", kRuntime);
    static auto* capture = next<int(void*, int)>("cudaStreamBeginCapture", kRuntime);
    graph_ = new Graph;
    check(create(&stream_, kNonBlocking), "cudaStreamCreateWithFlags");
    TVM_FFI_CHECK_SAFE_CALL(TVMFFIEnvSetStream(kDLCUDA, kDevice, stream_, &before_));
    entered_ = true;
    check(capture(stream_, kRelaxed), "cudaStreamBeginCapture");
    captures_ = true;
  }

  // The graph, ready to be launched.
  Graph* finish() {
    static auto* instantiate = next<int(void**, void*, unsigned long long)>("cudaGraphInstantiate", kRuntime);
    static auto* destroy_recorded = next<int(void*)>("cudaGraphDestroy", kRuntime);
    void* recorded = nullptr;
    int error = end_capture(&recorded);
    if (!error) error = instantiate(&graph_->ready, recorded, 0);
    if (recorded) destroy_recorded(recorded);
    check(error, "recording a CUDA graph");
    return std::exchange(graph_, nullptr);
  }

  Graph* graph() { return graph_; }

 private:
  int end_capture(void** recorded) {
    static auto* end = next<int(void*, void**)>("cudaStreamEndCapture", kRuntime);
    captures_ = false;
    return end(stream_, recorded);
  }

  void end_capture() {
    static auto* destroy_recorded = next<int(void*)>("cudaGraphDestroy", kRuntime);
    void* recorded = nullptr;
    end_capture(&recorded);
    if (recorded) destroy_recorded(recorded);
  }

  Graph* graph_ = nullptr;
  void* stream_ = nullptr;
  TVMFFIStreamHandle before_ = nullptr;
  bool entered_ = false, captures_ = false;
};

thread_local std::unique_ptr<Recording> recording;

void begin() {
  if (recording) TVM_FFI_THROW(RuntimeError) << "this thread is recording a CUDA graph already";
  auto made = std::make_unique<Recording>();
  made->start();
  mlc_cuda::recorded_launches = &made->graph()->kernels;
  recording = std::move(made);
}

// The graph of what this thread launched since `begin`, ready to start; 0 where it is not to be kept.
int64_t end(bool keep) {
  if (!recording) TVM_FFI_THROW(RuntimeError) << "this thread is recording no CUDA graph";
  mlc_cuda::recorded_launches = nullptr;
  auto ended = std::move(recording);
  return keep ? reinterpret_cast<int64_t>(ended->finish()) : 0;
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
      .def("mlc_dsv3.cuda.frees", [] { return frees; });
}

}  // namespace

MLC_EXPORTED int cudaMalloc(void** memory, size_t size) {
  if (!recording) return allocate(memory, size);
  std::lock_guard<std::mutex> lock(mutex);
  int error = recording->graph()->take(memory, size);
  if (!error) owners[*memory] = recording->graph();
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
