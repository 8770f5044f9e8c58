// RWKV-7: the core function, and the layer as the first of a model and after it.
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <seqmix/recurrent/rwkv7.hpp>
#include <stdexcept>
#include <string>

#include "support/golden.hpp"
#include "support/reference.hpp"
#include "support/registry.hpp"

namespace seqmix::test {
namespace {

// --- golden cases -----------------------------------------------------------------------------------------------------

/// The memory of the files is [H, K, V], whatever else the remark says.
void expect_layout(GoldenConfig& config) {
  if (!config.text("state_layout", "[H,K,V]").starts_with("[H,K,V]")) config.unknown("state_layout");
}

template <class T>
struct Rwkv7CoreGolden final : GoldenRunner<T> {
  explicit Rwkv7CoreGolden(GoldenCase& golden)
      : heads(golden.config().integer("heads")),
        key_dim(golden.config().integer("head_dim")),
        value_dim(golden.config().integer("value_head_dim", key_dim)),
        receptance(golden.array<T>("input.r", {-1, heads, key_dim})),
        key(golden.array<T>("input.k", {-1, heads, key_dim})),
        value(golden.array<T>("input.v", {-1, heads, value_dim})),
        log_decay(golden.array<T>("input.w", {-1, heads, key_dim})),
        a(golden.array<T>("input.a", {-1, heads, key_dim})),
        b(golden.array<T>("input.b", {-1, heads, key_dim})),
        output({receptance.size(0), heads, value_dim}),
        initial({heads, key_dim, value_dim}) {
    golden.config().expect("causal", true);
    golden.config().expect("scale", 1.0);
    golden.config().ignore("w");
    golden.config().ignore("update");
    expect_layout(golden.config());
    if (golden.has("input.state.s")) initial = golden.array<T>("input.state.s", {heads, key_dim, value_dim});
  }
  Index length() const override { return receptance.size(0); }
  void reset() override { memory = initial; }
  void run(Index begin, Index count) override {
    const auto rows = [&](const GoldenArray<T>& array) { return array.heads().rows(begin, count); };
    rwkv7<T>(rows(receptance), rows(key), rows(value), rows(log_decay), rows(a), rows(b),
             {memory.data(), heads, key_dim, value_dim}, output.heads().rows(begin, count), this->workspace);
  }
  void collect(GoldenOutputs& outputs) const override {
    outputs.add("y", output);
    outputs.add("state.s", memory);
  }

  Index heads, key_dim, value_dim;
  GoldenArray<T> receptance, key, value, log_decay, a, b, output, initial, memory;
};

/// Hands the values of the first layer on: reads them from the file, or compares them with it.
template <class T>
struct Rwkv7LayerGolden final : GoldenRunner<T> {
  explicit Rwkv7LayerGolden(GoldenCase& golden)
      : source(golden),
        mixer(config(golden), weights(golden)),
        x(golden.array<T>("input.x", {-1, mixer.channels()})),
        first_value(mixer.config().inner ? golden.array<T>("input.v_first", {x.size(0), width()})
                                         : GoldenArray<T>({x.size(0), width()})),
        y(x.shape()) {}

  static typename Rwkv7<T>::Config config(GoldenCase& golden) {
    auto& config = golden.config();
    if (!config.text("version").starts_with("7")) config.unknown("version");
    typename Rwkv7<T>::Config result;
    result.channels = config.integer("n_embd");
    result.attention_channels = config.integer("dim_att", result.channels);
    result.heads = config.integer("heads");
    result.inner = config.integer("layer_id") > 0;
    result.decay_rank = config.integer("decay_lora");
    result.rate_rank = config.integer("a_lora");
    result.value_rank = config.integer("v_lora", 0);
    result.gate_rank = config.integer("gate_lora");
    result.norm_eps = T(config.number("ln_x_eps"));
    result.key_norm_eps = T(config.number("l2norm_eps"));
    config.expect("head_dim", result.attention_channels / result.heads);
    config.expect("causal", true);
    expect_layout(config);
    return result;
  }
  static typename Rwkv7<T>::Weights weights(GoldenCase& golden) {
    typename Rwkv7<T>::Weights result;
    golden.read_weights(result);
    return result;
  }

  Index width() const { return mixer.config().attention_channels; }
  Index length() const override { return x.size(0); }
  void reset() override {
    if (!mixer.config().inner) fill(first_value);
    fill(y);
    this->workspace.poison();
    state = mixer.initial_state();
    if (source.has("input.state.x_prev")) source.copy("input.state.x_prev", state.previous);
    if (source.has("input.state.s")) source.copy("input.state.s", state.memory);
  }
  void whole() override {
    run(0, length());
    if (source.has("input.state.x_prev") || source.has("input.state.s")) return;
    mixer.forward(x.sequence(), first_value.sequence(), y.sequence(), this->workspace);
  }
  void run(Index begin, Index count) override {
    const auto rows = [&](GoldenArray<T>& array) { return array.sequence().rows(begin, count); };
    mixer.prefill(state, rows(x), rows(first_value), rows(y), this->workspace);
  }
  void step(Index row) override {
    const auto token = [&](GoldenArray<T>& array) { return array.sequence().token(row); };
    mixer.step(state, token(x), token(first_value), token(y), this->workspace);
  }
  void collect(GoldenOutputs& outputs) const override {
    outputs.add("y", y);
    outputs.add("v_first", first_value);
    outputs.add("state.x_prev", state.previous);
    outputs.add("state.s", state.memory);
  }
  static void fill(GoldenArray<T>& array) {
    for (Index i = 0; i < array.size(); ++i) array[i] = std::numeric_limits<T>::quiet_NaN();
  }

  GoldenCase& source;
  Rwkv7<T> mixer;
  GoldenArray<T> x, first_value, y;
  typename Rwkv7<T>::State state;
};

const GoldenRegistration<Rwkv7CoreGolden> core_golden{"rwkv7", "core"};
const GoldenRegistration<Rwkv7LayerGolden> layer_golden{"rwkv7", "layer"};

// --- naive reference --------------------------------------------------------------------------------------------------

/// The core for one head: r, w, k, a, b [L, K], v [L, V], from and into memory [K, V].
Matrixd rwkv7_head(const Matrixd& r, const Matrixd& w, const Matrixd& k, const Matrixd& v, const Matrixd& a,
                   const Matrixd& b, Matrixd& memory) {
  const Index K = r.cols(), V = v.cols();
  Matrixd y = Matrixd::Zero(r.rows(), V);
  for (Index t = 0; t < r.rows(); ++t) {
    Matrixd removed = Matrixd::Zero(1, V);
    for (Index i = 0; i < K; ++i) {
      for (Index j = 0; j < V; ++j) removed(0, j) += a(t, i) * memory(i, j);
    }
    for (Index i = 0; i < K; ++i) {
      for (Index j = 0; j < V; ++j) {
        memory(i, j) = std::exp(w(t, i)) * memory(i, j) + b(t, i) * removed(0, j) + k(t, i) * v(t, j);
        y(t, j) += r(t, i) * memory(i, j);
      }
    }
  }
  return y;
}

/// The layer; first_value [L, C] is written by a first layer and read by an inner one.
Matrixd rwkv7_layer(const Rwkv7<double>::Config& config, const Rwkv7<double>::Weights& weights, const Matrixd& x,
                    Matrixd& first_value) {
  const Matrixd d = shifted(x) - x;
  const auto input = [&](std::size_t i) {  // r, w, k, v, a, g
    Matrixd y = x;
    for (Index t = 0; t < x.rows(); ++t) {
      for (Index c = 0; c < x.cols(); ++c) y(t, c) += d(t, c) * weights.mix[i][c];
    }
    return y;
  };
  const auto plus = [](const Matrixd& y, const Vectord& bias) { return Matrixd(y.rowwise() + bias.transpose()); };
  const Matrixd r = linear(input(0), weights.receptance);
  const Matrixd z = map(input(1) * weights.decay_down, [](double value) { return std::tanh(value); });
  const Matrixd w =
      map(plus(z * weights.decay_up, weights.decay), [](double value) { return -std::exp(-0.5) * sigmoid(value); });
  Matrixd k = linear(input(2), weights.key), v = linear(input(3), weights.value);
  const Matrixd a = map(plus(input(4) * weights.rate_down * weights.rate_up, weights.rate), sigmoid);
  const Matrixd g = map(input(5) * weights.gate_down, sigmoid) * weights.gate_up;
  if (config.inner) {
    const Matrixd share = map(plus(input(3) * weights.value_down * weights.value_up, weights.value_share), sigmoid);
    v += (first_value - v).cwiseProduct(share);
  } else {
    first_value = v;
  }
  const Index H = config.heads, K = r.cols() / H;
  Matrixd n = k;
  for (Index t = 0; t < k.rows(); ++t) {
    for (Index h = 0; h < H; ++h) {
      double squares = 0;
      for (Index c = h * K; c < (h + 1) * K; ++c) {
        n(t, c) *= weights.removal[c];
        squares += n(t, c) * n(t, c);
      }
      const double norm = std::sqrt(squares), divisor = norm < config.key_norm_eps ? config.key_norm_eps : norm;
      for (Index c = h * K; c < (h + 1) * K; ++c) {
        n(t, c) /= divisor;
        k(t, c) *= 1 + (a(t, c) - 1) * weights.replacement[c];
      }
    }
  }
  Matrixd wkv(x.rows(), r.cols());
  for (Index h = 0; h < H; ++h) {
    Matrixd memory = Matrixd::Zero(K, K);
    const auto of = [&](const Matrixd& m) { return head(m, h, H); };
    set_head(wkv, h, H, rwkv7_head(of(r), of(w), of(k), of(v), of(-n), of(n.cwiseProduct(a)), memory));
  }
  Matrixd o = group_norm(wkv, H, config.norm_eps, weights.norm_weight, weights.norm_bias);
  for (Index t = 0; t < o.rows(); ++t) {
    for (Index h = 0; h < H; ++h) {
      double bonus = 0;
      for (Index i = 0; i < K; ++i) bonus += r(t, h * K + i) * k(t, h * K + i) * weights.bonus(h, i);
      for (Index i = 0; i < K; ++i) o(t, h * K + i) += bonus * v(t, h * K + i);
    }
  }
  return linear(o.cwiseProduct(g), weights.output);
}

// --- mixers -----------------------------------------------------------------------------------------------------------

template <class T>
std::vector<Configuration<Rwkv7<T>>> layer_configurations(Rng& rng) {
  using Config = typename Rwkv7<T>::Config;
  const auto ranks = [](Config config, Index decay, Index rate, Index value, Index gate) {
    config.decay_rank = decay, config.rate_rank = rate, config.value_rank = value, config.gate_rank = gate;
    return config;
  };
  const Index heads = rng.integer(1, 5);
  return {
      {"three heads of 1", ranks({.channels = 3, .heads = 3}, 1, 1, 1, 1)},
      {"two heads of 4", ranks({.channels = 8, .heads = 2}, 3, 4, 2, 5)},
      {"three heads of 5", ranks({.channels = 15, .heads = 3}, 5, 2, 3, 1)},
      {"more attention channels", ranks({.channels = 6, .attention_channels = 16, .heads = 2}, 2, 3, 4, 5)},
      {"other epsilons", ranks({.channels = 12, .heads = 4, .norm_eps = T(1e-2), .key_norm_eps = T(0.7)}, 4, 8, 3, 2)},
      {"head_dim 64, suggested ranks", {.channels = 64, .heads = 1}},
      {"random",
       ranks({.channels = rng.integer(1, 33), .attention_channels = heads * rng.integer(2, 17), .heads = heads},
             rng.integer(1, 9), rng.integer(1, 9), rng.integer(1, 9), rng.integer(1, 9))}};
}

/// A layer that keeps its values.
struct Rwkv7Tests {
  static constexpr const char* name = "rwkv7";
  template <class T>
  using Mixer = Rwkv7<T>;

  template <class T>
  static std::vector<Configuration<Mixer<T>>> configurations(Rng& rng) {
    return layer_configurations<T>(rng);
  }
  static Matrixd reference(const Rwkv7<double>::Config& config, const Rwkv7<double>::Weights& weights,
                           const Matrixd& x) {
    Matrixd first_value;
    return rwkv7_layer(config, weights, x, first_value);
  }
};

/// Rows [x | first_value] to rows [y | first_value], so that the laws see what goes from layer to layer.
template <std::floating_point T>
class JoinedRwkv7 : public RecurrentMixerBase<JoinedRwkv7<T>, T> {
 public:
  static constexpr std::string_view name = Rwkv7<T>::name;
  static constexpr StateGrowth growth = Rwkv7<T>::growth;
  static constexpr Index rows_per_pass = Index(1) << 40;  // the layer cuts long inputs itself
  using Config = typename Rwkv7<T>::Config;
  using Weights = typename Rwkv7<T>::Weights;
  using State = typename Rwkv7<T>::State;

  JoinedRwkv7(Config config, const Weights& weights) : layer_(config, weights) {}
  static Weights random_weights(const Config& config, Rng& rng) { return Rwkv7<T>::random_weights(config, rng); }

  Index channels() const { return layer_.channels() + width(); }
  State initial_state() const { return layer_.initial_state(); }
  void check_state(const State& state) const { layer_.check_state(state); }
  void advance(const SequenceBatch<State>& batch, ConstSequence<T> x, Sequence<T> y, Workspace& workspace) const {
    const auto first_value = y.columns(layer_.channels(), width());
    for (Index t = 0; t < x.length(); ++t) std::copy_n(x.row(t) + layer_.channels(), width(), first_value.row(t));
    const auto own_x = x.columns(0, layer_.channels());
    const auto own_y = y.columns(0, layer_.channels());
    if (x.length() == 1 && batch.size() == 1) {
      layer_.step(batch.state(0), own_x.token(0), first_value.token(0), own_y.token(0), workspace);
    } else if (batch.size() == 1) {
      layer_.prefill(batch.state(0), own_x, first_value, own_y, workspace);
    } else {
      layer_.prefill(batch.states, batch.offsets, own_x, first_value, own_y, workspace);
    }
  }

 private:
  Index width() const { return layer_.config().attention_channels; }
  Rwkv7<T> layer_;
};

template <bool inner>
struct JoinedTests {
  static constexpr const char* name = inner ? "rwkv7, inner layer" : "rwkv7, first layer";
  template <class T>
  using Mixer = JoinedRwkv7<T>;

  template <class T>
  static std::vector<Configuration<Mixer<T>>> configurations(Rng& rng) {
    std::vector<Configuration<Mixer<T>>> result;
    for (auto [configuration, config] : layer_configurations<T>(rng)) {
      config.inner = inner;
      result.push_back({configuration, config});
    }
    return result;
  }
  static Matrixd reference(const Rwkv7<double>::Config& config, const Rwkv7<double>::Weights& weights,
                           const Matrixd& joined) {
    Matrixd first_value = joined.rightCols(joined.cols() - config.channels), result = joined;
    result.leftCols(config.channels) = rwkv7_layer(config, weights, joined.leftCols(config.channels), first_value);
    result.rightCols(first_value.cols()) = first_value;
    return result;
  }
};

const MixerRegistration<Rwkv7Tests> mixer;
const MixerRegistration<JoinedTests<false>> first_layer;
const MixerRegistration<JoinedTests<true>> inner_layer;

// --- the core against its equations -----------------------------------------------------------------------------------

/// Largest difference of output and memory from the equations, relative to the largest number, with log decays between
/// `slowest` and `fastest` spaced evenly in their logarithm.
template <class T>
double core_difference(Index length, Index heads, Index key_dim, Index value_dim, double slowest, double fastest,
                       Index piece) {
  Rng rng(test_seed + std::uint64_t(length));
  const auto rounded = [](const Matrixd& x) { return Matrixd(x.cast<T>().template cast<double>()); };
  const auto random = [&](Index width) { return rounded(normal_matrix<double>(length, heads * width, 1.0, rng)); };
  const Matrixd r = random(key_dim), k = random(key_dim), v = random(value_dim);
  const Matrixd w = rounded(Matrixd::NullaryExpr(
      length, heads * key_dim, [&] { return -std::exp(rng.uniform(std::log(-slowest), std::log(-fastest))); }));
  Matrixd a = random(key_dim), b = a;  // as in the layer: unit removal keys, rates in (0, 1)
  for (Index t = 0; t < length; ++t) {
    for (Index h = 0; h < heads; ++h) a.row(t).segment(h * key_dim, key_dim).normalize();
    for (Index c = 0; c < a.cols(); ++c) b(t, c) = -a(t, c) * rng.uniform();
  }
  a = rounded(a), b = rounded(b);

  const auto typed = [](const Matrixd& x) { return Matrix<T>(x.cast<T>()); };
  const Matrix<T> r_t = typed(r), k_t = typed(k), v_t = typed(v), w_t = typed(w), a_t = typed(a), b_t = typed(b);
  Matrix<T> y = Matrix<T>::Constant(length, heads * value_dim, std::numeric_limits<T>::quiet_NaN());
  Tensor<T> memory({heads, key_dim, value_dim});
  Workspace workspace;
  for (Index begin = 0; begin < length; begin += piece) {
    const Index count = std::min(piece, length - begin);
    const auto rows = [&](const Matrix<T>& x) { return ConstSequence<T>(x).rows(begin, count).heads(heads); };
    workspace.poison();
    rwkv7<T>(rows(r_t), rows(k_t), rows(v_t), rows(w_t), rows(a_t), rows(b_t), memory,
             Sequence<T>(y).rows(begin, count).heads(heads), workspace);
  }
  double difference = 0, largest = 0;
  const auto compare = [&](double given, double expected) {
    const double error = std::abs(given - expected);
    difference = error <= difference ? difference : std::isnan(error) ? std::numeric_limits<double>::infinity() : error;
    largest = std::max(largest, std::abs(expected));
  };
  for (Index h = 0; h < heads; ++h) {
    const auto of = [&](const Matrixd& m) { return head(m, h, heads); };
    Matrixd expected_memory = Matrixd::Zero(key_dim, value_dim);
    const Matrixd expected = rwkv7_head(of(r), of(w), of(k), of(v), of(a), of(b), expected_memory);
    for (Index t = 0; t < length; ++t) {
      for (Index j = 0; j < value_dim; ++j) compare(double(y(t, h * value_dim + j)), expected(t, j));
    }
    for (Index i = 0; i < key_dim * value_dim; ++i) {
      compare(double(memory[std::size_t(h * key_dim * value_dim + i)]), expected_memory.data()[i]);
    }
  }
  return difference / largest;
}

template <class T>
void check_core(double tolerance) {
  struct Case {
    Index length, heads, key_dim, value_dim;
  };
  for (const auto& [length, heads, key_dim, value_dim] : {Case{1, 1, 1, 1},
                                                          {7, 2, 3, 5},
                                                          {8, 3, 4, 4},
                                                          {65, 2, 8, 16},
                                                          {131, 1, 64, 64},
                                                          {500, 2, 5, 3},
                                                          {33, 1, 65, 17}}) {
    for (const auto& [slowest, fastest] : {std::pair(-0.1, -0.6), {-1e-5, -150.0}, {-100.0, -150.0}}) {
      for (const Index piece : {length, Index(1), Index(13)}) {
        INFO(length << " tokens, " << heads << " heads of " << key_dim << " x " << value_dim << ", log decays from "
                    << slowest << " to " << fastest << ", pieces of " << piece);
        if constexpr (scalar_tested<T>) {
          CHECK(core_difference<T>(length, heads, key_dim, value_dim, slowest, fastest, piece) <= tolerance);
        }
      }
    }
  }
}

TEST_CASE("rwkv7: the core follows its equations under plain and extreme decays", "[rwkv7]") {
  check_core<float>(1e-5);
  check_core<double>(1e-12);
}

TEST_CASE("rwkv7: first values are demanded and checked", "[rwkv7]") {
  using T = TestedScalar;
  using Layer = Rwkv7<T>;
  const Layer::Config config{.channels = 8, .heads = 2, .inner = true};
  Rng rng(3);
  const Layer inner(config, Layer::random_weights(config, rng));
  const Matrix<T> x = normal_matrix<T>(5, 8, 1.0, rng);
  Matrix<T> y = Matrix<T>::Constant(5, 8, T(7)), first_value = x, narrow(5, 7), few(4, 8);
  const Matrix<T> untouched = y;
  Workspace workspace;
  auto state = inner.initial_state();
  const auto refused = [&](auto&& call, const std::string& problem) {
    try {
      call();
      FAIL("accepted; expected: " << problem);
    } catch (const std::invalid_argument& error) {
      CHECK(std::string(error.what()).find(problem) != std::string::npos);
    }
    CHECK(y == untouched);
    CHECK(state.previous == inner.initial_state().previous);
  };
  refused([&] { inner.forward(x, y, workspace); }, "rwkv7: first_value: is missing");
  refused([&] { inner.prefill(state, x, y, workspace); }, "rwkv7: first_value: is missing");
  refused([&] { inner.prefill(state, x, narrow, y, workspace); }, "first_value: expected shape [5, 8], given [5, 7]");
  refused([&] { inner.prefill(state, x, few, y, workspace); }, "first_value: expected shape [5, 8], given [4, 8]");
  refused([&] { inner.prefill(state, x, y, y, workspace); }, "first_value");

  // A first layer with the weights of v_first ignores them.
  auto weights = Layer::random_weights(config, rng);
  Layer::Config first_config = config;
  first_config.inner = false;
  const Layer with(first_config, weights);
  weights.value_share = {};
  weights.value_down = weights.value_up = {};
  const Layer without(first_config, weights);
  Matrix<T> z(5, 8);
  with.forward(x, y, workspace);
  without.forward(x, first_value, z, workspace);
  CHECK(y == z);
  Matrix<T> overlapping = x;
  CHECK_THROWS_AS(with.forward(overlapping, overlapping, z, workspace), std::invalid_argument);
}

}  // namespace
}  // namespace seqmix::test
