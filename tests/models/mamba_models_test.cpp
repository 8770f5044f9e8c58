// Language models of Mamba-1 and Mamba-2: small random checkpoints in the published layout, in float and double.
#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_exception.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <cmath>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "examples/support/mamba_model.hpp"
#include "language_models.hpp"

namespace {

using namespace model_tests;
using Catch::Matchers::ContainsSubstring;
using Catch::Matchers::MessageMatches;

/// A checkpoint of two layers, whose tensors can be left out or replaced. A mixed one has a layer of either version.
class SampleCheckpoint {
 public:
  enum Version { first, second, mixed };

  explicit SampleCheckpoint(Version version = second) {
    add("backbone.embedding.weight", {vocabulary, channels});
    add("backbone.norm_f.weight", {channels});
    for (const std::string layer : {"backbone.layers.0.", "backbone.layers.1."}) {
      add(layer + "norm.weight", {channels});
      add(layer + "mixer.out_proj.weight", {channels, inner});
      if (version == first || (version == mixed && layer == "backbone.layers.0.")) {
        add(layer + "mixer.in_proj.weight", {2 * inner, channels});
        add(layer + "mixer.conv1d.weight", {inner, 1, 4});
        add(layer + "mixer.conv1d.bias", {inner});
        add(layer + "mixer.x_proj.weight", {rank + 2 * states, inner});
        add(layer + "mixer.dt_proj.weight", {inner, rank});
        for (const char* name : {"mixer.dt_proj.bias", "mixer.D"}) add(layer + name, {inner});
        add(layer + "mixer.A_log", {inner, states});
        continue;
      }
      add(layer + "mixer.in_proj.weight", {2 * inner + 2 * groups * states + heads, channels});
      add(layer + "mixer.conv1d.weight", {inner + 2 * groups * states, 1, 4});
      add(layer + "mixer.conv1d.bias", {inner + 2 * groups * states});
      for (const char* name : {"mixer.dt_bias", "mixer.A_log", "mixer.D"}) add(layer + name, {heads});
      add(layer + "mixer.norm.weight", {inner});
    }
  }

  void add(const std::string& name, std::vector<Index> shape) { shapes[name] = std::move(shape); }

  SafetensorsFile file() const {
    SafetensorsWriter writer;
    for (const auto& [key, value] : metadata) writer.set_metadata(key, value);
    Rng rng(7);
    for (const auto& [name, shape] : shapes) {
      Index count = 1;
      for (const Index size : shape) count *= size;
      std::vector<float> numbers(static_cast<std::size_t>(count));
      const double scale = shape.size() > 1 && name != "backbone.embedding.weight" ? 0.5 : 1;
      for (float& number : numbers) number = float(scale * rng.normal());
      writer.add<float>(name, shape, numbers);
    }
    return SafetensorsFile(writer.bytes(), "sample");
  }

  static constexpr Index channels = 6, inner = 12, heads = 4, groups = 2, states = 5, rank = 3, vocabulary = 16;
  std::map<std::string, std::string> metadata = {{"ngroups", "2"}};
  std::map<std::string, std::vector<Index>> shapes;  // of all tensors
};

std::vector<Index> random_tokens(Index count) {
  Rng rng(9);
  std::vector<Index> tokens(static_cast<std::size_t>(count));
  for (Index& token : tokens) token = rng.integer(0, SampleCheckpoint::vocabulary - 1);
  return tokens;
}

TEMPLATE_TEST_CASE("a Mamba checkpoint is the same through every path", "[models]", float, double) {
  using T = TestType;
  constexpr Index first_state = 12 * 5 + 4 * 12, second_state = 12 * 5 + 4 * (12 + 2 * 2 * 5);
  const std::pair<SampleCheckpoint::Version, Index> versions[] = {
      {SampleCheckpoint::first, 2 * first_state},
      {SampleCheckpoint::second, 2 * second_state},
      {SampleCheckpoint::mixed, first_state + second_state}};
  for (const auto& [version, numbers] : versions) {
    INFO(int(version));
    const mamba::Model<T> model(SampleCheckpoint(version).file());
    CHECK(model.layers() == 2);
    CHECK(model.vocabulary() == SampleCheckpoint::vocabulary);
    const std::vector<Index> tokens = random_tokens(70);
    const auto [whole, state] = in_pieces(model, tokens, {70});
    // Rounding grows through two layers of norms.
    const double bound = std::is_same_v<T, float> ? 1e-4 : 1e-12;
    const Matrix<double> expected = whole.template cast<double>();
    CHECK(difference(in_pieces(model, tokens, {3, 0, 11}).first, expected) <= bound);
    CHECK(difference(step_by_step(model, tokens).first, expected) <= bound);
    CHECK(model.state_bytes(state) == std::size_t(numbers) * sizeof(T));

    Matrix<T> last = poisoned<T>(1, model.vocabulary());
    Workspace workspace;
    auto fresh = model.initial_state();
    model.prefill(fresh, tokens, last, workspace);
    CHECK(difference(last, Matrix<double>(expected.bottomRows(1))) <= bound);
  }
}

/// The equations in double, for the sample's sizes.
TEST_CASE("logits of a Mamba model follow from embedding, norms, mixers and head", "[models]") {
  for (const auto& [tied, version] : {std::pair{true, SampleCheckpoint::second},
                                      {false, SampleCheckpoint::second},
                                      {true, SampleCheckpoint::first},
                                      {false, SampleCheckpoint::first}}) {
    SampleCheckpoint checkpoint(version);
    if (!tied) checkpoint.add("lm_head.weight", {SampleCheckpoint::vocabulary, SampleCheckpoint::channels});
    const SafetensorsFile file = checkpoint.file();
    const mamba::Model<double> model(file);
    const std::vector<Index> tokens = random_tokens(9);
    const Matrix<double> embedding = file.matrix<double>("backbone.embedding.weight");
    Matrix<double> x(9, SampleCheckpoint::channels), mixed = x;
    for (Index t = 0; t < 9; ++t) x.row(t) = embedding.row(tokens[std::size_t(t)]);
    const auto normalised = [&](const std::string& name) {
      const Vector<double> weight = file.vector<double>(name);
      Matrix<double> y = x;
      for (Index t = 0; t < y.rows(); ++t) {
        y.row(t) /= std::sqrt(y.row(t).squaredNorm() / double(y.cols()) + 1e-5);
        for (Index c = 0; c < y.cols(); ++c) y(t, c) *= weight[c];
      }
      return y;
    };
    Workspace workspace;
    for (const std::string layer : {"backbone.layers.0.", "backbone.layers.1."}) {
      const Matrix<double> normal = normalised(layer + "norm.weight");
      if (version == SampleCheckpoint::first) {
        Mamba<double>::Weights weights;
        load_weights(weights, file, layer + "mixer.");
        const Mamba<double> mixer({.channels = 6, .state_dim = 5, .expand = 2, .delta_rank = 3}, weights);
        mixer.forward(normal, mixed, workspace);
      } else {
        Mamba2<double>::Weights weights;
        load_weights(weights, file, layer + "mixer.");
        const Mamba2<double> mixer({.channels = 6, .inner_channels = 12, .head_dim = 3, .state_dim = 5, .groups = 2},
                                   weights);
        mixer.forward(normal, mixed, workspace);
      }
      x += mixed;
    }
    const Matrix<double> head = tied ? embedding : file.matrix<double>("lm_head.weight");
    const Matrix<double> expected = normalised("backbone.norm_f.weight") * head.transpose();
    CHECK(difference(in_pieces(model, tokens, {9}).first, expected) <= 1e-12);
  }
}

TEST_CASE("broken Mamba checkpoints and wrong tokens are refused", "[models]") {
  const auto check_refused = [](const SampleCheckpoint& checkpoint, const std::string& problem) {
    CHECK_THROWS_MATCHES(mamba::Model<float>(checkpoint.file()), SafetensorsError,
                         MessageMatches(ContainsSubstring("sample: ") && ContainsSubstring(problem)));
  };
  for (const auto version : {SampleCheckpoint::first, SampleCheckpoint::second}) {
    for (const auto& [name, shape] : SampleCheckpoint(version).shapes) {
      // Without a bias or a norm it is another model, and without x_proj one of the other version.
      if (name.ends_with("_bias") || name.ends_with("conv1d.bias") || name.ends_with("mixer.norm.weight") ||
          name == "backbone.layers.1.norm.weight") {
        continue;
      }
      INFO(name);
      SampleCheckpoint checkpoint(version);
      checkpoint.shapes.erase(name);
      check_refused(checkpoint, name.ends_with("x_proj.weight") ? "" : name);
      checkpoint.add(name, {1, 3});
      check_refused(checkpoint, "");
    }
  }
  SampleCheckpoint many_groups, no_number;
  many_groups.metadata["ngroups"] = "3";
  check_refused(many_groups, "groups");
  no_number.metadata["ngroups"] = "two";
  check_refused(no_number, "ngroups");

  const mamba::Model<float> model(SampleCheckpoint().file());
  auto state = model.initial_state();
  Matrix<float> logits = Matrix<float>::Constant(3, 16, 7.0f);
  const Matrix<float> untouched = logits;
  Workspace workspace;
  for (const std::vector<Index>& wrong : {std::vector<Index>{1, 16, 2}, {-1, 1, 2}, {1, 2}}) {
    CHECK_THROWS_AS(model.prefill(state, wrong, logits, workspace), std::invalid_argument);
    CHECK(logits == untouched);
  }
}

}  // namespace
