// Long sequences, some rows at a time.
#pragma once

#include <algorithm>
#include <seqmix/core/workspace.hpp>

namespace seqmix {

/// Calls body(begin, count) for consecutive rows that together are 0 .. length - 1, each time in a frame of its own: for what
/// takes every row by itself and needs scratch that is to stay in a cache.
template <class Body>
void for_passes(Index length, Workspace& workspace, Body&& body) {
  constexpr Index rows = 512;
  for (Index begin = 0; begin < length; begin += rows) {
    const auto frame = workspace.frame();
    body(begin, std::min(rows, length - begin));
  }
}

}  // namespace seqmix
