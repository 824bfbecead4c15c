// Tensors that lie within another one's memory, so that what they hold is copied to the GPU together.
#include <tvm/ffi/container/shape.h>
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/dtype.h>
#include <tvm/ffi/function.h>
#include <tvm/ffi/reflection/registry.h>

#include <cstdint>

namespace {

namespace ffi = tvm::ffi;

struct Within {
  ffi::Tensor whole;

  void AllocData(DLTensor* part, int64_t offset) { part->data = static_cast<char*>(whole.data_ptr()) + offset; }
  void FreeData(DLTensor*) {}
};

TVM_FFI_STATIC_INIT_BLOCK() {
  // `offset` in bytes.
  ffi::reflection::GlobalDef().def(
      "mlc_dsv3.cuda.part", [](ffi::Tensor whole, int64_t offset, ffi::Shape shape, DLDataType dtype) {
        return ffi::Tensor::FromNDAlloc(Within{whole}, shape, dtype, whole.device(), offset);
      });
}

}  // namespace
