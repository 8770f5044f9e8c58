// Linear attention over random features that are summed relative to the largest so far, and of which each has a floor.
//
//   Glossary  L length   H heads   K, V key and value width of one head   m features of one head   u [m] = P x'
//   Engine    engine/linear_recurrence.hpp with decay::Rescaled, and engine/linear_attention_global.hpp without order
//
// With f(u) = exp(u - |x'|^2 / 2 - c) or max(u, 0) (parts/random_features.hpp):
//     y_t = sum_s w_ts v_s / (sum_s w_ts + denominator sum_j phi(q_t)_j),   w_ts = phi(q_t) . phi(k_s),   phi = f + kernel
// where c is the largest u of the token for queries and M, the key stabilizer of the head, for keys. M cancels but for the
// epsilons `kernel` and `denominator`, and causal evaluations need not know it: with R the largest u so far they hold
//     E = sum_s exp(u_s - |k'_s|^2 / 2 - R) v_s^T,   e, the same for a value of 1,   V0 = sum_s v_s,   n tokens
// from which any M reads
//     S = exp(R - M) E + kernel 1 V0^T,   z = exp(R - M) e + kernel n
// Where R grows, E and e are multiplied by exp(R_old - R). Without M given it is R, that of the token itself included: strictly
// causal, and the same in any pieces. Bidirectional attention takes the largest u of all tokens.
#pragma once

#include <algorithm>
#include <limits>
#include <seqmix/engine/linear_attention_global.hpp>
#include <seqmix/engine/linear_recurrence.hpp>
#include <seqmix/engine/summed_memory.hpp>
#include <seqmix/parts/random_features.hpp>
#include <string_view>

namespace seqmix::inline SEQMIX_ARCH {

/// What is added to every feature and, in the same unit, to every entry of the sum of the keys' features.
template <class T>
struct RandomFeatureEpsilons {
  T kernel, denominator;
};

/// What the tokens so far have left: SummedMemory holds E and e, each in two parts.
template <std::floating_point T>
struct RandomFeatureMemory : SummedMemory<T> {
  Tensor<T> value_sum, value_sum_compensation;  // [H, V], V0 = value_sum + value_sum_compensation
  Tensor<T> largest;                            // [H], R; minus infinity at first, and where there is no M

  RandomFeatureMemory() = default;

  /// That of no tokens, for a memory of `shape` [H, m, V].
  explicit RandomFeatureMemory(const Shape& shape)
      : SummedMemory<T>(shape),
        value_sum({shape[0], shape[2]}),
        value_sum_compensation(value_sum.shape()),
        largest({shape[0]}) {
    std::fill(largest.begin(), largest.end(), -std::numeric_limits<T>::infinity());
  }

  template <class Self, class Visitor>
  static void visit(Self& self, Visitor&& visitor) {
    SummedMemory<T>::visit(self, visitor);
    visitor("value_sum", self.value_sum), visitor("value_sum_compensation", self.value_sum_compensation);
    visitor("largest", self.largest);
  }

  /// Throws std::invalid_argument unless the memory is `shape` [H, m, V] and all else follows.
  void check(std::string_view operation, const Shape& shape) const {
    SummedMemory<T>::check(operation, shape);
    expect_shape(operation, "state.value_sum", {shape[0], shape[2]}, value_sum.shape());
    expect_shape(operation, "state.value_sum_compensation", {shape[0], shape[2]}, value_sum_compensation.shape());
    expect_shape(operation, "state.largest", {shape[0]}, largest.shape());
  }
};

namespace detail {

/// From u of a key to its features, in place, and zeros up to whole vectors. Adds them to e, [recent][settled] as
/// load_key_sum has it, multiplied by `factor`, and returns its product with the features of a query.
template <class Kernel, class T>
SEQMIX_ALWAYS_INLINE T add_key(Index features, T offset, T factor, const T* query, T* u, T* key_sum) {
  const Index pitch = padded<T>(features);
  rescale(key_sum, 2 * pitch, factor);
  Batch<T> product = broadcast(T(0));
  for_padded_row<T>(features, [&](Index i, auto keep) SEQMIX_INLINE_LAMBDA {
    const Batch<T> feature = keep(Kernel::map(load(u + i), broadcast(offset)), broadcast(T(0)));
    const Batch<T> recent = load(key_sum + i) + feature;
    store(u + i, feature);
    store(key_sum + i, recent);
    product = fma(load(query + i), recent + load(key_sum + pitch + i), product);
  });
  return reduce_add(product);
}

/// One causal evaluation, of its blocks in order.
template <class Kernel, class T>
struct RandomFeatureRecurrence {
  HeadSequence<const T> query, key, value;
  const RandomFeatures<T>& features;
  RandomFeatureEpsilons<T> epsilon;
  RandomFeatureMemory<T>& state;
  HeadSequence<T> output;
  Sequence<const T> key_stabilizer;

  /// Heads first .. first + heads - 1, `count` tokens from `begin` on.
  void run(Index first, Index heads, Index begin, Index count, Workspace& workspace) const {
    const auto frame = workspace.frame();
    const Index m = features.features();
    const auto queries = project(query, first, heads, begin, count, workspace);
    const auto keys = project(key, first, heads, begin, count, workspace);
    const auto log_decay = workspace.sequence<T>(count, heads);
    const auto scale = workspace.sequence<T>(count, heads), floor = workspace.sequence<T>(count, heads);
    for (Index h = 0; h < heads; ++h) {
      weigh(first + h, begin, queries.head(h), keys.head(h), log_decay.columns(h, 1), scale.columns(h, 1),
            floor.columns(h, 1), workspace);
    }
    const auto of_heads = [&]<class U>(const HeadSequence<U>& all) {
      return HeadSequence<U>(all.row(begin, first), count, heads, all.head_dim(), all.row_stride(), all.head_stride());
    };
    const auto memory = [&](Tensor<T>& of_all) {
      const MemoryView<T> all(of_all);
      return MemoryView<T>(all.row(first, 0), heads, m, all.value_dim());
    };
    linear_recurrence(
        LinearRecurrenceProblem<T, decay::Rescaled<T>>{queries,
                                                       keys,
                                                       of_heads(value),
                                                       {log_decay, memory(state.compensation), state.position + begin},
                                                       {},
                                                       {},
                                                       T(1),
                                                       memory(state.memory),
                                                       of_heads(output)},
        workspace);
    for (Index h = 0; h < heads; ++h) {
      finish(first + h, begin, scale.columns(h, 1), floor.columns(h, 1), workspace);
    }
  }

 private:
  /// u [count, heads, m] in rows that are whole vectors wide.
  HeadSequence<T> project(const HeadSequence<const T>& x, Index first, Index heads, Index begin, Index count,
                          Workspace& workspace) const {
    const Index m = features.features(), K = features.channels();
    const auto u = workspace.heads<T>(count, heads, padded<T>(m)).columns(0, m);
    if (heads > count) {
      for (Index t = 0; t < count; ++t) {
        features.project({x.row(begin + t, first), heads, K, x.head_stride()}, {u.row(t, 0), heads, m, u.head_stride()},
                         workspace);
      }
    } else {
      for (Index h = 0; h < heads; ++h) {
        features.project(x.head(first + h).rows(begin, count), u.head(h), workspace);
      }
    }
    return u;
  }

  /// Makes features of u for the queries and keys of head h, says how E decays, takes e and R over the tokens, and says
  /// what is to be done to q^T E: y = scale * q^T E + floor * V0. All have a row for every token.
  void weigh(Index h, Index begin, const Sequence<T>& queries, const Sequence<T>& keys, const Sequence<T>& log_decay,
             const Sequence<T>& scale, const Sequence<T>& floor, Workspace& workspace) const {
    const auto frame = workspace.frame();
    const Index m = features.features();
    const normalizer::KeySum<T> sums = key_sums();
    T* const key_sum = workspace.take<T>(2 * padded<T>(m)).data();
    load_key_sum<decay::None<T>>(sums, h, key_sum);
    T largest = state.largest[std::size_t(h)];
    for (Index t = 0; t < queries.length(); ++t) {
      const T query_sum =
          map_query_features<Kernel>(m, features.half_square(query.row(begin + t, h)), epsilon.kernel, queries.row(t));
      T& log_factor = *log_decay.row(t) = T(0);
      T offset = T(0), factor = T(1), memory_weight = T(1), floor_weight = T(1);
      if constexpr (Kernel::stabilized) {
        const T most = largest_of_row<T>(keys.row(t), m);
        if (most > largest) {
          log_factor = largest - most;
          factor = exp_decay(log_factor);
          largest = most;
        }
        offset = features.half_square(key.row(begin + t, h)) + largest;
        if (key_stabilizer.data()) {
          // exp(R - M) and 1, divided by the larger of the two.
          const T excess = largest - key_stabilizer(begin + t, h);
          memory_weight = exp_decay(std::min(excess, T(0))), floor_weight = exp_decay(std::min(-excess, T(0)));
        }
      }
      const T product = add_key<Kernel>(m, offset, factor, static_cast<const T*>(queries.row(t)), keys.row(t), key_sum);
      const T tokens = T(state.position + begin + t + 1);
      const T denominator =
          memory_weight * product + floor_weight * query_sum * (epsilon.kernel * tokens + epsilon.denominator);
      *scale.row(t) = memory_weight / denominator;
      *floor.row(t) = floor_weight * query_sum * epsilon.kernel / denominator;
    }
    state.largest[std::size_t(h)] = largest;
    save_key_sum<decay::None<T>>(key_sum, sums, h);
  }

  /// y = scale * y + floor * V0 for the tokens of head h, whose values V0 takes in.
  void finish(Index h, Index begin, const Sequence<T>& scale, const Sequence<T>& floor, Workspace& workspace) const {
    const auto frame = workspace.frame();
    const Index V = output.head_dim(), pitch = padded<T>(V);
    const normalizer::KeySum<T> sums = value_sums();
    T* const value_sum = workspace.take<T>(2 * pitch).data();
    load_key_sum<decay::None<T>>(sums, h, value_sum);
    for (Index t = 0; t < scale.length(); ++t) {
      const T* const v = value.row(begin + t, h);
      T* const y = output.row(begin + t, h);
      const Batch<T> of_memory = broadcast(*scale.row(t)), of_values = broadcast(*floor.row(t));
      for (Index i = 0; i < V; i += lanes<T>) {
        const Batch<T> recent = load(value_sum + i) + load_some(v + i, V - i);
        store(value_sum + i, recent);
        store_some(y + i,
                   fma(load_some(static_cast<const T*>(y) + i, V - i), of_memory,
                       (recent + load(value_sum + pitch + i)) * of_values),
                   V - i);
      }
    }
    save_key_sum<decay::None<T>>(value_sum, sums, h);
  }

  /// The sums of the state, as those of a normalizer.
  normalizer::KeySum<T> key_sums() const { return {state.key_sum_view(), T(0), state.compensation_view().key_sum}; }
  normalizer::KeySum<T> value_sums() const {
    const Index H = output.heads(), V = output.head_dim();
    return {{state.value_sum.data(), H, V}, T(0), {state.value_sum_compensation.data(), H, V}};
  }
};

}  // namespace detail

/// Causal attention from and into `memory` [H, m, V]. query, key [L, H, K], value, output [L, H, V], key_stabilizer [L, H],
/// empty where M is the largest u so far; shapes and overlaps are the caller's to check. The heads, or where there are fewer
/// of these their panels, go to the threads. O(L H m (K + V)) time, O(H m (K + V)) scratch.
template <class Kernel, class T>
void random_feature_attention(const HeadSequence<const T>& query, const HeadSequence<const T>& key,
                              const HeadSequence<const T>& value, const RandomFeatures<T>& features,
                              const RandomFeatureEpsilons<T>& epsilon, RandomFeatureMemory<T>& memory,
                              const HeadSequence<T>& output, const Sequence<const T>& key_stabilizer,
                              Workspace& workspace) {
  constexpr Index block = 128;  // tokens whose features stay in the second-level cache
  constexpr Index few = 16;     // tokens that the recurrence takes one by one, on one thread
  const Index length = output.length(), heads = output.heads();
  const detail::RandomFeatureRecurrence<Kernel, T> recurrence{query,   key,    value,  features,
                                                              epsilon, memory, output, key_stabilizer};
  const auto run_head = [&](Index h, Workspace& local) {
    for (Index t = 0; t < length; t += block) recurrence.run(h, 1, t, std::min(block, length - t), local);
  };
  if (length < few) {
    recurrence.run(0, heads, 0, length, workspace);
  } else if (heads >= workspace.concurrency()) {
    workspace.parallel_for(heads, run_head);
  } else {
    for (Index h = 0; h < heads; ++h) run_head(h, workspace);
  }
  memory.position += length;
}

/// Attention of every token to all tokens, with the largest u of all as M. Shapes and cost as for random_feature_attention.
template <class Kernel, class T>
void random_feature_attention_global(const HeadSequence<const T>& query, const HeadSequence<const T>& key,
                                     const HeadSequence<const T>& value, const RandomFeatures<T>& features,
                                     const RandomFeatureEpsilons<T>& epsilon, const HeadSequence<T>& output,
                                     Workspace& workspace) {
  constexpr Index block = GlobalMemory<T>::block;
  const Index length = output.length(), V = output.head_dim(), m = features.features();
  if (length == 0) return;
  for_global_memories<T>(output.heads(), m, V, workspace, [&](Index h, GlobalMemory<T>& memory, Workspace& local) {
    const Index pitch = memory.pitch();
    const Sequence<T> rows(local.take<T>(block * pitch).data(), block, m, pitch);
    const auto for_blocks = [&](const HeadSequence<const T>& x, auto&& f) {
      for (Index begin = 0; begin < length; begin += block) {
        const Index count = std::min(block, length - begin);
        features.project(x.head(h).rows(begin, count), rows.rows(0, count), local);
        f(begin, count);
      }
    };
    // V0: row 0 is the recent part, row 1 the settled one.
    const auto value_sum = local.sequence<T>(2, V);
    for (Index i = 0; i < 2; ++i) std::fill_n(value_sum.row(i), V, T(0));
    T largest = -std::numeric_limits<T>::infinity();
    for_blocks(key, [&](Index begin, Index count) {
      if constexpr (Kernel::stabilized) {
        const T before = largest;
        for (Index t = 0; t < count; ++t) largest = std::max(largest, largest_of_row<T>(rows.row(t), m));
        if (largest > before) memory.rescale(exp_decay(before - largest));
      }
      for (Index t = 0; t < count; ++t) {
        const T offset = Kernel::stabilized ? features.half_square(key.row(begin + t, h)) + largest : T(0);
        map_features<Kernel>(m, offset, T(0), rows.row(t));
        map_row(
            V, value_sum.row(0), [](const Batch<T>& a, const Batch<T>& b) SEQMIX_INLINE_LAMBDA { return a + b; },
            value_sum.row(0), value.row(begin + t, h));
      }
      memory.add(rows.data(), value.head(h).rows(begin, count));
      detail::settle(value_sum.row(0), value_sum.row(1), V);
    });
    // What is added to S and z for all tokens together, as two tokens more, of which the first has no value.
    std::fill_n(value_sum.row(0), V, T(0));
    const T keys[2] = {epsilon.kernel * T(length - 1) + epsilon.denominator, epsilon.kernel};
    for (Index i = 0; i < 2; ++i) {
      std::fill_n(rows.row(i), pitch, T(0));
      std::fill_n(rows.row(i), m, keys[i]);
    }
    memory.add(rows.data(), value_sum);
    for_blocks(query, [&](Index begin, Index count) {
      for (Index t = 0; t < count; ++t) {
        map_query_features<Kernel>(m, features.half_square(query.row(begin + t, h)), epsilon.kernel, rows.row(t));
      }
      memory.read(rows.data(), normalizer::KeySum<T>{{}, T(0)}, output.head(h).rows(begin, count));
    });
  });
}

/// Raises largest [H] to the largest u of key [L, H, K], NaNs left out. O(L H m K) time.
template <class T>
void raise_to_largest(const HeadSequence<const T>& key, const RandomFeatures<T>& features, const Token<T>& largest,
                      Workspace& workspace) {
  constexpr Index block = 128;
  const Index m = features.features(), pitch = detail::padded<T>(m);
  workspace.parallel_for(key.heads(), [&](Index h, Workspace& local) {
    const Sequence<T> rows(local.take<T>(block * pitch).data(), block, m, pitch);
    for (Index begin = 0; begin < key.length(); begin += block) {
      const Index count = std::min(block, key.length() - begin);
      features.project(key.head(h).rows(begin, count), rows.rows(0, count), local);
      for (Index t = 0; t < count; ++t) largest[h] = std::max(largest[h], largest_of_row<T>(rows.row(t), m));
    }
  });
}

}  // namespace seqmix::inline SEQMIX_ARCH
