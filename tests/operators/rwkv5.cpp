// RWKV-5: the core function, and the layer of versions 5.0, 5.1 and 5.2.
#include <cmath>
#include <seqmix/recurrent/rwkv5.hpp>

#include "support/golden.hpp"
#include "support/reference.hpp"
#include "support/registry.hpp"

namespace seqmix::test {
namespace {

// --- golden cases -----------------------------------------------------------------------------------------------------

template <class T>
struct Rwkv5CoreGolden final : GoldenRunner<T> {
  explicit Rwkv5CoreGolden(GoldenCase& golden)
      : heads(golden.config().integer("heads")),
        key_dim(golden.config().integer("head_dim")),
        value_dim(golden.config().integer("value_head_dim", key_dim)),
        receptance(golden.array<T>("input.r", {-1, heads, key_dim})),
        key(golden.array<T>("input.k", {-1, heads, key_dim})),
        value(golden.array<T>("input.v", {-1, heads, value_dim})),
        log_decay(golden.array<T>("input.w", {heads, key_dim})),
        bonus(golden.array<T>("input.u", {heads, key_dim})),
        output({receptance.size(0), heads, value_dim}),
        initial({heads, key_dim, value_dim}) {
    golden.config().expect("causal", true);
    golden.config().expect("scale", 1.0);
    golden.config().expect("state_layout", "[H,K,V]");
    golden.config().ignore("w");
    if (golden.has("input.state.s")) initial = golden.array<T>("input.state.s", {heads, key_dim, value_dim});
  }
  Index length() const override { return receptance.size(0); }
  void reset() override { memory = initial; }
  void run(Index begin, Index count) override {
    rwkv5<T>(receptance.heads().rows(begin, count), key.heads().rows(begin, count), value.heads().rows(begin, count),
             log_decay.sequence(), bonus.sequence(), {memory.data(), heads, key_dim, value_dim},
             output.heads().rows(begin, count), this->workspace);
  }
  void collect(GoldenOutputs& outputs) const override {
    outputs.add("y", output);
    outputs.add("state.s", memory);
  }

  Index heads, key_dim, value_dim;
  GoldenArray<T> receptance, key, value, log_decay, bonus, output, initial, memory;
};

template <class T>
struct Rwkv5LayerGolden final : GoldenLayer<Rwkv5<T>> {
  using Base = GoldenLayer<Rwkv5<T>>;
  using State = typename Rwkv5<T>::State;

  explicit Rwkv5LayerGolden(GoldenCase& golden) : Base(golden, config(golden)) {}

  static typename Rwkv5<T>::Config config(GoldenCase& golden) {
    auto& config = golden.config();
    typename Rwkv5<T>::Config result;
    result.channels = config.integer("n_embd");
    result.attention_channels = config.integer("dim_att", result.channels);
    result.heads = config.integer("heads");
    result.norm_eps = T(config.number("ln_x_eps"));
    const std::string version = config.text("version");
    if (version != "5.0" && version != "5.1" && version != "5.2") config.unknown("version");
    const bool gate = version != "5.0", per_channel = version == "5.2";
    config.expect("gate", gate);
    if (golden.has("weight.gate.weight") != gate) throw GoldenError("gate.weight doesn't go with version " + version);
    config.expect("u", gate ? "time_faaaa" : "exp(time_first)");
    config.expect("decay", per_channel ? "per channel" : "per head");
    config.expect("head_dim", result.attention_channels / result.heads);
    config.expect("causal", true);
    config.expect("state_layout", "[H,K,V]");
    config.ignore("head_size_divisor");  // ln_x_eps is the effective one
    config.ignore("chunk");              // of the implementation that computed the case
    return result;
  }
  void read_state(GoldenCase& golden, State& state) override {
    if (golden.has("input.state.x_prev")) golden.copy("input.state.x_prev", state.previous);
    if (golden.has("input.state.s")) golden.copy("input.state.s", state.memory);
  }
  void collect_state(const State& state, GoldenOutputs& outputs) const override {
    outputs.add("state.x_prev", state.previous);
    outputs.add("state.s", state.memory);
  }
};

const GoldenRegistration<Rwkv5CoreGolden> core_golden{"rwkv5", "core"};
const GoldenRegistration<Rwkv5LayerGolden> layer_golden{"rwkv5", "layer"};

// --- naive reference --------------------------------------------------------------------------------------------------

/// Element (h, i) of a tensor with one number for each head or for each channel.
double at(const Matrixd& tensor, Index h, Index i) { return tensor(h, tensor.cols() == 1 ? 0 : i); }

Matrixd rwkv5_layer(const Rwkv5<double>::Config& config, const Rwkv5<double>::Weights& weights, const Matrixd& x) {
  const Matrixd previous = shifted(x);
  const auto mixed = [&](const Vectord& mix) {
    Matrixd y(x.rows(), x.cols());
    for (Index t = 0; t < x.rows(); ++t) {
      for (Index c = 0; c < x.cols(); ++c) y(t, c) = x(t, c) * mix[c] + previous(t, c) * (1 - mix[c]);
    }
    return y;
  };
  const Matrixd r = linear(mixed(weights.mix_receptance), weights.receptance);
  const Matrixd k = linear(mixed(weights.mix_key), weights.key);
  const Matrixd v = linear(mixed(weights.mix_value), weights.value);
  const Index H = config.heads, K = r.cols() / H;
  Matrixd wkv = Matrixd::Zero(x.rows(), r.cols());
  for (Index h = 0; h < H; ++h) {
    const Matrixd r_h = head(r, h, H), k_h = head(k, h, H), v_h = head(v, h, H);
    Matrixd o = Matrixd::Zero(x.rows(), K), memory = Matrixd::Zero(K, K);
    for (Index t = 0; t < x.rows(); ++t) {
      for (Index i = 0; i < K; ++i) {
        const double w = -std::exp(at(weights.decay, h, i));
        const double u = weights.bonus.size() > 0 ? at(weights.bonus, h, i) : std::exp(at(weights.log_bonus, h, i));
        for (Index j = 0; j < K; ++j) {
          const double kv = k_h(t, i) * v_h(t, j);
          o(t, j) += r_h(t, i) * (memory(i, j) + u * kv);
          memory(i, j) = std::exp(w) * memory(i, j) + kv;
        }
      }
    }
    set_head(wkv, h, H, o);
  }
  Matrixd y = group_norm(wkv, H, config.norm_eps, weights.norm_weight, weights.norm_bias);
  if (weights.gate.size() > 0) y = y.cwiseProduct(map(linear(mixed(weights.mix_gate), weights.gate), silu));
  return linear(y, weights.output);
}

// --- mixers -----------------------------------------------------------------------------------------------------------

struct Rwkv52Tests {
  static constexpr const char* name = "rwkv5, version 5.2";
  template <class T>
  using Mixer = Rwkv5<T>;

  template <class T>
  static std::vector<Configuration<Mixer<T>>> configurations(Rng& rng) {
    const Index heads = rng.integer(1, 5);
    return {
        {"one head of 1", {.channels = 1}},
        {"two heads of 4", {.channels = 8, .heads = 2}},
        {"three heads of 5", {.channels = 15, .heads = 3}},
        {"more attention channels", {.channels = 6, .attention_channels = 16, .heads = 2}},
        {"another epsilon", {.channels = 12, .heads = 4, .norm_eps = T(1e-2)}},
        {"head_dim 64", {.channels = 64, .heads = 1}},
        {"random", {.channels = rng.integer(1, 33), .attention_channels = heads * rng.integer(2, 17), .heads = heads}}};
  }
  static Matrixd reference(const Rwkv5<double>::Config& config, const Rwkv5<double>::Weights& weights,
                           const Matrixd& x) {
    return rwkv5_layer(config, weights, x);
  }
};

struct Rwkv51Tests : Rwkv52Tests {
  static constexpr const char* name = "rwkv5, version 5.1";

  template <class T>
  static std::vector<Configuration<Mixer<T>>> configurations(Rng&) {
    return {{"two heads of 4", {.channels = 8, .heads = 2}},
            {"three heads of 7, 10 channels", {.channels = 10, .attention_channels = 21, .heads = 3}}};
  }
  /// One decay and one bonus for each head.
  static Rwkv5<double>::Weights weights(const Rwkv5<double>::Config& config, Rng& rng) {
    auto result = Rwkv5<double>::random_weights(config, rng);
    stir(result, rng);
    result.decay = Matrixd(result.decay.leftCols(1));
    result.bonus = Matrixd(result.bonus.leftCols(1));
    return result;
  }
};

struct Rwkv50Tests : Rwkv51Tests {
  static constexpr const char* name = "rwkv5, version 5.0";

  /// The bonus as a logarithm, and no gate.
  static Rwkv5<double>::Weights weights(const Rwkv5<double>::Config& config, Rng& rng) {
    auto result = Rwkv51Tests::weights(config, rng);
    result.log_bonus = result.bonus;
    result.bonus.resize(0, 0);
    result.gate.resize(0, 0);
    result.mix_gate.resize(0);
    return result;
  }
};

const MixerRegistration<Rwkv52Tests> version_5_2;
const MixerRegistration<Rwkv51Tests> version_5_1;
const MixerRegistration<Rwkv50Tests> version_5_0;

}  // namespace
}  // namespace seqmix::test
