// What the golden adapters and the naive references of structured state spaces share.
#pragma once

#include <algorithm>
#include <cmath>
#include <complex>
#include <seqmix/parts/state_space_layer.hpp>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "support/golden.hpp"
#include "support/reference.hpp"

namespace seqmix::test {

inline ParameterTransform read_transform(GoldenConfig& config, const char* key, const char* otherwise) {
  const std::string text = config.text(key, otherwise);
  if (text == "none") return ParameterTransform::none;
  if (text == "exp") return ParameterTransform::exponential;
  if (text == "softplus") return ParameterTransform::softly_positive;
  if (text == "sigmoid") return ParameterTransform::logistic;
  if (text == "relu") return ParameterTransform::rectified;
  config.unknown(key);
}

/// The sizes and options of a core.
inline StateSpaceConfig read_state_space(GoldenCase& golden) {
  auto& config = golden.config();
  StateSpaceConfig result;
  result.channels = config.integer("d_model");
  result.modes = config.integer("stored_state", config.integer("state_dim") / 2);
  result.outputs = config.integer("channels", 1);
  result.copies = config.integer("n_ssm", result.channels);
  const std::string rule = config.text("disc", "zoh");
  if (rule != "zoh" && rule != "bilinear") config.unknown("disc");
  result.discretization = rule == "zoh" ? Discretization::zoh : Discretization::bilinear;
  result.dt_transform = read_transform(config, "dt_transform", "exp");
  result.real_transform = read_transform(config, "real_transform", "exp");
  result.imag_transform = read_transform(config, "imag_transform", "none");
  result.rank = config.integer("rank", 1);
  for (const char* length : {"weight.kernel.l_kernel", "weight.layer.kernel.l_kernel"}) {
    if (golden.has(length)) result.kernel_length = golden.indices(length).at(0);
  }
  for (const char* remark : {"state_dim", "init", "l_max", "C_form"}) config.ignore(remark);
  return result;
}

inline Direction read_direction(GoldenCase& golden) {
  auto& config = golden.config();
  const bool both = config.boolean("bidirectional", false);
  config.expect("causal", !both);
  return both ? Direction::bidirectional : Direction::causal;
}

/// Adds the state [2, H, M] as the files have it.
template <class State>
void collect_modes(const State& modes, GoldenOutputs& outputs) {
  const std::size_t half = modes.size() / 2;
  outputs.add("state.ssm.real", std::vector(modes.data(), modes.data() + half));
  outputs.add("state.ssm.imag", std::vector(modes.data() + half, modes.data() + 2 * half));
}

template <class State>
void read_modes(GoldenCase& golden, State& modes) {
  if (!golden.has("input.state.ssm.real")) return;
  using T = std::remove_cvref_t<decltype(*modes.data())>;
  const std::size_t half = modes.size() / 2;
  golden.copy("input.state.ssm.real", std::span<T>(modes.data(), half));
  golden.copy("input.state.ssm.imag", std::span<T>(modes.data() + half, half));
}

template <class Core>
struct StateSpaceCoreGolden : GoldenRunner<typename Core::Scalar> {
  using T = typename Core::Scalar;

  explicit StateSpaceCoreGolden(GoldenCase& golden)
      : config(read_state_space(golden)),
        direction(read_direction(golden)),
        x(golden.array<T>("input.x", {-1, config.channels})),
        core(config, weights(golden), direction),
        output({x.size(0), core.outputs()}),
        initial(core.state_shape()) {
    golden.config().expect_null("activation");
    read_modes(golden, initial);
  }
  static StateSpaceWeights<T> weights(GoldenCase& golden) {
    StateSpaceWeights<T> result;
    result.inv_dt = golden.vector<T>("weight.kernel.inv_dt"), result.d = golden.matrix<T>("weight.D");
    result.c = golden.matrix<T>("weight.kernel.C"), result.b = golden.matrix<T>("weight.kernel.B");
    result.a_real = golden.matrix<T>("weight.kernel.A_real"), result.a_imag = golden.matrix<T>("weight.kernel.A_imag");
    if (Core::low_rank) result.p = golden.matrix<T>("weight.kernel.P");
    return result;
  }
  Index length() const override { return x.size(0); }
  bool stepwise() const override { return direction == Direction::causal; }
  void reset() override { state = initial; }
  void run(Index begin, Index count) override {
    if (direction == Direction::bidirectional) return core.run(x.sequence(), output.sequence(), this->workspace);
    const Index H = config.channels, M = config.modes;
    core.run(std::as_const(x).sequence().rows(begin, count), {state.data(), 2, H, M, H * M, M},
             output.sequence().rows(begin, count), this->workspace);
  }
  void collect(GoldenOutputs& outputs) const override {
    outputs.add("y", output);
    outputs.add("kernel", core.kernel(length()));
    if (direction == Direction::causal) collect_modes(state, outputs);
  }

  StateSpaceConfig config;
  Direction direction;
  GoldenArray<T> x;
  Core core;
  GoldenArray<T> output;
  Tensor<T> initial, state;
};

template <class Core, Direction way>
struct StateSpaceLayerGolden : GoldenLayer<StateSpaceLayer<Core, way>> {
  using Mixer = StateSpaceLayer<Core, way>;
  using Base = GoldenLayer<Mixer>;
  using State = typename detail::StateType<Mixer>::Type;

  explicit StateSpaceLayerGolden(GoldenCase& golden) : Base(golden, config(golden)) {}
  StateSpaceLayerGolden(GoldenCase& golden, const typename Mixer::Weights& weights)
      : Base(golden, config(golden), weights) {}

  static StateSpaceConfig config(GoldenCase& golden) {
    auto& config = golden.config();
    StateSpaceConfig result = read_state_space(golden);
    const std::string activation = config.text("activation", "none"),
                      last = config.is_null("final_act") ? "none" : config.text("final_act", "glu");
    if (activation != "gelu" && activation != "none") config.unknown("activation");
    if (last != "glu" && last != "none") config.unknown("final_act");
    result.activate = activation == "gelu", result.gated = last == "glu";
    return result;
  }
  void read_state(GoldenCase& golden, State& state) override {
    if constexpr (way == Direction::causal) read_modes(golden, state.modes);
  }
  void collect(GoldenOutputs& outputs) const override {
    Base::collect(outputs);
    outputs.add("kernel", this->mixer().core().kernel(this->length()));
  }
  void collect_state(const State& state, GoldenOutputs& outputs) const override {
    if constexpr (way == Direction::causal) collect_modes(state.modes, outputs);
  }
};

// --- references -------------------------------------------------------------------------------------------------------

inline double transformed_as(double x, ParameterTransform transform) {
  switch (transform) {
    case ParameterTransform::exponential:
      return std::exp(x);
    case ParameterTransform::softly_positive:
      return softplus(x);
    case ParameterTransform::logistic:
      return sigmoid(x);
    case ParameterTransform::rectified:
      return std::max(x, 0.0);
    default:
      return x;
  }
}

/// Number `row` of a tensor with rows of real and imaginary part.
inline std::complex<double> complex_number(const Matrixd& parts, Index row) {
  return {parts.data()[2 * row], parts.data()[2 * row + 1]};
}

/// Lam of a channel.
inline std::complex<double> pole(const StateSpaceConfig& config, const StateSpaceWeights<double>& weights, Index h,
                                 Index n) {
  return {-transformed_as(weights.a_real(h % config.sets(), n), config.real_transform),
          -transformed_as(weights.a_imag(h % config.sets(), n), config.imag_transform)};
}

/// The layer from its kernels: kernel(row, length) for the rows of C.
template <class Kernel>
Matrixd state_space_reference(const StateSpaceConfig& config, const StateSpaceWeights<double>& core,
                              const Matrixd& output, const Vectord& bias, const Matrixd& x, bool both,
                              const Kernel& kernel) {
  const Index H = config.channels, L = x.rows();
  Matrixd mixed(L, config.outputs * H);
  for (Index row = 0; row < config.outputs * H; ++row) {
    const std::vector<double> forward = kernel(row, L);
    std::vector<double> backward;
    if (both) backward = kernel(config.outputs * H + row, L);
    for (Index t = 0; t < L; ++t) {
      double sum = core.d.data()[row] * x(t, row % H);
      for (Index s = 0; s <= t; ++s) sum += forward[std::size_t(t - s)] * x(s, row % H);
      for (Index s = t + 1; s < L && both; ++s) sum += backward[std::size_t(s - t - 1)] * x(s, row % H);
      mixed(t, row) = sum;
    }
  }
  if (config.activate) mixed = map(mixed, gelu);
  const Matrixd y = linear(mixed, output, bias);
  if (!config.gated) return y;
  return y.leftCols(H).cwiseProduct(map(y.rightCols(H), sigmoid));
}

}  // namespace seqmix::test
