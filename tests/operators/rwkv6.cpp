// RWKV-6: the core function and the layer.
#include <cmath>
#include <seqmix/recurrent/rwkv6.hpp>

#include "support/golden.hpp"
#include "support/reference.hpp"
#include "support/registry.hpp"

namespace seqmix::test {
namespace {

// --- golden cases -----------------------------------------------------------------------------------------------------

template <class T>
struct Rwkv6CoreGolden final : GoldenRunner<T> {
  explicit Rwkv6CoreGolden(GoldenCase& golden)
      : heads(golden.config().integer("heads")),
        key_dim(golden.config().integer("head_dim")),
        value_dim(golden.config().integer("value_head_dim", key_dim)),
        receptance(golden.array<T>("input.r", {-1, heads, key_dim})),
        key(golden.array<T>("input.k", {-1, heads, key_dim})),
        value(golden.array<T>("input.v", {-1, heads, value_dim})),
        log_decay(golden.array<T>("input.w", {-1, heads, key_dim})),
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
    rwkv6<T>(receptance.heads().rows(begin, count), key.heads().rows(begin, count), value.heads().rows(begin, count),
             log_decay.heads().rows(begin, count), bonus.sequence(), {memory.data(), heads, key_dim, value_dim},
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
struct Rwkv6LayerGolden final : GoldenLayer<Rwkv6<T>> {
  using Base = GoldenLayer<Rwkv6<T>>;
  using State = typename Rwkv6<T>::State;

  explicit Rwkv6LayerGolden(GoldenCase& golden) : Base(golden, config(golden)) {}

  static typename Rwkv6<T>::Config config(GoldenCase& golden) {
    auto& config = golden.config();
    config.expect("version", "6.0");
    typename Rwkv6<T>::Config result;
    result.channels = config.integer("n_embd");
    result.attention_channels = config.integer("dim_att", result.channels);
    result.heads = config.integer("heads");
    result.mix_rank = config.integer("mix_lora");
    result.decay_rank = config.integer("decay_lora");
    result.norm_eps = T(config.number("ln_x_eps"));
    config.expect("head_dim", result.attention_channels / result.heads);
    config.expect("causal", true);
    config.expect("state_layout", "[H,K,V]");
    config.ignore("head_size_divisor");  // ln_x_eps is the effective one
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

const GoldenRegistration<Rwkv6CoreGolden> core_golden{"rwkv6", "core"};
const GoldenRegistration<Rwkv6LayerGolden> layer_golden{"rwkv6", "layer"};

// --- naive reference --------------------------------------------------------------------------------------------------

Matrixd rwkv6_layer(const Rwkv6<double>::Config& config, const Rwkv6<double>::Weights& weights, const Matrixd& x) {
  const Matrixd d = shifted(x) - x;
  const Index M = config.mix_rank;
  Matrixd mixed = x;
  for (Index t = 0; t < x.rows(); ++t) {
    for (Index c = 0; c < x.cols(); ++c) mixed(t, c) += d(t, c) * weights.mix_all[c];
  }
  const Matrixd z = map(product(mixed, weights.mix_down), [](double value) { return std::tanh(value); });
  const auto input = [&](Index i) {  // w, k, v, r, g
    const Matrixd m = product(z.middleCols(i * M, M), weights.mix_up.middleRows(i * M, M));
    Matrixd y = x;
    for (Index t = 0; t < x.rows(); ++t) {
      for (Index c = 0; c < x.cols(); ++c) y(t, c) += d(t, c) * (weights.mix[std::size_t(i)][c] + m(t, c));
    }
    return y;
  };
  const Matrixd low_rank = map(product(input(0), weights.decay_down), [](double value) { return std::tanh(value); });
  Matrixd w = product(low_rank, weights.decay_up);
  for (Index t = 0; t < w.rows(); ++t) {
    for (Index c = 0; c < w.cols(); ++c) w(t, c) = -std::exp(weights.decay[c] + w(t, c));
  }
  const Matrixd k = linear(input(1), weights.key), v = linear(input(2), weights.value);
  const Matrixd r = linear(input(3), weights.receptance), gate = map(linear(input(4), weights.gate), silu);
  const Index H = config.heads, K = r.cols() / H;
  Matrixd wkv(x.rows(), r.cols());
  for (Index h = 0; h < H; ++h) {
    const Matrixd r_h = head(r, h, H), k_h = head(k, h, H), v_h = head(v, h, H), w_h = head(w, h, H);
    Matrixd o = Matrixd::Zero(x.rows(), K), memory = Matrixd::Zero(K, K);
    for (Index t = 0; t < x.rows(); ++t) {
      for (Index i = 0; i < K; ++i) {
        for (Index j = 0; j < K; ++j) {
          const double kv = k_h(t, i) * v_h(t, j);
          o(t, j) += r_h(t, i) * (memory(i, j) + weights.bonus(h, i) * kv);
          memory(i, j) = std::exp(w_h(t, i)) * memory(i, j) + kv;
        }
      }
    }
    set_head(wkv, h, H, o);
  }
  const Matrixd y = group_norm(wkv, H, config.norm_eps, weights.norm_weight, weights.norm_bias);
  return linear(y.cwiseProduct(gate), weights.output);
}

// --- mixers -----------------------------------------------------------------------------------------------------------

struct Rwkv6Tests {
  static constexpr const char* name = "rwkv6";
  template <class T>
  using Mixer = Rwkv6<T>;

  template <class T>
  static std::vector<Configuration<Mixer<T>>> configurations(Rng& rng) {
    const Index heads = rng.integer(1, 5);
    return {{"three heads of 1", {.channels = 3, .heads = 3, .mix_rank = 1, .decay_rank = 1}},
            {"two heads of 4", {.channels = 8, .heads = 2, .mix_rank = 3, .decay_rank = 4}},
            {"three heads of 5", {.channels = 15, .heads = 3, .mix_rank = 5, .decay_rank = 2}},
            {"more attention channels",
             {.channels = 6, .attention_channels = 16, .heads = 2, .mix_rank = 2, .decay_rank = 3}},
            {"another epsilon", {.channels = 12, .heads = 4, .mix_rank = 4, .decay_rank = 8, .norm_eps = T(1e-2)}},
            {"head_dim 64, published ranks", {.channels = 64, .heads = 1}},
            {"random",
             {.channels = rng.integer(1, 33),
              .attention_channels = heads * rng.integer(2, 17),
              .heads = heads,
              .mix_rank = rng.integer(1, 9),
              .decay_rank = rng.integer(1, 9)}}};
  }
  static Matrixd reference(const Rwkv6<double>::Config& config, const Rwkv6<double>::Weights& weights,
                           const Matrixd& x) {
    return rwkv6_layer(config, weights, x);
  }
};

/// Log decays between -1e-3 and minus some hundreds side by side.
struct ExtremeRwkv6Tests : Rwkv6Tests {
  static constexpr const char* name = "rwkv6, extreme decays";

  template <class T>
  static std::vector<Configuration<Mixer<T>>> configurations(Rng&) {
    return {{"two heads of 8", {.channels = 16, .heads = 2, .mix_rank = 3, .decay_rank = 4}}};
  }
  static Rwkv6<double>::Weights weights(const Rwkv6<double>::Config& config, Rng& rng) {
    auto result = Rwkv6<double>::random_weights(config, rng);
    stir(result, rng);
    for (Index c = 0; c < result.decay.size(); ++c) result.decay[c] = rng.uniform(-7, 6);
    return result;
  }
};

const MixerRegistration<Rwkv6Tests> mixer;
const MixerRegistration<ExtremeRwkv6Tests> extreme_mixer;

}  // namespace
}  // namespace seqmix::test
