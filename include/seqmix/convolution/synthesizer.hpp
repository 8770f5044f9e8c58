// Synthesizers: attention whose weights do not come from products of queries and keys.
//
//   Source    Tay et al. 2020, arXiv:2005.00743, sections 3.1 and 3.2; layers as in leaderj1001/Synthesizer-Rethinking-
//             Self-Attention-Transformer-Models, synthesizer.py (one head), and 10-zin/Synthesizer, sub_layers.py
//   Glossary  L length   D channels   H heads   K, V query and value width of one head   T the most tokens   R rank
//   Engine    engine/attention.hpp: DotScore for what is a product of a row and a column, ProductBiasScore for the rest
//   Size      a core and a layer with five forms of logits, two sets of names, both directions
//
//   y_t[h] = sum over j of softmax_j(logit[h, t, j]) v_j[h],   j <= t where causal
//
//   dense               relu(q_t w_1^T + b_1) . w_2[j] + b_2[j]             w_1 [hidden, K], w_2 [T, hidden]
//   random              random[h, t, j]                                     [T, T] for each head
//   factorized_random   first[h, t] . second[h, j]                          [T, R] for each head
//   factorized_dense    A_t[j mod a] B_t[j mod b],   A = q W_a^T + b_a, B = q W_b^T + b_b
//   mixture             random[h, t, j] + q_t . k_j                         without a scale
//
// Layers: single_head has q = x in the dense forms and no projection of the output; multi_head has projections without
// biases, and y = layer_norm(x + the projected heads).
// Differs   from leaderj1001's code in that random forms take the softmax, and in that sequences may be shorter than T;
//           from 10-zin's in that random forms do without the projection of queries, which nothing reads.
#pragma once

#include <cmath>
#include <limits>
#include <seqmix/core/mixer.hpp>
#include <seqmix/core/parameters.hpp>
#include <seqmix/core/random.hpp>
#include <seqmix/engine/attention.hpp>
#include <seqmix/engine/attention_cache.hpp>
#include <seqmix/parts/linear.hpp>
#include <seqmix/parts/norm.hpp>
#include <seqmix/parts/row.hpp>
#include <string_view>

namespace seqmix::inline SEQMIX_ARCH {

/// How logits are made.
enum class SynthesizerForm { dense, random, factorized_random, factorized_dense, mixture };

/// The layers, and the names of their tensors. A core has the names of multi_head without "attention.".
enum class SynthesizerLayout { core, single_head, multi_head };

/// Hyperparameters of a core.
struct SynthesizerCoreConfig {
  SynthesizerForm form = SynthesizerForm::dense;
  Index heads = 1;
  Index head_dim = 0;  ///< K; random forms have no queries
  Index value_dim = 0;
  Index max_length = 0;              ///< T
  Index hidden = 0;                  ///< of dense; 0 means T
  Index rank = 0;                    ///< of factorized_random
  Index period_a = 0, period_b = 0;  ///< of factorized_dense
};

/// What logits are made of: the tensors of one form.
template <std::floating_point T>
struct SynthesizerCoreWeights {
  Matrix<T> hidden;              // [hidden, K]
  Vector<T> hidden_bias;         // [hidden]
  Matrix<T> logits;              // [T, hidden]
  Vector<T> logits_bias;         // [T]
  Matrix<T> random;              // [H T, T]
  Matrix<T> first, second;       // [H T, R]
  Matrix<T> factor_a, factor_b;  // [a, K], [b, K]
  Vector<T> factor_a_bias, factor_b_bias;
  SynthesizerLayout layout = SynthesizerLayout::core;

  template <class Self, class Visitor>
  static void visit(Self& self, Visitor&& visitor) {
    const auto visit_one = [&](std::string_view core, std::string_view single_head, std::string_view multi_head,
                               auto& tensor) {
      const std::string_view names[] = {core, single_head, multi_head};
      visitor(names[int(self.layout)], tensor, Presence::optional);
    };
    visit_one("w_1.weight", "dense.0.weight", "attention.w_1.weight", self.hidden);
    visit_one("w_1.bias", "dense.0.bias", "attention.w_1.bias", self.hidden_bias);
    visit_one("w_2.weight", "dense.2.weight", "attention.w_2.weight", self.logits);
    visit_one("w_2.bias", "dense.2.bias", "attention.w_2.bias", self.logits_bias);
    visit_one("random_attn", "attention", "attention.random_attn", self.random);
    visit_one("R1", "R1", "attention.R1", self.first);
    visit_one("R2", "R2", "attention.R2", self.second);
    visit_one("a_proj.weight", "a_proj.weight", "attention.a_proj.weight", self.factor_a);
    visit_one("a_proj.bias", "a_proj.bias", "attention.a_proj.bias", self.factor_a_bias);
    visit_one("b_proj.weight", "b_proj.weight", "attention.b_proj.weight", self.factor_b);
    visit_one("b_proj.bias", "b_proj.bias", "attention.b_proj.bias", self.factor_b_bias);
  }
};

/// Attention with synthesised logits over streams that are given.
template <std::floating_point T>
class SynthesizerCore {
 public:
  static constexpr std::string_view name = "synthesizer";
  using Config = SynthesizerCoreConfig;
  using Weights = SynthesizerCoreWeights<T>;

  /// Nothing.
  SynthesizerCore() = default;

  /// Packs the weights. Throws std::invalid_argument unless their shapes follow from `config`.
  SynthesizerCore(const Config& config, const Weights& weights) : config_(completed(config)) {
    const Index H = config_.heads, K = config_.head_dim, most = config_.max_length, width = config_.hidden;
    switch (config_.form) {
      case SynthesizerForm::dense:
        expect_tensor(name, "w_1.weight", {width, K}, weights.hidden);
        expect_tensor(name, "w_1.bias", {width}, weights.hidden_bias);
        expect_tensor(name, "w_2.weight", {most, width}, weights.logits);
        expect_tensor(name, "w_2.bias", {most}, weights.logits_bias);
        hidden_ = Linear<T>(weights.hidden, weights.hidden_bias);
        columns_ = Matrix<T>(most, width + 1);  // the bias meets a 1
        columns_ << weights.logits, weights.logits_bias;
        break;
      case SynthesizerForm::factorized_random:
        expect_tensor(name, "R1", {H * most, config_.rank}, weights.first);
        expect_tensor(name, "R2", {H * most, config_.rank}, weights.second);
        rows_ = weights.first;
        columns_ = weights.second;
        break;
      case SynthesizerForm::factorized_dense:
        expect_tensor(name, "a_proj.weight", {config_.period_a, K}, weights.factor_a);
        expect_tensor(name, "a_proj.bias", {config_.period_a}, weights.factor_a_bias);
        expect_tensor(name, "b_proj.weight", {config_.period_b, K}, weights.factor_b);
        expect_tensor(name, "b_proj.bias", {config_.period_b}, weights.factor_b_bias);
        factor_a_ = Linear<T>(weights.factor_a, weights.factor_a_bias);
        factor_b_ = Linear<T>(weights.factor_b, weights.factor_b_bias);
        break;
      case SynthesizerForm::random:
      case SynthesizerForm::mixture:
        expect_tensor(name, "random_attn", {H * most, most}, weights.random);
        rows_ = Matrix<T>::Zero(H * most, most + panel_width<T>);
        for (Index i = 0; i < H * most; ++i) {
          for (Index j = 0; j < most; ++j) rows_(i, j) = to_log2_domain(weights.random(i, j));
        }
        columns_ = Matrix<T>::Ones(1, most + panel_width<T>);
        break;
    }
  }

  /// Projections as torch initialises them; random logits normal with deviation 1.
  static Weights random_weights(const Config& given, Rng& rng) {
    const Config config = completed(given);
    const Index K = config.head_dim, rows = config.heads * config.max_length;
    Weights weights;
    const auto project = [&](Index outputs, Index inputs, Matrix<T>& weight, Vector<T>& bias) {
      const double bound = std::pow(double(inputs), -0.5);
      weight = random_projection<T>(outputs, inputs, rng);
      bias = uniform_vector<T>(outputs, -bound, bound, rng);
    };
    switch (config.form) {
      case SynthesizerForm::dense:
        project(config.hidden, K, weights.hidden, weights.hidden_bias);
        project(config.max_length, config.hidden, weights.logits, weights.logits_bias);
        break;
      case SynthesizerForm::factorized_random:
        weights.first = normal_matrix<T>(rows, config.rank, std::pow(double(config.rank), -0.25), rng);
        weights.second = normal_matrix<T>(rows, config.rank, std::pow(double(config.rank), -0.25), rng);
        break;
      case SynthesizerForm::factorized_dense:
        project(config.period_a, K, weights.factor_a, weights.factor_a_bias);
        project(config.period_b, K, weights.factor_b, weights.factor_b_bias);
        break;
      case SynthesizerForm::random:
      case SynthesizerForm::mixture:
        weights.random = normal_matrix<T>(rows, config.max_length, 1.0, rng);
        break;
    }
    return weights;
  }

  const Config& config() const { return config_; }
  bool reads_queries() const { return reads_queries(config_.form); }
  bool reads_keys() const { return config_.form == SynthesizerForm::mixture; }
  static bool reads_queries(SynthesizerForm form) {
    return form != SynthesizerForm::random && form != SynthesizerForm::factorized_random;
  }

  /// The values of no tokens, and in a mixture their keys.
  KeyValueCache<T> initial_state() const {
    return {config_.heads, reads_keys() ? config_.head_dim : 0, config_.value_dim};
  }

  /// y [L, H, V] from query [L, H, K] and key [L, H, K], which may have no heads where the form has none, and value
  /// [L, H, V]. O(L^2 H (hidden or rank + V)) time; allocates nothing once `workspace` is warm. Throws
  /// std::invalid_argument on shapes that do not fit, on more than T tokens, and if y overlaps an argument.
  void run(ConstHeadSequence<T> query, ConstHeadSequence<T> key, ConstHeadSequence<T> value, bool causal,
           HeadSequence<T> y, Workspace& workspace) const {
    check(0, query, key, value, y);
    attend({}, query, key, value, causal, y, workspace);
  }

  /// The same for the next tokens of a sequence, whose earlier ones are in `state`; causal.
  void run(KeyValueCache<T>& state, ConstHeadSequence<T> query, ConstHeadSequence<T> key, ConstHeadSequence<T> value,
           HeadSequence<T> y, Workspace& workspace) const {
    check(state.size(), query, key, value, y);
    state.reserve_more(value.length());
    attend(state.segments()[0], query, key, value, true, y, workspace);
    state.append(reads_keys() ? key : no_channels(value.length()), value);
  }

  /// Throws std::invalid_argument unless there is room for `count` tokens after `before`.
  void expect_room(Index before, Index count) const {
    expect(before <= config_.max_length && count <= config_.max_length - before, name, "x",
           "more tokens than config.max_length");
  }

 private:
  static Config completed(Config config) {
    expect(config.heads > 0 && config.value_dim > 0 && config.max_length > 0, name, "config.heads",
           "must be positive, as must value_dim and max_length");
    if (config.hidden == 0) config.hidden = config.max_length;
    const auto needs = [&](bool needed, Index size, std::string_view what) {
      expect(!needed || size > 0, name, what, "must be positive");
    };
    needs(reads_queries(config.form), config.head_dim, "config.head_dim");
    needs(true, config.hidden, "config.hidden");
    needs(config.form == SynthesizerForm::factorized_random, config.rank, "config.rank");
    needs(config.form == SynthesizerForm::factorized_dense, config.period_a, "config.period_a");
    needs(config.form == SynthesizerForm::factorized_dense, config.period_b, "config.period_b");
    return config;
  }

  HeadSequence<const T> no_channels(Index length) const { return {nullptr, length, config_.heads, 0}; }

  void check(Index before, const HeadSequence<const T>& query, const HeadSequence<const T>& key,
             const HeadSequence<const T>& value, const HeadSequence<T>& y) const {
    const Index L = value.length(), H = config_.heads;
    expect_shape(name, "value", {L, H, config_.value_dim}, value);
    expect_shape(name, "y", {L, H, config_.value_dim}, y);
    if (reads_queries()) expect_shape(name, "query", {L, H, config_.head_dim}, query);
    if (reads_keys()) expect_shape(name, "key", {L, H, config_.head_dim}, key);
    expect_disjoint(name, "y", y, "value", value);
    if (reads_queries()) expect_disjoint(name, "y", y, "query", query);
    if (reads_keys()) expect_disjoint(name, "y", y, "key", key);
    expect_room(before, L);
  }

  /// Rows after those of `cached`.
  void attend(const KeyValueSegment<T>& cached, HeadSequence<const T> query, HeadSequence<const T> key,
              HeadSequence<const T> value, bool causal, HeadSequence<T> y, Workspace& workspace) const {
    const Index H = config_.heads, L = value.length(), before = cached.length(), most = config_.max_length;
    if (L == 0) return;
    const auto frame = workspace.frame();
    const BandMask mask{before, BandMask::unbounded, causal ? 0 : BandMask::unbounded};
    const auto run = [&](HeadSequence<const T> queries, HeadSequence<const T> cached_keys, HeadSequence<const T> keys,
                         const auto& score) {
      const KeyValueSegment<T> all[] = {{cached_keys, cached.value}, {keys, value}};
      seqmix::attend<T>(queries, std::span(all + (before == 0 ? 1 : 0), all + 2), mask, score, {}, y, workspace);
    };
    const DotScore<T> dot{1};
    switch (config_.form) {
      case SynthesizerForm::dense: {
        const HeadSequence<const T> columns(columns_.data(), most, H, columns_.cols(), columns_.cols(), 0);
        return run(hidden(query, workspace), columns.rows(0, before), columns.rows(before, L), dot);
      }
      case SynthesizerForm::factorized_random: {
        const Index R = config_.rank;
        const HeadSequence<const T> rows(rows_.data(), most, H, R, R, most * R);
        const HeadSequence<const T> columns(columns_.data(), most, H, R, R, most * R);
        return run(rows.rows(before, L), columns.rows(0, before), columns.rows(before, L), dot);
      }
      case SynthesizerForm::factorized_dense: {
        const PeriodicRows<T> a = factor(factor_a_, query, log2_e<T>, workspace);
        const PeriodicRows<T> b = factor(factor_b_, query, T(1), workspace);
        return run(no_channels(L), no_channels(before), no_channels(L), ProductBiasScore<DotScore<T>>{dot, a, b});
      }
      case SynthesizerForm::random:
      case SynthesizerForm::mixture: {
        const Index stride = rows_.cols();
        const PeriodicRows<T> table{rows_.data() + before * stride, stride, most * stride, most};
        const ProductBiasScore<DotScore<T>> score{dot, table, {columns_.data(), 0, 0, most}};
        if (reads_keys()) return run(query, cached.key, key, score);
        return run(no_channels(L), no_channels(before), no_channels(L), score);
      }
    }
  }

  /// q W^T + b of every head, with room for `more` numbers behind each row: then finish(row) for all rows.
  template <class Finish>
  HeadSequence<T> project(const Linear<T>& linear, HeadSequence<const T> query, Index more, Workspace& workspace,
                          Finish&& finish) const {
    const auto rows = workspace.heads<T>(query.length(), config_.heads, linear.outputs() + more);
    for (Index h = 0; h < config_.heads; ++h) {
      linear.apply(query.head(h), rows.head(h).columns(0, linear.outputs()), workspace);
    }
    workspace.for_row_blocks(query.length(), [&](Index begin, Index count) {
      for (Index t = begin; t < begin + count; ++t) {
        for (Index h = 0; h < config_.heads; ++h) finish(rows.row(t, h));
      }
    });
    return rows;
  }

  /// relu(q w_1^T + b_1), and a 1.
  HeadSequence<const T> hidden(HeadSequence<const T> query, Workspace& workspace) const {
    return project(hidden_, query, 1, workspace, [width = config_.hidden](T* row) {
      map_row(
          width, row, [](const Batch<T>& x) SEQMIX_INLINE_LAMBDA { return max_propagating(x, broadcast(T(0))); }, row);
      row[width] = T(1);
    });
  }

  /// scale (q W^T + b), repeated as far as a vector reads.
  PeriodicRows<T> factor(const Linear<T>& linear, HeadSequence<const T> query, T scale, Workspace& workspace) const {
    const Index period = linear.outputs();
    const auto rows = project(linear, query, lanes<T>, workspace, [period, scale](T* row) {
      for (Index i = 0; i < period; ++i) row[i] *= scale;
      for (Index i = period; i < period + lanes<T>; ++i) row[i] = row[i - period];
    });
    return {rows.data(), rows.row_stride(), rows.head_stride(), period};
  }

  Config config_;
  Linear<T> hidden_, factor_a_, factor_b_;
  Matrix<T> rows_;     // R1, or the table in the log2 domain, [H T, T and padding]
  Matrix<T> columns_;  // R2, or w_2 beside b_2 [T, hidden + 1], or ones [1, T and padding]
};

/// A layer around it, causal or bidirectional.
template <std::floating_point T, Direction way = Direction::causal>
class Synthesizer : public RecurrentMixerBase<Synthesizer<T, way>, T> {
  using Core = SynthesizerCore<T>;

 public:
  static constexpr std::string_view name = Core::name;
  static constexpr Direction direction = way;
  static constexpr StateGrowth growth = StateGrowth::linear;

  struct Config {
    Index channels = 0;
    SynthesizerLayout layout = SynthesizerLayout::multi_head;
    SynthesizerForm form = SynthesizerForm::dense;
    Index heads = 1;      ///< 1 in single_head
    Index head_dim = 0;   ///< 0 means D / H; of multi_head
    Index value_dim = 0;  ///< the same
    Index max_length = 0;
    Index hidden = 0, rank = 0, period_a = 0, period_b = 0;  ///< as in a core
    double norm_epsilon = 1e-6;
  };

  /// Projections of single_head have biases, those of multi_head have none.
  struct Weights {
    Matrix<T> query, key;  // [H K, D]; single_head has them in a mixture
    Vector<T> query_bias, key_bias;
    Matrix<T> value;                   // [H V, D]
    Vector<T> value_bias;              // [H V]
    Matrix<T> output;                  // [D, H V], in multi_head
    Vector<T> norm_weight, norm_bias;  // [D], in multi_head
    SynthesizerCoreWeights<T> core;

    template <class Self, class Visitor>
    static void visit(Self& self, Visitor&& visitor) {
      const bool single = self.core.layout == SynthesizerLayout::single_head;
      visitor(single ? "query_fc.weight" : "w_qs.weight", self.query, Presence::optional);
      visitor("query_fc.bias", self.query_bias, Presence::optional);
      visitor(single ? "key_fc.weight" : "w_ks.weight", self.key, Presence::optional);
      visitor("key_fc.bias", self.key_bias, Presence::optional);
      visitor(single ? "value_fc.weight" : "w_vs.weight", self.value, Presence::required);
      visitor("value_fc.bias", self.value_bias, Presence::optional);
      visitor("fc.weight", self.output, Presence::optional);
      visitor("layer_norm.weight", self.norm_weight, Presence::optional);
      visitor("layer_norm.bias", self.norm_bias, Presence::optional);
      visit_fields(self.core, visitor);
    }
  };

  struct State {
    KeyValueCache<T> cache;  // values of all tokens; in a mixture their keys too

    /// Makes room for `tokens` in all: no step allocates before there are more.
    void reserve(Index tokens) { cache.reserve(tokens); }

    template <class Self, class Visitor>
    static void visit(Self& self, Visitor&& visitor) {
      visit_fields(self.cache, visitor);
    }
  };

  /// Packs the weights. Throws std::invalid_argument unless their shapes follow from `config`.
  Synthesizer(const Config& config, const Weights& weights) : config_(completed(config)) {
    const Index D = config_.channels, HK = config_.heads * config_.head_dim, HV = config_.heads * config_.value_dim;
    const bool biased = single();
    core_ = Core(core_config(config_), weights.core);
    const auto projection = [&](std::string_view tensor, Index outputs, const Matrix<T>& weight,
                                const Vector<T>& bias) {
      expect_tensor(name, tensor, {outputs, D}, weight);
      if (biased) expect_tensor(name, tensor, {outputs}, bias);
      return Linear<T>(weight, biased ? bias : Vector<T>());
    };
    if (projects_queries(config_)) query_ = projection("query", HK, weights.query, weights.query_bias);
    if (core_.reads_keys()) key_ = projection("key", HK, weights.key, weights.key_bias);
    value_ = projection("value", HV, weights.value, weights.value_bias);
    if (single()) return;
    expect_tensor(name, "fc.weight", {D, HV}, weights.output);
    expect_tensor(name, "layer_norm.weight", {D}, weights.norm_weight);
    expect_tensor(name, "layer_norm.bias", {D}, weights.norm_bias);
    output_ = Linear<T>(weights.output);
    norm_weight_ = weights.norm_weight;
    norm_bias_ = weights.norm_bias;
  }

  /// Projections as torch initialises them; norms 1; those of the core as there.
  static Weights random_weights(const Config& given, Rng& rng) {
    const Config config = completed(given);
    const Index D = config.channels, HK = config.heads * config.head_dim, HV = config.heads * config.value_dim;
    const double bound = std::pow(double(D), -0.5);
    Weights weights;
    const auto project = [&](Index outputs, Matrix<T>& weight, Vector<T>& bias) {
      weight = random_projection<T>(outputs, D, rng);
      if (config.layout == SynthesizerLayout::single_head) bias = uniform_vector<T>(outputs, -bound, bound, rng);
    };
    if (projects_queries(config)) project(HK, weights.query, weights.query_bias);
    if (config.form == SynthesizerForm::mixture) project(HK, weights.key, weights.key_bias);
    project(HV, weights.value, weights.value_bias);
    weights.core = Core::random_weights(core_config(config), rng);
    weights.core.layout = config.layout;
    if (config.layout == SynthesizerLayout::single_head) return weights;
    weights.output = random_projection<T>(D, HV, rng);
    weights.norm_weight = Vector<T>::Ones(D);
    weights.norm_bias = Vector<T>::Zero(D);
    return weights;
  }

  Index channels() const { return config_.channels; }
  const Config& config() const { return config_; }

  /// y = mixer(x) for a whole sequence. x, y [L, D], at most T rows. Allocates nothing once `workspace` is warm. Throws
  /// std::invalid_argument on wrong shapes and overlapping views.
  void forward(ConstSequence<T> x, Sequence<T> y, Workspace& workspace) const {
    internal::expect_input_output<T>(name, channels(), x, y);
    core_.expect_room(0, x.length());
    if (x.length() == 0) return;
    const auto frame = workspace.frame();
    mix(x, y, workspace, [&](const auto& query, const auto& key, const auto& value, const auto& mixed) {
      core_.run(query, key, value, way == Direction::causal, mixed, workspace);
    });
  }

  /// The state of no tokens.
  State initial_state() const
    requires(way == Direction::causal)
  {
    return {core_.initial_state()};
  }

  /// Throws std::invalid_argument unless the state is one of this mixer's.
  void check_state(const State& state) const {
    state.cache.check(name, core_.initial_state());
    core_.expect_room(state.cache.size(), 0);
  }

  /// Throws std::invalid_argument where a sequence would have more than T tokens.
  void reserve(const SequenceBatch<State>& batch) const {
    for (Index b = 0; b < batch.size(); ++b) core_.expect_room(batch.state(b).cache.size(), batch.length(b));
    for (Index b = 0; b < batch.size(); ++b) batch.state(b).cache.reserve_more(batch.length(b));
  }

  void advance(const SequenceBatch<State>& batch, ConstSequence<T> x, Sequence<T> y, Workspace& workspace) const {
    mix(x, y, workspace, [&](const auto& query, const auto& key, const auto& value, const auto& mixed) {
      for (Index b = 0; b < batch.size(); ++b) {
        const auto rows = [&](const auto& view) {
          return view.heads() > 0 ? view.rows(batch.begin(b), batch.length(b)) : view;
        };
        core_.run(batch.state(b).cache, rows(query), rows(key), rows(value), rows(mixed), workspace);
      }
    });
  }

 private:
  bool single() const { return config_.layout == SynthesizerLayout::single_head; }

  /// Those of dense forms in single_head are x.
  static bool projects_queries(const Config& config) {
    return config.layout == SynthesizerLayout::single_head ? config.form == SynthesizerForm::mixture
                                                           : Core::reads_queries(config.form);
  }

  static Config completed(Config config) {
    const bool single = config.layout == SynthesizerLayout::single_head;
    expect(config.layout != SynthesizerLayout::core, name, "config.layout", "must be that of a layer");
    expect(!single || config.heads == 1, name, "config.heads", "must be 1 in single_head");
    expect(config.channels > 0, name, "config.channels", "must be positive");
    if (single || config.head_dim == 0 || config.value_dim == 0) {
      expect_divides(name, "config.heads", config.heads, "config.channels", config.channels);
    }
    if (single || config.head_dim == 0) config.head_dim = config.channels / config.heads;
    if (single || config.value_dim == 0) config.value_dim = config.channels / config.heads;
    return config;
  }

  static SynthesizerCoreConfig core_config(const Config& config) {
    return {config.form,   config.heads, config.head_dim, config.value_dim, config.max_length,
            config.hidden, config.rank,  config.period_a, config.period_b};
  }

  /// Projections around core(query, key, value, mixed).
  template <class Attend>
  void mix(ConstSequence<T> x, Sequence<T> y, Workspace& workspace, const Attend& attend) const {
    const Index H = config_.heads;
    using Heads = HeadSequence<const T>;
    const auto value = value_.apply(x, workspace).heads(H);
    const Heads key = core_.reads_keys() ? Heads(key_.apply(x, workspace).heads(H)) : Heads();
    Heads query;
    if (projects_queries(config_)) {
      query = query_.apply(x, workspace).heads(H);
    } else if (core_.reads_queries()) {
      query = x.heads(1);
    }
    if (single()) return attend(query, key, value, y.heads(1));
    const auto mixed = workspace.heads<T>(x.length(), H, config_.value_dim);
    attend(query, key, value, mixed);
    output_.apply(mixed.flat(), y, workspace);
    workspace.for_row_blocks(x.length(), [&](Index begin, Index count) {
      const auto rows = y.rows(begin, count);
      for (Index t = 0; t < count; ++t) {
        map_row(
            channels(), rows.row(t), [](const Batch<T>& a, const Batch<T>& b) SEQMIX_INLINE_LAMBDA { return a + b; },
            static_cast<const T*>(rows.row(t)), x.row(begin + t));
      }
      layer_normalize<T>(rows, rows, T(config_.norm_epsilon), norm_weight_, norm_bias_);
    });
  }

  Config config_;
  Core core_;
  Linear<T> query_, key_, value_, output_;
  Vector<T> norm_weight_, norm_bias_;  // [D]
};

static_assert(RecurrentMixer<Synthesizer<float>>);
static_assert(Mixer<Synthesizer<float, Direction::bidirectional>>);
static_assert(!CausalMixer<Synthesizer<float, Direction::bidirectional>>);

}  // namespace seqmix::inline SEQMIX_ARCH
