// Performer: the core functions and the layer, with the key stabilizer given and without.
#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <seqmix/linear/performer.hpp>

#include "support/golden.hpp"
#include "support/reference.hpp"
#include "support/registry.hpp"

namespace seqmix::test {
namespace {

using random_feature::Relu;
using random_feature::Softmax;

// --- golden cases -----------------------------------------------------------------------------------------------------

template <class T>
PerformerOptions<T> performer_options(GoldenConfig& config) {
  return {.kernel_eps = T(config.number("kernel_eps")), .denominator_eps = T(config.number("denominator_eps"))};
}

/// Calls f with the kernel and the direction of a case, as a type and an integral constant.
template <class F>
auto with_performer(GoldenConfig& config, F f) {
  const bool causal = config.boolean("causal");
  const auto with = [&](auto kernel) {
    if (causal) return f(kernel, std::integral_constant<Direction, Direction::causal>());
    return f(kernel, std::integral_constant<Direction, Direction::bidirectional>());
  };
  const std::string kernel = config.text("kernel");
  if (kernel == "softmax") return with(Softmax{});
  if (kernel == "relu") return with(Relu{});
  config.unknown("kernel");
}

/// Whole sequences find out the key stabilizer by themselves, pieces are given it.
template <class T, class Kernel, Direction direction>
struct PerformerCoreRunner final : GoldenRunner<T> {
  static constexpr bool stabilized = Kernel::stabilized && direction == Direction::causal;

  explicit PerformerCoreRunner(GoldenCase& golden)
      : heads(golden.config().integer("heads")),
        key_dim(golden.config().integer("key_dim")),
        value_dim(golden.config().integer("value_dim")),
        options(performer_options<T>(golden.config())),
        query(golden.array<T>("input.q", {-1, heads, key_dim})),
        key(golden.array<T>("input.k", {query.size(0), heads, key_dim})),
        value(golden.array<T>("input.v", {query.size(0), heads, value_dim})),
        output({query.size(0), heads, value_dim}),
        largest({heads}),
        features(golden.matrix<T>("weight.projection_matrix")) {
    golden.config().expect("features", features.features());
    if constexpr (stabilized) {
      given = golden.array<T>("input.key_stabilizer", {heads});
    } else {
      golden.ignore("input.key_stabilizer");
    }
  }
  Index length() const override { return query.size(0); }
  bool stepwise() const override { return direction == Direction::causal; }
  void reset() override { state = PerformerState<T>(Shape{heads, features.features(), value_dim}); }
  void run(Index begin, Index count) override { run_with(begin, count, given); }
  void whole() override {
    std::fill_n(largest.data(), heads, -std::numeric_limits<T>::infinity());
    performer_key_stabilizer<T>(key.heads(), features, largest.token(), this->workspace);
    run_with(0, length(), largest);
  }
  void collect(GoldenOutputs& outputs) const override { outputs.add("y", output); }

 private:
  void run_with(Index begin, Index count, const GoldenArray<T>& stabilizer) {
    const auto q = query.heads().rows(begin, count), k = key.heads().rows(begin, count);
    const auto v = value.heads().rows(begin, count), y = output.heads().rows(begin, count);
    if constexpr (direction == Direction::bidirectional) {
      performer_bidirectional<Kernel, T>(q, k, v, features, options, y, this->workspace);
    } else {
      const ConstSequence<T> all =
          stabilized ? ConstSequence<T>(stabilizer.data(), count, heads, 0) : ConstSequence<T>();
      performer<Kernel, T>(q, k, v, features, options, state, y, this->workspace, all);
    }
  }

  Index heads, key_dim, value_dim;
  PerformerOptions<T> options;
  GoldenArray<T> query, key, value, output, largest, given;
  RandomFeatures<T> features;
  PerformerState<T> state;
};

template <class T>
struct PerformerCoreGolden {
  static std::unique_ptr<GoldenRunner<T>> make(GoldenCase& golden) {
    return with_performer(golden.config(), [&](auto kernel, auto direction) -> std::unique_ptr<GoldenRunner<T>> {
      return std::make_unique<PerformerCoreRunner<T, decltype(kernel), direction()>>(golden);
    });
  }
};

template <class M>
typename M::Config performer_config(GoldenConfig& config) {
  typename M::Config result;
  result.channels = config.integer("dim");
  result.heads = config.integer("heads");
  result.head_dim = config.integer("key_dim");
  result.features = config.integer("features");
  result.query_key_value_bias = config.boolean("qkv_bias");
  result.output_bias = config.boolean("out_bias");
  result.options = performer_options<typename M::Scalar>(config);
  config.expect("value_dim", result.head_dim);
  return result;
}

/// A causal layer with the key stabilizer, which GoldenLayer doesn't know.
template <class M>
struct StabilizedPerformerRunner final : GoldenRunner<typename M::Scalar> {
  using T = typename M::Scalar;

  explicit StabilizedPerformerRunner(GoldenCase& golden)
      : config(performer_config<M>(golden.config())),
        mixer(config, weights(golden)),
        x(golden.array<T>("input.x", {-1, config.channels})),
        y(x.shape()),
        given(golden.array<T>("input.key_stabilizer", {config.heads})),
        largest(given.shape()),
        state(mixer.initial_state()) {}
  Index length() const override { return x.size(0); }
  void reset() override { state = mixer.initial_state(); }
  void run(Index begin, Index count) override {
    mixer.prefill(state, rows(x).rows(begin, count), given.token(), y.sequence().rows(begin, count), this->workspace);
  }
  void step(Index row) override {
    mixer.step(state, rows(x).token(row), given.token(), y.sequence().token(row), this->workspace);
  }
  void whole() override {
    mixer.key_stabilizer(rows(x), largest.token(), this->workspace);
    mixer.forward(rows(x), largest.token(), y.sequence(), this->workspace);
  }
  void collect(GoldenOutputs& outputs) const override { outputs.add("y", y); }

 private:
  static ConstSequence<T> rows(const GoldenArray<T>& array) { return array.sequence(); }
  static typename M::Weights weights(GoldenCase& golden) {
    typename M::Weights result;
    golden.read_weights(result);
    return result;
  }

  typename M::Config config;
  M mixer;
  GoldenArray<T> x, y, given, largest;
  typename M::State state;
};

template <class T>
struct PerformerLayerGolden {
  static std::unique_ptr<GoldenRunner<T>> make(GoldenCase& golden) {
    return with_performer(golden.config(), [&](auto kernel, auto direction) -> std::unique_ptr<GoldenRunner<T>> {
      using M = Performer<T, decltype(kernel), direction()>;
      if constexpr (direction() == Direction::causal && kernel.stabilized) {
        return std::make_unique<StabilizedPerformerRunner<M>>(golden);
      } else {
        golden.ignore("input.key_stabilizer");
        return std::make_unique<GoldenLayer<M>>(golden, performer_config<M>(golden.config()));
      }
    });
  }
};

const GoldenRegistration<PerformerCoreGolden> core_golden{"performer", "core"};
const GoldenRegistration<PerformerLayerGolden> layer_golden{"performer", "layer"};

// --- naive reference --------------------------------------------------------------------------------------------------

/// phi(x) of a row of u, relative to `largest`, as the equations have it.
Vectord features_of(Softmax, const Vectord& u, double half_square, double largest, double eps) {
  Vectord result(u.size());
  for (Index j = 0; j < u.size(); ++j) {
    result[j] = (std::exp(u[j] - half_square - largest) + eps) / std::sqrt(double(u.size()));
  }
  return result;
}
Vectord features_of(Relu, const Vectord& u, double, double, double eps) {
  return u.unaryExpr([&](double x) { return (x < 0 ? 0 : x) + eps; });  // NaN stays NaN
}

/// The largest number, or NaN if there is one.
double largest_of(const Vectord& u) {
  double result = -std::numeric_limits<double>::infinity();
  for (const double x : u) result = x <= result ? result : x;
  return result;
}

template <class Kernel, Direction direction, class Config, class Weights>
Matrixd performer_layer(const Config& config, const Weights& weights, const Matrixd& x) {
  const Index H = config.heads, length = x.rows();
  const Matrixd q = linear(x, weights.query, weights.query_bias), k = linear(x, weights.key, weights.key_bias);
  const Matrixd v = linear(x, weights.value, weights.value_bias);
  const Index K = q.cols() / H;
  const bool causal = direction == Direction::causal;
  const double eps = config.options.kernel_eps.value_or(std::is_same_v<Kernel, Softmax> ? 1e-4 : 1e-3);
  const double denominator_eps = config.options.denominator_eps.value_or(causal ? 1e-6 : 0);
  Matrixd mixed(length, q.cols());
  for (Index h = 0; h < H; ++h) {
    const Matrixd q_h = head(q, h, H) * std::pow(double(K), -0.25), k_h = head(k, h, H) * std::pow(double(K), -0.25);
    const Matrixd v_h = head(v, h, H), u_q = linear(q_h, weights.features), u_k = linear(k_h, weights.features);
    Matrixd o = Matrixd::Zero(length, K);
    double largest = -std::numeric_limits<double>::infinity();
    for (Index s = 0; s < length && !causal; ++s) largest = std::max(largest, largest_of(u_k.row(s)));
    for (Index t = 0; t < length; ++t) {
      if (causal) largest = std::max(largest, largest_of(u_k.row(t)));
      const Vectord phi_q =
          features_of(Kernel{}, u_q.row(t), q_h.row(t).squaredNorm() / 2, largest_of(u_q.row(t)), eps);
      double sum = denominator_eps * phi_q.sum();
      for (Index s = 0; s < (causal ? t + 1 : length); ++s) {
        const double w = phi_q.dot(features_of(Kernel{}, u_k.row(s), k_h.row(s).squaredNorm() / 2, largest, eps));
        sum += w;
        o.row(t) += w * v_h.row(s);
      }
      o.row(t) /= sum;
    }
    set_head(mixed, h, H, o);
  }
  return linear(mixed, weights.output, weights.output_bias);
}

// --- mixers -----------------------------------------------------------------------------------------------------------

template <class Kernel, Direction direction>
struct PerformerTests {
  static constexpr const char* name =
      direction == Direction::causal
          ? (Kernel::stabilized ? "performer" : "performer, relu")
          : (Kernel::stabilized ? "performer, bidirectional" : "performer, relu, bidirectional");
  template <class T>
  using Mixer = Performer<T, Kernel, direction>;

  template <class T>
  static std::vector<Configuration<Mixer<T>>> configurations(Rng& rng) {
    const Index heads = rng.integer(1, 3);
    return {
        {"one head of 1, one feature", {.channels = 1, .heads = 1}},
        {"two heads of 5, all biases", {.channels = 10, .heads = 2, .query_key_value_bias = true}},
        {"three heads of 4, 16 features, no bias",
         {.channels = 7, .heads = 3, .head_dim = 4, .features = 16, .output_bias = false}},
        {"large epsilons",
         {.channels = 12, .heads = 3, .features = 9, .options = {.kernel_eps = T(0.05), .denominator_eps = T(0.3)}}},
        {"one head of 33, constant norms",
         {.channels = 33, .heads = 1, .features = 70, .norms = RandomFeatureNorms::constant}},
        {"random", {.channels = heads * rng.integer(1, 9), .heads = heads, .features = rng.integer(1, 40)}}};
  }

  static Matrixd reference(const typename Mixer<double>::Config& config, const typename Mixer<double>::Weights& weights,
                           const Matrixd& x) {
    return performer_layer<Kernel, direction>(config, weights, x);
  }
};

const MixerRegistration<PerformerTests<Softmax, Direction::causal>> causal;
const MixerRegistration<PerformerTests<Softmax, Direction::bidirectional>> bidirectional;
const MixerRegistration<PerformerTests<Relu, Direction::causal>> relu;
const MixerRegistration<PerformerTests<Relu, Direction::bidirectional>> relu_bidirectional;

}  // namespace
}  // namespace seqmix::test
