// The linear recurrence over a whole sequence, in the fused or the chunked order.
//
// A head's memory is held in panels of two vectors of value columns, [key_dim][2 vectors], copied on entry and exit: a
// panel fits the first-level cache whatever the key_dim, and panels are what threads share. Blocks of tokens are the outer
// loop and heads the inner: the rows of a block come from memory once for all heads, and every panel is moved between the
// caches once for each block, whose coefficients, made once for all panels of a head, stay in the first-level cache.
#pragma once

#include <algorithm>
#include <array>
#include <seqmix/engine/linear_recurrence_delta_chunked.hpp>

namespace seqmix::inline SEQMIX_ARCH {

/// How linear_recurrence_panels goes over the tokens.
enum class RecurrenceOrder {
  fused,   ///< a few tokens for each pass over the memory
  chunked  ///< matrix products over chunks of twelve tokens
};

namespace detail {

/// The work of one thread: panels first .. last - 1, counted over heads and the panels of each.
template <RecurrenceOrder order, class T, class Problem>
class PanelRecurrence {
 public:
  PanelRecurrence(const Problem& problem, Index first, Index last, Workspace& workspace)
      : problem_(problem), first_(first), last_(last) {
    for (auto& chunk : chunks_) chunk = ChunkCoefficientsOf<Delta, T>(key_dim_, workspace);
    for (auto& group : groups_) group = CoefficientsOf<Delta, T, group_tokens>(key_dim_, workspace);
    for (auto& single : singles_) single = CoefficientsOf<Delta, T, 1>(key_dim_, workspace);
    panels_memory_ = workspace.take<T>((last - first) * (compensates ? 2 : parts) * panel_size_).data();
    staged_ = StagedRows<T>(problem.delta, block_tokens, key_dim_, workspace);
    values_ = workspace.take<T>((Delta::low_rank ? 2 : 1) * chunk_tokens * panel_columns).data();
    const Index heads = last_head_ - first_head_ + 1;
    factors_ = workspace
                   .take<T>(Decay::constant            ? heads * pitch_
                            : Decay::per_value_channel ? block_tokens * factor_pitch_
                            : Decay::per_channel       ? (chunked ? chunk_tokens : group_tokens) * pitch_
                                                       : padded<T>(block_tokens))
                   .data();
    key_sums_ = workspace.take<T>(Normalizer::any ? heads * 2 * pitch_ : 0).data();
    pending_ = workspace.take<T>(heads * pending_pitch_).data();
    std::fill_n(pending_, heads * pending_pitch_, T(0));
    two_parts_ = workspace.take<bool>(heads).data();
    std::fill_n(two_parts_, heads, Problem::sums);
  }

  /// Runs all tokens. `initial` is the normalizer as before the first of them.
  void run(const decltype(Problem::normalizer)& initial) {
    load_panels();
    for (Index h = first_head_; h <= last_head_; ++h) {
      if constexpr (Normalizer::any) load_key_sum<Decay>(initial, h, key_sum(h));
      if constexpr (Decay::constant) load_factors<Decay>(problem_.head(h), 0, 1, factors(h));
      if constexpr (compensates) choose_parts(h, problem_.head(h).log_decay, 0, std::min(Index(1), problem_.length()));
    }
    Index settled = 0;
    for (Index begin = 0; begin < problem_.length(); begin += block_tokens) {
      for (Index h = first_head_; h <= last_head_; ++h)
        run_block(h, begin, std::min(block_tokens, problem_.length() - begin));
      if (begin + block_tokens - settled >= settle_interval) settle_all(), settled = begin + block_tokens;
    }
    save_panels();
  }

 private:
  using Decay = decltype(Problem::decay);
  using Normalizer = decltype(Problem::normalizer);
  using Delta = decltype(Problem::delta);
  using FadingRows = RowDecay<Decay, T>;

  static constexpr Index panel_columns = 2 * lanes<T>;
  static constexpr bool chunked = order == RecurrenceOrder::chunked;
  // Columns that fade each at their own pace leave no product of matrices; weights are left to the fused order.
  static_assert(!(chunked && (Decay::per_value_channel || decltype(Problem::readout)::weighted)));
  static_assert(!(chunked && Problem::sums && Decay::any), "chunks read the settled part only, before it is rescaled");
  static constexpr Index parts = Problem::sums ? 2 : 1;  // of a panel: recent, settled
  // Whether memories that hardly decay are summed in two parts as well (see choose_parts): the recent ones are behind all
  // panels, since between them they would leave the caches half empty. Double has digits enough.
  static constexpr bool compensates = FadingRows::any && dithers<T> && !Problem::sums && !Delta::any &&
                                      !Normalizer::any && !decltype(Problem::readout)::weighted && !chunked;
  // As many tokens as leave their values, their outputs, and a row of the memory in registers, two vectors of each: with
  // four, sixteen registers do not hold them, and a token takes 6 to 21% longer.
  static constexpr Index group_tokens = register_count<> >= 32 ? 4 : Delta::low_rank ? 2 : 3;
  static constexpr Index block_tokens =
      chunked ? 2 * chunk_tokens : 24;  // measured: 12 takes up to 12% longer, 36 the same

  Index columns_of(Index panel) const { return std::min(panel_columns, value_dim_ - panel * panel_columns); }
  T* panel_memory(Index unit) { return panels_memory_ + (unit - first_) * parts * panel_size_; }
  /// The settled part, or all of it.
  T* settled_panel(Index unit) { return panel_memory(unit) + (parts - 1) * panel_size_; }
  T* recent_panel(Index unit) { return panel_memory(unit) + (compensates ? last_ - first_ : 0) * panel_size_; }
  /// Whether the memory of head h is in two parts.
  bool& two_parts(Index h) { return two_parts_[h - first_head_]; }
  T* key_sum(Index h) { return key_sums_ + (Normalizer::any ? (h - first_head_) * 2 * pitch_ : 0); }
  T* pending(Index h) { return pending_ + (h - first_head_) * pending_pitch_; }
  T* factors(Index h) { return factors_ + (Decay::constant ? (h - first_head_) * pitch_ : 0); }

  /// Calls f(row of the memory, row of the panel, columns that exist) for every row of every panel's part.
  template <class F>
  SEQMIX_ALWAYS_INLINE void for_panel_rows(const MemoryView<T>& memory, Index part, F&& f) {
    for (Index unit = first_; unit < last_; ++unit) {
      const Index h = unit / panels_, panel = unit % panels_, columns = columns_of(panel);
      T* const row = panel_memory(unit) + part * panel_size_;
      for (Index i = 0; i < key_dim_; ++i) {
        f(memory.row(h, i) + panel * panel_columns, row + i * panel_columns, columns);
      }
    }
  }

  void load_panels() {
    load_part(problem_.memory, parts - 1);
    if constexpr (Problem::sums) {
      if (problem_.decay.compensation.data()) {
        load_part(problem_.decay.compensation, 0);
        // Chunks read the settled part only.
        if constexpr (chunked) settle_all();
      } else {
        for (Index unit = first_; unit < last_; ++unit) std::fill_n(panel_memory(unit), panel_size_, T(0));
      }
    }
  }

  void load_part(const MemoryView<T>& from, Index part) {
    for_panel_rows(from, part, [](const T* memory, T* row, Index columns) SEQMIX_INLINE_LAMBDA {
      unroll<2>([&](auto b) SEQMIX_INLINE_LAMBDA {
        constexpr Index width = lanes<T>;
        // A panel is a cache line or two wide: a call of memcpy for each row takes longer than a token does.
        const Index some = std::clamp(columns - b * width, Index(0), width);
        store(row + b * width,
              some == width ? load(memory + b * width) : load_partial(memory + (some > 0 ? b * width : 0), some));
      });
    });
  }

  void save_part(const MemoryView<T>& to, Index part) {
    for_panel_rows(to, part, [](T* memory, const T* row, Index columns) SEQMIX_INLINE_LAMBDA {
      unroll<2>([&](auto b) SEQMIX_INLINE_LAMBDA {
        constexpr Index width = lanes<T>;
        if (columns > b * width) store_some(memory + b * width, load(row + b * width), columns - b * width);
      });
    });
  }

  /// Multiplies the memories and sums of keys by the decays that they still wait for.
  void take_pending() {
    if constexpr (FadingRows::any) {
      if (problem_.length() == 0) return;
      const Index last = problem_.length() - 1;  // the token that the rounding takes its salt from
      for (Index unit = first_; unit < last_; ++unit) {
        const Index h = unit / panels_;
        const bool two = compensates && two_parts(h);  // then the recent part is what is left of settling it
        const T salt = *problem_.head(h).value.row(last);
        for (Index row = 0; row < parts * key_dim_; ++row) {
          const T log = pending_log<FadingRows>(pending(h), row % key_dim_);
          if (log == T(0) && !two) continue;
          T* const memory = panel_memory(unit) + row * panel_columns;
          const T* const recent = recent_panel(unit) + row * panel_columns;
          unroll<2>([&](auto b) SEQMIX_INLINE_LAMBDA {
            const Batch<T> rest = two ? load(recent + b * lanes<T>) : broadcast(T(0));
            store(memory + b * lanes<T>, decayed(load(memory + b * lanes<T>), broadcast(log), salt, rest));
          });
        }
      }
      for (Index h = first_head_; Normalizer::any && key_dim_ > 0 && h <= last_head_; ++h) {
        const T salt = *problem_.head(h).key.row(last);
        const T* const logs = pending(h) + lanes<T>;
        for (Index i = 0; i < key_dim_; i += lanes<T>) {
          const Batch<T> log = FadingRows::per_channel ? load(logs + i) : broadcast(*logs);
          store(key_sum(h) + i, decayed(load(key_sum(h) + i), log, salt));
        }
      }
    }
  }

  void save_panels() {
    settle_all();
    take_pending();
    save_part(problem_.memory, parts - 1);
    if constexpr (Problem::sums) {
      if (problem_.decay.compensation.data()) save_part(problem_.decay.compensation, 0);
    }
    if constexpr (Normalizer::any) {
      for (Index h = first_head_; h <= last_head_; ++h) {
        // Of the threads that share a head, that of its first panel.
        if (h * panels_ >= first_) save_key_sum<Decay>(key_sum(h), problem_.normalizer, h);
      }
    }
  }

  /// Moves the recent parts of all sums into the settled ones.
  void settle_all() {
    if constexpr (Problem::sums || compensates) {
      for (Index unit = first_; unit < last_; ++unit) {
        if (two_parts(unit / panels_)) settle(recent_panel(unit), settled_panel(unit), panel_size_);
      }
    }
    if constexpr (Normalizer::any && !Decay::any) {
      for (Index h = first_head_; h <= last_head_; ++h) settle(key_sum(h), key_sum(h) + pitch_, pitch_);
    }
  }

  /// Chooses, by the decays of `count` tokens from `begin` on, how head h goes on: in two parts if a row of its memory reaches
  /// back further than 2^16 tokens. That row outgrows what tokens add nearly as a sum does.
  [[gnu::noinline]] void choose_parts(Index h, Sequence<const T> log_decay, Index begin, Index count) {
    const Index rows = Decay::per_channel ? key_dim_ : 1;
    T least[lanes<T>];
    std::fill_n(least, lanes<T>, T(-0x1p-16) * T(count));
    bool far = false;
    for (Index i = 0; i < rows && !far; i += lanes<T>) {
      Batch<T> logs = load(least) - load_some(least, rows - i);  // 0, and too little where there is no channel
      // Most often the first token tells.
      for (Index t = begin; t < begin + count && any(logs > load(least)); ++t) logs += channel_log(log_decay, t, i);
      far = any(logs > load(least));
    }
    if (far == two_parts(h)) return;
    two_parts(h) = far;
    for (Index unit = std::max(first_, h * panels_); unit < std::min(last_, (h + 1) * panels_); ++unit) {
      if (far) {
        std::fill_n(recent_panel(unit), panel_size_, T(0));
      } else {
        settle(recent_panel(unit), settled_panel(unit), panel_size_);
      }
    }
  }

  /// Tokens begin .. begin + count - 1 of one head: coefficients first, then every panel.
  void run_block(Index h, Index begin, Index count) {
    const auto head = problem_.head(h);
    if constexpr (!Decay::constant && !Decay::per_channel) load_factors<Decay>(head, begin, count, factors(h));
    staged_.load(problem_, head, begin, count);
    Index t = 0;
    for_each_group(count, [&](auto& coefficients) {
      T* const group_factors = factors(h) + (Decay::constant || Decay::per_channel ? 0 : t);
      prepare_coefficients(problem_, head, begin + t, staged_.from(t), group_factors, pending(h), key_sum(h),
                           coefficients);
      t += coefficients.token_count;
    });

    if (compensates && two_parts(h)) [[unlikely]] {
      if constexpr (compensates) sweep_two_parts(h, begin, count);
    } else {
      sweep_panels<Problem::sums>(h, begin, count);
    }
    // For the tokens behind: outputs do not depend on decays of later ones.
    if constexpr (compensates && !Decay::constant) {
      if (two_parts(h) || any(load(pending(h)) > broadcast(T(0)))) [[unlikely]]
        choose_parts(h, head.log_decay, begin, count);
    }
    const auto& map = problem_.output_map;
    if (map.function) {
      const Index first = std::max(first_, h * panels_), last = std::min(last_, (h + 1) * panels_);
      const Index column = (first - h * panels_) * panel_columns;
      const Index columns = std::min((last - h * panels_) * panel_columns, value_dim_) - column;
      map.function(map.parameters, h, begin, column, head.output.rows(begin, count).columns(column, columns));
    }
  }

  /// The panels of head h, in one part or in two, over a block of tokens whose coefficients are made.
  template <bool in_two_parts>
  SEQMIX_ALWAYS_INLINE void sweep_panels(Index h, Index begin, Index count) {
    const auto head = problem_.head(h);
    const Index first = std::max(first_, h * panels_), last = std::min(last_, (h + 1) * panels_);
    Upcoming upcoming(*this, h, begin, (last - first) * calls_of_sweeps(count));
    for (Index unit = first; unit < last; ++unit) {
      const Index panel = unit - h * panels_, column = panel * panel_columns, columns = columns_of(panel);
      T *const recent = recent_panel(unit), *const settled = settled_panel(unit);
      Index token = begin;
      for_each_group(count, [&](const auto& coefficients) SEQMIX_INLINE_LAMBDA {
        const T* value = head.value.row(token) + column;
        T* output = head.output.row(token) + column;
        const auto meanwhile = [&]() SEQMIX_INLINE_LAMBDA { upcoming.prefetch(); };
        if constexpr (Decay::per_value_channel) {
          sweep_panel<false, false, false, true>(
              coefficients, key_dim_, settled, value, head.value.stride(), output, head.output.stride(), columns,
              values_, meanwhile, Index(0), static_cast<const T*>(factors_) + (token - begin) * factor_pitch_ + column,
              factor_pitch_);
        } else if constexpr (compensates && in_two_parts) {
          sweep_panel<true, false, true>(coefficients, key_dim_, recent, value, head.value.stride(), output,
                                         head.output.stride(), columns, values_, meanwhile, settled - recent);
          decay_settled(recent, settled, key_dim_, static_cast<const T*>(coefficients.rows),
                        coefficients.row_vectors * lanes<T>);
        } else {
          sweep_panel<Decay::any, Normalizer::any, Problem::sums>(
              coefficients, key_dim_, Problem::sums ? recent : settled, value, head.value.stride(), output,
              head.output.stride(), columns, values_, meanwhile);
        }
        if constexpr (Problem::sums && Decay::any) rescale(settled, panel_size_, coefficients.rows[0]);
        token += coefficients.token_count;
      });
    }
  }

  /// Not in line, where it would take registers from the others.
  [[gnu::noinline]] void sweep_two_parts(Index h, Index begin, Index count) { sweep_panels<true>(h, begin, count); }

  /// Calls f for the coefficients of each group of tokens of a block of `count`, in order.
  template <class F>
  SEQMIX_ALWAYS_INLINE void for_each_group(Index count, F&& f) {
    if constexpr (chunked) {
      for (Index i = 0; count >= chunk_tokens; ++i, count -= chunk_tokens) f(chunks_[std::size_t(i)]);
    }
    for (Index i = 0; count >= group_tokens; ++i, count -= group_tokens) f(groups_[std::size_t(i)]);
    for (Index i = 0; count > 0; ++i, --count) f(singles_[std::size_t(i)]);
  }

  /// How often, at least, the sweeps of one panel over a block of `count` tokens call meanwhile().
  Index calls_of_sweeps(Index count) const {
    if constexpr (chunked) return (count + chunk_tokens - 1) / chunk_tokens;
    return (count / group_tokens + count % group_tokens) * (Delta::any ? 2 : 1) * (pitch_ / lanes<T>);
  }

  /// The rows that will be read and written next but one: the same tokens of the head after the next, or the next tokens of
  /// one of the first heads. They lie far apart, which defeats the hardware's prefetcher, so a few lines at a time are
  /// asked for between the rows of the sweeps; many at once would fill the buffers that the sweeps need.
  class Upcoming {
   public:
    /// While head h is swept over the block that begins with `begin`, with `calls` calls of prefetch().
    Upcoming(const PanelRecurrence& recurrence, Index h, Index begin, Index calls) {
      const Index heads = recurrence.last_head_ - recurrence.first_head_ + 1, next = h - recurrence.first_head_ + 2;
      const Index next_head = recurrence.first_head_ + next % heads, token = begin + next / heads * block_tokens;
      tokens_ = std::clamp(recurrence.problem_.length() - token, Index(0), block_tokens);
      if (tokens_ == 0) return;
      const auto head = recurrence.problem_.head(next_head);
      Index count = 0;
      const auto add = [&](const auto& x, Index column) { streams_[count++] = {x.row(token) + column, x.stride()}; };
      add(head.query, 0);
      add(head.key, 0);
      if constexpr (!Decay::constant && Decay::per_channel) add(head.log_decay, 0);
      if constexpr (Delta::low_rank) {
        add(head.a, 0);
        add(head.b, 0);
      }
      const Index first_column = std::max(Index(0), recurrence.first_ - next_head * recurrence.panels_) * panel_columns;
      add(head.value, first_column);
      add(head.output, first_column);
      if (recurrence.problem_.output_map.reads.heads() > 0) {
        add(recurrence.problem_.output_map.reads.head(next_head), first_column);
        map_reads_ = true;
      }
      value_channels_ =
          std::min((recurrence.last_ - next_head * recurrence.panels_) * panel_columns, recurrence.value_dim_) -
          first_column;
      key_channels_ = std::max(head.query.channels(), head.key.channels());
      channels_ = std::max(key_channels_, value_channels_);
      lines_ = (tokens_ * ((channels_ + line - 1) / line) + calls - 1) / std::max(calls, Index(1));
    }

    SEQMIX_ALWAYS_INLINE void prefetch() {
      for (Index n = 0; n < lines_ && tokens_ > 0; ++n) {
        if (channel_ < key_channels_) {
          unroll<key_streams>([&](auto i) SEQMIX_INLINE_LAMBDA { prefetch_early(streams_[i].row + channel_); });
        }
        if (channel_ < value_channels_) {
          unroll<2>([&](auto i) SEQMIX_INLINE_LAMBDA { prefetch_early(streams_[key_streams + i].row + channel_); });
          if (map_reads_) prefetch_early(streams_[key_streams + 2].row + channel_);
        }
        channel_ += line;
        if (channel_ >= channels_) {
          channel_ = 0;
          --tokens_;
          for (Stream& stream : streams_) stream.row += stream.stride;
        }
      }
    }

   private:
    static constexpr Index line = Index(memory_alignment / sizeof(T));
    static constexpr Index key_streams =
        2 + (!Decay::constant && Decay::per_channel ? 1 : 0) + (Delta::low_rank ? 2 : 0);

    struct Stream {
      const T* row = nullptr;
      Index stride = 0;
    };
    Stream streams_[key_streams + 3];
    bool map_reads_ = false;
    Index tokens_, key_channels_ = 0, value_channels_ = 0, channels_ = 0, lines_ = 0, channel_ = 0;
  };

  const Problem& problem_;
  const Index first_, last_;
  const Index key_dim_ = problem_.key_dim(), value_dim_ = problem_.value_dim(), pitch_ = padded<T>(key_dim_);
  const Index pending_pitch_ = pending_pitch<FadingRows, T>(key_dim_);
  const Index factor_pitch_ = factor_pitch<Decay, T>(key_dim_, value_dim_);
  const Index panels_ = (value_dim_ + panel_columns - 1) / panel_columns, panel_size_ = key_dim_ * panel_columns;
  const Index first_head_ = first_ / panels_, last_head_ = (last_ - 1) / panels_;
  std::array<ChunkCoefficientsOf<Delta, T>, chunked ? 2 : 0> chunks_;
  std::array<CoefficientsOf<Delta, T, group_tokens>, (chunked ? chunk_tokens - 1 : block_tokens) / group_tokens>
      groups_;
  std::array<CoefficientsOf<Delta, T, 1>, group_tokens - 1> singles_;
  StagedRows<T> staged_;
  T *panels_memory_, *values_, *factors_, *key_sums_, *pending_;
  bool* two_parts_;  // [heads of this thread]
};

}  // namespace detail

/// The recurrence over a whole sequence, split between threads by value columns: a single head still uses all of them.
/// O(heads key_dim value_dim) time per token.
template <RecurrenceOrder order, class T, class Decay, class Readout, class Normalizer, class Delta>
void linear_recurrence_panels(const LinearRecurrenceProblem<T, Decay, Readout, Normalizer, Delta>& problem,
                              Workspace& workspace) {
  using Problem = LinearRecurrenceProblem<T, Decay, Readout, Normalizer, Delta>;
  const Index panels = (problem.value_dim() + 2 * lanes<T> - 1) / (2 * lanes<T>), units = problem.heads() * panels;
  const Index workers = std::min(workspace.concurrency(), units);
  if (workers == 0) return;
  const auto frame = workspace.frame();
  Normalizer initial = problem.normalizer;
  if constexpr (Normalizer::any) {
    // Threads that share a head all start from its sum, so none may overwrite it before the others have read it.
    for (Sequence<T>* sum : {&initial.sum, &initial.compensation}) {
      if (!sum->data()) continue;
      const auto copy = workspace.sequence<T>(problem.heads(), problem.key_dim());
      for (Index h = 0; h < problem.heads(); ++h) std::copy_n(sum->row(h), problem.key_dim(), copy.row(h));
      *sum = copy;
    }
  }
  workspace.parallel_for(workers, [&](Index worker, Workspace& local) {
    detail::PanelRecurrence<order, T, Problem>(problem, units * worker / workers, units * (worker + 1) / workers, local)
        .run(initial);
  });
}

}  // namespace seqmix::inline SEQMIX_ARCH
