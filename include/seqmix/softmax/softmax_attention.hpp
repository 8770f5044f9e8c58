// Softmax attention: scaled dot-product attention with all that usually comes with it.
//
//   s[h,i,j] = scale <query[i,h], key[j,kv(h)]>,   kv(h) = floor(h / (H / Hk))
//   s        = softcap tanh(s / softcap)                        (where softcap > 0)
//   s       += -slope[h] |i + offset - j| + key_bias[j]         offset = N - M: the last query is aligned with the last key
//   y[i,h]   = sum over kept j of exp(s) value[j,kv(h)] / (sum over kept j of exp(s) + exp(sink[h]))
//   kept     (not causal or j <= i + offset), i + offset - window_left <= j <= i + offset + window_right
//
//   Source    Vaswani et al. 2017 (arXiv:1706.03762); multi-query: Shazeer 2019 (arXiv:1911.02150); grouped: Ainslie et
//             al. 2023 (arXiv:2305.13245); ALiBi: Press et al. 2022 (arXiv:2108.12409); RoPE: Su et al. 2021
//             (arXiv:2104.09864); softcap: Gemma 2 (arXiv:2408.00118); sinks: gpt-oss 2025
//   Glossary  M queries   N keys, cached ones included   H query heads   Hk heads of keys and values
//             d head_dim   dv value_dim
//   Engine    engine/attention.hpp with BandMask, and DotScore or SoftcapScore, AlibiScore, KeyBiasScore
//   Size      the core with and without a cache, every option of it, and layers of both directions
//   Differs   a row without keys gives 0, not NaN; with more queries than keys the first rows have none
#pragma once

#include <cmath>
#include <optional>
#include <seqmix/core/error.hpp>
#include <seqmix/core/mixer.hpp>
#include <seqmix/core/parameters.hpp>
#include <seqmix/core/random.hpp>
#include <seqmix/core/view.hpp>
#include <seqmix/core/workspace.hpp>
#include <seqmix/engine/attention.hpp>
#include <seqmix/engine/attention_cache.hpp>
#include <seqmix/parts/linear.hpp>
#include <seqmix/parts/norm.hpp>
#include <seqmix/parts/rotary.hpp>
#include <span>
#include <string_view>

namespace seqmix::inline SEQMIX_ARCH {

/// What softmax_attention may be told beside its streams. Views without channels are absent.
template <std::floating_point T>
struct SoftmaxAttentionOptions {
  bool causal = true;                   ///< row i sees no key beyond the one aligned with it
  std::optional<Index> window_left{};   ///< keys seen before the aligned one
  std::optional<Index> window_right{};  ///< keys seen after the aligned one
  std::optional<T> scale{};             ///< d^-0.5 where absent
  T softcap = 0;                        ///< 0: none, else 1e-30 to 1e30
  Token<const T> alibi_slopes{};        ///< [H]
  Token<const T> sink{};                ///< [H]: logits that enter the denominator only
  Token<const T> key_bias{};            ///< [N]: added to the logits, any numbers; -infinity hides a key
  std::optional<Rotary> rotary{};       ///< rotates queries and the given keys; cached keys are rotated already
  std::optional<Index>
      query_position{};  ///< of the first query, for the rotation; where absent that of the key aligned
                         ///< with it (keys count from the first that the cache has seen)
};

namespace softmax_attention_detail {

/// Whether float can divide by it and multiply with it.
constexpr bool valid_softcap(double softcap) { return softcap == 0 || (softcap >= 1e-30 && softcap <= 1e30); }

/// Throws std::invalid_argument unless the arguments fit each other. `cached` keys come before those given.
template <class T>
void check(HeadSequence<const T> query, HeadSequence<const T> key, HeadSequence<const T> value, Index cached,
           const SoftmaxAttentionOptions<T>& options, HeadSequence<T> y) {
  constexpr std::string_view name = "softmax_attention";
  expect_shape(name, "key", {key.length(), key.heads(), query.head_dim()}, key);
  expect_shape(name, "value", {key.length(), key.heads(), value.head_dim()}, value);
  expect_shape(name, "y", {query.length(), query.heads(), value.head_dim()}, y);
  if (key.heads() > 0 ? query.heads() % key.heads() != 0 : query.heads() != 0) {
    internal::throw_invalid(name, "query",
                            "its number of heads must be a multiple of that of key: given " +
                                std::to_string(query.heads()) + " and " + std::to_string(key.heads()));
  }
  expect(query.head_dim() > 0 || query.heads() == 0, name, "query", "heads must have channels");
  const auto per_head = [&](std::string_view tensor, Token<const T> view) {
    if (view.channels() > 0) expect_shape(name, tensor, {query.heads()}, view);
  };
  per_head("alibi_slopes", options.alibi_slopes);
  per_head("sink", options.sink);
  if (options.key_bias.channels() > 0) expect_shape(name, "key_bias", {cached + key.length()}, options.key_bias);
  expect(!options.window_left || *options.window_left >= 0, name, "window_left", "must not be negative");
  expect(!options.window_right || *options.window_right >= 0, name, "window_right", "must not be negative");
  expect(valid_softcap(double(options.softcap)), name, "softcap", "must be 0 (none) or from 1e-30 to 1e30");
  expect(!options.rotary || options.rotary->rotary_dim() <= query.head_dim(), name, "rotary",
         "rotates more channels than a head has");
  expect_disjoint(name, "y", y, "query", query);
  expect_disjoint(name, "y", y, "key", key);
  expect_disjoint(name, "y", y, "value", value);
  expect_disjoint(name, "y", y, "alibi_slopes", options.alibi_slopes);
  expect_disjoint(name, "y", y, "sink", options.sink);
  expect_disjoint(name, "y", y, "key_bias", options.key_bias);
}

/// The band of a causal mask and windows for `rows` queries and `keys` keys.
inline BandMask band(bool causal, std::optional<Index> window_left, std::optional<Index> window_right, Index rows,
                     Index keys) {
  return {keys - rows, std::min(window_left.value_or(BandMask::unbounded), BandMask::unbounded),
          causal ? 0 : std::min(window_right.value_or(BandMask::unbounded), BandMask::unbounded)};
}

/// softmax_attention of checked arguments, without rotation.
template <class T>
void attend_segments(HeadSequence<const T> query, std::span<const KeyValueSegment<T>> segments,
                     const SoftmaxAttentionOptions<T>& options, HeadSequence<T> y, Workspace& workspace) {
  const Index keys = total_length(segments);
  const BandMask mask = band(options.causal, options.window_left, options.window_right, query.length(), keys);
  const T scale = options.scale.value_or(T(1) / std::sqrt(static_cast<T>(query.head_dim())));
  const auto frame = workspace.frame();
  const auto run = [&](const auto& score) { attend<T>(query, segments, mask, score, options.sink, y, workspace); };
  const bool alibi = options.alibi_slopes.channels() > 0, bias = options.key_bias.channels() > 0;
  if (options.softcap == 0 && !bias) {
    if (alibi) return run(AlibiScore<DotScore<T>>{{scale}, options.alibi_slopes.data(), mask.offset});
    return run(DotScore<T>{scale});
  }
  // What is left shares two instances of the kernels: slopes and biases of zero cost little beside tanh or loading a bias.
  const auto slopes = workspace.take<T>(query.heads()), biases = workspace.take<T>(keys + panel_width<T>);
  for (Index h = 0; h < query.heads(); ++h) slopes[std::size_t(h)] = alibi ? options.alibi_slopes[h] : T(0);
  for (Index j = 0; j < keys; ++j) biases[std::size_t(j)] = bias ? to_log2_domain(options.key_bias[j]) : T(0);
  std::fill(biases.begin() + keys, biases.end(), T(0));
  const auto with_bias = [&](const auto& base) {
    using Alibi = AlibiScore<std::decay_t<decltype(base)>>;
    run(KeyBiasScore<Alibi>{Alibi{base, slopes.data(), mask.offset}, biases.data()});
  };
  if (options.softcap > 0) {
    with_bias(SoftcapScore<T>{scale, options.softcap});
  } else {
    with_bias(DotScore<T>{scale});
  }
}

/// A copy of x, rotated from `position` on.
template <class T>
HeadSequence<T> rotated(const Rotary& rotary, HeadSequence<const T> x, Index position, Workspace& workspace) {
  const auto copy = workspace.heads<T>(x.length(), x.heads(), x.head_dim());
  for (Index t = 0; t < x.length(); ++t) {
    for (Index h = 0; h < x.heads(); ++h) std::copy_n(x.row(t, h), x.head_dim(), copy.row(t, h));
  }
  rotary.apply(copy, position, workspace);
  return copy;
}

}  // namespace softmax_attention_detail

/// Attention of query [M, H, d] over key [N, Hk, d] and value [N, Hk, dv] into y [M, H, dv]; Hk must divide H. Any strides;
/// y must not overlap the inputs.
///
/// O(H (d + dv)) time per pair of a query and a key that it sees, tiles that the window hides excepted; no memory of the
/// order M N. Allocates nothing once `workspace` is warm. Throws std::invalid_argument on arguments that don't fit each
/// other, with y untouched.
template <std::floating_point T>
void softmax_attention(ConstHeadSequence<T> query, ConstHeadSequence<T> key, ConstHeadSequence<T> value,
                       const std::type_identity_t<SoftmaxAttentionOptions<T>>& options, HeadSequence<T> y,
                       Workspace& workspace) {
  namespace detail = softmax_attention_detail;
  detail::check<T>(query, key, value, 0, options, y);
  const auto frame = workspace.frame();
  if (options.rotary) {
    const Index position = options.query_position.value_or(key.length() - query.length());
    query = detail::rotated<T>(*options.rotary, query, position, workspace);
    key = detail::rotated<T>(*options.rotary, key, 0, workspace);
  }
  const KeyValueSegment<T> segments[] = {{key, value}};
  detail::attend_segments<T>(query, segments, options, y, workspace);
}

/// The same over the keys and values of `cache` followed by those given, which are then appended to it: one call after
/// the other continues a sequence. N counts the keys held by the cache and those given. A cache with a window serves
/// windows up to its own.
///
/// For up to four queries keys and values are read in place, at the speed of memory; a call with one query makes no
/// system call and takes no lock on a serial executor. Allocates nothing once `workspace` is warm, but for the growth
/// of the cache. Throws as above, with y and cache untouched.
template <std::floating_point T>
void softmax_attention(KeyValueCache<T>& cache, ConstHeadSequence<T> query, ConstHeadSequence<T> key,
                       ConstHeadSequence<T> value, const std::type_identity_t<SoftmaxAttentionOptions<T>>& options,
                       HeadSequence<T> y, Workspace& workspace) {
  namespace detail = softmax_attention_detail;
  constexpr std::string_view name = "softmax_attention";
  expect_shape(name, "key", {key.length(), cache.kv_heads(), cache.head_dim()}, key);
  expect_shape(name, "value", {key.length(), cache.kv_heads(), cache.value_dim()}, value);
  expect(!cache.window() || (options.window_left && *options.window_left <= *cache.window()), name, "window_left",
         "reaches beyond the window of the cache");
  detail::check<T>(query, key, value, cache.size(), options, y);
  const auto frame = workspace.frame();
  if (options.rotary) {
    const Index position = options.query_position.value_or(cache.seen() + key.length() - query.length());
    query = detail::rotated<T>(*options.rotary, query, position, workspace);
    key = detail::rotated<T>(*options.rotary, key, cache.seen(), workspace);
  }
  cache.reserve_more(key.length());
  const auto cached = cache.segments();
  const KeyValueSegment<T> segments[] = {cached[0], cached[1], {key, value}};
  detail::attend_segments<T>(query, segments, options, y, workspace);
  cache.append(key, value);
}

/// Hyperparameters of the layer.
struct SoftmaxAttentionConfig {
  Index channels = 0;
  Index heads = 1;
  Index kv_heads = 0;   ///< 0: heads
  Index head_dim = 0;   ///< 0: channels / heads
  Index value_dim = 0;  ///< 0: head_dim
  std::optional<Index> window_left{};
  std::optional<Index> window_right{};  ///< bidirectional layers only
  std::optional<double> scale{};        ///< head_dim^-0.5 where absent
  double softcap = 0;                   ///< 0: none
  std::optional<RotaryPairs> rope{};    ///< absent: no rotation
  double rope_theta = 10000;
  std::optional<Index> rotary_dim{};  ///< head_dim where absent
  bool alibi = false;
  bool sink = false;
  bool qkv_bias = false;
  bool qk_norm = false;  ///< RMS norm of queries and keys, before the rotation
  double norm_eps = 1e-5;
};

/// The names that published checkpoints give the tensors of the layer.
enum class AttentionNames {
  hugging_face,  ///< q_proj.weight, k_proj.weight, v_proj.weight, o_proj.weight
  llama          ///< wq.weight, wk.weight, wv.weight, wo.weight (Meta)
};

/// Tensors of the layer.
template <std::floating_point T>
struct SoftmaxAttentionWeights {
  Matrix<T> query;                             ///< [H d, D]
  Matrix<T> key;                               ///< [Hk d, D]
  Matrix<T> value;                             ///< [Hk dv, D]
  Matrix<T> output;                            ///< [D, H dv]
  Vector<T> query_bias, key_bias, value_bias;  ///< with qkv_bias
  Vector<T> query_norm, key_norm;              ///< [d], with qk_norm
  Vector<T> alibi_slopes;                      ///< [H], with alibi
  Vector<T> sink;                              ///< [H], with sink
  AttentionNames names = AttentionNames::hugging_face;

  template <class Self, class Visitor>
  static void visit(Self& self, Visitor&& visitor) {
    const bool llama = self.names == AttentionNames::llama;
    const auto named = [&](std::string_view theirs, std::string_view metas) { return llama ? metas : theirs; };
    visitor(named("q_proj.weight", "wq.weight"), self.query, Presence::required);
    visitor(named("k_proj.weight", "wk.weight"), self.key, Presence::required);
    visitor(named("v_proj.weight", "wv.weight"), self.value, Presence::required);
    visitor(named("o_proj.weight", "wo.weight"), self.output, Presence::required);
    visitor(named("q_proj.bias", "wq.bias"), self.query_bias, Presence::optional);
    visitor(named("k_proj.bias", "wk.bias"), self.key_bias, Presence::optional);
    visitor(named("v_proj.bias", "wv.bias"), self.value_bias, Presence::optional);
    visitor("q_norm.weight", self.query_norm, Presence::optional);
    visitor("k_norm.weight", self.key_norm, Presence::optional);
    visitor("alibi_slopes", self.alibi_slopes, Presence::optional);
    visitor("sink", self.sink, Presence::optional);
  }
};

namespace softmax_attention_detail {

/// What both directions of the layer share: checked configuration and weights, projections, rotation.
template <std::floating_point T>
class Layer {
 public:
  using Config = SoftmaxAttentionConfig;
  using Weights = SoftmaxAttentionWeights<T>;
  static constexpr std::string_view name = "softmax_attention";

  /// Fills in the defaults. Throws std::invalid_argument on impossible sizes.
  static Config completed(Config config) {
    expect(config.channels > 0, name, "channels", "must be positive");
    expect(config.heads > 0, name, "heads", "must be positive");
    if (config.kv_heads == 0) config.kv_heads = config.heads;
    if (config.head_dim == 0) {
      expect(config.channels % config.heads == 0, name, "heads", "must divide channels where head_dim is not given");
      config.head_dim = config.channels / config.heads;
    }
    if (config.value_dim == 0) config.value_dim = config.head_dim;
    expect(config.kv_heads > 0 && config.heads % config.kv_heads == 0, name, "kv_heads", "must divide heads");
    expect(config.head_dim > 0, name, "head_dim", "must be positive");
    expect(config.value_dim > 0, name, "value_dim", "must be positive");
    expect(!config.window_left || *config.window_left >= 0, name, "window_left", "must not be negative");
    expect(!config.window_right || *config.window_right >= 0, name, "window_right", "must not be negative");
    expect(softmax_attention_detail::valid_softcap(config.softcap), name, "softcap",
           "must be 0 (none) or from 1e-30 to 1e30");
    const Index rotary_dim = config.rotary_dim.value_or(config.head_dim);
    expect(!config.rope || (rotary_dim >= 0 && rotary_dim <= config.head_dim && rotary_dim % 2 == 0), name,
           "rotary_dim", "must be even and at most head_dim");
    return config;
  }

  Layer(Config config, const Weights& weights) : config_(completed(config)) {
    const Index H = config_.heads, Hk = config_.kv_heads, d = config_.head_dim, dv = config_.value_dim;
    const auto check = [](std::string_view tensor_name, bool present, const Shape& shape, const auto& tensor) {
      if (present) {
        expect_tensor(name, tensor_name, shape, tensor);
      } else {
        expect(tensor.size() == 0, name, tensor_name, "given, but switched off in the configuration");
      }
    };
    check("query", true, {H * d, config_.channels}, weights.query);
    check("key", true, {Hk * d, config_.channels}, weights.key);
    check("value", true, {Hk * dv, config_.channels}, weights.value);
    check("output", true, {config_.channels, H * dv}, weights.output);
    check("query_bias", config_.qkv_bias, {H * d}, weights.query_bias);
    check("key_bias", config_.qkv_bias, {Hk * d}, weights.key_bias);
    check("value_bias", config_.qkv_bias, {Hk * dv}, weights.value_bias);
    check("query_norm", config_.qk_norm, {d}, weights.query_norm);
    check("key_norm", config_.qk_norm, {d}, weights.key_norm);
    check("alibi_slopes", config_.alibi, {H}, weights.alibi_slopes);
    check("sink", config_.sink, {H}, weights.sink);
    projection_ = Linear<T>({&weights.query, &weights.key, &weights.value},
                            {&weights.query_bias, &weights.key_bias, &weights.value_bias});
    output_ = Linear<T>(weights.output);
    query_norm_ = weights.query_norm;
    key_norm_ = weights.key_norm;
    alibi_slopes_ = weights.alibi_slopes;
    sink_ = weights.sink;
    if (config_.rope) {
      rotary_ = Rotary::standard(config_.rotary_dim.value_or(d), config_.rope_theta, *config_.rope);
    }
  }

  static Weights random_weights(const Config& given, Rng& rng) {
    const Config config = completed(given);
    const Index D = config.channels, H = config.heads, Hk = config.kv_heads, d = config.head_dim, dv = config.value_dim;
    const double deviation = 1 / std::sqrt(double(D));
    Weights weights;
    weights.query = normal_matrix<T>(H * d, D, deviation, rng);
    weights.key = normal_matrix<T>(Hk * d, D, deviation, rng);
    weights.value = normal_matrix<T>(Hk * dv, D, deviation, rng);
    weights.output = normal_matrix<T>(D, H * dv, 1 / std::sqrt(double(H * dv)), rng);
    if (config.qkv_bias) {
      weights.query_bias = Vector<T>::Zero(H * d);
      weights.key_bias = Vector<T>::Zero(Hk * d);
      weights.value_bias = Vector<T>::Zero(Hk * dv);
    }
    if (config.qk_norm) weights.query_norm = weights.key_norm = Vector<T>::Ones(d);
    if (config.alibi) {
      weights.alibi_slopes = Vector<T>::NullaryExpr(
          H, [&](Index h) { return static_cast<T>(std::exp2(-8.0 * double(h + 1) / double(H))); });
    }
    if (config.sink) weights.sink = Vector<T>::Zero(H);
    return weights;
  }

  const Config& config() const { return config_; }

  struct Streams {
    HeadSequence<T> query, key, value;  // [rows, H, d], [rows, Hk, d], [rows, Hk, dv]

    Streams rows(Index begin, Index count) const {
      return {query.rows(begin, count), key.rows(begin, count), value.rows(begin, count)};
    }
  };

  /// Projects and normalises all rows of x.
  Streams project(ConstSequence<T> x, Workspace& workspace) const {
    const Index H = config_.heads, Hk = config_.kv_heads, d = config_.head_dim, dv = config_.value_dim;
    const Sequence<T> all = projection_.apply(x, workspace);
    const Streams streams{all.columns(0, H * d).heads(H), all.columns(H * d, Hk * d).heads(Hk),
                          all.columns((H + Hk) * d, Hk * dv).heads(Hk)};
    if (config_.qk_norm) {
      rms_normalize(streams.query, static_cast<T>(config_.norm_eps), query_norm_);
      rms_normalize(streams.key, static_cast<T>(config_.norm_eps), key_norm_);
    }
    return streams;
  }

  /// Rotates and mixes the rows of one sequence, of which the first is at `position`. `cached` comes before them.
  void mix(const Streams& streams, std::span<const KeyValueSegment<T>, 2> cached, Index position, bool causal,
           HeadSequence<T> mixed, Workspace& workspace) const {
    if (rotary_) {
      rotary_->apply(streams.query, position, workspace);
      rotary_->apply(streams.key, position, workspace);
    }
    SoftmaxAttentionOptions<T> options;
    options.causal = causal;
    options.window_left = config_.window_left;
    options.window_right = config_.window_right;
    if (config_.scale) options.scale = static_cast<T>(*config_.scale);
    options.softcap = static_cast<T>(config_.softcap);
    options.alibi_slopes = alibi_slopes_;
    options.sink = sink_;
    const KeyValueSegment<T> segments[] = {cached[0], cached[1], {streams.key, streams.value}};
    attend_segments<T>(streams.query, segments, options, mixed, workspace);
  }

  /// y = mixer(x) for a whole sequence.
  void forward(ConstSequence<T> x, Sequence<T> y, bool causal, Workspace& workspace) const {
    internal::expect_input_output<T>(name, config_.channels, x, y);
    if (x.length() == 0) return;
    const auto frame = workspace.frame();
    const Streams streams = project(x, workspace);
    const auto mixed = workspace.heads<T>(x.length(), config_.heads, config_.value_dim);
    const KeyValueSegment<T> nothing[2] = {empty_segment(), empty_segment()};
    mix(streams, nothing, 0, causal, mixed, workspace);
    output_.apply(mixed.flat(), y, workspace);
  }

  void project_output(HeadSequence<T> mixed, Sequence<T> y, Workspace& workspace) const {
    output_.apply(mixed.flat(), y, workspace);
  }

 private:
  KeyValueSegment<T> empty_segment() const {
    return {{nullptr, 0, config_.kv_heads, config_.head_dim}, {nullptr, 0, config_.kv_heads, config_.value_dim}};
  }

  Config config_;
  Linear<T> projection_;  // query, key and value side by side
  Linear<T> output_;
  Vector<T> query_norm_, key_norm_, alibi_slopes_, sink_;
  std::optional<Rotary> rotary_;
};

}  // namespace softmax_attention_detail

/// The layer: x -> query, key, value projections, optionally RMS norm of queries and keys, RoPE, attention as above, output
/// projection without bias. x, y [length, channels].
///
/// Time O(length channels (H d + Hk (d + dv) + H dv)) for the projections and O(length^2 H (d + dv)) for the attention, or
/// O(length window_left H (d + dv)). The state holds the keys and values of all tokens, (d + dv) Hk numbers each; with
/// window_left it is a ring of window_left + 1 tokens and bounded, although the type can only say that it grows.
template <std::floating_point T, Direction direction = Direction::causal>
class SoftmaxAttention : public RecurrentMixerBase<SoftmaxAttention<T, direction>, T> {
  using Layer = softmax_attention_detail::Layer<T>;

 public:
  using Scalar = T;
  using Config = SoftmaxAttentionConfig;
  using Weights = SoftmaxAttentionWeights<T>;
  static constexpr std::string_view name = Layer::name;
  static constexpr StateGrowth growth = StateGrowth::linear;

  struct State {
    KeyValueCache<T> cache;  // of rotated keys
    Index position = 0;      // of the next token

    /// Makes room for `tokens` in all: no step allocates before there are more.
    void reserve(Index tokens) { cache.reserve(tokens); }

    template <class Self, class Visitor>
    static void visit(Self& self, Visitor&& visitor) {
      visit_fields(self.cache, visitor);
      visitor("position", self.position);
    }
  };

  /// Throws std::invalid_argument unless the configuration is possible (window_right needs a bidirectional layer) and
  /// the shapes of `weights` follow from it. Allocates.
  SoftmaxAttention(Config config, const Weights& weights) : layer_(config, weights) {
    expect(config.window_right.value_or(0) == 0, name, "window_right", "needs a bidirectional layer");
  }

  /// Normal with deviation channels^-0.5 (output: (H dv)^-0.5); biases and sinks 0, norms 1, slopes 2^(-8 (h+1) / H).
  static Weights random_weights(const Config& config, Rng& rng) { return Layer::random_weights(config, rng); }

  const Config& config() const { return layer_.config(); }
  Index channels() const { return config().channels; }

  /// An empty state; room for tokens comes from State::reserve, or as they come.
  State initial_state() const {
    return {KeyValueCache<T>(config().kv_heads, config().head_dim, config().value_dim, config().window_left), 0};
  }

  void check_state(const State& state) const {
    state.cache.check(name, initial_state().cache);
    expect(state.position >= 0, name, "state.position", "must not be negative");
  }

  /// As the base's, without a cache: allocates nothing once `workspace` is warm.
  void forward(ConstSequence<T> x, Sequence<T> y, Workspace& workspace) const { layer_.forward(x, y, true, workspace); }

  void reserve(const SequenceBatch<State>& batch) const {
    for (Index b = 0; b < batch.size(); ++b) batch.state(b).cache.reserve_more(batch.length(b));
  }

  void advance(SequenceBatch<State> batch, ConstSequence<T> x, Sequence<T> y, Workspace& workspace) const {
    const auto streams = layer_.project(x, workspace);
    const auto mixed = workspace.heads<T>(x.length(), config().heads, config().value_dim);
    for (Index b = 0; b < batch.size(); ++b) {
      const auto cached = batch.state(b).cache.segments();
      layer_.mix(streams.rows(batch.begin(b), batch.length(b)), cached, batch.state(b).position, true,
                 mixed.rows(batch.begin(b), batch.length(b)), workspace);
    }
    layer_.project_output(mixed, y, workspace);
    for (Index b = 0; b < batch.size(); ++b) {
      const auto rows = streams.rows(batch.begin(b), batch.length(b));
      batch.state(b).cache.append(rows.key, rows.value);
      batch.state(b).position += batch.length(b);
    }
  }

 private:
  Layer layer_;
};

/// The layer in which every row sees the whole sequence, or a window to both sides: no state.
template <std::floating_point T>
class SoftmaxAttention<T, Direction::bidirectional> {
  using Layer = softmax_attention_detail::Layer<T>;

 public:
  using Scalar = T;
  using Config = SoftmaxAttentionConfig;
  using Weights = SoftmaxAttentionWeights<T>;
  static constexpr std::string_view name = Layer::name;
  static constexpr Direction direction = Direction::bidirectional;

  /// Throws std::invalid_argument unless the shapes of `weights` follow from `config`. Allocates.
  SoftmaxAttention(Config config, const Weights& weights) : layer_(config, weights) {}

  /// As for the causal layer.
  static Weights random_weights(const Config& config, Rng& rng) { return Layer::random_weights(config, rng); }

  const Config& config() const { return layer_.config(); }
  Index channels() const { return config().channels; }

  /// y = mixer(x). x, y [length, channels]. Allocates nothing once `workspace` is warm. Throws std::invalid_argument on
  /// wrong shapes and overlapping views.
  void forward(ConstSequence<T> x, Sequence<T> y, Workspace& workspace) const {
    layer_.forward(x, y, false, workspace);
  }

 private:
  Layer layer_;
};

static_assert(RecurrentMixer<SoftmaxAttention<float>>);
static_assert(Mixer<SoftmaxAttention<float, Direction::bidirectional>>);
static_assert(!CausalMixer<SoftmaxAttention<float, Direction::bidirectional>>);

}  // namespace seqmix::inline SEQMIX_ARCH
