// A memory under the delta rule, one token at a time, for recurrences in which what a token reads decides what the next
// one asks for: nothing can be said about a token before the one before it has been read.
//
//     S_t = S_{t-1} + k_t u_t^T,   u_t = beta_t (v_t - S_{t-1}^T k_t)
//     h_t = S_t^T q_t = S_{t-1}^T q_t + (q_t . k_t) u_t
//
// A token costs one pass over the memory, which finds what it holds for the key and the query, and adds what the tokens
// before have left. That may wait for some tokens, whose k u^T are then taken into account by the inner products of
// their keys with those to come. (engine/linear_recurrence.hpp knows several tokens at once and takes them in one
// pass.)
#pragma once

#include <algorithm>
#include <seqmix/core/workspace.hpp>
#include <seqmix/engine/linear_recurrence_problem.hpp>
#include <seqmix/simd/batch.hpp>

namespace seqmix::inline SEQMIX_ARCH {

namespace detail {

/// Vectors of columns that the sweeps below take at a time, as far as there are so many.
inline constexpr Index sweep_vectors = 4;

/// Rows whose sums are kept apart, so that eight chains of multiply-adds hide their latency.
template <Index sums>
inline constexpr Index sweep_chains = sums >= 8 ? 1 : 8 / sums;

/// Calls f(std::integral_constant vectors, first column) for all columns, sweep_vectors vectors at a time, then fewer.
template <class T, class F>
SEQMIX_ALWAYS_INLINE void for_column_tiles(Index columns, F&& f) {
  constexpr Index width = lanes<T>;
  Index column = 0;
  for (; column + sweep_vectors * width <= columns; column += sweep_vectors * width) {
    f(std::integral_constant<Index, sweep_vectors>{}, column);
  }
  if (column + 2 * width <= columns) {
    f(std::integral_constant<Index, 2>{}, column);
    column += 2 * width;
  }
  if (column < columns) f(std::integral_constant<Index, 1>{}, column);
}

/// Calls f(chain, row) for every row, chain an integral constant that goes round.
template <Index chains, class F>
SEQMIX_ALWAYS_INLINE void for_rows_in_chains(Index rows, F&& f) {
  Index i = 0;
  for (; i + chains <= rows; i += chains) {
    unroll<chains>([&](auto chain) SEQMIX_INLINE_LAMBDA { f(chain, i + chain); });
  }
  for (; i < rows; ++i) f(std::integral_constant<Index, 0>{}, i);
}

/// sums[0] += sums[1] + ...
template <Index chains, Index Vectors, class T>
SEQMIX_ALWAYS_INLINE void add_chains(Batch<T> (&sums)[chains][Vectors]) {
  unroll<chains>([&](auto c) SEQMIX_INLINE_LAMBDA {
    if constexpr (c > 0) unroll<Vectors>([&](auto b) SEQMIX_INLINE_LAMBDA { sums[0][b] += sums[c][b]; });
  });
}

/// to += from^T M, M [rows, columns] with its rows `stride` numbers apart. `columns` is whole vectors.
template <class T>
void add_row_product(const T* from, Index rows, const T* matrix, Index stride, Index columns, T* to) {
  constexpr Index width = lanes<T>;
  for_column_tiles<T>(columns, [&](auto vectors, Index column) SEQMIX_INLINE_LAMBDA {
    constexpr Index V = vectors, chains = sweep_chains<V>;
    Batch<T> sums[chains][V];
    unroll<chains>([&](auto c) SEQMIX_INLINE_LAMBDA {
      unroll<V>([&](auto b)
                    SEQMIX_INLINE_LAMBDA { sums[c][b] = c == 0 ? load(to + column + b * width) : broadcast(T(0)); });
    });
    for_rows_in_chains<chains>(rows, [&](auto c, Index i) SEQMIX_INLINE_LAMBDA {
      const Batch<T> x = broadcast(from[i]);
      const T* row = matrix + i * stride + column;
      unroll<V>([&](auto b) SEQMIX_INLINE_LAMBDA { sums[c][b] = fma(x, load(row + b * width), sums[c][b]); });
    });
    add_chains(sums);
    unroll<V>([&](auto b) SEQMIX_INLINE_LAMBDA { store(to + column + b * width, sums[0][b]); });
  });
}

}  // namespace detail

/// One head's memory [key_dim, value_dim] under the delta rule, and the rows of the token it is at. Rows are
/// padded<T>(key_dim) or padded<T>(value_dim) long; what stands in the padding of keys and queries does not matter,
/// values must be finite there. Scratch comes from the workspace's open frame.
template <class T>
class DeltaMemory {
 public:
  /// Works on `memory` where it is, if its rows are whole vectors, or on a copy until `finish`.
  DeltaMemory(const Sequence<T>& memory, Workspace& workspace) : memory_(memory), rows_(memory) {
    const Index key_pitch = detail::padded<T>(memory.length()), pitch = detail::padded<T>(memory.channels());
    if (pitch != memory.channels()) {
      rows_ = {workspace.take<T>(memory.length() * pitch).data(), memory.length(), pitch};
      for (Index i = 0; i < memory.length(); ++i) {
        std::fill(std::copy_n(memory.row(i), memory.channels(), rows_.row(i)), rows_.row(i) + pitch, T(0));
      }
    }
    const auto row = [&](Index size) { return workspace.take<T>(size).data(); };
    // Where the registers hold four more rows, and the memory is large against the inner products, four tokens wait.
    wait_ = sizeof(Batch<T>) >= 64 && memory.length() >= 64 ? most_pending : 1;
    key_ = row(key_pitch), query_ = row(key_pitch), value_ = row(pitch), held_ = row(pitch), read_ = row(pitch);
    for (Index s = 0; s < wait_; ++s) keys_[s] = row(key_pitch), values_[s] = row(pitch);
  }

  /// The rows of the next token, to be filled in: the first two before `read`, the value before `update`.
  T* key() const { return key_; }
  T* query() const { return query_; }
  T* value() const { return value_; }

  /// Finds what the memory holds for the key and the query.
  SEQMIX_ALWAYS_INLINE void read() {
    if (pending_ < wait_) {
      sweep<0>();
    } else {
      wait_ == 1 ? sweep<1>() : sweep<most_pending>();
      pending_ = 0;
    }
    for (Index s = 0; s < pending_; ++s) {
      with_key_[s] = key_product(key_, keys_[s]);
      with_query_[s] = key_product(query_, keys_[s]);
    }
    own_ = key_product(query_, key_);
  }

  /// Takes the value in: result(first column, h) gets vectors of h. The key and the value are used up, the query stays.
  template <class Result>
  SEQMIX_ALWAYS_INLINE void update(T beta, Result&& result) {
    for (Index j = 0; j < rows_.channels(); j += lanes<T>) {
      Batch<T> held = load(held_ + j), h = load(read_ + j);
      for (Index s = 0; s < pending_; ++s) {
        const Batch<T> u = load(values_[s] + j);
        held = fma(broadcast(with_key_[s]), u, held);
        h = fma(broadcast(with_query_[s]), u, h);
      }
      const Batch<T> u = broadcast(beta) * (load(value_ + j) - held);
      store(value_ + j, u);
      result(j, fma(broadcast(own_), u, h));
    }
    std::swap(key_, keys_[pending_]);
    std::swap(value_, values_[pending_]);
    ++pending_;
  }

  /// Adds what the last tokens leave. The memory is complete only now.
  void finish() {
    constexpr Index width = lanes<T>;
    for (Index s = 0; s < pending_; ++s) {
      for (Index i = 0; i < rows_.length(); ++i) {
        const Batch<T> k = broadcast(keys_[s][i]);
        T* row = rows_.row(i);
        for (Index j = 0; j < rows_.channels(); j += width) {
          store(row + j, fma(k, load(values_[s] + j), load(row + j)));
        }
      }
    }
    pending_ = 0;
    if (rows_.data() == memory_.data()) return;
    for (Index i = 0; i < memory_.length(); ++i) std::copy_n(rows_.row(i), memory_.channels(), memory_.row(i));
  }

 private:
  static constexpr Index most_pending = 4;

  /// The inner product of two rows of key_dim numbers.
  SEQMIX_ALWAYS_INLINE T key_product(const T* a, const T* b) const {
    constexpr Index width = lanes<T>;
    Batch<T> dot = broadcast(T(0));
    for (Index i = 0; i < rows_.length(); i += width) {
      const Index rest = rows_.length() - i;
      const Batch<T> product = load(a + i) * load(b + i);
      dot += rest >= width ? product : select(lane_index<T>() < broadcast(T(rest)), product, broadcast(T(0)));
    }
    return reduce_add(dot);
  }

  /// held = S^T key, read = S^T query, after S += the k u^T of the first `adds` tokens that are pending.
  template <Index adds>
  SEQMIX_ALWAYS_INLINE void sweep() {
    constexpr Index width = lanes<T>;
    detail::for_column_tiles<T>(rows_.channels(), [&](auto vectors, Index column) SEQMIX_INLINE_LAMBDA {
      constexpr Index V = vectors, chains = detail::sweep_chains<2 * V>;
      Batch<T> u[adds + 1][V], held[chains][V], read[chains][V];
      unroll<V>([&](auto b) SEQMIX_INLINE_LAMBDA {
        unroll<adds>([&](auto s) SEQMIX_INLINE_LAMBDA { u[s][b] = load(values_[s] + column + b * width); });
        unroll<chains>([&](auto c) SEQMIX_INLINE_LAMBDA { held[c][b] = read[c][b] = broadcast(T(0)); });
      });
      T* const memory = rows_.data() + column;
      const Index stride = rows_.stride();
      const T *key = key_, *query = query_;
      const T* keys[adds + 1];
      unroll<adds>([&](auto s) SEQMIX_INLINE_LAMBDA { keys[s] = keys_[s]; });
      detail::for_rows_in_chains<chains>(rows_.length(), [&](auto c, Index i) SEQMIX_INLINE_LAMBDA {
        T* row = memory + i * stride;
        const Batch<T> k = broadcast(key[i]), q = broadcast(query[i]);
        Batch<T> added[adds + 1];
        unroll<adds>([&](auto s) SEQMIX_INLINE_LAMBDA { added[s] = broadcast(keys[s][i]); });
        unroll<V>([&](auto b) SEQMIX_INLINE_LAMBDA {
          Batch<T> m = load(row + b * width);
          if constexpr (adds > 0) {
            unroll<adds>([&](auto s) SEQMIX_INLINE_LAMBDA { m = fma(added[s], u[s][b], m); });
            store(row + b * width, m);
          } else {
            // Else the compiler reads it twice, and the ports for loads are what limits this loop.
            keep_in_register<T>(m);
          }
          held[c][b] = fma(k, m, held[c][b]);
          read[c][b] = fma(q, m, read[c][b]);
        });
      });
      detail::add_chains(held);
      detail::add_chains(read);
      unroll<V>([&](auto b) SEQMIX_INLINE_LAMBDA {
        store(held_ + column + b * width, held[0][b]);
        store(read_ + column + b * width, read[0][b]);
      });
    });
  }

  Sequence<T> memory_, rows_;
  T *key_, *query_, *value_;                                          // of the token
  T *held_, *read_;                                                   // S^T k and S^T q
  T *keys_[most_pending], *values_[most_pending];                     // k and u of tokens that the memory lacks yet
  T with_key_[most_pending], with_query_[most_pending], own_ = T(0);  // their keys times the token's; its own q . k
  Index pending_ = 0, wait_ = 1;
};

}  // namespace seqmix::inline SEQMIX_ARCH
