// The forget gate of the HGRN family: a sigmoid squeezed into [bound, 1), as a logarithm.
//
//   Source    Qin et al. 2023, arXiv:2311.04823, section 3.1; Qin et al. 2024, arXiv:2404.07904
#pragma once

#include <seqmix/core/view.hpp>
#include <seqmix/parts/row.hpp>
#include <seqmix/simd/arch.hpp>
#include <seqmix/simd/math.hpp>

namespace seqmix::inline SEQMIX_ARCH {

/// g = log(bound + (1 - bound) sigmoid(f)), in place, relative to its own size accurate to a few ulp near 0 (gates that
/// keep) as far below. f [length, channels]; bound [channels] in [0, 1), or of size 0 for zeros.
template <class T>
void apply_lower_bounded_gate(Sequence<T> f, ConstToken<T> bound) {
  const auto gate = [](const Batch<T>& x, const Batch<T>& least) SEQMIX_INLINE_LAMBDA {
    const Batch<T> rest = broadcast(T(1)) - least, forgotten = rest * sigmoid(-x);
    return select(forgotten < broadcast(T(0.5)), log1p(-forgotten), log(fma(rest, sigmoid(x), least)));
  };
  for (Index t = 0; t < f.length(); ++t) {
    if (bound.channels() == 0) {
      map_row(f.channels(), f.row(t), logsigmoid, f.row(t));
    } else {
      map_row(f.channels(), f.row(t), gate, f.row(t), bound.data());
    }
  }
}

}  // namespace seqmix::inline SEQMIX_ARCH
