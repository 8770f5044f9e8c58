// What the tests with RWKV models share: running a model through every path and comparing it with what is known for it.
// One file per scalar type includes it, as the mixers take long to compile.
//
// The environment variable SEQMIX_MODELS names a directory with checkpoints <name>.safetensors and, beside each,
// <name>.expected.safetensors: `tokens`, `logits` after every token [length, vocabulary], `greedy`, the continuation by
// arg max, and `published.tokens` and `published.logits`, after the last of these tokens.
#pragma once

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <seqmix/core/random.hpp>
#include <seqmix/io/safetensors.hpp>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "examples/support/generation.hpp"
#include "examples/support/rwkv_model.hpp"
#include "language_models.hpp"

namespace model_tests {

using namespace seqmix;

/// Largest difference allowed, relative to the largest logit. The reference ran in double; in float, rounding grows
/// through 12 blocks of norms.
inline constexpr double tolerance = 2e-4;

/// The checkpoints in SEQMIX_MODELS that have expected results beside them, without ".safetensors".
inline std::vector<std::string> checkpoints() {
  const char* const directory = std::getenv("SEQMIX_MODELS");
  if (directory == nullptr) SKIP("SEQMIX_MODELS is not set: no real models to test");
  const std::string ending = ".expected.safetensors";
  std::vector<std::string> result;
  for (const auto& entry : std::filesystem::directory_iterator(directory)) {
    const std::string path = entry.path().string();
    if (path.ends_with(ending)) result.push_back(path.substr(0, path.size() - ending.size()));
  }
  std::sort(result.begin(), result.end());
  if (result.empty()) FAIL("no *" << ending << " in " << directory);
  return result;
}

/// `count` tokens by arg max, from the state after a text and the logits after its last token.
template <class Model, class T>
std::vector<Index> continued(const Model& model, typename Model::State state, Vector<T> logits, Index count) {
  Workspace workspace;
  std::vector<Index> result;
  while (Index(result.size()) < count) {
    result.push_back(generation::most_likely(std::span<const T>(logits.data(), std::size_t(logits.size()))));
    model.step(state, result.back(), logits, workspace);
  }
  return result;
}

template <class Model>
void check_model(const Model& model, const SafetensorsFile& expected) {
  using T = typename Model::Scalar;
  const auto tokens = expected.read<Index>("tokens");
  const auto greedy = expected.read<Index>("greedy");
  const Matrix<double> logits = expected.matrix<double>("logits");
  const auto check = [&](const char* path, const auto& result) {
    const auto& [given, state] = result;
    INFO(path);
    CHECK(difference(given, logits) <= tolerance);
    const auto text = continued<Model, T>(model, state, given.row(given.rows() - 1).transpose(), Index(greedy.size()));
    CHECK(std::ranges::equal(text, greedy));
  };
  check("whole", in_pieces(model, tokens, {Index(tokens.size())}));
  check("pieces of 1 and 2", in_pieces(model, tokens, {1, 2}));
  check("pieces of 7", in_pieces(model, tokens, {7}));
  check("pieces of 16, 0, 17", in_pieces(model, tokens, {16, 0, 17}));
  check("all but the last", in_pieces(model, tokens, {Index(tokens.size()) - 1}));
  check("step by step", step_by_step(model, tokens));

  Matrix<T> last = poisoned<T>(1, model.vocabulary());
  Workspace workspace;
  auto state = model.initial_state();
  model.prefill(state, expected.read<Index>("published.tokens"), last, workspace);
  CHECK(difference(last, Matrix<double>(expected.matrix<double>("published.logits").transpose())) <= tolerance);
}

/// Every checkpoint gives the logits and texts known for it.
template <class T>
void check_real_models() {
  Index checked = 0;
  for (const std::string& path : checkpoints()) {
    INFO(path);
    const SafetensorsFile file(path + ".safetensors");
    const SafetensorsFile expected(path + ".expected.safetensors");
    std::visit([&](const auto& model) { check_model(model, expected); }, rwkv::load_model<T>(file));
    ++checked;
  }
  CHECK(checked > 0);
}

/// A small random checkpoint of version 4, 5.2 or 7, whose tensors can be left out or replaced.
class SampleCheckpoint {
 public:
  explicit SampleCheckpoint(int version = 5) {
    if (version == 4) metadata["architecture"] = "rwkv4", metadata["version"] = "4.0";
    if (version == 7) metadata["architecture"] = "rwkv7", metadata["version"] = "7.0";
    add("emb.weight", {vocabulary, channels});
    add("head.weight", {vocabulary, channels});
    add_norm("ln_out");
    add_norm("blocks.0.ln0");
    for (const std::string block : {"blocks.0.", "blocks.1."}) {
      add_norm(block + "ln1");
      add_norm(block + "ln2");
      if (version > 4) add_norm(block + "att.ln_x");
      for (const std::string name : {"key", "value", "receptance", "output"}) {
        add(block + "att." + name + ".weight", {channels, channels});
      }
      add(block + "ffn.key.weight", {hidden, channels});
      add(block + "ffn.value.weight", {channels, hidden});
      if (version == 4) add_version_4(block);
      if (version == 5) add_version_5(block);
      if (version == 7) add_version_7(block);
    }
  }

  std::map<std::string, std::string> metadata = {{"architecture", "rwkv5"}, {"version", "5.2"}, {"n_layer", "2"}};
  std::map<std::string, std::vector<Index>> shapes;  // of all tensors
  std::string integers;                              // the tensor stored as I32, if any

  std::vector<std::byte> bytes() const {
    SafetensorsWriter writer;
    for (const auto& [key, value] : metadata) writer.set_metadata(key, value);
    Rng rng(5);
    for (const auto& [name, shape] : shapes) {
      Index count = 1;
      for (const Index size : shape) count *= size;
      std::vector<float> numbers(static_cast<std::size_t>(count));
      for (float& number : numbers) number = float(rng.normal());
      if (name == integers) {
        writer.add<std::int32_t>(name, shape, std::vector<std::int32_t>(numbers.size()));
      } else {
        writer.add<float>(name, shape, numbers);
      }
    }
    return writer.bytes();
  }

 private:
  static constexpr Index channels = 8, heads = 2, hidden = 12, vocabulary = 16;

  void add_version_4(const std::string& block) {
    for (const std::string name : {"k", "v", "r"}) add(block + "att.time_mix_" + name, {1, 1, channels});
    for (const std::string name : {"decay", "first"}) add(block + "att.time_" + name, {channels});
    for (const std::string name : {"k", "r"}) add(block + "ffn.time_mix_" + name, {1, 1, channels});
    add(block + "ffn.receptance.weight", {channels, channels});
  }
  void add_version_5(const std::string& block) {
    for (const std::string name : {"k", "v", "r", "g"}) add(block + "att.time_mix_" + name, {1, 1, channels});
    add(block + "att.gate.weight", {channels, channels});
    add(block + "att.time_decay", {heads, channels / heads});
    add(block + "att.time_faaaa", {heads, channels / heads});
    for (const std::string name : {"k", "r"}) add(block + "ffn.time_mix_" + name, {1, 1, channels});
    add(block + "ffn.receptance.weight", {channels, channels});
  }
  void add_version_7(const std::string& block) {
    for (const std::string name : {"r", "w", "k", "v", "a", "g"}) add(block + "att.x_" + name, {1, 1, channels});
    for (const std::string name : {"w", "a", "v", "g"}) {
      if (name == "v" && block == "blocks.0.") continue;
      if (name != "g") add(block + "att." + name + "0", {1, 1, channels});
      add(block + "att." + name + "1", {channels, 3});
      add(block + "att." + name + "2", {3, channels});
    }
    for (const std::string name : {"k_k", "k_a"}) add(block + "att." + name, {1, 1, channels});
    add(block + "att.r_k", {heads, channels / heads});
    add(block + "ffn.x_k", {1, 1, channels});
  }
  void add(const std::string& name, std::vector<Index> shape) { shapes[name] = std::move(shape); }
  void add_norm(const std::string& name) {
    add(name + ".weight", {channels});
    add(name + ".bias", {channels});
  }
};

}  // namespace model_tests
