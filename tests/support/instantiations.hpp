// Pieces of the library that many test programs are made of, compiled once in tests/instantiations/ and included ahead of
// every file (tests/CMakeLists.txt): what the layers of nearly all operators share, and the linear recurrence under the
// policies that more than one file uses.
#pragma once

#include <seqmix/engine/linear_recurrence.hpp>
#include <seqmix/parts/linear.hpp>

// Each of these takes `extern template` or `template`, and a scalar.

#define SEQMIX_TEST_PIECES(instantiate, T)                                                                         \
  instantiate void seqmix::multiply(seqmix::ConstSequence<T>, const seqmix::PackedMatrix<T>&, seqmix::FromZero,    \
                                    seqmix::Sequence<T>, seqmix::Workspace&);                                      \
  instantiate void seqmix::multiply(seqmix::ConstSequence<T>, const seqmix::PackedMatrix<T>&, seqmix::FromBias<T>, \
                                    seqmix::Sequence<T>, seqmix::Workspace&);                                      \
  instantiate void seqmix::multiply(seqmix::ConstSequence<T>, const seqmix::PackedMatrix<T>&, seqmix::FromOutput,  \
                                    seqmix::Sequence<T>, seqmix::Workspace&);                                      \
  instantiate class seqmix::Linear<T>;

// In every order that linear_recurrence chooses from.
#define SEQMIX_TEST_RECURRENCE(instantiate, ...)                                                                       \
  instantiate void seqmix::linear_recurrence(const seqmix::LinearRecurrenceProblem<__VA_ARGS__>&, seqmix::Workspace&); \
  instantiate void seqmix::linear_recurrence_in_place(const seqmix::LinearRecurrenceProblem<__VA_ARGS__>&,             \
                                                      seqmix::Workspace&);                                             \
  instantiate void seqmix::linear_recurrence_panels<seqmix::RecurrenceOrder::fused>(                                   \
      const seqmix::LinearRecurrenceProblem<__VA_ARGS__>&, seqmix::Workspace&);

#define SEQMIX_TEST_RECURRENCES_CONSTANT(instantiate, T)                                          \
  SEQMIX_TEST_RECURRENCE(instantiate, T, seqmix::decay::None<T>)                                  \
  SEQMIX_TEST_RECURRENCE(instantiate, T, seqmix::decay::None<T>, seqmix::readout::AfterUpdate<T>, \
                         seqmix::normalizer::KeySum<T>)                                           \
  SEQMIX_TEST_RECURRENCE(instantiate, T, seqmix::decay::PerHead<T>)                               \
  SEQMIX_TEST_RECURRENCE(instantiate, T, seqmix::decay::PerChannel<T>, seqmix::readout::BeforeUpdate<T>)

#define SEQMIX_TEST_RECURRENCES_BY_TOKEN(instantiate, T)                                                      \
  SEQMIX_TEST_RECURRENCE(instantiate, T, seqmix::decay::PerToken<T>)                                          \
  SEQMIX_TEST_RECURRENCE(instantiate, T, seqmix::decay::PerToken<T>, seqmix::readout::Weighted<T>)            \
  SEQMIX_TEST_RECURRENCE(instantiate, T, seqmix::decay::PerTokenChannel<T>)                                   \
  SEQMIX_TEST_RECURRENCE(instantiate, T, seqmix::decay::PerTokenChannel<T>, seqmix::readout::BeforeUpdate<T>) \
  SEQMIX_TEST_RECURRENCE(instantiate, T, seqmix::decay::PerTokenValueChannel<T>)

#define SEQMIX_TEST_RECURRENCES_DELTA(instantiate, T)                                                        \
  SEQMIX_TEST_RECURRENCE(instantiate, T, seqmix::decay::None<T>, seqmix::readout::AfterUpdate<T>,            \
                         seqmix::normalizer::None<T>, seqmix::delta::Rule<T>)                                \
  SEQMIX_TEST_RECURRENCE(instantiate, T, seqmix::decay::PerToken<T>, seqmix::readout::AfterUpdate<T>,        \
                         seqmix::normalizer::None<T>, seqmix::delta::Rule<T>)                                \
  SEQMIX_TEST_RECURRENCE(instantiate, T, seqmix::decay::PerTokenChannel<T>, seqmix::readout::AfterUpdate<T>, \
                         seqmix::normalizer::None<T>, seqmix::delta::Rule<T>)                                \
  SEQMIX_TEST_RECURRENCE(instantiate, T, seqmix::decay::PerTokenChannel<T>, seqmix::readout::AfterUpdate<T>, \
                         seqmix::normalizer::None<T>, seqmix::delta::LowRank<T>)

SEQMIX_TEST_PIECES(extern template, float)
SEQMIX_TEST_PIECES(extern template, double)
SEQMIX_TEST_RECURRENCES_CONSTANT(extern template, float)
SEQMIX_TEST_RECURRENCES_CONSTANT(extern template, double)
SEQMIX_TEST_RECURRENCES_BY_TOKEN(extern template, float)
SEQMIX_TEST_RECURRENCES_BY_TOKEN(extern template, double)
SEQMIX_TEST_RECURRENCES_DELTA(extern template, float)
SEQMIX_TEST_RECURRENCES_DELTA(extern template, double)
