// Takes the real plugin class through what TensorRT does with it, on a CPU: creator, build interface, serialised fields,
// creator at run time, attached to a context, shapes, enqueue. The kernels are run as CPU code.
//
// plugin_driver FOLDER: reads FOLDER/case.txt and the tensors 0.bin, 1.bin, ...; leaves the rings in 0.out and 1.out,
// with the guard bands around them. Prints "<step>: <result>" for what a case may refuse, "log: <message>" for what the
// plugin logs, and "fault: <what>" for what must never be.
#include <NvInfer.h>

#include <cstdio>
#include <fstream>
#include <iterator>
#include <sstream>
#include <string>
#include <vector>

#include "../../../csrc/plugin/ring_plugin.cpp"
#include "../../../csrc/src/ring_cuda.cu"

namespace {

using namespace nvinfer1;

constexpr size_t kGuard = 64;  // bytes around every tensor

struct Logger final : ILogger {
  void log(Severity, const char* message) noexcept override { std::printf("log: %s\n", message); }
} logger;

struct Finder final : ILoggerFinder {
  ILogger* findLogger() override { return &logger; }
} finder;

struct Builder final : IExprBuilder {};

void require(bool holds, const std::string& what) {
  if (!holds) std::printf("fault: %s\n", what.c_str());
}

DataType type_named(const std::string& name) {
  if (name == "float32") return DataType::kFLOAT;
  if (name == "float16") return DataType::kHALF;
  if (name == "bfloat16") return DataType::kBF16;
  if (name == "float8") return DataType::kFP8;
  return name == "int64" ? DataType::kINT64 : DataType::kINT32;
}

struct Case {
  std::vector<float> eps;
  size_t offset = 0;  // bytes, of k_ring to v
  bool foreign = false;
  std::vector<PluginTensorDesc> inputs;
};

Case read_case(const std::string& folder) {
  Case found;
  std::ifstream file(folder + "/case.txt");
  for (std::string line, word; std::getline(file, line);) {
    std::istringstream words(line);
    words >> word;
    if (word == "eps") {
      for (float eps; words >> eps;) found.eps.push_back(eps);
    } else if (word == "offset") {
      words >> found.offset;
    } else if (word == "foreign") {
      found.foreign = true;
    } else {
      PluginTensorDesc tensor{};
      tensor.type = type_named(word);
      tensor.format = TensorFormat::kLINEAR;
      while (words >> tensor.dims.d[tensor.dims.nbDims]) ++tensor.dims.nbDims;
      found.inputs.push_back(tensor);
    }
  }
  return found;
}

template <typename Interface>
Interface* interface(IPluginV3* plugin, PluginCapabilityType type) {
  return static_cast<Interface*>(plugin->getCapabilityInterface(type));
}

// Types, shapes, formats and aliases; false if the plugin refuses the types.
bool build(IPluginV3* plugin, const std::vector<PluginTensorDesc>& inputs) {
  auto* const core = interface<IPluginV3OneCore>(plugin, PluginCapabilityType::kCORE);
  auto* const builder = interface<IPluginV3OneBuildV2>(plugin, PluginCapabilityType::kBUILD);
  require(std::string(core->getPluginName()) == "KVRingWrite" && std::string(core->getPluginVersion()) == "2" &&
              std::string(core->getPluginNamespace()) == "lipstream",
          "name");
  require(builder->getNbOutputs() == 2, "outputs");
  for (int32_t i = 0; i < 2; ++i) require(builder->getAliasedInput(i) == i, "alias of output " + std::to_string(i));
  const auto count = static_cast<int32_t>(inputs.size());
  std::vector<DataType> given, types(2);
  for (const PluginTensorDesc& tensor : inputs) given.push_back(tensor.type);
  if (builder->getOutputDataTypes(types.data(), 2, given.data(), count) != 0) return false;
  require(types[0] == given[0] && types[1] == given[1], "types of the outputs");

  std::vector<DimsExprs> shapes(inputs.size()), results(2);
  for (size_t i = 0; i < inputs.size(); ++i) {
    shapes[i].nbDims = inputs[i].dims.nbDims;
    for (int32_t d = 0; d < shapes[i].nbDims; ++d) {  // never read, only compared
      shapes[i].d[d] = reinterpret_cast<const IDimensionExpr*>(16 * (i + 1) + static_cast<size_t>(d));
    }
  }
  Builder expressions;
  require(builder->getOutputShapes(shapes.data(), count, nullptr, 0, results.data(), 2, expressions) == 0, "shapes");
  for (size_t i = 0; i < 2; ++i) {
    require(results[i].nbDims == shapes[i].nbDims &&
                std::equal(results[i].d, results[i].d + results[i].nbDims, shapes[i].d),
            "shape of output " + std::to_string(i));
  }

  std::vector<DynamicPluginTensorDesc> all(inputs.size() + 2);
  for (size_t i = 0; i < all.size(); ++i) all[i].desc = inputs[i < inputs.size() ? i : i - inputs.size()];
  const auto accepts = [&](size_t i) {
    return builder->supportsFormatCombination(static_cast<int32_t>(i), all.data(), count, 2);
  };
  bool accepted = true;
  for (size_t i = 0; i < all.size(); ++i) {
    accepted = accepted && accepts(i);
    const PluginTensorDesc right = all[i].desc;
    all[i].desc.format = TensorFormat::kCHW32;
    require(!accepts(i), "another format of tensor " + std::to_string(i) + " is accepted");
    all[i].desc = right;
    all[i].desc.type = DataType::kINT32;
    require(!accepts(i), "another type of tensor " + std::to_string(i) + " is accepted");
    all[i].desc = right;
  }
  if (!accepted) return false;
  require(builder->configurePlugin(all.data(), count, all.data() + count, 2) == 0, "configure");
  require(builder->getWorkspaceSize(all.data(), count, all.data() + count, 2) == 0, "workspace");
  return true;
}

std::vector<char> read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

struct Tensor {
  std::vector<char> bytes;
  char* data = nullptr;

  Tensor(const std::string& path, size_t offset) {
    const std::vector<char> content = read(path);
    bytes.assign(content.size() + 2 * kGuard + offset, 0x5a);
    data = bytes.data() + kGuard + offset;
    std::copy(content.begin(), content.end(), data);
  }
};

int run(const std::string& folder) {
  const Case given = read_case(folder);
  int32_t creators = 0;
  auto* const creator = static_cast<IPluginCreatorV3One*>(getCreators(creators)[0]);
  require(creators == 1 && creator->getFieldNames()->nbFields == 1, "creators");
  std::vector<PluginField> attributes;
  if (!given.eps.empty()) {
    attributes.emplace_back("eps", given.eps.data(), PluginFieldType::kFLOAT32, static_cast<int32_t>(given.eps.size()));
  }
  const PluginFieldCollection fields{static_cast<int32_t>(attributes.size()), attributes.data()};
  std::unique_ptr<IPluginV3> first(creator->createPlugin("node", &fields, TensorRTPhase::kBUILD));
  std::printf("create: %s\n", first ? "ok" : "refused");
  if (!first) return 0;
  std::unique_ptr<IPluginV3> clone(first->clone());
  first.reset();
  const bool built = build(clone.get(), given.inputs);
  std::printf("build: %s\n", built ? "ok" : "refused");

  // What an engine stores, and a process that loads it.
  auto* const runtime = interface<IPluginV3OneRuntime>(clone.get(), PluginCapabilityType::kRUNTIME);
  const PluginFieldCollection* const stored = runtime->getFieldsToSerialize();
  std::unique_ptr<IPluginV3> loaded(creator->createPlugin("node", stored, TensorRTPhase::kRUNTIME));
  clone.reset();
  std::unique_ptr<IPluginV3> attached(
      interface<IPluginV3OneRuntime>(loaded.get(), PluginCapabilityType::kRUNTIME)->attachToContext(nullptr));
  loaded.reset();
  auto* const context = interface<IPluginV3OneRuntime>(attached.get(), PluginCapabilityType::kRUNTIME);

  std::vector<Tensor> tensors;
  std::vector<const void*> in;
  for (size_t i = 0; i < given.inputs.size(); ++i) {
    tensors.emplace_back(folder + "/" + std::to_string(i) + ".bin", i < 4 ? given.offset : 0);
    in.push_back(tensors.back().data);
  }
  const PluginTensorDesc outputs[] = {given.inputs.at(0), given.inputs.at(1)};
  const auto enqueue = [&](void* k, void* v) {
    void* const out[] = {k, v};
    return context->enqueue(given.inputs.data(), outputs, in.data(), out, nullptr, nullptr) == 0 ? "ok" : "refused";
  };
  const auto count = static_cast<int32_t>(given.inputs.size());
  const bool fits = context->onShapeChange(given.inputs.data(), count, outputs, 2) == 0;
  std::printf("shapes: %s\n", fits ? "ok" : "refused");
  std::vector<char> other(tensors[1].bytes);
  const int before = lipstream::cuda::launches;
  std::printf("enqueue: %s\n", enqueue(tensors[0].data, given.foreign ? other.data() : tensors[1].data));
  std::printf("launches: %d\n", lipstream::cuda::launches - before);
  for (size_t i = 0; i < 2; ++i) {
    std::ofstream(folder + "/" + std::to_string(i) + ".out", std::ios::binary)
        .write(tensors[i].bytes.data(), static_cast<std::streamsize>(tensors[i].bytes.size()));
  }
  return 0;
}

}  // namespace

int main(int, char** arguments) {
  setLoggerFinder(&finder);
  return run(arguments[1]);
}
