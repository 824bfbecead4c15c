// What is called of NVIDIA's libraries, found in the process: no headers of theirs to build with, so types are opaque here.
#pragma once

#include <dlfcn.h>
#include <tvm/ffi/error.h>

#include <atomic>
#include <cstdint>

#define MLC_EXPORTED extern "C" __attribute__((visibility("default")))

namespace mlc_cuda {

constexpr char kDriver[] = "libcuda.so.1", kRuntime[] = "libcudart.so.13";

extern std::atomic<int64_t> kernel_launches, graph_launches;
// Where this thread's launches are counted instead: while it records a graph, they start nothing.
extern thread_local int64_t* recorded_launches;

// The function of this name that comes after this library's own. It may be of a library that did not come with the
// process, but was opened by it.
template <typename Function>
Function* next(const char* name, const char* library) {
  void* found = dlsym(RTLD_NEXT, name);
  if (!found) {
    if (void* opened = dlopen(library, RTLD_LAZY)) found = dlsym(opened, name);
  }
  if (!found) TVM_FFI_THROW(RuntimeError) << library << " has no " << name;
  return reinterpret_cast<Function*>(found);
}

inline void check(int code, const char* what) {
  static auto* message = next<const char*(int)>("cudaGetErrorString", kRuntime);
  if (code != 0) TVM_FFI_THROW(RuntimeError) << what << ": " << message(code);
}

}  // namespace mlc_cuda
