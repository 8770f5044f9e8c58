// Real trained models, through every path, against the logits that are known for them; and checkpoints that are broken.
//
// The environment variable SEQMIX_MODELS names a directory with checkpoints <name>.safetensors and, beside each,
// <name>.expected.safetensors: `tokens`, `logits` after every token [length, vocabulary], `greedy`, the continuation by
// arg max, and `published.tokens` and `published.logits`, after the last of these tokens.
#include <algorithm>
#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_exception.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <seqmix/core/random.hpp>
#include <seqmix/io/safetensors.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "examples/support/rwkv_model.hpp"

namespace {

using namespace seqmix;
using Catch::Matchers::ContainsSubstring;
using Catch::Matchers::MessageMatches;

/// Architectures that are recognised but not built yet.
constexpr std::string_view pending[] = {"rwkv4", "rwkv7"};

/// Largest difference allowed, relative to the largest logit. The reference ran in double; in float, rounding grows
/// through 12 blocks of norms.
constexpr double tolerance = 2e-4;

/// The checkpoints in SEQMIX_MODELS that have expected results beside them, without ".safetensors".
std::vector<std::string> checkpoints() {
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

bool is_pending(const SafetensorsFile& file) {
  const auto found = file.metadata().find("architecture");
  return found != file.metadata().end() && std::count(std::begin(pending), std::end(pending), found->second) > 0;
}

/// max |given - expected| / max |expected|; NaN where a logit is.
template <class T>
double difference(const Matrix<T>& given, const Matrix<double>& expected) {
  REQUIRE(Shape(given) == Shape(expected));
  return (given.template cast<double>() - expected).template lpNorm<Eigen::Infinity>() /
         expected.lpNorm<Eigen::Infinity>();
}

/// A matrix of NaN.
template <class T>
Matrix<T> poisoned(Index rows, Index columns) {
  return Matrix<T>::Constant(rows, columns, std::numeric_limits<T>::quiet_NaN());
}

/// Logits after every token, the tokens taken in pieces of the given sizes, over and over; the state after them.
template <class Model>
auto in_pieces(const Model& model, std::span<const Index> tokens, const std::vector<Index>& sizes) {
  using T = typename Model::Scalar;
  Workspace workspace;
  auto state = model.initial_state();
  Matrix<T> logits = poisoned<T>(Index(tokens.size()), model.vocabulary());
  Index begin = 0;
  for (std::size_t piece = 0; begin < logits.rows(); ++piece) {
    const Index count = std::min(sizes[piece % sizes.size()], logits.rows() - begin);
    workspace.poison();
    model.prefill(state, tokens.subspan(std::size_t(begin), std::size_t(count)), Sequence<T>(logits).rows(begin, count),
                  workspace);
    begin += count;
  }
  return std::pair(std::move(logits), std::move(state));
}

template <class Model>
auto step_by_step(const Model& model, std::span<const Index> tokens) {
  using T = typename Model::Scalar;
  Workspace workspace;
  auto state = model.initial_state();
  Matrix<T> logits = poisoned<T>(Index(tokens.size()), model.vocabulary());
  for (Index t = 0; t < logits.rows(); ++t) {
    workspace.poison();
    model.step(state, tokens[std::size_t(t)], Sequence<T>(logits).token(t), workspace);
  }
  return std::pair(std::move(logits), std::move(state));
}

/// `count` tokens by arg max, from the state after a text and the logits after its last token.
template <class Model, class T>
std::vector<Index> continued(const Model& model, typename Model::State state, Vector<T> logits, Index count) {
  Workspace workspace;
  std::vector<Index> result;
  while (Index(result.size()) < count) {
    result.push_back(rwkv::most_likely(std::span<const T>(logits.data(), std::size_t(logits.size()))));
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

TEMPLATE_TEST_CASE("real models give the logits and texts known for them", "[models]", float, double) {
  Index checked = 0;
  for (const std::string& path : checkpoints()) {
    INFO(path);
    const SafetensorsFile file(path + ".safetensors");
    if (is_pending(file)) continue;
    const SafetensorsFile expected(path + ".expected.safetensors");
    std::visit([&](const auto& model) { check_model(model, expected); }, rwkv::load_model<TestType>(file));
    ++checked;
  }
  CHECK(checked > 0);
}

TEST_CASE("architectures named as pending are pending", "[models]") {
  for (const std::string& path : checkpoints()) {
    const SafetensorsFile file(path + ".safetensors");
    if (!is_pending(file)) continue;
    std::cout << "pending: " << file.path() << "\n";
    CHECK_THROWS_MATCHES(rwkv::load_model<float>(file), SafetensorsError,
                         MessageMatches(ContainsSubstring("not supported yet")));
  }
}

/// A small random checkpoint of version 5.2, whose tensors can be left out or replaced.
class SampleCheckpoint {
 public:
  SampleCheckpoint() {
    const Index channels = 8, heads = 2, hidden = 12, vocabulary = 16;
    add("emb.weight", {vocabulary, channels});
    add("head.weight", {vocabulary, channels});
    add_norm("ln_out", channels);
    add_norm("blocks.0.ln0", channels);
    for (const std::string block : {"blocks.0.", "blocks.1."}) {
      add_norm(block + "ln1", channels);
      add_norm(block + "ln2", channels);
      add_norm(block + "att.ln_x", channels);
      for (const std::string name : {"k", "v", "r", "g"}) add(block + "att.time_mix_" + name, {1, 1, channels});
      for (const std::string name : {"key", "value", "receptance", "gate", "output"}) {
        add(block + "att." + name + ".weight", {channels, channels});
      }
      add(block + "att.time_decay", {heads, channels / heads});
      add(block + "att.time_faaaa", {heads, channels / heads});
      for (const std::string name : {"k", "r"}) add(block + "ffn.time_mix_" + name, {1, 1, channels});
      add(block + "ffn.key.weight", {hidden, channels});
      add(block + "ffn.value.weight", {channels, hidden});
      add(block + "ffn.receptance.weight", {channels, channels});
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

  /// Loading it fails, and the message names the file and says `problem`.
  void check_refused(const std::string& problem) const {
    CHECK_THROWS_MATCHES(rwkv::load_model<float>(SafetensorsFile(bytes(), "sample")), SafetensorsError,
                         MessageMatches(ContainsSubstring("sample: ") && ContainsSubstring(problem)));
  }

 private:
  void add(const std::string& name, std::vector<Index> shape) { shapes[name] = std::move(shape); }
  void add_norm(const std::string& name, Index channels) {
    add(name + ".weight", {channels});
    add(name + ".bias", {channels});
  }
};

TEST_CASE("a checkpoint of random numbers is the same through every path", "[models]") {
  const auto any = rwkv::load_model<double>(SafetensorsFile(SampleCheckpoint().bytes(), "sample"));
  const auto& model = std::get<rwkv::Model<Rwkv5<double>>>(any);
  CHECK(model.layers() == 2);
  CHECK(model.vocabulary() == 16);
  Rng rng(9);
  std::vector<Index> tokens(40);
  for (Index& token : tokens) token = rng.integer(0, 15);
  const auto [whole, state] = in_pieces(model, tokens, {40});
  CHECK(difference(in_pieces(model, tokens, {3, 0, 11}).first, whole) <= 1e-9);
  CHECK(difference(step_by_step(model, tokens).first, whole) <= 1e-9);
  // Per block two last tokens of 8 channels, and 2 memories of 4 x 4.
  CHECK(model.state_bytes(state) >= 2 * (8 + 8 + 32) * sizeof(double));

  Workspace workspace;
  auto other = model.initial_state();
  Matrix<double> logits = Matrix<double>::Constant(3, 16, 7.0);
  const Matrix<double> untouched = logits;
  for (const std::vector<Index>& wrong : {std::vector<Index>{1, 16, 2}, {-1, 1, 2}, {1, 2}}) {
    CHECK_THROWS_AS(model.prefill(other, wrong, logits, workspace), std::invalid_argument);
    CHECK(logits == untouched);
  }
  CHECK_THROWS_AS(model.prefill(other, tokens, Sequence<double>(logits).columns(0, 15), workspace),
                  std::invalid_argument);
}

TEST_CASE("broken checkpoints are refused", "[models]") {
  const SampleCheckpoint good;
  CHECK_NOTHROW(rwkv::load_model<float>(SafetensorsFile(good.bytes(), "sample")));

  SECTION("versions") {
    for (const std::string version : {"5.3", "", "52", "6.0"}) {
      SampleCheckpoint bad;
      bad.metadata["version"] = version;
      bad.check_refused("\"rwkv5 " + version +
                        "\" are unknown; supported are rwkv5 5.0, rwkv5 5.1, rwkv5 5.2, rwkv6 6.0");
    }
    SampleCheckpoint bad;
    bad.metadata["architecture"] = "llama";
    bad.check_refused("\"llama 5.2\" are unknown");
    bad.metadata = {};
    bad.check_refused("\"(none) (none)\" are unknown");
    bad.metadata = {{"architecture", "rwkv7"}, {"version", "7.0"}};
    bad.check_refused("\"rwkv7 7.0\" are not supported yet");
  }
  SECTION("numbers of blocks") {
    for (const std::string count : {"", "0", "-1", "2x", "9999999", "99999999999999999999"}) {
      SampleCheckpoint bad;
      bad.metadata["n_layer"] = count;
      bad.check_refused("n_layer");
    }
    SampleCheckpoint bad;
    bad.metadata["n_layer"] = "3";
    bad.check_refused("tensor \"blocks.2.");
  }
  SECTION("missing tensors") {
    for (const auto& [name, shape] : good.shapes) {
      if (name.find("gate") != name.npos || name.find("time_mix_g") != name.npos) continue;  // optional
      SampleCheckpoint bad;
      bad.shapes.erase(name);
      // What the layer, not the file, calls required is named as the layer knows it.
      bad.check_refused(name.ends_with("time_faaaa") ? "time_faaaa" : "tensor \"" + name + "\": missing");
    }
  }
  SECTION("wrong shapes") {
    for (const auto& [name, shape] : good.shapes) {
      SampleCheckpoint bad;
      bad.shapes[name] = {3, 5};
      INFO(name);
      CHECK_THROWS_AS(rwkv::load_model<float>(SafetensorsFile(bad.bytes(), "sample")), SafetensorsError);
    }
    SampleCheckpoint bad;
    bad.shapes["blocks.1.ffn.value.weight"] = {8, 13};
    bad.check_refused("blocks.1.ffn: rwkv_channel_mixing: value.weight: expected shape [8, 12], given [8, 13]");
  }
  SECTION("integers") {
    SampleCheckpoint bad;
    bad.integers = "blocks.1.ffn.key.weight";
    bad.check_refused("tensor \"blocks.1.ffn.key.weight\": expected floating-point numbers, given I32");
  }
  SECTION("truncated files") {
    const auto bytes = good.bytes();
    for (std::size_t size = 0; size < bytes.size(); size += 97) {
      std::vector<std::byte> part(bytes.begin(), bytes.begin() + Index(size));
      CHECK_THROWS_AS(rwkv::load_model<float>(SafetensorsFile(std::move(part), "sample")), SafetensorsError);
    }
  }
}

}  // namespace
