// Gates and activations, in place on every row of a sequence.
//
// y, gate [length, channels]. O(length * channels); nothing here allocates. The errors of the functions are those stated
// in simd/math.hpp. The activations are function objects (sigmoid, silu, gelu, tanh, ...) and work in multiply_activated and
// apply_activation; the named functions are for convenience.
#pragma once

#include <cassert>
#include <seqmix/core/view.hpp>
#include <seqmix/parts/row.hpp>
#include <seqmix/simd/arch.hpp>
#include <seqmix/simd/math.hpp>
#include <type_traits>

namespace seqmix::inline SEQMIX_ARCH {

/// y = activation(y), where `activation` maps a Batch<T> to a Batch<T>.
template <class T, class Activation>
void apply_activation(Sequence<T> y, Activation&& activation) {
  for (Index t = 0; t < y.length(); ++t) map_row(y.channels(), y.row(t), activation, y.row(t));
}

/// y = y * activation(gate).
template <class T, class Activation>
void multiply_activated(Sequence<T> y, ConstSequence<T> gate, Activation&& activation) {
  assert(y.length() == gate.length() && y.channels() == gate.channels());
  const auto product = [&](const Batch<T>& value, const Batch<T>& g)
                           SEQMIX_INLINE_LAMBDA { return value * activation(g); };
  for (Index t = 0; t < y.length(); ++t) map_row(y.channels(), y.row(t), product, y.row(t), gate.row(t));
}

/// y = y / (1 + e^-y).
template <class T>
void apply_silu(Sequence<T> y) {
  apply_activation(y, silu);
}

/// y = y (1 + erf(y / sqrt(2))) / 2.
template <class T>
void apply_gelu(Sequence<T> y) {
  apply_activation(y, gelu);
}

/// y = 1 / (1 + e^-y).
template <class T>
void apply_sigmoid(Sequence<T> y) {
  apply_activation(y, sigmoid);
}

/// y = tanh(y).
template <class T>
void apply_tanh(Sequence<T> y) {
  apply_activation(y, tanh);
}

/// y = y * gate.
template <class T>
void multiply_elements(Sequence<T> y, ConstSequence<T> gate) {
  multiply_activated(y, gate, [](const Batch<T>& g) SEQMIX_INLINE_LAMBDA { return g; });
}

/// y = y * silu(gate).
template <class T>
void multiply_silu(Sequence<T> y, ConstSequence<T> gate) {
  multiply_activated(y, gate, silu);
}

/// y = y * gelu(gate), the exact form with erf.
template <class T>
void multiply_gelu(Sequence<T> y, ConstSequence<T> gate) {
  multiply_activated(y, gate, gelu);
}

/// y = y * sigmoid(gate).
template <class T>
void multiply_sigmoid(Sequence<T> y, ConstSequence<T> gate) {
  multiply_activated(y, gate, sigmoid);
}

/// y = y * tanh(gate).
template <class T>
void multiply_tanh(Sequence<T> y, ConstSequence<T> gate) {
  multiply_activated(y, gate, tanh);
}

/// y = factor * y.
template <class T>
void scale_elements(Sequence<T> y, std::type_identity_t<T> factor) {
  apply_activation(y, [&](const Batch<T>& value) SEQMIX_INLINE_LAMBDA { return broadcast(factor) * value; });
}

}  // namespace seqmix::inline SEQMIX_ARCH
