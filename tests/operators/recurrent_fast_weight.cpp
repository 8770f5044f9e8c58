// Recurrent fast weight programmers: both core functions and their layer.
#include <cmath>
#include <memory>
#include <seqmix/linear/recurrent_fast_weight.hpp>

#include "support/fast_weights.hpp"
#include "support/registry.hpp"

namespace seqmix::test {
namespace {

using enum RecurrentFastWeightVariant;

// --- golden cases -----------------------------------------------------------------------------------------------------

template <class T>
DeltaRnnOptions<T> options_of(GoldenConfig& config, bool delta_net, Index head_dim) {
  DeltaRnnOptions<T> result;
  result.scale = T(config.number("scale"));
  if (delta_net) return result;
  result.features = features_of(config, head_dim);
  result.state_epsilon = T(config.number("state_softmax_eps"));
  return result;
}

/// Calls f with the variant that config key variant names, as an integral constant.
template <class F>
auto with_variant(GoldenConfig& config, F f) {
  const std::string variant = config.text("variant");
  if (variant == "rdn") return f(std::integral_constant<RecurrentFastWeightVariant, recurrent_delta_net>{});
  if (variant == "delta_rnn") return f(std::integral_constant<RecurrentFastWeightVariant, delta_rnn>{});
  config.unknown("variant");
}

template <class T>
struct RecurrentFastWeightCoreGolden final : GoldenRunner<T> {
  explicit RecurrentFastWeightCoreGolden(GoldenCase& golden)
      : heads(golden.config().integer("heads")),
        head_dim(golden.config().integer("head_dim")),
        delta_net(with_variant(golden.config(), [](auto variant) { return variant == recurrent_delta_net; })),
        options(options_of<T>(golden.config(), delta_net, head_dim)),
        query(golden.array<T>("input.q", {-1, heads, head_dim})),
        key(golden.array<T>("input.k", {query.size(0), heads, head_dim})),
        value(golden.array<T>("input.v", {query.size(0), heads, head_dim})),
        beta(golden.array<T>("input.beta", {query.size(0), heads})),
        output({query.size(0), heads, head_dim}),
        initial_memory({heads, delta_net ? head_dim : options.features.size(head_dim), head_dim}),
        initial_recurrent_memory({heads, head_dim, head_dim}),
        initial_hidden({heads, head_dim}) {
    const auto read_state = [&](const std::string& name, GoldenArray<T>& array) {
      if (golden.has("input.state." + name)) array = golden.array<T>("input.state." + name, array.shape());
    };
    read_state("W", initial_memory), read_state("h", initial_hidden);
    if (delta_net) {
      query_feedback = golden.array<T>("weight.R_q", {1, heads, head_dim, head_dim});
      key_feedback = golden.array<T>("weight.R_k", {1, heads, head_dim, head_dim});
      value_feedback = golden.array<T>("weight.R_v", {1, heads, head_dim, head_dim});
      beta_feedback = golden.array<T>("weight.r_b", {1, heads, 1, head_dim});
    } else {
      read_state("R", initial_recurrent_memory);
      recurrent_key = golden.array<T>("input.rec_k", {query.size(0), heads, head_dim});
      recurrent_value = golden.array<T>("input.rec_v", {query.size(0), heads, head_dim});
      recurrent_beta = golden.array<T>("input.rec_beta", {query.size(0), heads});
    }
  }
  Index length() const override { return query.size(0); }
  void reset() override {
    memory = initial_memory, recurrent_memory = initial_recurrent_memory, hidden = initial_hidden;
  }
  void run(Index begin, Index count) override {
    const auto rows = [&](auto& array) { return array.heads().rows(begin, count); };
    const auto rates = [&](auto& array) { return array.sequence().rows(begin, count); };
    const MemoryView<T> own(memory.data(), heads, memory.size(1), head_dim);
    if (delta_net) {
      const auto matrix = [&](GoldenArray<T>& array, Index size) {
        return ConstSequence<T>(array.data(), size, head_dim);
      };
      seqmix::recurrent_delta_net<T>(rows(query), rows(key), rows(value), rates(beta),
                                     {matrix(query_feedback, heads * head_dim), matrix(key_feedback, heads * head_dim),
                                      matrix(value_feedback, heads * head_dim), matrix(beta_feedback, heads)},
                                     options.scale, own, hidden.sequence(), rows(output), this->workspace);
    } else {
      seqmix::delta_rnn<T>(rows(query), rows(key), rows(value), rates(beta), rows(recurrent_key), rows(recurrent_value),
                           rates(recurrent_beta), options, own, {recurrent_memory.data(), heads, head_dim, head_dim},
                           hidden.sequence(), rows(output), this->workspace);
    }
  }
  void collect(GoldenOutputs& outputs) const override {
    outputs.add("y", output);
    outputs.add("state.W", memory);
    outputs.add("state.h", hidden);
    if (!delta_net) outputs.add("state.R", recurrent_memory);
  }

  Index heads, head_dim;
  bool delta_net;
  DeltaRnnOptions<T> options;
  GoldenArray<T> query, key, value, beta, output, initial_memory, initial_recurrent_memory, initial_hidden, memory,
      recurrent_memory, hidden, recurrent_key, recurrent_value, recurrent_beta, query_feedback, key_feedback,
      value_feedback, beta_feedback;
};

template <class T, RecurrentFastWeightVariant variant>
struct RecurrentFastWeightMixerGolden final : GoldenLayer<RecurrentFastWeight<T, variant>> {
  using M = RecurrentFastWeight<T, variant>;
  using Base = GoldenLayer<M>;
  using State = typename M::State;

  explicit RecurrentFastWeightMixerGolden(GoldenCase& golden)
      : RecurrentFastWeightMixerGolden(golden, config(golden)) {}
  RecurrentFastWeightMixerGolden(GoldenCase& golden, const typename M::Config& config)
      : Base(golden, config, read_layer_weights<M>(golden, config.form)) {}

  static typename M::Config config(GoldenCase& golden) {
    typename M::Config result;
    read_layer_config(golden.config(), result);
    result.options = options_of<T>(golden.config(), variant == recurrent_delta_net, result.head_dim);
    return result;
  }
  void read_state(GoldenCase& golden, State& state) override {
    const auto read = [&](const std::string& name, auto& field) {
      if (golden.has("input.state." + name)) golden.copy("input.state." + name, field);
    };
    read("W", state.memory), read("R", state.recurrent_memory), read("h", state.hidden);
  }
  void collect_state(const State& state, GoldenOutputs& outputs) const override {
    outputs.add("state.W", state.memory);
    outputs.add("state.h", state.hidden);
    if (!state.recurrent_memory.empty()) outputs.add("state.R", state.recurrent_memory);
  }
};

template <class T>
struct RecurrentFastWeightLayerGolden {
  static std::unique_ptr<GoldenRunner<T>> make(GoldenCase& golden) {
    return with_variant(golden.config(), [&](auto variant) -> std::unique_ptr<GoldenRunner<T>> {
      return std::make_unique<RecurrentFastWeightMixerGolden<T, variant>>(golden);
    });
  }
};

const GoldenRegistration<RecurrentFastWeightCoreGolden> core_golden{"recurrent_fast_weight", "core"};
const GoldenRegistration<RecurrentFastWeightLayerGolden> layer_golden{"recurrent_fast_weight", "layer"};

// --- naive references -------------------------------------------------------------------------------------------------

/// e^(x - max) over their sum + eps.
Matrixd softmax_row(const Matrixd& x, double eps = 0) {
  double most = x(0, 0), sum = 0;
  for (Index j = 0; j < x.cols(); ++j) most = std::max(most, x(0, j));
  Matrixd y = x;
  for (Index j = 0; j < x.cols(); ++j) sum += y(0, j) = std::exp(x(0, j) - most);
  return y / (sum + eps);
}

/// S += k (beta (v - S^T k))^T.
void delta_rule_step(MemoryLoop& memory, const Matrixd& key, const Matrixd& value, double beta) {
  memory.add(key, beta * (value - memory.read(key)));
}

// --- mixers -----------------------------------------------------------------------------------------------------------

template <class M>
std::vector<Configuration<M>> few_configurations(Rng& rng) {
  using enum FastWeightForm;
  using T = typename M::Scalar;
  return {
      {"one head of 1", {.channels = 3, .heads = 1, .head_dim = 1}},
      {"three heads of 4", {.channels = 10, .heads = 3, .head_dim = 4}},
      {"language model, norm first",
       {.channels = 8, .heads = 1, .form = language_model_pre_norm, .options = {.scale = T(0.5)}}},
      {"language model, norm last",
       {.channels = 10, .heads = 2, .form = language_model_post_norm, .options = {.scale = T(2)}, .norm_eps = T(1e-2)}},
      {"head_dim 64", {.channels = 16, .heads = 1, .head_dim = 64}},
      {"two heads of 32", {.channels = 5, .heads = 2, .head_dim = 32}},
      {"random", {.channels = rng.integer(2, 33), .heads = rng.integer(1, 4), .head_dim = rng.integer(1, 40)}}};
}

struct RecurrentDeltaNetTests {
  static constexpr const char* name = "recurrent_fast_weight, recurrent delta net";
  template <class T>
  using Mixer = RecurrentFastWeight<T, recurrent_delta_net>;

  template <class T>
  static std::vector<Configuration<Mixer<T>>> configurations(Rng& rng) {
    return few_configurations<Mixer<T>>(rng);
  }

  static Matrixd reference(const Mixer<double>::Config& config, const Mixer<double>::Weights& weights,
                           const Matrixd& x) {
    return fast_weight_layer(weights, config.norm_eps, config.heads, x, [&](const Matrixd& slow, Index i) {
      const Index d = (slow.cols() - 1) / 3;
      MemoryLoop memory(d, d);
      Matrixd h = Matrixd::Zero(1, d), o(slow.rows(), d);
      const auto fed_back = [&](const Matrixd& weight) {
        return product(map(h, [](double z) { return std::tanh(z); }), weight.middleRows(i * d, d));
      };
      for (Index t = 0; t < slow.rows(); ++t) {
        const Matrixd q = softmax_row(slow.row(t).segment(0, d) + fed_back(weights.query_feedback));
        const Matrixd k = softmax_row(slow.row(t).segment(d, d) + fed_back(weights.key_feedback));
        const Matrixd v = slow.row(t).segment(2 * d, d) + fed_back(weights.value_feedback);
        double beta = slow(t, 3 * d);
        for (Index j = 0; j < d; ++j) beta += std::tanh(h(0, j)) * weights.beta_feedback(i, j);
        delta_rule_step(memory, k, v, sigmoid(beta));
        h = memory.read(q);
        o.row(t) = config.options.scale * h;
      }
      return o;
    });
  }
};

struct DeltaRnnTests {
  static constexpr const char* name = "recurrent_fast_weight, delta RNN";
  template <class T>
  using Mixer = RecurrentFastWeight<T, delta_rnn>;

  template <class T>
  static std::vector<Configuration<Mixer<T>>> configurations(Rng& rng) {
    auto result = few_configurations<Mixer<T>>(rng);
    result.push_back(
        {"epsilon, dpfp",
         {.channels = 8,
          .heads = 2,
          .options = {.features = {.kind = FastWeightFeatures::Kind::dpfp, .nu = 2}, .state_epsilon = T(0.5)}}});
    return result;
  }

  static Matrixd reference(const Mixer<double>::Config& config, const Mixer<double>::Weights& weights,
                           const Matrixd& x) {
    const auto& options = config.options;
    return fast_weight_layer(weights, config.norm_eps, config.heads, x, [&](const Matrixd& slow, Index) {
      const Index d = (slow.cols() - 2) / 5;
      const Matrixd q = fast_weight_features(slow.leftCols(d), options.features);
      const Matrixd k = fast_weight_features(slow.middleCols(d, d), options.features);
      MemoryLoop fast(k.cols(), d), recurrent(d, d);
      Matrixd h = Matrixd::Zero(1, d), o(slow.rows(), d);
      for (Index t = 0; t < slow.rows(); ++t) {
        delta_rule_step(fast, k.row(t), slow.row(t).segment(2 * d, d), sigmoid(slow(t, 5 * d)));
        delta_rule_step(recurrent, softmax_row(slow.row(t).segment(3 * d, d)), slow.row(t).segment(4 * d, d),
                        sigmoid(slow(t, 5 * d + 1)));
        h = recurrent.read(softmax_row(h, options.state_epsilon)) + fast.read(q.row(t));
        o.row(t) = options.scale * h;
      }
      return o;
    });
  }
};

const MixerRegistration<RecurrentDeltaNetTests> delta_net_mixer;
const MixerRegistration<DeltaRnnTests> delta_rnn_mixer;

}  // namespace
}  // namespace seqmix::test
