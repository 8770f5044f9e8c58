// What a mixer keeps of the past for one convolution of any length, and how a batch of sequences goes on from it.
#pragma once

#include <seqmix/core/mixer.hpp>
#include <seqmix/core/tensor.hpp>
#include <string_view>
#include <type_traits>

namespace seqmix::inline SEQMIX_ARCH {

/// The state of a convolution with state_shape() and run(past, position, x, y, workspace), such as StreamingConvolution, of
/// whose past it is all that matters. Zeros before the first token.
template <class T>
struct StreamedPast {
  Index position = 0;  // tokens seen
  Tensor<T> past;      // [P, numbers of a row], see StreamingConvolution

  template <class Self, class Visitor>
  static void visit(Self& self, Visitor&& visitor) {
    visitor("position", self.position), visitor("past", self.past);
  }

  /// Throws std::invalid_argument unless the state is one of this convolution's.
  template <class Convolution>
  void check(std::string_view operation, const Convolution& convolution) const {
    expect_shape(operation, "state.past", convolution.state_shape(), past.shape());
    expect(position >= 0, operation, "state.position", "must not be negative");
  }
};

/// Convolves the next tokens of every sequence of a batch, in packed rows x [L, H] into y [L, c H], not overlapping, one
/// sequence after the other. Allocates nothing once `workspace` is warm.
template <class Convolution, class T>
void run_streamed(const Convolution& convolution, const SequenceBatch<StreamedPast<T>>& batch,
                  std::type_identity_t<ConstSequence<T>> x, std::type_identity_t<Sequence<T>> y, Workspace& workspace) {
  for (Index b = 0; b < batch.size(); ++b) {
    StreamedPast<T>& state = batch.state(b);
    const Index begin = batch.begin(b), count = batch.length(b);
    convolution.run(state.past.data(), state.position, x.rows(begin, count), y.rows(begin, count), workspace);
    state.position += count;
  }
}

}  // namespace seqmix::inline SEQMIX_ARCH
