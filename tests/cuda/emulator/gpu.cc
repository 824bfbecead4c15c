// An NVIDIA GPU of compute capability 8.0 on the CPU: the functions of libcuda.so.1 and libcudart.so.13 that TVM's runtime
// and ours call. A module's PTX is translated and compiled, each kernel when it is first asked for.
//
// It is strict where a GPU is not: memory ends at a page that nobody may touch and starts as NaNs, and what is forbidden
// while a stream is captured fails as on a GPU.
#include <cuda.h>
#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "kernel.h"

using Code = void (*)(Thread&, const uint8_t*);
using Work = std::function<void()>;

struct CUfunc_st {
  std::string name;
  Code code = nullptr;
  std::vector<size_t> parameters;
  uint32_t shared_bytes = 0;
};

struct CUmod_st {
  std::string folder;
  std::map<std::string, CUfunc_st> functions;
};

struct CUgraph_st {
  std::vector<Work> work;
};

struct CUgraphExec_st {
  std::vector<Work> work;
};

struct CUstream_st {
  bool blocking = true;
  bool captures = false;
  cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;
  std::vector<Work> work;
};

struct CUevent_st {
  std::chrono::steady_clock::time_point time;
};

namespace {

constexpr size_t kMemory = size_t(8) << 30;
constexpr uint32_t kShared = 48 << 10, kAligned = 256;

cudaError_t last = cudaSuccess;
std::set<CUstream_st*> capturing;
std::map<void*, GuardedMemory> allocations;
size_t taken = 0;

cudaError_t result(cudaError_t error) {
  if (error != cudaSuccess) last = error;
  return error;
}

// What nobody may do while a stream is captured, but in relaxed mode.
bool forbidden() {
  return std::any_of(capturing.begin(), capturing.end(),
                     [](const CUstream_st* each) { return each->mode != cudaStreamCaptureModeRelaxed; });
}

// The default stream and one that blocks wait for each other, so that a capture of the latter would depend on the former.
bool implicit(cudaStream_t stream) {
  return !stream && std::any_of(capturing.begin(), capturing.end(), [](const CUstream_st* each) { return each->blocking; });
}

// Tests have the function of this name fail.
bool fails(const char* function) {
  const char* name = std::getenv("EMULATED_GPU_FAILS");
  return name && std::strcmp(name, function) == 0;
}

void run_kernel(const CUfunc_st& function, const std::vector<uint8_t>& parameters, dim3 grid, dim3 size,
                uint32_t dynamic) {
  static const GuardedMemory memory(kShared, kAligned);
  const uint32_t bytes = (function.shared_bytes + dynamic + kAligned - 1) / kAligned * kAligned;
  uint8_t* shared = memory.bytes + kShared - bytes;
  auto code = [&](Thread& thread) {
    thread.shared_memory = shared;
    function.code(thread, parameters.data());
  };
  Fibres<Thread>::run(function.name, {grid.x, grid.y, grid.z}, {size.x, size.y, size.z}, code,
                      [&] { std::memset(shared, 0xff, bytes); });
}

const char* setting(const char* name) {
  const char* value = std::getenv(name);
  if (!value) fail((std::string(name) + " is not set").c_str());
  return value;
}

// Calls the translator, which leaves what it makes in `folder`.
bool translate(const std::string& folder, const std::string& kernel) {
  const std::string command = setting("EMULATED_GPU_TRANSLATOR");
  return std::system((command + " " + folder + " " + kernel).c_str()) == 0;
}

}  // namespace

#define EXPORTED extern "C" __attribute__((visibility("default")))

// Driver

EXPORTED CUresult cuModuleLoadData(CUmodule* module, const void* image) {
  // A fatbin's head: magic number, version, its own size, and the size of what follows.
  uint64_t size;
  std::memcpy(&size, static_cast<const char*>(image) + 8, sizeof size);
  std::string folder = setting("EMULATED_GPU_FOLDER") + std::string("/module-XXXXXX");
  if (!mkdtemp(folder.data())) return CUDA_ERROR_OPERATING_SYSTEM;
  std::ofstream(folder + "/image.fatbin", std::ios::binary)
      .write(static_cast<const char*>(image), 16 + size);
  if (!translate(folder, "")) return CUDA_ERROR_INVALID_IMAGE;
  auto* made = new CUmod_st{folder, {}};
  std::ifstream list(folder + "/kernels.txt");
  CUfunc_st function;
  size_t count = 0;
  while (list >> function.name >> function.shared_bytes >> count) {
    function.parameters.resize(count);
    for (auto& bytes : function.parameters) list >> bytes;
    made->functions[function.name] = function;
  }
  *module = made;
  return CUDA_SUCCESS;
}

EXPORTED CUresult cuModuleUnload(CUmodule module) {
  if (std::system(("rm -r " + module->folder).c_str())) return CUDA_ERROR_OPERATING_SYSTEM;
  delete module;
  return CUDA_SUCCESS;
}

EXPORTED CUresult cuModuleGetFunction(CUfunction* function, CUmodule module, const char* name) {
  auto found = module->functions.find(name);
  if (found == module->functions.end()) return CUDA_ERROR_NOT_FOUND;
  CUfunc_st& kernel = found->second;
  if (!kernel.code) {
    if (!translate(module->folder, name)) return CUDA_ERROR_INVALID_PTX;
    void* library = dlopen((module->folder + "/" + name + ".so").c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!library) fail(dlerror());
    kernel.code = reinterpret_cast<Code>(dlsym(library, name));
  }
  *function = &kernel;
  return CUDA_SUCCESS;
}

EXPORTED CUresult cuFuncSetAttribute(CUfunction, CUfunction_attribute, int) { return CUDA_SUCCESS; }

EXPORTED CUresult cuLaunchKernelEx(const CUlaunchConfig* config, CUfunction function, void** parameters, void** extra) {
  const dim3 grid{config->gridDimX, config->gridDimY, config->gridDimZ};
  const dim3 block{config->blockDimX, config->blockDimY, config->blockDimZ};
  const size_t threads = size_t(block.x) * block.y * block.z;
  if (extra || config->numAttrs) return CUDA_ERROR_NOT_SUPPORTED;
  if (threads == 0 || threads > kMostThreads || grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.y > 65535 ||
      grid.z > 65535 || function->shared_bytes + config->sharedMemBytes > kShared)
    return CUDA_ERROR_INVALID_VALUE;
  std::vector<uint8_t> values;
  for (size_t i = 0; i < function->parameters.size(); i++) {
    const size_t size = function->parameters[i], align = std::min<size_t>(size, 8);
    values.resize((values.size() + align - 1) / align * align);
    const auto* from = static_cast<const uint8_t*>(parameters[i]);
    values.insert(values.end(), from, from + size);
  }
  const uint32_t dynamic = config->sharedMemBytes;
  Work work = [=] { run_kernel(*function, values, grid, block, dynamic); };
  CUstream_st* stream = config->hStream;
  if (stream && stream->captures) {
    stream->work.push_back(work);
  } else {
    if (implicit(stream)) return CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
    work();
  }
  return CUDA_SUCCESS;
}

EXPORTED CUresult cuDeviceGetName(char* name, int size, CUdevice) {
  std::snprintf(name, size, "emulated GPU");
  return CUDA_SUCCESS;
}

EXPORTED CUresult cuGetErrorName(CUresult error, const char** text) {
  static std::map<CUresult, std::string> names;
  *text = (names[error] = "CUDA error " + std::to_string(error)).c_str();
  return CUDA_SUCCESS;
}

EXPORTED CUresult cuGetErrorString(CUresult error, const char** text) { return cuGetErrorName(error, text); }

EXPORTED CUresult cuTensorMapEncodeTiled(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*,
                                         const cuuint64_t*, const cuuint32_t*, const cuuint32_t*,
                                         CUtensorMapInterleave, CUtensorMapSwizzle, CUtensorMapL2promotion,
                                         CUtensorMapFloatOOBfill) {
  return CUDA_ERROR_NOT_SUPPORTED;
}

// Runtime: devices

EXPORTED cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}

EXPORTED cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

EXPORTED cudaError_t cudaSetDevice(int device) { return result(device == 0 ? cudaSuccess : cudaErrorInvalidDevice); }

EXPORTED cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  if (device != 0) return result(cudaErrorInvalidDevice);
  static const std::map<cudaDeviceAttr, int> values{
      {cudaDevAttrMaxThreadsPerBlock, kMostThreads}, {cudaDevAttrWarpSize, kWarp},
      {cudaDevAttrMaxSharedMemoryPerBlock, kShared}, {cudaDevAttrComputeCapabilityMajor, 8},
      {cudaDevAttrComputeCapabilityMinor, 0},        {cudaDevAttrMultiProcessorCount, 4},
      {cudaDevAttrMaxBlockDimX, kMostThreads},       {cudaDevAttrMaxBlockDimY, kMostThreads},
      {cudaDevAttrMaxBlockDimZ, 64},                 {cudaDevAttrClockRate, 1000000},
      {cudaDevAttrMaxRegistersPerBlock, 65536},      {cudaDevAttrL2CacheSize, 1 << 20},
  };
  auto found = values.find(attribute);
  *value = found == values.end() ? 0 : found->second;
  return cudaSuccess;
}

EXPORTED cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  std::memset(properties, 0, sizeof *properties);
  std::snprintf(properties->name, sizeof properties->name, "emulated GPU");
  properties->totalGlobalMem = kMemory;
  return cudaSuccess;
}

EXPORTED const char* cudaGetErrorName(cudaError_t error) {
  const char* text;
  cuGetErrorName(CUresult(error), &text);
  return text;
}

EXPORTED const char* cudaGetErrorString(cudaError_t error) { return cudaGetErrorName(error); }

EXPORTED cudaError_t cudaGetLastError() { return std::exchange(last, cudaSuccess); }

EXPORTED cudaError_t cudaPeekAtLastError() { return last; }

// Runtime: memory

EXPORTED cudaError_t cudaMalloc(void** memory, size_t size) {
  if (forbidden()) return result(cudaErrorStreamCaptureUnsupported);
  if (size > kMemory - taken) return result(cudaErrorMemoryAllocation);
  const GuardedMemory made(size, kAligned);
  if (!made.bytes) return result(cudaErrorMemoryAllocation);
  *memory = made.bytes;
  allocations.emplace(*memory, made);
  taken += made.mapped;
  return cudaSuccess;
}

EXPORTED cudaError_t cudaFree(void* memory) {
  if (!memory) return cudaSuccess;
  if (forbidden()) return result(cudaErrorStreamCaptureUnsupported);
  auto found = allocations.find(memory);
  if (found == allocations.end()) return result(cudaErrorInvalidValue);
  found->second.release();
  taken -= found->second.mapped;
  allocations.erase(found);
  return cudaSuccess;
}

EXPORTED cudaError_t cudaMallocHost(void** memory, size_t size) {
  return result((*memory = std::aligned_alloc(kAligned, (size + kAligned - 1) / kAligned * kAligned))
                    ? cudaSuccess
                    : cudaErrorMemoryAllocation);
}

EXPORTED cudaError_t cudaFreeHost(void* memory) {
  std::free(memory);
  return cudaSuccess;
}

EXPORTED cudaError_t cudaMemGetInfo(size_t* left, size_t* total) {
  *left = kMemory - taken;
  *total = kMemory;
  return cudaSuccess;
}

EXPORTED cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t size, cudaMemcpyKind kind,
                                     cudaStream_t stream) {
  Work work = [=] { std::memcpy(to, from, size); };
  if (stream && stream->captures) {
    // The host's memory is pageable.
    if (kind != cudaMemcpyDeviceToDevice) return result(cudaErrorStreamCaptureUnsupported);
    stream->work.push_back(work);
  } else {
    if (implicit(stream)) return result(cudaErrorStreamCaptureImplicit);
    work();
  }
  return cudaSuccess;
}

EXPORTED cudaError_t cudaMemcpyPeerAsync(void*, int, const void*, int, size_t, cudaStream_t) {
  return result(cudaErrorNotSupported);
}

// Runtime: streams, events and graphs

EXPORTED cudaError_t cudaStreamCreate(cudaStream_t* stream) {
  *stream = new CUstream_st;
  return cudaSuccess;
}

EXPORTED cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  *stream = new CUstream_st;
  (*stream)->blocking = flags != cudaStreamNonBlocking;
  return cudaSuccess;
}

EXPORTED cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  capturing.erase(stream);
  delete stream;
  return cudaSuccess;
}

EXPORTED cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  if ((stream && stream->captures) || forbidden()) return result(cudaErrorStreamCaptureUnsupported);
  return result(implicit(stream) ? cudaErrorStreamCaptureImplicit : cudaSuccess);
}

EXPORTED cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned) { return cudaSuccess; }

EXPORTED cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
  if (!stream || fails("cudaStreamBeginCapture")) return result(cudaErrorStreamCaptureUnsupported);
  if (stream->captures) return result(cudaErrorIllegalState);
  stream->captures = true;
  stream->mode = mode;
  stream->work.clear();
  capturing.insert(stream);
  return cudaSuccess;
}

EXPORTED cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  if (!stream->captures) return result(cudaErrorIllegalState);
  stream->captures = false;
  capturing.erase(stream);
  *graph = new CUgraph_st{std::move(stream->work)};
  return cudaSuccess;
}

EXPORTED cudaError_t cudaGraphInstantiate(cudaGraphExec_t* ready, cudaGraph_t graph, unsigned long long) {
  if (fails("cudaGraphInstantiate")) return result(cudaErrorMemoryAllocation);
  *ready = new CUgraphExec_st{graph->work};
  return cudaSuccess;
}

EXPORTED cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t) {
  for (const Work& work : graph->work) work();
  return cudaSuccess;
}

EXPORTED cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}

EXPORTED cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph) {
  delete graph;
  return cudaSuccess;
}

EXPORTED cudaError_t cudaEventCreate(cudaEvent_t* event) {
  *event = new CUevent_st;
  return cudaSuccess;
}

EXPORTED cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}

EXPORTED cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t) {
  event->time = std::chrono::steady_clock::now();
  return cudaSuccess;
}

EXPORTED cudaError_t cudaEventSynchronize(cudaEvent_t) { return cudaSuccess; }

EXPORTED cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t from, cudaEvent_t to) {
  *milliseconds = std::chrono::duration<float, std::milli>(to->time - from->time).count();
  return cudaSuccess;
}
