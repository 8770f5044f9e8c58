// A mixer around a core function that has no layer, so that laws and comparison with a naive reference apply to it.
//
// A row of x holds queries, keys, values and the logits z of the log decays g = -exp(6 z), side by side: for normal z from
// about -1e-7 to below -500. A row of y holds the outputs of the heads, and zeros.
#pragma once

#include <algorithm>
#include <cmath>
#include <seqmix/core/mixer.hpp>
#include <seqmix/core/parameters.hpp>
#include <seqmix/core/random.hpp>
#include <seqmix/engine/memory.hpp>

#include "support/recurrence_reference.hpp"
#include "support/registry.hpp"

namespace seqmix::test {

/// Core has the operator's name, decay_logits(heads) and run<T>(query, key, value, log_decay [L, decay_logits], memory,
/// output, workspace).
template <class Core, class T>
class CoreMixer : public RecurrentMixerBase<CoreMixer<Core, T>, T> {
 public:
  static constexpr std::string_view name = Core::name;
  static constexpr StateGrowth growth = StateGrowth::constant;

  struct Config {
    Index heads = 1, key_heads = 1, key_dim = 1, value_dim = 1;
    Index channels() const { return key_heads * 2 * key_dim + heads * value_dim + Core::decay_logits(heads); }
  };
  struct Weights {
    static void visit(auto&, auto&&) {}
  };
  struct State {
    Tensor<T> memory;  // [heads, key_dim, value_dim]
    template <class Self, class Visitor>
    static void visit(Self& self, Visitor&& visitor) {
      visitor("memory", self.memory);
    }
  };

  CoreMixer(const Config& config, const Weights&) : config_(config) {}
  static Weights random_weights(const Config&, Rng&) { return {}; }
  Index channels() const { return config_.channels(); }
  const Config& config() const { return config_; }
  State initial_state() const { return {Tensor<T>(memory_shape())}; }
  void check_state(const State& state) const {
    expect_shape(name, "state.memory", memory_shape(), state.memory.shape());
  }

  void advance(const SequenceBatch<State>& batch, ConstSequence<T> x, Sequence<T> y, Workspace& workspace) const {
    const Index H = config_.heads, Hk = config_.key_heads, K = config_.key_dim, V = config_.value_dim;
    const auto log_decay = workspace.sequence<T>(x.length(), Core::decay_logits(H));
    for (Index t = 0; t < x.length(); ++t) {
      const T* logits = x.row(t) + 2 * Hk * K + H * V;
      for (Index h = 0; h < log_decay.channels(); ++h) log_decay(t, h) = T(-std::exp(6 * double(logits[h])));
      std::fill_n(y.row(t), y.channels(), T(0));
    }
    for (Index b = 0; b < batch.size(); ++b) {
      const auto rows = [&](const auto& view) { return view.rows(batch.begin(b), batch.length(b)); };
      Core::template run<T>(rows(x).columns(0, Hk * K).heads(Hk), rows(x).columns(Hk * K, Hk * K).heads(Hk),
                            rows(x).columns(2 * Hk * K, H * V).heads(H), rows(log_decay),
                            MemoryView<T>(batch.state(b).memory), rows(y).columns(0, H * V).heads(H), workspace);
    }
  }

 private:
  Shape memory_shape() const { return {config_.heads, config_.key_dim, config_.value_dim}; }
  Config config_;
};

/// Registers a core. Besides what CoreMixer needs, Core has log_decay(heads, head, logits of a token) for the reference,
/// in double. The scale is K^-0.5.
template <class Core>
struct CoreTests {
  static constexpr const char* name = Core::name;
  template <class T>
  using Mixer = CoreMixer<Core, T>;

  template <class T>
  static std::vector<Configuration<Mixer<T>>> configurations(Rng& rng) {
    const Index heads = rng.integer(1, 3);
    return {{"one head of 1", {}},
            {"six heads, two of keys", {.heads = 6, .key_heads = 2, .key_dim = 5, .value_dim = 3}},
            {"two heads of 64", {.heads = 2, .key_heads = 2, .key_dim = 64, .value_dim = 64}},
            {"random",
             {.heads = heads, .key_heads = heads, .key_dim = rng.integer(1, 20), .value_dim = rng.integer(1, 40)}}};
  }

  static Matrixd reference(const typename Mixer<double>::Config& config, const typename Mixer<double>::Weights&,
                           const Matrixd& x) {
    const Index H = config.heads, Hk = config.key_heads, K = config.key_dim, V = config.value_dim;
    Matrixd y = Matrixd::Zero(x.rows(), x.cols());
    for (Index h = 0; h < H; ++h) {
      MemoryLoop memory(K, V);
      const Matrixd q = head(x.leftCols(Hk * K), h / (H / Hk), Hk);
      const Matrixd k = head(x.middleCols(Hk * K, Hk * K), h / (H / Hk), Hk);
      const Matrixd v = head(x.middleCols(2 * Hk * K, H * V), h, H);
      for (Index t = 0; t < x.rows(); ++t) {
        const double z = Core::decay_logits(H) > 0 ? x(t, 2 * Hk * K + H * V + h) : 0;
        memory.decay(Matrixd::Constant(1, 1, Core::log_decay(H, h, z)));
        memory.add(k.row(t), v.row(t));
        y.row(t).segment(h * V, V) = memory.read(q.row(t)) / std::sqrt(double(K));
      }
    }
    return y;
  }
};

}  // namespace seqmix::test
