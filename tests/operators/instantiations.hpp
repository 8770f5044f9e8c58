// Pieces of the library that the layers of nearly all operators are made of, compiled once in instantiations.cpp: included
// ahead of every file here (tests/CMakeLists.txt).
#pragma once

#include <seqmix/parts/linear.hpp>

// SEQMIX_TEST_PIECES(`extern template` or `template`, scalar)
#define SEQMIX_TEST_PIECES(instantiate, T)                                                                         \
  instantiate void seqmix::multiply(seqmix::ConstSequence<T>, const seqmix::PackedMatrix<T>&, seqmix::FromZero,    \
                                    seqmix::Sequence<T>, seqmix::Workspace&);                                      \
  instantiate void seqmix::multiply(seqmix::ConstSequence<T>, const seqmix::PackedMatrix<T>&, seqmix::FromBias<T>, \
                                    seqmix::Sequence<T>, seqmix::Workspace&);                                      \
  instantiate void seqmix::multiply(seqmix::ConstSequence<T>, const seqmix::PackedMatrix<T>&, seqmix::FromOutput,  \
                                    seqmix::Sequence<T>, seqmix::Workspace&);                                      \
  instantiate class seqmix::Linear<T>;

SEQMIX_TEST_PIECES(extern template, float)
SEQMIX_TEST_PIECES(extern template, double)
