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

// `offset` in bytes. ValueError for a part that is not within the whole.
ffi::Tensor part(const ffi::Tensor& whole, int64_t offset, const ffi::Shape& shape, DLDataType dtype) {
  int64_t has = static_cast<int64_t>(ffi::GetDataSize(whole)), size = (dtype.bits * dtype.lanes + 7) / 8;
  for (int64_t extent : shape) {
    if (extent < 0 || __builtin_mul_overflow(size, extent, &size))
      TVM_FFI_THROW(ValueError) << "a tensor has no part of shape " << shape;
  }
  if (!whole.IsContiguous() || offset < 0 || offset > has || size > has - offset)
    TVM_FFI_THROW(ValueError) << size << " bytes from byte " << offset << " on are not within a tensor's " << has;
  return ffi::Tensor::FromNDAlloc(Within{whole}, shape, dtype, whole.device(), offset);
}

TVM_FFI_STATIC_INIT_BLOCK() { ffi::reflection::GlobalDef().def("mlc_dsv3.cuda.part", part); }

}  // namespace
