// K and V of a layer's chunk into its rings as a TensorRT plugin: K's RMSNorm and rotation, and the write in place, in
// one kernel (ring_write). ring_call.h has the inputs; the attribute is `eps` of the norm, float32.
//
// TensorRT finds it in the library by `getCreators`. `enqueue` does not allocate, synchronise or read the device's
// memory from the host (the kernel reads the slot), so it can be captured in a CUDA graph.
#include <NvInfer.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <cmath>
#include <cstring>
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
constexpr const char* kVersion = "2";
constexpr const char* kNamespace = "lipstream";
constexpr const char* kEps = "eps";

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

template <typename Number, typename Stored>
cudaError_t write(const RingCall& call, float eps, const void* const* in, void* const* out, cudaStream_t stream) {
  const auto floats = [&](RingCall::Input i) { return static_cast<const float*>(in[i]); };
  const Slot slot(static_cast<const int64_t*>(in[RingCall::kSlot]), call.last_slot());
  const RopeTables tables{floats(RingCall::kCosT), floats(RingCall::kSinT), floats(RingCall::kCosS),
                          floats(RingCall::kSinS)};
  const bool scaled = call.type() == Type::kE4M3;
  const cuda::RingScales scales{scaled ? floats(RingCall::kKScale) : nullptr,
                                scaled ? floats(RingCall::kVScale) : nullptr};
  return cuda::ring_write(static_cast<Stored*>(out[0]), static_cast<Stored*>(out[1]),
                          static_cast<const Number*>(in[RingCall::kK]), static_cast<const Number*>(in[RingCall::kV]),
                          floats(RingCall::kWeight), eps, slot, tables, scales, call.chunk(), call.slots(), stream);
}

class KVRingWrite final : public IPluginV3, public IPluginV3OneCore, public IPluginV3OneBuildV2, public IPluginV3OneRuntime {
 public:
  explicit KVRingWrite(float eps) : eps_(eps) {}

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

  int32_t getNbOutputs() const noexcept override { return RingCall::kOutputs; }
  int32_t getAliasedInput(int32_t output) noexcept override { return output; }

  int32_t getOutputDataTypes(DataType* outputs, int32_t count, const DataType* inputs, int32_t given) const
      noexcept override {
    if (!fits(count, given, given > 0 ? type_of(inputs[0]) : Type::kOther)) return 1;
    std::copy_n(inputs, count, outputs);
    return 0;
  }

  int32_t getOutputShapes(const DimsExprs* inputs, int32_t given, const DimsExprs*, int32_t, DimsExprs* outputs,
                          int32_t count, IExprBuilder&) noexcept override {
    if (count != RingCall::kOutputs || given < count) return 1;
    std::copy_n(inputs, count, outputs);
    return 0;
  }

  bool supportsFormatCombination(int32_t position, const DynamicPluginTensorDesc* tensors, int32_t inputs,
                                 int32_t) noexcept override {
    const PluginTensorDesc& tensor = tensors[position].desc;
    if (tensor.format != TensorFormat::kLINEAR) return false;
    const Type ring = type_of(tensors[0].desc.type);
    const int32_t input = position < inputs ? position : position - inputs;  // an output is of its input's type
    return RingCall::holds(ring) && inputs == RingCall::inputs(ring) &&
           type_of(tensor.type) == RingCall::type_of(input, ring);
  }

  int32_t configurePlugin(const DynamicPluginTensorDesc*, int32_t, const DynamicPluginTensorDesc*, int32_t) noexcept
      override {
    return 0;  // sizes may still be dynamic; `onShapeChange` checks them
  }

  int32_t onShapeChange(const PluginTensorDesc* inputs, int32_t given, const PluginTensorDesc*, int32_t) noexcept override {
    call_.reset();
    try {
      call_ = std::make_unique<RingCall>(call_of(inputs, given));
      return 0;
    } catch (const std::exception& error) {
      complain(error.what());
      return 1;
    }
  }

  int32_t enqueue(const PluginTensorDesc*, const PluginTensorDesc*, const void* const* inputs, void* const* outputs,
                  void*, cudaStream_t stream) noexcept override {
    if (!call_) {
      complain("KVRingWrite: no accepted shapes, expected onShapeChange to succeed first");
      return 1;
    }
    for (int i = 0; i < RingCall::kOutputs; ++i) {
      if (outputs[i] == inputs[i]) continue;
      complain(std::string("KVRingWrite: the output of ") + RingCall::kInputs[static_cast<size_t>(i)] +
               " is at another address than the input, expected the same (is the engine built with "
               "PreviewFeature::kALIASED_PLUGIN_IO_10_03?)");
      return 1;
    }
    cudaError_t error = cudaErrorInvalidValue;
    switch (call_->type()) {
      case Type::kFloat: error = write<float, float>(*call_, eps_, inputs, outputs, stream); break;
      case Type::kHalf: error = write<__half, __half>(*call_, eps_, inputs, outputs, stream); break;
      case Type::kBFloat16: error = write<__nv_bfloat16, __nv_bfloat16>(*call_, eps_, inputs, outputs, stream); break;
      case Type::kE4M3: error = write<__nv_bfloat16, uint8_t>(*call_, eps_, inputs, outputs, stream); break;
      default: break;
    }
    if (error != cudaSuccess) complain(std::string("KVRingWrite: ") + cudaGetErrorString(error));
    return error == cudaSuccess ? 0 : 1;
  }

  IPluginV3* attachToContext(IPluginResourceContext*) noexcept override { return copy(); }

  const PluginFieldCollection* getFieldsToSerialize() noexcept override {
    field_ = PluginField(kEps, &eps_, PluginFieldType::kFLOAT32, 1);
    fields_ = {1, &field_};
    return &fields_;
  }

 private:
  static bool fits(int32_t outputs, int32_t inputs, Type ring) {
    if (outputs == RingCall::kOutputs && inputs == RingCall::inputs(ring)) return true;
    complain("KVRingWrite: " + std::to_string(inputs) + " inputs and " + std::to_string(outputs) + " outputs, expected " +
             std::to_string(RingCall::inputs(ring)) + " and " + std::to_string(RingCall::kOutputs) + " with a ring of " +
             name(ring));
    return false;
  }

  KVRingWrite* copy() const noexcept {
    try {
      auto plugin = std::make_unique<KVRingWrite>(eps_);
      if (call_) plugin->call_ = std::make_unique<RingCall>(*call_);
      return plugin.release();
    } catch (const std::exception& error) {
      complain(error.what());
      return nullptr;
    }
  }

  float eps_;
  std::unique_ptr<RingCall> call_;
  PluginField field_;
  PluginFieldCollection fields_{};
};

class Creator final : public IPluginCreatorV3One {
 public:
  Creator() : field_(kEps, nullptr, PluginFieldType::kFLOAT32, 1), fields_{1, &field_} {}

  const char* getPluginName() const noexcept override { return kName; }
  const char* getPluginVersion() const noexcept override { return kVersion; }
  const char* getPluginNamespace() const noexcept override { return kNamespace; }
  const PluginFieldCollection* getFieldNames() noexcept override { return &fields_; }

  IPluginV3* createPlugin(const char*, const PluginFieldCollection* fields, TensorRTPhase) noexcept override {
    for (int32_t i = 0; fields && i < fields->nbFields; ++i) {
      const PluginField& field = fields->fields[i];
      if (std::strcmp(field.name, kEps) != 0 || field.type != PluginFieldType::kFLOAT32 || field.length != 1) continue;
      const float eps = *static_cast<const float*>(field.data);
      if (eps >= 0.0f && std::isfinite(eps)) return new (std::nothrow) KVRingWrite(eps);
    }
    complain("KVRingWrite: the attribute eps is missing or not one, expected one float32 from 0 up");
    return nullptr;
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
