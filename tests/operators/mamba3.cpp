// Mamba-3: the layer of rank 1, and the core with any rank.
#include <cmath>
#include <numbers>
#include <seqmix/ssm/mamba3.hpp>
#include <string>

#include "support/golden.hpp"
#include "support/recurrence_reference.hpp"
#include "support/registry.hpp"

namespace seqmix::test {
namespace {

// --- golden cases -----------------------------------------------------------------------------------------------------

/// Files hold memories as [H, P, N], the library as [H, N, P].
template <class To, class From>
void transpose_heads(const From& from, Index heads, Index rows, Index columns, To& to) {
  for (Index h = 0; h < heads; ++h) {
    for (Index i = 0; i < rows; ++i) {
      for (Index j = 0; j < columns; ++j) {
        to.data()[(h * columns + j) * rows + i] = from.data()[(h * rows + i) * columns + j];
      }
    }
  }
}

/// Angles mean the same whole turns apart: those nearest to the expected ones.
template <class T>
std::vector<double> angles_near(const T& angles, const std::vector<double>& expected) {
  std::vector<double> result(expected.size());
  for (std::size_t i = 0; i < result.size(); ++i) {
    constexpr double turn = 2 * std::numbers::pi;
    result[i] = angles[i] + turn * std::round((expected[i] - angles[i]) / turn);
  }
  return result;
}

RotaryPairs read_pairs(GoldenConfig& config) {
  const std::string text = config.text("rotate", "pairwise (2i,2i+1)");
  if (text.find("2i+1") != std::string::npos) return RotaryPairs::interleaved;
  if (text.find("/2") != std::string::npos || text.find("hal") != std::string::npos) return RotaryPairs::half;
  config.unknown("rotate");
}

/// Views of a state's arrays.
template <class T, class State>
TrapezoidalState<T> view_of(State& state, Index rank) {
  const Shape& shape = state.memory.shape();
  return {{state.angle.data(), shape[0], Index(state.angle.size()) / shape[0]},
          state.memory,
          {state.key.data(), shape[0] * rank, shape[1]},
          {state.value.data(), shape[0] * rank, shape[2]}};
}

template <class T>
struct CoreState {
  Tensor<double> angle;
  Tensor<T> memory, key, value;
};

template <class T>
struct Mamba3CoreGolden final : GoldenRunner<T> {
  explicit Mamba3CoreGolden(GoldenCase& golden)
      : heads(golden.config().integer("heads")),
        groups(golden.config().integer("qk_groups")),
        head_dim(golden.config().integer("head_dim")),
        state_dim(golden.config().integer("state_dim")),
        angles(golden.config().integer("rope_angles")),
        mimo(golden.config().text("mode", "siso") == "mimo"),
        rank(mimo ? golden.config().integer("mimo_rank") : 1),
        query(golden.array<T>("input.Q")),
        key(golden.array<T>("input.K")),
        value(golden.array<T>("input.V", {-1, heads, head_dim})),
        log_decay(golden.array<T>("input.ADT", {value.size(0), heads})),
        dt(golden.array<T>("input.DT", log_decay.shape())),
        trapezoid(golden.array<T>("input.Trap", log_decay.shape())),
        angle(golden.array<T>("input.Angles", {value.size(0), heads, angles})),
        query_bias(golden.array<T>("weight.Q_bias")),
        key_bias(golden.array<T>("weight.K_bias")),
        output(value.shape()),
        initial{Tensor<double>({heads, angles}), Tensor<T>({heads, state_dim, head_dim}),
                Tensor<T>({heads * rank, state_dim}), Tensor<T>({heads * rank, head_dim})},
        end_angles(golden.expected("output.state.angle")) {
    auto& config = golden.config();
    parameters.query_bias = {query_bias.data(), heads * rank, state_dim};
    parameters.key_bias = {key_bias.data(), heads * rank, state_dim};
    parameters.rank = rank;
    parameters.pairs = read_pairs(config);
    if (config.boolean("has_D")) d = golden.vector<T>("weight.D"), parameters.d = d;
    if (config.boolean("has_Z")) gate = golden.array<T>("input.Z", value.shape());
    const auto factors = [&](const char* name, GoldenArray<T>& array, Sequence<const T>& view) {
      if (!golden.has(name)) return;
      array = golden.array<T>(name, {heads, rank, head_dim});
      view = {array.data(), heads * rank, head_dim};
    };
    factors("weight.MIMO_V", value_in, parameters.value_in);
    factors("weight.MIMO_Z", gate_in, parameters.gate_in);
    factors("weight.MIMO_O", output_out, parameters.output_out);
    parameters.norm = config.boolean("fused_headwise_norm", false);
    parameters.norm_eps = T(config.number("eps", 1e-5));
    for (const char* name : {"weight.norm_weight", "weight.outproj_norm_weight", "weight.norm.weight"}) {
      if (!golden.has(name)) continue;
      norm_weight = golden.array<T>(name);
      if (norm_weight.size() != heads * head_dim) throw GoldenError(std::string(name) + " is not [heads, head_dim]");
      parameters.norm_weight = {norm_weight.data(), heads, head_dim};
    }
    config.expect("causal", true);
    if (!mimo) config.expect("mimo_rank", 1);
    config.ignore("chunk_size");
    if (golden.has("input.state.angle")) golden.copy("input.state.angle", initial.angle);
    if (golden.has("input.state.k")) golden.copy("input.state.k", initial.key);
    if (golden.has("input.state.v")) golden.copy("input.state.v", initial.value);
    if (golden.has("input.state.ssm")) {
      transpose_heads(golden.array<T>("input.state.ssm", {heads, head_dim, state_dim}), heads, head_dim, state_dim,
                      initial.memory);
    }
  }
  Index length() const override { return value.size(0); }
  void reset() override { state = initial; }
  void run(Index begin, Index count) override {
    const auto rows = [&](const auto& view) { return view.rows(begin, count); };
    const auto groups_of = [&](const GoldenArray<T>& array) {
      return Sequence<const T>(array.data(), length(), rank * groups * state_dim).heads(rank * groups);
    };
    mamba3<T>({.query = rows(groups_of(query)),
               .key = rows(groups_of(key)),
               .value = rows(value.heads()),
               .log_decay = rows(log_decay.sequence()),
               .dt = rows(dt.sequence()),
               .trapezoid = rows(trapezoid.sequence()),
               .angle = rows(angle.heads()),
               .gate = gate.size() > 0 ? rows(gate.heads()) : HeadSequence<T>()},
              parameters, view_of<T>(state, rank), rows(output.heads()), this->workspace);
  }
  void collect(GoldenOutputs& outputs) const override {
    outputs.add("y", output);
    outputs.add("state.angle", angles_near(state.angle, end_angles));
    GoldenArray<T> memory({heads, head_dim, state_dim});
    transpose_heads(state.memory, heads, state_dim, head_dim, memory);
    outputs.add("state.ssm", memory);
    outputs.add("state.k", state.key);
    outputs.add("state.v", state.value);
  }

  Index heads, groups, head_dim, state_dim, angles;
  bool mimo;
  Index rank;
  GoldenArray<T> query, key, value, log_decay, dt, trapezoid, angle, gate, query_bias, key_bias, output;
  GoldenArray<T> value_in, gate_in, output_out, norm_weight;
  CoreState<T> initial, state;
  std::vector<double> end_angles;
  Vector<T> d;
  TrapezoidalParameters<T> parameters;
};

template <class T>
struct Mamba3LayerGolden final : GoldenLayer<Mamba3<T>> {
  using Base = GoldenLayer<Mamba3<T>>;
  using State = typename Mamba3<T>::State;

  explicit Mamba3LayerGolden(GoldenCase& golden)
      : Base(golden, config(golden)), end_angles(golden.expected("output.state.angle_dt_state")) {}

  static typename Mamba3<T>::Config config(GoldenCase& golden) {
    auto& config = golden.config();
    typename Mamba3<T>::Config result;
    result.channels = config.integer("d_model");
    result.inner_channels =
        config.integer("d_inner", Index(std::lround(config.number("expand", 2) * double(result.channels))));
    config.ignore("expand");
    result.head_dim = config.integer("headdim");
    result.state_dim = config.integer("d_state");
    result.groups = config.integer("ngroups");
    const Index turned = Index(std::floor(double(result.state_dim) * config.number("rope_fraction", 0.5)));
    result.angles = config.integer("num_rope_angles", turned / 2);
    result.least_rate = T(config.number("A_floor", 1e-4));
    result.norm = config.boolean("is_outproj_norm", false);
    result.norm_eps = T(config.number("eps", 1e-5));
    config.expect("nheads", result.inner_channels / result.head_dim);
    config.expect("is_mimo", false);
    config.expect("norm_before_gate", true);
    config.expect("causal", true);
    config.ignore("chunk_size");
    return result;
  }
  void read_state(GoldenCase& golden, State& state) override {
    if (golden.has("input.state.angle_dt_state")) golden.copy("input.state.angle_dt_state", state.angle);
    if (golden.has("input.state.k_state")) golden.copy("input.state.k_state", state.key);
    if (golden.has("input.state.v_state")) golden.copy("input.state.v_state", state.value);
    if (golden.has("input.state.ssm_state")) {
      const Shape& shape = state.memory.shape();
      transpose_heads(golden.array<T>("input.state.ssm_state", {shape[0], shape[2], shape[1]}), shape[0], shape[2],
                      shape[1], state.memory);
    }
  }
  void collect_state(const State& state, GoldenOutputs& outputs) const override {
    const Shape& shape = state.memory.shape();
    Tensor<T> memory({shape[0], shape[2], shape[1]});
    transpose_heads(state.memory, shape[0], shape[1], shape[2], memory);
    outputs.add("state.angle_dt_state", angles_near(state.angle, end_angles));
    outputs.add("state.ssm_state", memory);
    outputs.add("state.k_state", state.key);
    outputs.add("state.v_state", state.value);
  }
  std::vector<double> end_angles;
};

const GoldenRegistration<Mamba3CoreGolden> core_golden{"mamba3", "core"};
const GoldenRegistration<Mamba3LayerGolden> layer_golden{"mamba3", "layer"};

// --- reference --------------------------------------------------------------------------------------------------------

/// The core, token by token. Empty factors are 1, an empty gate is none.
struct CoreReference {
  Index heads, groups, rank, state_dim, head_dim, angles;
  bool halves = false, norm = false;
  double eps = 1e-5;
  Matrixd query = {}, key = {}, value = {}, log_decay = {}, dt = {}, trapezoid = {}, angle = {}, gate = {};
  Matrixd query_bias = {}, key_bias = {}, value_in = {}, gate_in = {}, output_out = {}, norm_weight = {};
  Vectord d = {};

  Vectord turned(Vectord x, const Vectord& by) const {
    for (Index i = 0; i < angles; ++i) {
      double& a = x[halves ? i : 2 * i];
      double& b = x[halves ? i + state_dim / 2 : 2 * i + 1];
      const double first = a * std::cos(by[i]) - b * std::sin(by[i]);
      b = a * std::sin(by[i]) + b * std::cos(by[i]);
      a = first;
    }
    return x;
  }

  Matrixd run() const {
    const Index N = state_dim, P = head_dim, R = rank;
    Matrixd y = Matrixd::Zero(value.rows(), heads * P);
    for (Index h = 0; h < heads; ++h) {
      const Index group = h / (heads / groups);
      Vectord sum = Vectord::Zero(angles);
      Matrixd memory = Matrixd::Zero(N, P), last_keys = Matrixd::Zero(R, N), last_values = Matrixd::Zero(R, P);
      for (Index t = 0; t < value.rows(); ++t) {
        const double step = dt(t, h), share = sigmoid(trapezoid(t, h)), fade = std::exp(log_decay(t, h));
        for (Index i = 0; i < angles; ++i) sum[i] += std::numbers::pi * std::tanh(angle(t, h * angles + i)) * step;
        Matrixd keys(R, N), values(R, P), queries(R, N);
        for (Index r = 0; r < R; ++r) {
          const Index row = h * R + r;
          const Matrixd k = key.row(t).segment((r * groups + group) * N, N) + key_bias.row(row);
          const Matrixd q = query.row(t).segment((r * groups + group) * N, N) + query_bias.row(row);
          keys.row(r) = turned(k.transpose(), sum).transpose();
          queries.row(r) = turned(q.transpose(), sum).transpose();
          values.row(r) = value.row(t).segment(h * P, P);
          if (value_in.size() > 0) values.row(r) = values.row(r).cwiseProduct(value_in.row(row));
        }
        for (Index n = 0; n < N; ++n) {
          for (Index p = 0; p < P; ++p) {
            double& s = memory(n, p);
            s *= fade;
            for (Index r = 0; r < R; ++r) {
              s += fade * (1 - share) * step * last_keys(r, n) * last_values(r, p);
              s += share * step * keys(r, n) * values(r, p);
            }
          }
        }
        last_keys = keys, last_values = values;
        for (Index r = 0; r < R; ++r) {
          Matrixd o = d[h] * values.row(r);
          for (Index n = 0; n < N; ++n) {
            for (Index p = 0; p < P; ++p) o(0, p) += queries(r, n) * memory(n, p);
          }
          if (norm) o = rms_norm(o, eps, norm_weight.row(h).transpose());
          for (Index p = 0; p < P; ++p) {
            if (gate.size() > 0) {
              o(0, p) *= silu(gate(t, h * P + p) * (gate_in.size() > 0 ? gate_in(h * R + r, p) : 1));
            }
            y(t, h * P + p) += o(0, p) * (output_out.size() > 0 ? output_out(h * R + r, p) : 1);
          }
        }
      }
    }
    return y;
  }
};

// --- layer ------------------------------------------------------------------------------------------------------------

struct Mamba3Tests {
  static constexpr const char* name = "mamba3";
  template <class T>
  using Mixer = Mamba3<T>;

  template <class T>
  static std::vector<Configuration<Mixer<T>>> configurations(Rng& rng) {
    const Index groups = rng.integer(1, 3), heads = groups * rng.integer(1, 2), head_dim = rng.integer(1, 17);
    return {{"one head of 1", {.channels = 1, .inner_channels = 1, .head_dim = 1, .state_dim = 1}},
            {"three heads of 4", {.channels = 6, .head_dim = 4, .state_dim = 8}},
            {"two groups, a norm, all channels turned",
             {.channels = 8, .head_dim = 4, .state_dim = 6, .groups = 2, .angles = 3, .norm = true}},
            {"nothing turned, a floor",
             {.channels = 5, .inner_channels = 15, .head_dim = 3, .state_dim = 7, .angles = 0, .least_rate = T(0.75)}},
            {"two heads of 64, 128 states", {.channels = 16, .inner_channels = 128}},
            {"random",
             {.channels = rng.integer(1, 33),
              .inner_channels = heads * head_dim,
              .head_dim = head_dim,
              .state_dim = rng.integer(1, 20),
              .groups = groups}}};
  }

  static Matrixd reference(const Mamba3<double>::Config& config, const Mamba3<double>::Weights& weights,
                           const Matrixd& u) {
    const Index inner = config.inner_channels == 0 ? 2 * config.channels : config.inner_channels;
    const Index P = config.head_dim, N = config.state_dim, G = config.groups, H = inner / P, L = u.rows();
    const Index S = config.angles < 0 ? N / 4 : config.angles;
    const Matrixd projected = linear(u, weights.input);
    Index begin = 0;
    const auto next = [&](Index count) { return Matrixd(projected.middleCols((begin += count) - count, count)); };
    const Matrixd z = next(inner), x = next(inner);
    const auto normalised = [&](const Matrixd& all, const Vectord& weight) {
      Matrixd result = all;
      for (Index g = 0; g < G; ++g) set_head(result, g, G, rms_norm(head(all, g, G), config.norm_eps, weight));
      return result;
    };
    const Matrixd key = normalised(next(G * N), weights.b_norm), query = normalised(next(G * N), weights.c_norm);
    const Matrixd raw_dt = next(H), a = next(H), trapezoid = next(H), angle = next(S);
    Matrixd dt(L, H), log_decay(L, H), angles(L, H * S);
    for (Index t = 0; t < L; ++t) {
      for (Index h = 0; h < H; ++h) {
        dt(t, h) = softplus(raw_dt(t, h) + weights.dt_bias[h]);
        const double rate = a(t, h) >= 0 ? 1 + a(t, h) : 1 / (1 - a(t, h));
        // Not std::max, which drops NaN.
        log_decay(t, h) = -(rate < config.least_rate ? config.least_rate : rate) * dt(t, h);
        angles.row(t).segment(h * S, S) = angle.row(t);
      }
    }
    CoreReference core{H, G, 1, N, P, S};
    core.query = query, core.key = key, core.value = x, core.log_decay = log_decay, core.dt = dt;
    core.trapezoid = trapezoid, core.angle = angles, core.d = weights.d;
    core.query_bias = weights.c_bias, core.key_bias = weights.b_bias;
    if (!config.norm) core.gate = z;
    Matrixd y = core.run();
    if (config.norm) {
      for (Index h = 0; h < H; ++h) {
        set_head(y, h, H, rms_norm(head(y, h, H), config.norm_eps, weights.norm.segment(h * P, P)));
      }
      y = y.cwiseProduct(map(z, silu));
    }
    return linear(y, weights.output);
  }
};

// --- core with several ranks ------------------------------------------------------------------------------------------

/// The core as a mixer. A row of x holds all streams: queries, keys, values, logits z of the log decays -exp(6 z), logarithms
/// of dt, trapezoids, angles, gates. A row of y holds the outputs, and zeros.
template <class T>
class RanksMixer : public RecurrentMixerBase<RanksMixer<T>, T> {
 public:
  static constexpr std::string_view name = "mamba3";
  static constexpr StateGrowth growth = StateGrowth::constant;

  struct Config {
    Index heads = 1, groups = 1, rank = 1, state_dim = 1, head_dim = 1, angles = 0;
    RotaryPairs pairs = RotaryPairs::interleaved;
    bool norm = false, gate = true;

    Index channels() const {
      return 2 * rank * groups * state_dim + heads * (head_dim + 3 + angles + (gate ? head_dim : 0));
    }
  };
  struct Weights {
    Matrix<T> query_bias, key_bias, value_in, gate_in, output_out, norm;
    Vector<T> d;
    template <class Self, class Visitor>
    static void visit(Self& self, Visitor&& visitor) {
      visitor("query_bias", self.query_bias, Presence::required);
      visitor("key_bias", self.key_bias, Presence::required);
      visitor("value_in", self.value_in, Presence::required);
      visitor("gate_in", self.gate_in, Presence::required);
      visitor("output_out", self.output_out, Presence::required);
      visitor("norm", self.norm, Presence::required);
      visitor("d", self.d, Presence::required);
    }
  };
  struct State : CoreState<T> {
    template <class Self, class Visitor>
    static void visit(Self& self, Visitor&& visitor) {
      visitor("angle", self.angle), visitor("memory", self.memory);
      visitor("key", self.key), visitor("value", self.value);
    }
  };

  RanksMixer(const Config& config, const Weights& weights) : config_(config), weights_(weights) {
    const Index rows = config.heads * config.rank;
    expect_tensor(name, "query_bias", {rows, config.state_dim}, weights.query_bias);
    expect_tensor(name, "key_bias", {rows, config.state_dim}, weights.key_bias);
    expect_tensor(name, "value_in", {rows, config.head_dim}, weights.value_in);
    expect_tensor(name, "gate_in", {rows, config.head_dim}, weights.gate_in);
    expect_tensor(name, "output_out", {rows, config.head_dim}, weights.output_out);
    expect_tensor(name, "norm", {config.heads, config.head_dim}, weights.norm);
    expect_tensor(name, "d", {config.heads}, weights.d);
  }
  static Weights random_weights(const Config& config, Rng& rng) {
    const Index rows = config.heads * config.rank;
    Weights weights;
    for (Matrix<T>* bias : {&weights.query_bias, &weights.key_bias}) {
      *bias = uniform_matrix<T>(rows, config.state_dim, 1, rng);
    }
    for (Matrix<T>* factors : {&weights.value_in, &weights.gate_in, &weights.output_out}) {
      *factors = uniform_matrix<T>(rows, config.head_dim, 1, rng);
    }
    weights.norm = uniform_matrix<T>(config.heads, config.head_dim, 1, rng);
    weights.d = uniform_vector<T>(config.heads, -1, 1, rng);
    return weights;
  }
  Index channels() const { return config_.channels(); }
  const Config& config() const { return config_; }
  State initial_state() const {
    const Config& c = config_;
    State state;
    state.angle = Tensor<double>({c.heads, c.angles}), state.memory = Tensor<T>({c.heads, c.state_dim, c.head_dim});
    state.key = Tensor<T>({c.heads * c.rank, c.state_dim}), state.value = Tensor<T>({c.heads * c.rank, c.head_dim});
    return state;
  }
  void check_state(const State& state) const {
    const Config& c = config_;
    expect_shape(name, "state.angle", {c.heads, c.angles}, state.angle.shape());
    expect_shape(name, "state.memory", {c.heads, c.state_dim, c.head_dim}, state.memory.shape());
    expect_shape(name, "state.key", {c.heads * c.rank, c.state_dim}, state.key.shape());
    expect_shape(name, "state.value", {c.heads * c.rank, c.head_dim}, state.value.shape());
  }

  void advance(const SequenceBatch<State>& batch, ConstSequence<T> x, Sequence<T> y, Workspace& workspace) const {
    const Config& c = config_;
    const Index H = c.heads, shared = c.rank * c.groups;
    const auto copy = workspace.sequence<T>(x.length(), x.channels());
    for (Index t = 0; t < x.length(); ++t) {
      std::copy_n(x.row(t), x.channels(), copy.row(t));
      std::fill_n(y.row(t), y.channels(), T(0));
    }
    ColumnCutter<T> columns(copy);
    const auto query = columns.next(shared * c.state_dim), key = columns.next(shared * c.state_dim);
    const auto value = columns.next(H * c.head_dim), log_decay = columns.next(H), dt = columns.next(H);
    const auto trapezoid = columns.next(H), angle = columns.next(H * c.angles), gate = columns.rest();
    for (Index t = 0; t < x.length(); ++t) {
      for (Index h = 0; h < H; ++h) {
        log_decay(t, h) = T(-std::exp(6 * double(log_decay(t, h))));
        dt(t, h) = T(std::exp(double(dt(t, h)) - 1));
      }
    }
    const TrapezoidalParameters<T> parameters{.query_bias = weights_.query_bias,
                                              .key_bias = weights_.key_bias,
                                              .d = weights_.d,
                                              .pairs = c.pairs,
                                              .rank = c.rank,
                                              .value_in = weights_.value_in,
                                              .gate_in = weights_.gate_in,
                                              .output_out = weights_.output_out,
                                              .norm = c.norm,
                                              .norm_weight = weights_.norm};
    for (Index i = 0; i < batch.size(); ++i) {
      const auto rows = [&](const Sequence<T>& view) { return view.rows(batch.begin(i), batch.length(i)); };
      const auto heads = [&](const Sequence<T>& view, Index count, Index dim) {
        return HeadSequence<T>(rows(view).data(), batch.length(i), count, dim, view.stride(), dim);
      };
      mamba3<T>({.query = heads(query, shared, c.state_dim),
                 .key = heads(key, shared, c.state_dim),
                 .value = heads(value, H, c.head_dim),
                 .log_decay = rows(log_decay),
                 .dt = rows(dt),
                 .trapezoid = rows(trapezoid),
                 .angle = heads(angle, H, c.angles),
                 .gate = c.gate ? heads(gate, H, c.head_dim) : HeadSequence<T>()},
                parameters, view_of<T>(batch.state(i), c.rank), heads(y.columns(0, H * c.head_dim), H, c.head_dim),
                workspace);
    }
  }

 private:
  Config config_;
  Weights weights_;
};

struct RanksTests {
  static constexpr const char* name = "mamba3, several ranks";
  template <class T>
  using Mixer = RanksMixer<T>;

  template <class T>
  static std::vector<Configuration<Mixer<T>>> configurations(Rng& rng) {
    return {{"one head of 1, rank 1", {}},
            {"rank 2", {.heads = 2, .rank = 2, .state_dim = 6, .head_dim = 4, .angles = 3}},
            {"rank 3, two groups, a norm, halves turned",
             {.heads = 4,
              .groups = 2,
              .rank = 3,
              .state_dim = 7,
              .head_dim = 5,
              .angles = 2,
              .pairs = RotaryPairs::half,
              .norm = true}},
            {"rank 5, no gate", {.heads = 1, .rank = 5, .state_dim = 16, .head_dim = 9, .angles = 4, .gate = false}},
            {"random",
             {.heads = 2,
              .rank = rng.integer(1, 4),
              .state_dim = rng.integer(2, 20),
              .head_dim = rng.integer(1, 40),
              .angles = 1,
              .norm = rng.integer(0, 1) == 1}}};
  }

  static Matrixd reference(const RanksMixer<double>::Config& config, const RanksMixer<double>::Weights& weights,
                           const Matrixd& x) {
    const Index H = config.heads, P = config.head_dim, shared = config.rank * config.groups * config.state_dim;
    Index begin = 0;
    const auto next = [&](Index count) { return Matrixd(x.middleCols((begin += count) - count, count)); };
    CoreReference core{H, config.groups, config.rank, config.state_dim, P, config.angles};
    core.halves = config.pairs == RotaryPairs::half, core.norm = config.norm;
    core.query = next(shared), core.key = next(shared), core.value = next(H * P);
    core.log_decay = map(next(H), [](double z) { return -std::exp(6 * z); });
    core.dt = map(next(H), [](double z) { return std::exp(z - 1); });
    core.trapezoid = next(H), core.angle = next(H * config.angles);
    if (config.gate) core.gate = next(H * P);
    core.query_bias = weights.query_bias, core.key_bias = weights.key_bias, core.value_in = weights.value_in;
    core.gate_in = weights.gate_in, core.output_out = weights.output_out, core.norm_weight = weights.norm;
    core.d = weights.d;
    Matrixd y = Matrixd::Zero(x.rows(), x.cols());
    y.leftCols(H * P) = core.run();
    return y;
  }
};

const MixerRegistration<Mamba3Tests> mixer;
const MixerRegistration<RanksTests> ranks_mixer;

}  // namespace
}  // namespace seqmix::test
