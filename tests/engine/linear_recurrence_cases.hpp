// What the tests of the linear recurrence engine share: inputs, a token loop written from the equations, and checks.
//
// The tests are cut into files by scalar, those in float by the kind of decay too. Every combination of decay, readout and
// normalizer is compiled for one of float and double, those with one policy changed for the other: neighbours share all
// code but that policy's.
//
// Bounds. With u half the machine epsilon, and B the memory and |q|^T B the output that absolute values of all inputs
// would give, rounding leaves the memory with an error E of at most
//
//   E_t = d (E_{t-1} + (4 + 2 |log d|) u B_{t-1}) + u B_t + 2 u |k v|
//
// where 4 + 2 |log d| is the multiplication, the error of exp2 (1.1 ulp), and the two roundings of its argument, and the
// term after it the addition of the new token, twice that without decay: in the recent part of the sum, and when this is
// added to the rest. The last term is there where rows decay: the product of key and value is rounded before it is added,
// at a single token, or the key is divided by the decay that its row of the memory waits for. What a piece leaves may be
// off by u B_t more in float: rows that still wait for a decay are then rounded to one of the two nearest numbers, at
// random, rather than to the nearest. An output is a sum of K products, in some order, over numbers scaled a few times:
// scale |q|^T (E_t + (K + 16) u B_t). Factors below the smallest normal number may become 0.
#pragma once

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <seqmix/core/random.hpp>
#include <seqmix/engine/linear_recurrence.hpp>
#include <seqmix/parts/feature_map.hpp>
#include <string>
#include <vector>

#include "support/executors.hpp"
#include "support/laws.hpp"

namespace seqmix::test::recurrence {

inline constexpr double infinity = std::numeric_limits<double>::infinity();

// The scalar to compute the expected values in.
template <class T>
using Wider = std::conditional_t<std::same_as<T, float>, double, long double>;

// --- inputs -----------------------------------------------------------------------------------------------------------

// [length, heads, dim] with gaps between heads and rows that hold NaN.
template <class T>
struct Heads {
  Heads(Index length, Index heads, Index dim, Index head_gap, Index row_gap)
      : storage(std::size_t(length * (heads * (dim + head_gap) + row_gap)), std::numeric_limits<T>::quiet_NaN()),
        view(storage.data(), length, heads, dim, heads * (dim + head_gap) + row_gap, dim + head_gap) {}
  Heads(const Heads&) = delete;

  // The same numbers elsewhere.
  Heads(const Heads& other, int)
      : storage(other.storage),
        view(storage.data(), other.view.length(), other.view.heads(), other.view.head_dim(), other.view.row_stride(),
             other.view.head_stride()) {}

  template <class Next>
  void fill(Next next) {
    for (Index t = 0; t < view.length(); ++t) {
      for (Index h = 0; h < view.heads(); ++h) {
        for (Index i = 0; i < view.head_dim(); ++i) view(t, h, i) = T(next());
      }
    }
  }

  std::vector<T> storage;
  HeadSequence<T> view;
};

struct NoDecay {
  template <class T>
  using Policy = decay::None<T>;
};
struct HeadDecay {
  template <class T>
  using Policy = decay::PerHead<T>;
};
struct ChannelDecay {
  template <class T>
  using Policy = decay::PerChannel<T>;
};
struct TokenDecay {
  template <class T>
  using Policy = decay::PerToken<T>;
};
// With weights of their own for what tokens write and what they see of themselves.
struct WeightedHeadDecay : HeadDecay {
  static constexpr bool weighted = true;
};
struct WeightedTokenDecay : TokenDecay {
  static constexpr bool weighted = true;
};
struct RescaledSum {
  template <class T>
  using Policy = decay::Rescaled<T>;
};
struct TokenChannelDecay {
  template <class T>
  using Policy = decay::PerTokenChannel<T>;
};
struct TokenValueChannelDecay {
  template <class T>
  using Policy = decay::PerTokenValueChannel<T>;
};

struct Sizes {
  Index length = 1, heads = 1, key_dim = 1, value_dim = 1;
  Index query_heads = 0, key_heads = 0, value_heads = 0, decay_heads = 0, bonus_heads = 0;  // 0 means heads
};

// A kind of log decays: mild ones, everything from 0 to minus infinity side by side, or hardly any, and now and then such
// a one.
enum class Decays { mild, mixed, weak };

inline double random_log_decay(Decays kind, Rng& rng) {
  if (kind == Decays::mild) return -rng.uniform(0, 0.3);
  constexpr double weak[] = {0, -1e-8, -1e-7, -1e-6, -1e-5};
  if (kind == Decays::weak && rng.uniform() < 0.95) return weak[rng.integer(0, 4)];
  constexpr double values[] = {0, -1e-7, -0.01, -0.7, -3, -40, -500, -infinity};
  return values[rng.integer(0, 7)];
}

// The arguments of one evaluation.
template <class T, class Kind, bool with_bonus, bool with_sum, class Map = feature_map::Identity>
struct Inputs {
  using Decay = typename Kind::template Policy<T>;
  static constexpr bool weighted = requires { Kind::weighted; };
  using Readout = std::conditional_t<with_bonus, readout::BeforeUpdate<T>,
                                     std::conditional_t<weighted, readout::Weighted<T>, readout::AfterUpdate<T>>>;
  using Normalizer = std::conditional_t<with_sum, normalizer::KeySum<T>, normalizer::None<T>>;
  using Problem = LinearRecurrenceProblem<T, Decay, Readout, Normalizer>;
  // Whether the memory may come in two parts.
  static constexpr bool sums = requires(Decay policy) { policy.compensation; };

  Inputs(const Sizes& sizes_given, Decays decays, bool gaps, Rng& rng)
      : sizes(completed(sizes_given)),
        query(sizes.length, sizes.query_heads, sizes.key_dim, gaps ? 3 : 0, gaps ? 5 : 0),
        key(sizes.length, sizes.key_heads, sizes.key_dim, gaps ? 1 : 0, gaps ? 2 : 0),
        value(sizes.length, sizes.value_heads, sizes.value_dim, gaps ? 2 : 0, gaps ? 7 : 0),
        log_decay(Decay::constant ? 1 : sizes.length, sizes.decay_heads,
                  Decay::per_channel         ? sizes.key_dim
                  : Decay::per_value_channel ? sizes.value_dim
                                             : 1,
                  gaps && (Decay::per_channel || Decay::per_value_channel) ? 2 : 0, gaps ? 3 : 0),
        bonus(1, sizes.bonus_heads, sizes.key_dim, gaps ? 4 : 0, 0),
        weight(sizes.length, sizes.decay_heads, 1, 0, gaps ? 1 : 0),
        own(sizes.length, sizes.bonus_heads, 1, 0, gaps ? 2 : 0),
        skip(1, sizes.heads, 1, 0, 0),
        memory(1, sizes.heads * sizes.key_dim, sizes.value_dim, gaps ? 3 : 0, 0),
        memory_rest(1, sizes.heads * sizes.key_dim, sizes.value_dim, gaps ? 2 : 0, 0),
        key_sum(1, sizes.heads, sizes.key_dim, gaps ? 1 : 0, 0),
        key_sum_rest(1, sizes.heads, sizes.key_dim, gaps ? 4 : 0, 0),
        row_gap(gaps ? 11 : 0),
        scale(T(std::pow(double(sizes.key_dim), -0.5))) {
    // A denominator that is a sum of numbers of both signs could be anything.
    const auto signed_number = [&] { return rng.normal(); };
    const auto summand = [&] { return with_sum ? rng.uniform(0.1, 2.0) : rng.normal(); };
    query.fill(summand), key.fill(summand), value.fill(signed_number), bonus.fill(summand);
    memory.fill(signed_number), key_sum.fill(summand);
    const auto rest = [&] { return compensates() ? 1e-3 * rng.normal() : 0; };
    memory_rest.fill(rest), key_sum_rest.fill(rest);
    log_decay.fill([&] { return random_log_decay(decays, rng); });
    weight.fill(signed_number), own.fill(signed_number), skip.fill(signed_number);
  }

  static Sizes completed(Sizes sizes) {
    for (Index* heads :
         {&sizes.query_heads, &sizes.key_heads, &sizes.value_heads, &sizes.decay_heads, &sizes.bonus_heads}) {
      if (*heads == 0) *heads = sizes.heads;
    }
    return sizes;
  }

  // Index of the head that head h of the output shares.
  Index shared(Index h, Index count) const { return h / (sizes.heads / count); }

  Decay decay(Index begin, Index count) const {
    const auto& g = log_decay.view;
    if constexpr (std::same_as<Decay, decay::None<T>>) return {};
    if constexpr (std::same_as<Decay, decay::PerHead<T>>) return {{g.data(), g.heads()}};
    if constexpr (std::same_as<Decay, decay::PerChannel<T>>) {
      return {{g.data(), g.heads(), g.head_dim(), g.head_stride()}};
    }
    if constexpr (std::same_as<Decay, decay::PerToken<T>>) return {g.rows(begin, count).flat()};
    if constexpr (std::same_as<Decay, decay::Rescaled<T>>) return {g.rows(begin, count).flat()};
    if constexpr (std::same_as<Decay, decay::PerTokenChannel<T>>) return {g.rows(begin, count)};
    if constexpr (std::same_as<Decay, decay::PerTokenValueChannel<T>>) return {g.rows(begin, count)};
  }

  // Rows begin .. begin + count - 1, from and into memories and sums like those of this struct.
  template <class Memories>
  Problem problem(Memories& used, HeadSequence<T> output, Index begin, Index count) const {
    const auto memory_view = [&](const Heads<T>& heads) -> MemoryView<T> {
      const Index stride = heads.view.head_stride();
      return {heads.view.data(), sizes.heads, sizes.key_dim, sizes.value_dim, sizes.key_dim * stride, stride};
    };
    const auto sum_view = [&](const Heads<T>& heads) -> Sequence<T> {
      return {heads.view.data(), sizes.heads, sizes.key_dim, heads.view.head_stride()};
    };
    Decay decay_policy = decay(begin, count);
    if constexpr (sums) {
      if (compensates()) decay_policy.compensation = memory_view(used.memory_rest);
      decay_policy.position = position + begin;
    }
    Readout readout_policy;
    if constexpr (with_bonus) {
      readout_policy.weight =
          Sequence<const T>(bonus.view.data(), sizes.bonus_heads, sizes.key_dim, bonus.view.head_stride());
    }
    if constexpr (weighted) {
      readout_policy = {weight.view.rows(begin, count).flat(), own.view.rows(begin, count).flat(), {}};
      if (skips()) readout_policy.skip = Token<const T>(skip.view.data(), sizes.heads);
    }
    Normalizer normalizer_policy;
    if constexpr (with_sum) {
      normalizer_policy = {sum_view(used.key_sum), epsilon};
      if (compensates()) normalizer_policy.compensation = sum_view(used.key_sum_rest);
    }
    return {query.view.rows(begin, count),
            key.view.rows(begin, count),
            value.view.rows(begin, count),
            decay_policy,
            readout_policy,
            normalizer_policy,
            scale,
            memory_view(used.memory),
            output.rows(begin, count),
            row_map<T, Map>,
            row_map<T, Map>};
  }

  // Whether sums over all tokens come in two parts: wherever there are gaps.
  bool compensates() const { return sums && row_gap > 0; }
  bool skips() const { return sizes.key_dim % 2 == 1; }

  Sizes sizes;
  Heads<T> query, key, value, log_decay, bonus, weight, own, skip, memory, memory_rest, key_sum, key_sum_rest;
  Index row_gap, position = 1001;
  T scale, epsilon = T(0.01);
};

// --- what is expected -------------------------------------------------------------------------------------------------

template <class R>
struct Bounded {
  R value = 0, size = 0, error = 0;  // the number, what absolute values would give, and how far off it may be
};

template <class R>
struct Expected {
  Index rows = 0, heads = 0, value_dim = 0;
  std::vector<Bounded<R>> output;  // [rows, heads, value_dim]
  // After as many tokens, each [heads, key_dim, value_dim] and [heads, key_dim].
  std::map<Index, std::vector<Bounded<R>>> memory, key_sum;
};

template <class Map>
double mapped(double x) {
  return std::same_as<Map, feature_map::Elu1> ? (x > 0 ? x + 1 : std::exp(x)) : x;
}
template <class Map>
long double mapped(long double x) {
  return std::same_as<Map, feature_map::Elu1> ? (x > 0 ? x + 1 : std::exp(x)) : x;
}

// The equations, a token at a time. `moments` says after how many tokens to keep the memory.
template <class T, class Kind, bool with_bonus, bool with_sum, class Map>
auto expected_of(const Inputs<T, Kind, with_bonus, with_sum, Map>& inputs, const std::vector<Index>& moments) {
  using R = Wider<T>;
  using I = Inputs<T, Kind, with_bonus, with_sum, Map>;
  using Decay = typename I::Decay;
  const R u = R(std::numeric_limits<T>::epsilon()) / 2, tiny = R(std::numeric_limits<T>::min());
  const auto& s = inputs.sizes;
  const Index K = s.key_dim, V = s.value_dim;
  Expected<R> result{s.length, s.heads, V, {}, {}, {}};
  result.output.resize(std::size_t(s.length * s.heads * V));
  std::vector<Bounded<R>> key(static_cast<std::size_t>(K)), query = key, numerator(static_cast<std::size_t>(V));
  const R map_error = std::same_as<Map, feature_map::Identity> ? R(0) : R(6);
  for (Index h = 0; h < s.heads; ++h) {
    // Column V of the memory is the sum of keys: the memory of a value that is always 1.
    std::vector<Bounded<R>> memory(std::size_t(K * (V + 1)));
    const auto at = [&](Index i, Index j) -> Bounded<R>& { return memory[std::size_t(i * (V + 1) + j)]; };
    for (Index i = 0; i < K; ++i) {
      for (Index j = 0; j <= V; ++j) {
        const R x = j < V ? R(inputs.memory.view(0, h * K + i, j)) + R(inputs.memory_rest.view(0, h * K + i, j))
                          : R(inputs.key_sum.view(0, h, i)) + R(inputs.key_sum_rest.view(0, h, i));
        at(i, j) = {x, std::abs(x), 0};
      }
    }
    const auto keep = [&](Index tokens) {
      if (std::find(moments.begin(), moments.end(), tokens) == moments.end()) return;
      for (Index i = 0; i < K; ++i) {
        const auto left = [&](Bounded<R> m) {
          if (Decay::any && !Decay::per_value_channel && std::same_as<T, float>) m.error += u * m.size;
          return m;
        };
        for (Index j = 0; j < V; ++j) result.memory[tokens].push_back(left(at(i, j)));
        result.key_sum[tokens].push_back(left(at(i, V)));
      }
    };
    keep(0);
    for (Index t = 0; t < s.length; ++t) {
      std::vector<Bounded<R>> output(std::size_t(V + 1));
      for (Index i = 0; i < K; ++i) {
        const R q = mapped<Map>(R(inputs.query.view(t, inputs.shared(h, s.query_heads), i))) * R(inputs.scale);
        const R k = mapped<Map>(R(inputs.key.view(t, inputs.shared(h, s.key_heads), i)));
        const R u_i = R(inputs.bonus.view(0, inputs.shared(h, s.bonus_heads), i));
        constexpr bool weighted = std::remove_cvref_t<decltype(inputs)>::weighted;
        const R weight = weighted ? R(inputs.weight.view(t, inputs.shared(h, s.decay_heads), 0)) : R(1);
        const R own = weighted ? R(inputs.own.view(t, inputs.shared(h, s.bonus_heads), 0)) : R(1);
        R d = 1, factor_error = 0;
        for (Index j = 0; j <= V; ++j) {
          if ((Decay::any && j == 0) || (Decay::per_value_channel && j < V)) {
            const R log_decay = R(inputs.log_decay.view(Decay::constant ? 0 : t, inputs.shared(h, s.decay_heads),
                                                        Decay::per_channel         ? i
                                                        : Decay::per_value_channel ? j
                                                                                   : 0));
            d = std::exp(log_decay);
            factor_error = d > 0 ? (4 - 2 * log_decay) * u * d + tiny : R(0);
          }
          const R v = j < V ? R(inputs.value.view(t, inputs.shared(h, s.value_heads), j)) : R(1);
          Bounded<R>& m = at(i, j);
          Bounded<R>& y = output[std::size_t(j)];
          const R added = weight * k * v;
          constexpr bool rows_decay = Decay::any && !Decay::per_value_channel;
          const R added_error = std::abs(added) * (map_error + (weighted ? 2 : 0) + (rows_decay ? 2 : 0)) * u;
          const auto read = [&](const R& value, const R& size, const R& error) {
            y.value += q * value;
            y.size += std::abs(q) * size;
            y.error += std::abs(q) * (error + (R(K + 16) + map_error) * u * size);
          };
          if (with_bonus) {
            read(m.value + u_i * added, m.size + std::abs(u_i * added), m.error + std::abs(u_i) * added_error);
          }
          if (Decay::any) {
            m.error = d * m.error + factor_error * m.size;
            m.value *= d;
            m.size *= d;
          }
          if (weighted) {
            const R seen = std::abs(own * k * v);
            read(m.value + own * k * v, m.size + seen, m.error + 2 * u * (m.size + seen));
          }
          m.value += added;
          m.size += std::abs(added);
          m.error += (I::sums ? 2 : 1) * u * m.size + added_error;
          if (!with_bonus && !weighted) read(m.value, m.size, m.error);
        }
      }
      for (Index j = 0; j < V; ++j) {
        Bounded<R> y = output[std::size_t(j)];
        if (with_sum) {
          const Bounded<R>& sum = output[std::size_t(V)];
          const R denominator = sum.value + R(inputs.epsilon);
          y.error = y.error / denominator + std::abs(y.value) * sum.error / (denominator * denominator) +
                    4 * u * std::abs(y.value) / denominator;
          y.value /= denominator;
        }
        if (std::remove_cvref_t<decltype(inputs)>::weighted && inputs.skips()) {
          const R passed = R(inputs.skip.view(0, h, 0)) * R(inputs.value.view(t, inputs.shared(h, s.value_heads), j));
          y.value += passed;
          y.error += R(K + 16) * u * std::abs(passed);
        }
        result.output[std::size_t((t * s.heads + h) * V + j)] = y;
      }
      keep(t + 1);
    }
  }
  return result;
}

// Counts numbers further from what is expected than allowed, and remembers the worst.
class Comparison {
 public:
  template <class T, class R>
  void add(const char* what, Index place, R given, const Bounded<R>& expected) {
    const R difference = std::abs(given - expected.value);
    const R allowed = R(1.01) * expected.error + 64 * R(std::numeric_limits<T>::min());
    if (difference <= allowed) return;
    ++wrong_;
    if (!(double(difference / allowed) > worst_)) return;
    worst_ = double(difference / allowed);
    message_ = std::string(what) + " " + std::to_string(place) + ": " + std::to_string(double(given)) + ", expected " +
               std::to_string(double(expected.value)) + ", " + std::to_string(worst_) + " times what is allowed";
  }
  bool good() const { return wrong_ == 0; }
  const std::string& message() const { return message_; }

 private:
  Index wrong_ = 0;
  double worst_ = 0;
  std::string message_ = "not a number";
};

// --- evaluations ------------------------------------------------------------------------------------------------------

enum class Order { chosen, in_place, fused, chunked };
inline constexpr Order all_orders[] = {Order::chosen, Order::in_place, Order::fused, Order::chunked};

template <class Problem>
void evaluate(Order order, const Problem& problem, Workspace& workspace) {
  workspace.poison();
  if (order == Order::chosen) {
    linear_recurrence(problem, workspace);
  } else if (order == Order::in_place) {
    linear_recurrence_in_place(problem, workspace);
  } else if (order == Order::fused) {
    linear_recurrence_panels<RecurrenceOrder::fused>(problem, workspace);
  } else if constexpr (!decltype(problem.decay)::per_value_channel && !decltype(problem.readout)::weighted &&
                       !(Problem::sums && decltype(problem.decay)::any)) {
    linear_recurrence_panels<RecurrenceOrder::chunked>(problem, workspace);
  } else {
    linear_recurrence_panels<RecurrenceOrder::fused>(problem, workspace);  // there is no chunked order
  }
}

// What an evaluation left.
template <class T>
struct Result {
  template <class I>
  explicit Result(const I& inputs)
      : output(inputs.sizes.length, inputs.sizes.heads, inputs.sizes.value_dim, inputs.row_gap / 2, inputs.row_gap),
        memory(inputs.memory, 0),
        memory_rest(inputs.memory_rest, 0),
        key_sum(inputs.key_sum, 0),
        key_sum_rest(inputs.key_sum_rest, 0) {}

  bool same_bits(const Result& other) const {
    const auto same = [](const std::vector<T>& a, const std::vector<T>& b) {
      return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
    };
    return same(output.storage, other.output.storage) && same(memory.storage, other.memory.storage) &&
           same(key_sum.storage, other.key_sum.storage) && same(memory_rest.storage, other.memory_rest.storage) &&
           same(key_sum_rest.storage, other.key_sum_rest.storage);
  }

  // The numbers between rows and heads are still NaN.
  bool gaps_untouched() const {
    const auto untouched = [](const Heads<T>& heads) {
      std::vector<bool> inside(heads.storage.size(), false);
      for (Index t = 0; t < heads.view.length(); ++t) {
        for (Index h = 0; h < heads.view.heads(); ++h) {
          for (Index i = 0; i < heads.view.head_dim(); ++i) {
            inside[std::size_t(heads.view.row(t, h) + i - heads.storage.data())] = true;
          }
        }
      }
      for (std::size_t i = 0; i < inside.size(); ++i) {
        if (!inside[i] && !std::isnan(heads.storage[i])) return false;
      }
      return true;
    };
    return untouched(output) && untouched(memory) && untouched(key_sum) && untouched(memory_rest) &&
           untouched(key_sum_rest);
  }

  Heads<T> output, memory, memory_rest, key_sum, key_sum_rest;
};

// The first `length` tokens, in pieces that begin at `cuts`.
template <class T, class I>
void run(Order order, const I& inputs, Index length, const std::vector<Index>& cuts, Workspace& workspace,
         Result<T>& result) {
  Index begin = 0;
  for (std::size_t piece = 0; piece <= cuts.size(); ++piece) {
    const Index end = piece < cuts.size() ? cuts[piece] : length;
    evaluate(order, inputs.problem(result, result.output.view, begin, end - begin), workspace);
    begin = end;
  }
}

template <class T, class I, class R>
std::string compare(const I& inputs, const Result<T>& result, const Expected<R>& expected, Index length) {
  Comparison comparison;
  const auto& s = inputs.sizes;
  for (Index place = 0; place < length * s.heads * s.value_dim; ++place) {
    const Index t = place / (s.heads * s.value_dim), h = place / s.value_dim % s.heads;
    comparison.add<T>("output", place, R(result.output.view(t, h, place % s.value_dim)),
                      expected.output[std::size_t(place)]);
  }
  for (Index place = 0; place < s.heads * s.key_dim * s.value_dim; ++place) {
    const auto at = [&](const Heads<T>& heads) { return R(heads.view(0, place / s.value_dim, place % s.value_dim)); };
    comparison.add<T>("memory", place, at(result.memory) + at(result.memory_rest),
                      expected.memory.at(length)[std::size_t(place)]);
  }
  if constexpr (I::Normalizer::any) {
    for (Index place = 0; place < s.heads * s.key_dim; ++place) {
      const auto at = [&](const Heads<T>& heads) { return R(heads.view(0, place / s.key_dim, place % s.key_dim)); };
      comparison.add<T>("key sum", place, at(result.key_sum) + at(result.key_sum_rest),
                        expected.key_sum.at(length)[std::size_t(place)]);
    }
  }
  if (!comparison.good()) return comparison.message();
  return result.gaps_untouched() ? "" : "something was written between rows or heads";
}

inline std::string describe(const Sizes& s, Index length) {
  return "length " + std::to_string(length) + ", heads " + std::to_string(s.heads) + " (" +
         std::to_string(s.query_heads) + " " + std::to_string(s.key_heads) + " " + std::to_string(s.value_heads) + " " +
         std::to_string(s.decay_heads) + " " + std::to_string(s.bonus_heads) + "), key_dim " +
         std::to_string(s.key_dim) + ", value_dim " + std::to_string(s.value_dim);
}

inline const std::vector<Index> lengths = {0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 18, 31, 33, 63, 65, 130, 523};
inline const std::vector<Index> dims = {1, 3, 5, 7, 8, 16, 17, 33, 64, 100, 128};

// One shape: every length, in every order, whole and from cuts.
template <class I>
void check_shape(const Sizes& sizes, Decays decays, bool gaps, Rng& rng, Workspace& workspace) {
  using T = std::remove_cvref_t<decltype(I::scale)>;
  const I inputs(sizes, decays, gaps, rng);
  const auto expected = expected_of(inputs, lengths);
  for (const Index length : lengths) {
    if (length > inputs.sizes.length) continue;
    for (const Order order : all_orders) {
      INFO(describe(inputs.sizes, length) << ", order " << int(order) << ", decays " << int(decays));
      Result<T> whole(inputs);
      run(order, inputs, length, {}, workspace, whole);
      const std::string difference = compare(inputs, whole, expected, length);
      if (!difference.empty()) FAIL_CHECK(difference);
    }
    const Index first = rng.integer(0, length), second = rng.integer(first, length);
    INFO(describe(inputs.sizes, length) << ", cut at " << first << " and " << second);
    Result<T> pieces(inputs);
    run(Order::chosen, inputs, length, {first, second}, workspace, pieces);
    const std::string difference = compare(inputs, pieces, expected, length);
    if (!difference.empty()) FAIL_CHECK(difference);
  }
}

template <class I>
void check_policy() {
  Workspace workspace;
  Rng rng(test_seed);
  const bool full = test_effort() == Effort::full;
  const Index count = Index(dims.size());
  for (Index a = 0; a < count; ++a) {
    for (const Index b : {a, (7 * a + 3) % count}) {
      if (!full && a % 3 != 0) continue;
      const Sizes sizes{.length = std::max(dims[std::size_t(a)], dims[std::size_t(b)]) > 64 ? Index(33) : Index(130),
                        .heads = rng.integer(1, 2),
                        .key_dim = dims[std::size_t(a)],
                        .value_dim = dims[std::size_t(b)]};
      const Decays decays = (a + b) % 2 == 0 ? Decays::mixed : Decays::mild;
      check_shape<I>(sizes, decays, a % 2 == 0, rng, workspace);
      if (!I::Decay::any) continue;
      check_shape<I>(sizes, decays == Decays::mixed ? Decays::mild : Decays::mixed, a % 2 != 0, rng, workspace);
    }
  }
  check_shape<I>({.length = 523, .heads = 2, .key_dim = 9, .value_dim = 6}, Decays::mild, true, rng, workspace);
  if (I::Decay::any) {
    check_shape<I>({.length = 523, .heads = 2, .key_dim = 9, .value_dim = 6}, Decays::weak, true, rng, workspace);
    check_shape<I>({.length = 523, .heads = 1, .key_dim = 64, .value_dim = 40}, Decays::weak, false, rng, workspace);
  }
  // Larger than a second-level cache, so in longer blocks.
  check_shape<I>({.length = 75, .heads = 3, .key_dim = 128, .value_dim = 200}, Decays::mild, false, rng, workspace);
  // Heads that share queries, keys, values, decays or bonuses.
  for (const Index shared : {1, 2, 3, 6}) {
    check_shape<I>({.length = 33, .heads = 6, .key_dim = 5, .value_dim = 11, .query_heads = shared}, Decays::mild, true,
                   rng, workspace);
    check_shape<I>({.length = 33,
                    .heads = 6,
                    .key_dim = 9,
                    .value_dim = 4,
                    .key_heads = shared,
                    .value_heads = 6 / shared,
                    .decay_heads = shared,
                    .bonus_heads = 6 / shared},
                   Decays::mixed, true, rng, workspace);
  }
}

// --- bits -------------------------------------------------------------------------------------------------------------

template <class I>
void check_threads() {
  using T = std::remove_cvref_t<decltype(I::scale)>;
  Rng rng(test_seed);
  for (const Sizes& sizes : {Sizes{.length = 130, .heads = 3, .key_dim = 17, .value_dim = 33},
                             Sizes{.length = 65, .heads = 1, .key_dim = 64, .value_dim = 100},
                             Sizes{.length = 83, .heads = 3, .key_dim = 128, .value_dim = 200},
                             Sizes{.length = 18, .heads = 5, .key_dim = 3, .value_dim = 1}}) {
    for (const Decays decays : {Decays::mixed, Decays::weak}) {
      const I inputs(sizes, decays, true, rng);
      Workspace serial;
      Result<T> expected(inputs);
      run(Order::chosen, inputs, sizes.length, {sizes.length / 3}, serial, expected);
      for (const auto& [name, executor] : all_executors()) {
        INFO(name << ", " << describe(inputs.sizes, sizes.length) << ", decays " << int(decays));
        Workspace workspace(*executor);
        Result<T> result(inputs);
        run(Order::chosen, inputs, sizes.length, {sizes.length / 3}, workspace, result);
        CHECK(result.same_bits(expected));
      }
    }
  }
}

// --- maps of outputs --------------------------------------------------------------------------------------------------

// Multiplies every output by a power of two that depends on its place.
inline int exponent_of(Index head, Index token, Index column) { return int((2 * head + 3 * token + column) % 5); }

template <class T>
void scale_outputs(const void* parameters, Index head, Index token, Index column, const Sequence<T>& output) {
  const int more = *static_cast<const int*>(parameters);
  for (Index t = 0; t < output.length(); ++t) {
    for (Index j = 0; j < output.channels(); ++j) {
      output(t, j) = std::ldexp(output(t, j), exponent_of(head, token + t, column + j) + more);
    }
  }
}

template <class T>
void scale_all(const HeadSequence<T>& output, int more) {
  for (Index h = 0; h < output.heads(); ++h) scale_outputs<T>(&more, h, 0, 0, output.head(h));
}

template <class I>
void check_output_map() {
  using T = std::remove_cvref_t<decltype(I::scale)>;
  Rng rng(test_seed);
  for (const Sizes& sizes : {Sizes{.length = 1, .heads = 3, .key_dim = 5, .value_dim = 7},
                             Sizes{.length = 35, .heads = 3, .key_dim = 17, .value_dim = 41},
                             Sizes{.length = 18, .heads = 1, .key_dim = 8, .value_dim = 128}}) {
    const I inputs(sizes, Decays::mild, true, rng);
    for (const Order order : all_orders) {
      for (const auto& [name, executor] : all_executors()) {
        INFO(name << ", order " << int(order) << ", " << describe(inputs.sizes, sizes.length));
        Workspace workspace(*executor);
        Result<T> plain(inputs), mapped(inputs);
        run(order, inputs, sizes.length, {}, workspace, plain);
        auto problem = inputs.problem(mapped, mapped.output.view, 0, sizes.length);
        const int more = 2;
        problem.output_map = {&scale_outputs<T>, &more, inputs.value.view};
        evaluate(order, problem, workspace);
        scale_all(plain.output.view, more);
        CHECK(mapped.same_bits(plain));
      }
    }
  }
}

// --- where not-a-number may go ----------------------------------------------------------------------------------------

// Calls disturb(inputs) and expects that exactly the rows, heads and columns for which `reached` holds stop being
// numbers, while all others keep their bits.
template <class I, class Disturb, class Reached>
void check_spread(Order order, const char* what, Disturb disturb, Reached reached) {
  using T = std::remove_cvref_t<decltype(I::scale)>;
  for (const Sizes& sizes : {Sizes{.length = 33, .heads = 3, .key_dim = 5, .value_dim = 19},
                             Sizes{.length = 6, .heads = 3, .key_dim = 16, .value_dim = 40}}) {
    Rng rng(test_seed);
    I inputs(sizes, Decays::mild, false, rng);
    Workspace workspace;
    Result<T> before(inputs);
    run(order, inputs, sizes.length, {}, workspace, before);
    disturb(inputs);
    Result<T> disturbed(inputs);
    run(order, inputs, sizes.length, {}, workspace, disturbed);
    Index wrong = 0;
    for (Index t = 0; t < sizes.length; ++t) {
      for (Index h = 0; h < sizes.heads; ++h) {
        for (Index j = 0; j < sizes.value_dim; ++j) {
          const T a = before.output.view(t, h, j), b = disturbed.output.view(t, h, j);
          wrong += reached(t, h, j) ? std::isfinite(b) : std::memcmp(&a, &b, sizeof(T)) != 0;
        }
      }
    }
    INFO(what << ", order " << int(order) << ", length " << sizes.length);
    CHECK(wrong == 0);
  }
}

template <class I>
void check_not_a_number() {
  using T = std::remove_cvref_t<decltype(I::scale)>;
  const Index at = 4;
  for (const Order order : all_orders) {
    for (const T value : {std::numeric_limits<T>::quiet_NaN(), std::numeric_limits<T>::infinity()}) {
      check_spread<I>(
          order, "query", [&](I& inputs) { inputs.query.view(at, 1, 2) = value; },
          [&](Index t, Index h, Index) { return t == at && h == 1; });
      check_spread<I>(
          order, "key", [&](I& inputs) { inputs.key.view(at, 1, 2) = value; },
          [&](Index t, Index h, Index) { return t >= at && h == 1; });
      check_spread<I>(
          order, "value", [&](I& inputs) { inputs.value.view(at, 1, 18) = value; },
          [&](Index t, Index h, Index j) { return t >= at && h == 1 && j == 18; });
      check_spread<I>(
          order, "memory", [&](I& inputs) { inputs.memory.view(0, inputs.sizes.key_dim + 2, 18) = value; },
          [&](Index, Index h, Index j) { return h == 1 && j == 18; });
    }
    if (I::Decay::constant) continue;
    check_spread<I>(
        order, "decay",
        [&](I& inputs) {
          constexpr Index channel = I::Decay::per_channel ? 2 : I::Decay::per_value_channel ? 18 : 0;
          inputs.log_decay.view(at, 1, channel) = std::numeric_limits<T>::quiet_NaN();
        },
        [&](Index t, Index h, Index j) {
          return t >= (I::Readout::bonus ? at + 1 : at) && h == 1 && (!I::Decay::per_value_channel || j == 18);
        });
  }
}

// --- long sequences ---------------------------------------------------------------------------------------------------

// The largest error among the outputs of the last 1,000 tokens of the first 10,000 and of all, over the largest output.
template <class Kind, bool with_bonus>
void check_long_run() {
  using I = Inputs<float, Kind, with_bonus, false>;
  const Index block = 1000, dim = 64, blocks = test_effort() == Effort::full ? 100 : 20;
  Rng rng(test_seed);
  const Sizes sizes{.length = block, .heads = 1, .key_dim = dim, .value_dim = dim};
  I inputs(sizes, Decays::mild, false, rng);
  // Memories between some tens and a thousand tokens long.
  const auto log_decay = [&] { return -std::exp(rng.uniform(std::log(1e-3), std::log(0.05))); };
  inputs.log_decay.fill(log_decay);
  inputs.memory.fill([] { return 0.0; });
  Result<float> result(inputs);
  Workspace workspace;
  Matrix<double> memory = Matrix<double>::Zero(dim, dim);
  Vector<double> decay = Vector<double>::Ones(dim), q(dim), k(dim), v(dim), y(dim);
  const Vector<double> bonus = Eigen::Map<Vector<float>>(inputs.bonus.view.data(), dim).template cast<double>();
  double early = 0, late = 0;
  for (Index b = 0; b < blocks; ++b) {
    const auto number = [&] { return rng.normal(); };
    inputs.query.fill(number), inputs.key.fill(number), inputs.value.fill(number);
    if (!I::Decay::constant) inputs.log_decay.fill(log_decay);
    run(Order::chosen, inputs, block, {}, workspace, result);
    double largest = 0, error = 0;
    for (Index t = 0; t < block; ++t) {
      for (Index i = 0; i < dim; ++i) {
        q[i] = double(inputs.scale) * double(inputs.query.view(t, 0, i));
        k[i] = double(inputs.key.view(t, 0, i));
        v[i] = double(inputs.value.view(t, 0, i));
        decay[i] =
            std::exp(double(inputs.log_decay.view(I::Decay::constant ? 0 : t, 0, I::Decay::per_channel ? i : 0)));
      }
      if (with_bonus) y.noalias() = memory.transpose() * q + v * (q.array() * bonus.array() * k.array()).sum();
      for (Index i = 0; i < dim; ++i) memory.row(i) = decay[i] * memory.row(i) + k[i] * v.transpose();
      if (!with_bonus) y.noalias() = memory.transpose() * q;
      for (Index j = 0; j < dim; ++j) {
        largest = std::max(largest, std::abs(y[j]));
        error = std::max(error, std::abs(double(result.output.view(t, 0, j)) - y[j]));
      }
    }
    if (b == 9) early = error / largest;
    if (b == blocks - 1) late = error / largest;
  }
  INFO("error " << early << " at 10,000 tokens, " << late << " at " << blocks * block);
  CHECK(early > 0);
  CHECK(late <= 3 * early);
}

}  // namespace seqmix::test::recurrence
