// Log-linear attention: simple gated linear attention whose readers weigh the recent past and the distant one differently,
// with a memory for each part of the past.
//
//   Source    Guo et al. 2025, arXiv:2506.04761, sections 3.1 to 3.3; fla-org/flash-linear-attention,
//             fla/ops/log_linear_attn/naive.py
//   Glossary  L length   H heads   K, V key and value width of one head
//   Engine    engine/log_linear_recurrence.hpp
//   Size      a core without a layer: all but its checks is the engine's
//   Differs   The state holds the memories as the next token sees them: merged when a token is added, not before the next is.
//
// y_t = scale * sum over s <= t of lambda[t, level(t, s)] exp(g_{s+1} + .. + g_t) (q_t . k_s) v_s,
// level(t, s) = bit_width(t xor s), t and s counted from the beginning of the sequence
#pragma once

#include <bit>
#include <cstdint>
#include <seqmix/engine/linear_recurrence.hpp>
#include <seqmix/engine/log_linear_recurrence.hpp>
#include <string>

namespace seqmix::inline SEQMIX_ARCH {

/// Log-linear attention from and into `state`, a LogLinearState of H heads. query, key [L, H', K], value [L, H', V], log_decay
/// (<= 0, -infinity allowed) [L, H'], level_scales (of any sign) [L, H', levels], output [L, H, V]; every H' divides H. Tokens
/// up to position t take bit_width(t) + 1 levels; more are not read, nor are those that a token's past does not have.
/// O(L H K V log(position)) time, O(H K + K V) scratch for each thread. Allocates nothing once `workspace` is warm.
/// Throws std::invalid_argument on shapes that do not fit, on outputs that overlap, and where the state has no room for L more
/// tokens (LogLinearState::reserve makes it).
template <std::floating_point T>
void log_linear_attention(ConstHeadSequence<T> query, ConstHeadSequence<T> key, ConstHeadSequence<T> value,
                          ConstSequence<T> log_decay, ConstHeadSequence<T> level_scales, std::type_identity_t<T> scale,
                          LogLinearState<T>& state, HeadSequence<T> output, Workspace& workspace) {
  constexpr std::string_view name = "log_linear_attention";
  const Index levels = state.levels(), heads = output.heads(), length = output.length();
  expect_shape(name, "state.memory", {levels, heads, key.head_dim(), output.head_dim()}, state.memory.shape());
  expect_shape(name, "state.fade", {levels, heads}, state.fade.shape());
  const MemoryView<T> memory(state.memory.data(), heads, key.head_dim(), output.head_dim());
  expect_recurrence_shapes<T>(name, query, key, value, memory, output);
  expect_shared_heads<T>(name, "log_decay", log_decay, memory, output);
  expect_shared_heads<T>(name, "level_scales", level_scales, level_scales.head_dim(), memory, output);
  const Sequence<T> memories(state.memory.data(), levels * heads * key.head_dim(), output.head_dim());
  expect_disjoint(name, "output", output, "state.memory", memories);
  if (length == 0) return;
  if (state.position < 0 || state.position > state.capacity() - length) [[unlikely]] {
    internal::throw_invalid(name, "state",
                            "holds at most " + std::to_string(state.capacity()) + " tokens, position " +
                                std::to_string(state.position) + " and " + std::to_string(length) +
                                " more given: reserve more");
  }
  const Index needed = Index(std::bit_width(std::uint64_t(state.position + length - 1))) + 1;
  if (level_scales.head_dim() < needed) [[unlikely]] {
    internal::throw_invalid(name, "level_scales",
                            "has " + std::to_string(level_scales.head_dim()) + " levels, " + std::to_string(needed) +
                                " needed at this position");
  }
  log_linear_recurrence(LogLinearProblem<T>{query, key, value, log_decay, level_scales, scale, state, output},
                        workspace);
}

}  // namespace seqmix::inline SEQMIX_ARCH
