// The functions of CUDA's runtime library that are called here, found in the process: no headers of CUDA's to build with.
#pragma once

#include <dlfcn.h>
#include <tvm/ffi/error.h>

namespace mlc_cuda {

constexpr char kRuntime[] = "libcudart.so.13";

// The function of this name that comes after this library's own, or else the library's that is named.
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
