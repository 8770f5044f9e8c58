// Log-linear attention: the core function, and a mixer around it.
#include <cmath>
#include <seqmix/linear/log_linear_attention.hpp>

#include "support/recurrence_golden.hpp"
#include "support/reference.hpp"
#include "support/registry.hpp"

namespace seqmix::test {
namespace {

// --- golden cases -----------------------------------------------------------------------------------------------------

template <class T>
struct LogLinearAttentionGolden final : GoldenRunner<T> {
  explicit LogLinearAttentionGolden(GoldenCase& golden)
      : heads(golden.config().integer("v_heads", golden.config().integer("heads"))),
        key_dim(golden.config().integer("key_dim")),
        value_dim(golden.config().integer("value_dim")),
        scale(T(golden.config().number("scale"))),
        query(golden.array<T>("input.q", {-1, -1, key_dim})),
        key(golden.array<T>("input.k", {query.size(0), -1, key_dim})),
        value(golden.array<T>("input.v", {query.size(0), -1, value_dim})),
        log_decay(golden.array<T>("input.g", {query.size(0), -1})),
        level_scales(golden.array<T>("input.level_scales", {query.size(0), -1, golden.config().integer("levels")})),
        output({query.size(0), heads, value_dim}) {
    golden.config().expect("gate", "log");
  }
  Index length() const override { return query.size(0); }
  void reset() override { state = LogLinearState<T>(length(), heads, key_dim, value_dim); }
  void run(Index begin, Index count) override {
    const auto rows = [&](const GoldenArray<T>& array) { return array.heads().rows(begin, count); };
    log_linear_attention<T>(rows(query), rows(key), rows(value), log_decay.sequence().rows(begin, count),
                            rows(level_scales), scale, state, output.heads().rows(begin, count), this->workspace);
  }
  void collect(GoldenOutputs& outputs) const override { outputs.add("y", output); }

  Index heads, key_dim, value_dim;
  T scale;
  GoldenArray<T> query, key, value, log_decay, level_scales, output;
  LogLinearState<T> state;
};

const GoldenRegistration<LogLinearAttentionGolden> core_golden{"log_linear_attention", "core"};

// --- mixer ------------------------------------------------------------------------------------------------------------

/// A row of x holds queries, keys, values, the logits z of the log decays g = -exp(6 z), and level scales, side by side. A
/// row of y holds the outputs of the heads, and zeros.
template <class T>
class LogLinearAttentionMixer : public RecurrentMixerBase<LogLinearAttentionMixer<T>, T> {
 public:
  static constexpr std::string_view name = "log_linear_attention";
  static constexpr StateGrowth growth = StateGrowth::constant;
  static constexpr Index levels = 13, room = (Index(1) << levels) - 1;
  using State = LogLinearState<T>;

  struct Config {
    Index heads = 1, key_heads = 1, key_dim = 1, value_dim = 1;
    Index channels() const { return 2 * key_heads * key_dim + heads * (value_dim + 1 + levels + 1); }
  };
  struct Weights {
    static void visit(auto&, auto&&) {}
  };

  LogLinearAttentionMixer(const Config& config, const Weights&) : config_(config) {}
  static Weights random_weights(const Config&, Rng&) { return {}; }
  Index channels() const { return config_.channels(); }
  const Config& config() const { return config_; }
  State initial_state() const { return State(room, config_.heads, config_.key_dim, config_.value_dim); }
  void check_state(const State& state) const {
    expect_shape(name, "state.memory", {levels, config_.heads, config_.key_dim, config_.value_dim},
                 state.memory.shape());
    expect_shape(name, "state.fade", {levels, config_.heads}, state.fade.shape());
  }

  void advance(const SequenceBatch<State>& batch, ConstSequence<T> x, Sequence<T> y, Workspace& workspace) const {
    const Index H = config_.heads, Hk = config_.key_heads, keys = Hk * config_.key_dim, values = H * config_.value_dim;
    const auto log_decay = workspace.sequence<T>(x.length(), H);
    for (Index t = 0; t < x.length(); ++t) {
      for (Index h = 0; h < H; ++h) log_decay(t, h) = T(-std::exp(6 * double(x(t, 2 * keys + values + h))));
      std::fill_n(y.row(t), y.channels(), T(0));
    }
    for (Index b = 0; b < batch.size(); ++b) {
      const auto rows = [&](const auto& view) { return view.rows(batch.begin(b), batch.length(b)); };
      log_linear_attention<T>(rows(x).columns(0, keys).heads(Hk), rows(x).columns(keys, keys).heads(Hk),
                              rows(x).columns(2 * keys, values).heads(H), rows(log_decay),
                              rows(x).columns(2 * keys + values + H, H * (levels + 1)).heads(H), T(0.5), batch.state(b),
                              rows(y).columns(0, values).heads(H), workspace);
    }
  }

 private:
  Config config_;
};

struct LogLinearAttentionTests {
  static constexpr const char* name = "log_linear_attention";
  template <class T>
  using Mixer = LogLinearAttentionMixer<T>;

  template <class T>
  static std::vector<Configuration<Mixer<T>>> configurations(Rng& rng) {
    const Index heads = rng.integer(1, 3);
    return {{"one head of 1", {}},
            {"six heads, two of keys", {.heads = 6, .key_heads = 2, .key_dim = 5, .value_dim = 3}},
            {"two heads of 64", {.heads = 2, .key_heads = 2, .key_dim = 64, .value_dim = 64}},
            {"random",
             {.heads = heads, .key_heads = heads, .key_dim = rng.integer(1, 20), .value_dim = rng.integer(1, 40)}}};
  }

  static Matrixd reference(const Mixer<double>::Config& config, const Mixer<double>::Weights&, const Matrixd& x) {
    const Index H = config.heads, Hk = config.key_heads, keys = Hk * config.key_dim, V = config.value_dim;
    Matrixd y = Matrixd::Zero(x.rows(), x.cols());
    for (Index h = 0; h < H; ++h) {
      const Matrixd q = head(x.leftCols(keys), h / (H / Hk), Hk), k = head(x.middleCols(keys, keys), h / (H / Hk), Hk);
      const Matrixd v = head(x.middleCols(2 * keys, H * V), h, H);
      const Matrixd scales = head(x.rightCols(H * (Mixer<double>::levels + 1)), h, H);
      for (Index t = 0; t < x.rows(); ++t) {
        double log_decay = 0;
        for (Index s = t; s >= 0; --s) {
          const double weight = 0.5 * scales(t, level(t, s)) * std::exp(log_decay) * q.row(t).dot(k.row(s));
          for (Index j = 0; j < V; ++j) y(t, h * V + j) += weight * v(s, j);
          log_decay -= std::exp(6 * x(s, 2 * keys + H * V + h));
        }
      }
    }
    return y;
  }

  /// Level 0 is t itself; level l has the 2^(l-1) tokens before t with its low l-1 bits cleared, if bit l-1 of t is set.
  static Index level(Index t, Index s) {
    if (s == t) return 0;
    for (Index l = 1;; ++l) {
      const Index end = t >> (l - 1) << (l - 1), size = Index(1) << (l - 1);
      if ((t >> (l - 1) & 1) && s >= end - size && s < end) return l;
    }
  }
};

const MixerRegistration<LogLinearAttentionTests> mixer;

}  // namespace
}  // namespace seqmix::test
