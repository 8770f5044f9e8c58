// The promises of every mixer, as functions that check one. See the semantic requirements in core/mixer.hpp.
//
//   accuracy   float agrees with double
//   stepping   step for each token = forward
//   pieces     prefill over any cuts, empty ones too, mixed with step = forward
//   state      after steps and after pieces the continuations agree too
//   fork       a copied state continues with the same bits; advancing one never changes the other
//   causality  y[0 .. t) keeps every bit when x[t ..) changes, to NaN and infinity too; of a mixer with rounded causality
//              it moves by rounding errors at most, when x[t ..) changes to numbers of other sizes
//   threads    the same bits for every executor, and for concurrent callers of one mixer
//   quiet      once the workspace is warm, step and prefill allocate nothing and step makes no system call
//   save       a state written to bytes and read back continues with the same bits; other bytes are refused
//   views      strides and alignment of x and y, and what y held before, don't matter; nothing beside y is written
//   rollback   a state saved some tokens ago and replayed agrees: no hidden history
//   batch      several sequences at once = one after the other
//   errors     wrong arguments throw std::invalid_argument that names the operator, and change nothing
//
// Scratch memory is filled with NaN before every call.
#pragma once

#include <string>
#include <vector>

#include "registry.hpp"

namespace seqmix::test {

/// A promise that a mixer broke.
struct LawFailure {
  std::string law;
  std::string message;
};

/// How much to try: `small` with SEQMIX_TEST_EFFORT=small in the environment (sanitizers), else `full`.
enum class Effort { small, full };
Effort test_effort();

/// Checks all laws that apply to the mixer. `foreign`, where given, is the same operator in another configuration, whose
/// states must be refused where they have other sizes. Returns at most one failure per law.
template <class T>
std::vector<LawFailure> check_laws(const MixerCase<T>& mixer, Effort effort, const AnyMixer<T>* foreign = nullptr);

extern template std::vector<LawFailure> check_laws<float>(const MixerCase<float>&, Effort, const AnyMixer<float>*);
extern template std::vector<LawFailure> check_laws<double>(const MixerCase<double>&, Effort, const AnyMixer<double>*);

}  // namespace seqmix::test
