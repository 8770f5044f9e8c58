// Real trained models in double, and a random one.
#include <catch2/catch_test_macros.hpp>
#include <vector>

#include "rwkv_models.hpp"

namespace {

using namespace model_tests;

TEST_CASE("real models give the logits and texts known for them, in double", "[models]") {
  check_real_models<double>();
}

/// The random checkpoint of a version gives the same through every path.
template <class TimeMixing>
void check_sample(int version) {
  INFO("version " << version);
  const auto any = rwkv::load_model<double>(SafetensorsFile(SampleCheckpoint(version).bytes(), "sample"));
  const auto& model = std::get<rwkv::Model<TimeMixing>>(any);
  CHECK(model.layers() == 2);
  CHECK(model.vocabulary() == 16);
  Rng rng(9);
  std::vector<Index> tokens(40);
  for (Index& token : tokens) token = rng.integer(0, 15);
  const auto [whole, state] = in_pieces(model, tokens, {40});
  CHECK(difference(in_pieces(model, tokens, {3, 0, 11}).first, whole) <= 1e-9);
  CHECK(difference(step_by_step(model, tokens).first, whole) <= 1e-9);
  // Per block two last tokens of 8 channels, and 2 memories of 4 x 4 or 3 sums for each channel.
  CHECK(model.state_bytes(state) >= 2 * (8 + 8 + (version == 4 ? 24 : 32)) * sizeof(double));

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

TEST_CASE("a checkpoint of random numbers is the same through every path", "[models]") {
  check_sample<Rwkv4<double>>(4);
  check_sample<Rwkv5<double>>(5);
  check_sample<Rwkv7<double>>(7);
}

}  // namespace
