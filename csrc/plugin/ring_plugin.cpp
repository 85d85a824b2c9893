// The node lipstream::KVRingWrite as a TensorRT plugin: the ring's CUDA kernels, in place. Needs TensorRT 11's headers.
//
// TensorRT finds it in the library by `getCreators`. `enqueue` does not allocate, synchronise or read the device's
// memory from the host (the kernel reads the slot), so it can be captured in a CUDA graph.
#include <NvInfer.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <exception>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "lipstream/ring_call.h"
#include "lipstream/ring_cuda.h"

namespace lipstream {
namespace {

using namespace nvinfer1;

constexpr const char* kName = "KVRingWrite";
constexpr const char* kVersion = "1";
constexpr const char* kNamespace = "lipstream";

ILoggerFinder* finder = nullptr;

void complain(const std::string& message) {
  ILogger* const logger = finder ? finder->findLogger() : nullptr;
  if (logger) logger->log(ILogger::Severity::kERROR, message.c_str());
}

Type type_of(DataType type) {
  switch (type) {
    case DataType::kFLOAT: return Type::kFloat;
    case DataType::kHALF: return Type::kHalf;
    case DataType::kBF16: return Type::kBFloat16;
    case DataType::kFP8: return Type::kE4M3;
    case DataType::kINT64: return Type::kInt64;
    default: return Type::kOther;
  }
}

RingCall call_of(const PluginTensorDesc* inputs, int32_t count) {
  std::vector<TensorShape> tensors;
  for (int32_t i = 0; i < count; ++i) {
    const Dims& dims = inputs[i].dims;
    tensors.push_back({type_of(inputs[i].type), {dims.d, dims.d + dims.nbDims}});
  }
  return RingCall(tensors);
}

template <typename Storage>
cudaError_t write(const RingCall& call, const void* const* in, void* const* out, cudaStream_t stream) {
  const auto table = [&](int i) { return static_cast<const float*>(in[i]); };
  const Slot slot(static_cast<const int64_t*>(in[4]), call.last_slot());
  const RopeTables tables{table(5), table(6), table(7), table(8)};
  return cuda::ring_write(static_cast<Storage*>(out[0]), static_cast<Storage*>(out[1]),
                          static_cast<const Storage*>(in[2]), static_cast<const Storage*>(in[3]), slot, tables,
                          call.chunk(), stream);
}

cudaError_t write_e4m3(const RingCall& call, const void* const* in, void* const* out, cudaStream_t stream) {
  const auto table = [&](int i) { return static_cast<const float*>(in[i]); };
  const Slot slot(static_cast<const int64_t*>(in[4]), call.last_slot());
  const RopeTables tables{table(5), table(6), table(7), table(8)};
  const E4M3Ring k{static_cast<uint8_t*>(out[0]), static_cast<float*>(out[2])};
  const E4M3Ring v{static_cast<uint8_t*>(out[1]), static_cast<float*>(out[3])};
  using Number = __nv_bfloat16;
  cudaError_t error = cuda::ring_write_e4m3(k, v, static_cast<const Number*>(in[2]), static_cast<const Number*>(in[3]),
                                            slot, tables, call.chunk(), stream);
  if (error == cudaSuccess) error = cuda::ring_read_e4m3(static_cast<Number*>(out[4]), k, call.ring(), stream);
  if (error == cudaSuccess) error = cuda::ring_read_e4m3(static_cast<Number*>(out[5]), v, call.ring(), stream);
  return error;
}

class KVRingWrite final : public IPluginV3, public IPluginV3OneCore, public IPluginV3OneBuildV2, public IPluginV3OneRuntime {
 public:
  explicit KVRingWrite(bool e4m3) : e4m3_(e4m3) {}

  IPluginCapability* getCapabilityInterface(PluginCapabilityType type) noexcept override {
    switch (type) {
      case PluginCapabilityType::kCORE: return static_cast<IPluginV3OneCore*>(this);
      case PluginCapabilityType::kBUILD: return static_cast<IPluginV3OneBuildV2*>(this);
      case PluginCapabilityType::kRUNTIME: return static_cast<IPluginV3OneRuntime*>(this);
    }
    return nullptr;
  }
  IPluginV3* clone() noexcept override { return copy(); }

  const char* getPluginName() const noexcept override { return kName; }
  const char* getPluginVersion() const noexcept override { return kVersion; }
  const char* getPluginNamespace() const noexcept override { return kNamespace; }

  int32_t getNbOutputs() const noexcept override { return RingCall::outputs(e4m3_); }
  int32_t getAliasedInput(int32_t output) noexcept override { return RingCall::aliased(output); }

  int32_t getOutputDataTypes(DataType* outputs, int32_t count, const DataType* inputs, int32_t given) const
      noexcept override {
    if (count != getNbOutputs() || given != RingCall::inputs(e4m3_)) return 1;
    for (int32_t i = 0; i < count; ++i) {
      outputs[i] = RingCall::aliased(i) >= 0 ? inputs[RingCall::aliased(i)] : DataType::kBF16;
    }
    return 0;
  }

  int32_t getOutputShapes(const DimsExprs* inputs, int32_t given, const DimsExprs*, int32_t, DimsExprs* outputs,
                          int32_t count, IExprBuilder&) noexcept override {
    if (count != getNbOutputs() || given != RingCall::inputs(e4m3_)) return 1;
    for (int32_t i = 0; i < count; ++i) outputs[i] = inputs[RingCall::aliased(i) >= 0 ? RingCall::aliased(i) : 0];
    return 0;
  }

  bool supportsFormatCombination(int32_t position, const DynamicPluginTensorDesc* tensors, int32_t inputs,
                                 int32_t) noexcept override {
    const PluginTensorDesc& tensor = tensors[position].desc;
    if (tensor.format != TensorFormat::kLINEAR) return false;
    const Type ring = type_of(tensors[0].desc.type), found = type_of(tensor.type);
    if (position == 0) return RingCall::holds(ring) && (ring == Type::kE4M3) == e4m3_;
    if (position < inputs) return found == RingCall::type_of(position, ring);
    const int output = position - inputs, alias = RingCall::aliased(output);
    return found == (alias >= 0 ? RingCall::type_of(alias, ring) : Type::kBFloat16);
  }

  int32_t configurePlugin(const DynamicPluginTensorDesc*, int32_t, const DynamicPluginTensorDesc*, int32_t) noexcept
      override {
    return 0;  // sizes may still be dynamic; `onShapeChange` checks them
  }

  int32_t onShapeChange(const PluginTensorDesc* inputs, int32_t given, const PluginTensorDesc*, int32_t) noexcept override {
    try {
      call_ = std::make_unique<RingCall>(call_of(inputs, given));
      if (call_->e4m3() && call_->chunk().row_size() > cuda::kLargestE4M3Row) {
        throw std::invalid_argument("KVRingWrite: H * D is " + std::to_string(call_->chunk().row_size()) +
                                    ", expected at most " + std::to_string(cuda::kLargestE4M3Row) + " in FP8");
      }
      return 0;
    } catch (const std::exception& error) {
      complain(error.what());
      return 1;
    }
  }

  int32_t enqueue(const PluginTensorDesc*, const PluginTensorDesc*, const void* const* inputs, void* const* outputs,
                  void*, cudaStream_t stream) noexcept override {
    if (!call_) return 1;
    for (int i = 0; i < RingCall::outputs(e4m3_); ++i) {
      const int alias = RingCall::aliased(i);
      if (alias >= 0 && outputs[i] != inputs[alias]) {
        complain("KVRingWrite: a ring's output is at another address than its input, expected the same");
        return 1;
      }
    }
    cudaError_t error = cudaErrorInvalidValue;
    switch (call_->type()) {
      case Type::kFloat: error = write<float>(*call_, inputs, outputs, stream); break;
      case Type::kHalf: error = write<__half>(*call_, inputs, outputs, stream); break;
      case Type::kBFloat16: error = write<__nv_bfloat16>(*call_, inputs, outputs, stream); break;
      case Type::kE4M3: error = write_e4m3(*call_, inputs, outputs, stream); break;
      default: break;
    }
    if (error != cudaSuccess) complain(std::string("KVRingWrite: ") + cudaGetErrorString(error));
    return error == cudaSuccess ? 0 : 1;
  }

  IPluginV3* attachToContext(IPluginResourceContext*) noexcept override { return copy(); }

  const PluginFieldCollection* getFieldsToSerialize() noexcept override {
    field_ = PluginField("e4m3", &e4m3_, PluginFieldType::kINT32, 1);
    fields_ = {1, &field_};
    return &fields_;
  }

 private:
  KVRingWrite* copy() const noexcept {
    try {
      auto plugin = std::make_unique<KVRingWrite>(e4m3_ != 0);
      if (call_) plugin->call_ = std::make_unique<RingCall>(*call_);
      return plugin.release();
    } catch (const std::exception& error) {
      complain(error.what());
      return nullptr;
    }
  }

  int32_t e4m3_;
  std::unique_ptr<RingCall> call_;
  PluginField field_;
  PluginFieldCollection fields_{};
};

class Creator final : public IPluginCreatorV3One {
 public:
  Creator() : field_("e4m3", nullptr, PluginFieldType::kINT32, 1), fields_{1, &field_} {}

  const char* getPluginName() const noexcept override { return kName; }
  const char* getPluginVersion() const noexcept override { return kVersion; }
  const char* getPluginNamespace() const noexcept override { return kNamespace; }
  const PluginFieldCollection* getFieldNames() noexcept override { return &fields_; }

  IPluginV3* createPlugin(const char*, const PluginFieldCollection* fields, TensorRTPhase) noexcept override {
    bool e4m3 = false;  // the node's attribute of that name; 0 if it is absent
    for (int32_t i = 0; fields && i < fields->nbFields; ++i) {
      const PluginField& field = fields->fields[i];
      if (std::string(field.name) != "e4m3") continue;
      if (field.type == PluginFieldType::kINT32) {
        e4m3 = *static_cast<const int32_t*>(field.data) != 0;
      } else if (field.type == PluginFieldType::kINT64) {
        e4m3 = *static_cast<const int64_t*>(field.data) != 0;
      } else {
        complain("KVRingWrite: the attribute e4m3 is no whole number");
        return nullptr;
      }
    }
    return new (std::nothrow) KVRingWrite(e4m3);
  }

 private:
  PluginField field_;
  PluginFieldCollection fields_;
};

}  // namespace
}  // namespace lipstream

extern "C" __attribute__((visibility("default"))) void setLoggerFinder(nvinfer1::ILoggerFinder* finder) {
  lipstream::finder = finder;
}

extern "C" __attribute__((visibility("default"))) nvinfer1::IPluginCreatorInterface* const* getCreators(
    int32_t& count) {
  static lipstream::Creator creator;
  static nvinfer1::IPluginCreatorInterface* const creators[] = {&creator};
  count = 1;
  return creators;
}
